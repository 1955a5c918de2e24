"""Cloth: colours, woven and printed patterns, folds. A `Cloth` is a choice; a `Fabric` is ready to paint with."""

import colorsys
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image, ImageChops

from data_prep.synthetic.garments.prints import catalogue_tile

Colour = tuple[int, int, int]

TILE = 720  # pixels; side of every stored pattern, enough for any window turned by any angle
FOLDS = 180  # pixels; side of the stored folds, which are soft
WINDOW = (170.0, 480.0)  # pixels of the tile that one image shows: a small window shows a large print


@dataclass(frozen=True)
class Cloth:
    """A piece of cloth: two colours blended by a pattern, seen through a turned window of the stored tile."""

    colour: Colour
    print_colour: Colour
    pattern: str
    window: float
    angle: float
    fold: float  # 0..1, how deep the folds are
    fold_at: tuple[int, int]


@dataclass(frozen=True)
class Fabric:
    """One colour, or a cloth for a canvas of `side` pixels, and the colour of its edges.

    The texture is made when it is first needed, because many garments lie outside the image.
    """

    colour: Colour
    edge: Colour
    cloth: Cloth | None = None
    side: int = 0

    @cached_property
    def texture(self) -> Image.Image | None:
        """The cloth's texture, or None for one colour."""
        return None if self.cloth is None else weave(self.cloth, self.side)

    def toned(self, factor: float) -> "Fabric":
        """Return the same cloth made darker (below 1) or lighter, for a facing or a separate collar."""
        if self.cloth is None:
            return solid(shade(self.colour, factor))
        colour, print_colour = shade(self.colour, factor), shade(self.cloth.print_colour, factor)
        return tailored(replace(self.cloth, colour=colour, print_colour=print_colour), self.side)


def solid(colour: Colour) -> Fabric:
    """Return a flat colour with a darker edge."""
    return Fabric(colour, shade(colour, 0.68))


def tailored(cloth: Cloth, side: int) -> Fabric:
    """Return the cloth ready to paint with. Dark cloth gets light edges, because black seams on black are invisible."""
    dark = max(cloth.colour) < 90
    return Fabric(cloth.colour, (120, 120, 120) if dark else shade(cloth.colour, 0.5), cloth, side)


def shade(colour: Colour, factor: float) -> Colour:
    """Return the colour made darker (below 1) or lighter (above 1)."""
    red, green, blue = (int(min(255, max(0, part * factor))) for part in colour)
    return red, green, blue


def distance(one: Colour, other: Colour) -> float:
    """Return how different two colours look, 0 to about 765: Euclidean distance in RGB, green weighted most."""
    red, green, blue = (a - b for a, b in zip(one, other, strict=True))
    return float((2 * red * red + 4 * green * green + 3 * blue * blue) ** 0.5)


def sample_colour(rng: np.random.Generator) -> Colour:
    """Sample a garment's colour: any hue, with black, white and grey as common as in wardrobes."""
    if rng.random() < 0.25:
        saturation, brightness = rng.uniform(0.0, 0.12), rng.choice([0.15, 0.3, 0.5, 0.75, 0.95])
    else:
        saturation, brightness = rng.uniform(0.25, 0.95), rng.uniform(0.3, 1.0)
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), saturation, float(brightness))
    return int(red * 255), int(green * 255), int(blue * 255)


def contrasting(rng: np.random.Generator, others: tuple[Colour, ...], at_least: float = 190.0) -> Colour:
    """Sample a colour that differs from all `others` by `at_least`; after twelve tries, return the best."""
    best, widest = sample_colour(rng), -1.0
    for _ in range(12):
        colour = sample_colour(rng)
        gap = min((distance(colour, other) for other in others), default=at_least)
        if gap > widest:
            best, widest = colour, gap
        if widest >= at_least:
            break
    return best


def sample_cloth(rng: np.random.Generator, others: tuple[Colour, ...] = ()) -> Cloth:
    """Sample a cloth whose main colour differs clearly from `others` (skin, the garment next to it)."""
    colour = contrasting(rng, others)
    pattern = str(rng.choice(list(PATTERNS))) if rng.random() < 0.65 else "plain"
    return Cloth(
        colour=colour,
        print_colour=_print_colour(rng, colour, others),
        pattern=pattern,
        window=float(rng.uniform(*WINDOW)),
        angle=float(rng.choice([0.0, 0.0, np.pi / 2, np.pi / 4, rng.uniform(0, np.pi)])),
        fold=float(rng.uniform(0.15, 0.6)),
        fold_at=(int(rng.integers(0, FOLDS // 2)), int(rng.integers(0, FOLDS // 2))),
    )


def _print_colour(rng: np.random.Generator, colour: Colour, others: tuple[Colour, ...]) -> Colour:
    """Sample a pattern's colour between the main colour and another, so that the garment's shape stays readable."""
    other = np.array(contrasting(rng, others, at_least=110.0))
    red, green, blue = (int(part) for part in np.array(colour) + (other - np.array(colour)) * rng.uniform(0.35, 0.9))
    return red, green, blue


def weave(cloth: Cloth, canvas_side: int) -> Image.Image:
    """Return the cloth as a texture for the complete canvas."""
    side = canvas_side // 2  # half as fine as the outlines: four times faster, and the picture is reduced anyway
    folds = _folds(cloth, side)
    if cloth.pattern == "plain":
        channels = [folds.point(_ramp(0, part)) for part in cloth.colour]
    else:
        pattern = _seen_pattern(cloth, side)
        parts = zip(cloth.colour, cloth.print_colour, strict=True)
        channels = [ImageChops.multiply(pattern.point(_ramp(a, b)), folds) for a, b in parts]
    return Image.merge("RGB", channels).resize((canvas_side, canvas_side), Image.Resampling.NEAREST)


def _seen_pattern(cloth: Cloth, side: int) -> Image.Image:
    """Return the window of the stored pattern that the cloth shows, turned about the tile's middle."""
    # A stored tile is shrunk first if the window is much larger than the image; else stripes would alias.
    level = 2 if cloth.window > 1.2 * side else 1
    cos, sin = np.cos(cloth.angle) * cloth.window / side, np.sin(cloth.angle) * cloth.window / side
    left = (TILE - (cos - sin) * side) / 2
    top = (TILE - (sin + cos) * side) / 2
    matrix = tuple(float(part) / level for part in (cos, -sin, left, sin, cos, top))
    tile = _pattern(cloth.pattern, level)
    return tile.transform((side, side), Image.Transform.AFFINE, matrix, _BILINEAR)


_BILINEAR = Image.Resampling.BILINEAR


def _ramp(start: int, end: int) -> list[int]:
    return [start + (end - start) * level // 255 for level in range(256)]


def _folds(cloth: Cloth, side: int) -> Image.Image:
    x, y = cloth.fold_at
    window = _fold_tile().crop((x, y, x + FOLDS // 2, y + FOLDS // 2)).resize((side, side), _BILINEAR)
    return window.point(_ramp(int(255 * (1.0 - cloth.fold)), 255))


@lru_cache(maxsize=1)
def _fold_tile() -> Image.Image:
    """Make soft, mostly upright waves of light and dark."""
    noise = np.random.default_rng(7).random((8, 30))
    wave = Image.fromarray((255 * noise).astype(np.uint8)).resize((FOLDS, FOLDS), Image.Resampling.BICUBIC)
    return wave.point([min(255, int(1.5 * value) + 20) for value in range(256)])


@lru_cache(maxsize=128)  # all patterns at both levels: 45 MB at most
def _pattern(name: str, level: int) -> Image.Image:
    if level > 1:
        return _pattern(name, 1).reduce(level)
    y, x = np.mgrid[0:TILE, 0:TILE].astype(np.float32)
    tile = PATTERNS[name](x, y) if name in PATTERNS else catalogue_tile(name, x, y)
    return Image.fromarray((255 * np.clip(tile, 0.0, 1.0)).astype(np.uint8))


def _stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x % 40 < 18).astype(np.float32)


def _pinstripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x % 30 < 5).astype(np.float32)


def _gingham(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.5 * (x % 48 < 24) + 0.5 * (y % 48 < 24)


def _tartan(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    bands = 0.35 * ((x % 90 < 40).astype(np.float32) + (y % 90 < 40))
    return bands + 0.3 * ((x % 90 > 82) | (y % 90 > 82))


def _dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    shifted = x + 18 * ((y // 36) % 2)
    return (np.hypot(shifted % 36 - 18, y % 36 - 18) < 9).astype(np.float32)


def _zigzag(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return ((y + np.abs(x % 48 - 24)) % 36 < 14).astype(np.float32)


def _floral(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(11)
    flower = np.zeros_like(x)
    for centre_x, centre_y, radius in zip(*rng.uniform(0, TILE, (2, 110)), rng.uniform(10, 26, 110), strict=True):
        rows = slice(max(0, int(centre_y) - 36), int(centre_y) + 36)
        columns = slice(max(0, int(centre_x) - 36), int(centre_x) + 36)
        dx, dy = x[rows, columns] - centre_x, y[rows, columns] - centre_y
        petals = radius * (0.7 + 0.3 * np.cos(5 * np.arctan2(dy, dx) + radius))
        flower[rows, columns] = np.maximum(flower[rows, columns], np.hypot(dx, dy) < petals)
    return flower


def _knit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.random.default_rng(13).random(x.shape, dtype=np.float32) * 0.5 + 0.3 * (x % 9 < 4)


def _camouflage(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(17).random((24, 24))
    coarse = Image.fromarray((255 * noise).astype(np.uint8)).resize((TILE, TILE), Image.Resampling.BICUBIC)
    return np.digitize(np.asarray(coarse), [90, 150]).astype(np.float32) / 2


def _fading(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.clip((x - TILE / 4) / (TILE / 2), 0, 1)


PATTERNS = {
    "stripes": _stripes,
    "pinstripes": _pinstripes,
    "gingham": _gingham,
    "tartan": _tartan,
    "dots": _dots,
    "zigzag": _zigzag,
    "floral": _floral,
    "knit": _knit,
    "camouflage": _camouflage,
    "fading": _fading,
}
