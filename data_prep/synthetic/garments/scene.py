"""The scene around the figure: background, objects in front of it, and the light."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.synthetic.garments.canvas import Canvas
from data_prep.synthetic.garments.cloth import Fabric, sample_colour, shade, solid
from data_prep.synthetic.garments.geometry import Points, ellipse, rectangle, smooth

NOISE_SIDE = 1024


def draw_background(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw a wall or a street: a gradient, a floor, and up to nine blocks, discs, bars or tiles."""
    image = _gradient(rng, side)
    pen = ImageDraw.Draw(image)
    if rng.random() < 0.6:
        floor = float(rng.uniform(0.6, 0.95)) * side
        pen.rectangle((0, floor, side, side), fill=sample_colour(rng))
    if rng.random() < 0.25:
        _tiles(rng, pen, side)
    for _ in range(int(rng.integers(0, 10))):
        _clutter(rng, pen, side)
    return image.filter(ImageFilter.BoxBlur(float(rng.uniform(0.0, 4.0)) * side / 224))


def _gradient(rng: np.random.Generator, side: int) -> Image.Image:
    corners = np.array([sample_colour(rng) for _ in range(4)], dtype=np.float32).reshape(2, 2, 3)
    corners += (corners.mean(axis=(0, 1)) - corners) * rng.uniform(0.5, 1.0)
    corners += (corners.mean(axis=2, keepdims=True) - corners) * rng.uniform(0.0, 0.9)  # most walls are pale
    return Image.fromarray(corners.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


def _tiles(rng: np.random.Generator, pen: ImageDraw.ImageDraw, side: int) -> None:
    colour, step_x, step_y = sample_colour(rng), rng.uniform(0.05, 0.3) * side, rng.uniform(0.05, 0.3) * side
    for x in np.arange(rng.uniform(0, step_x), side, step_x):
        pen.line((x, 0, x, side), fill=colour, width=max(1, side // 112))
    for y in np.arange(rng.uniform(0, step_y), side, step_y):
        pen.line((0, y, side, y), fill=colour, width=max(1, side // 112))


def _clutter(rng: np.random.Generator, pen: ImageDraw.ImageDraw, side: int) -> None:
    x, y = rng.uniform(-0.1, 1.0, 2) * side
    width, height = rng.uniform(0.04, 0.45, 2) * side
    colour = sample_colour(rng)
    kind = rng.choice(["block", "disc", "bar", "shelf"])
    if kind == "disc":
        pen.ellipse((x, y, x + width, y + height), fill=colour)
    elif kind == "bar":
        pen.line((x, y, x + rng.uniform(-1, 1) * side, y + side), fill=colour, width=max(1, int(width / 6)))
    else:
        pen.rectangle((x, y, x + width, y + height), fill=colour, outline=shade(colour, 0.6))
    if kind == "shelf":
        for row in np.linspace(y, y + height, 4):
            pen.line((x, row, x + width, row), fill=shade(colour, 0.6), width=max(1, side // 112))


# --- objects in front of the figure --------------------------------------------------


def _bag(box: Points, fabric: Fabric, canvas: Canvas) -> None:
    (x0, y0), (x1, y1) = box
    inset = 0.12 * (x1 - x0)
    handle = smooth(
        [(x0 + 2 * inset, y0), (x0 + 2.5 * inset, y0 - 0.06), (x1 - 2.5 * inset, y0 - 0.06), (x1 - 2 * inset, y0)]
    )
    canvas.line(handle, fabric.edge, 0.01)
    canvas.fill(smooth([(x0 + inset, y0), (x1 - inset, y0), (x1, y1), (x0, y1)], closed=True, rounds=2), fabric)
    canvas.line([(x0 + inset, y0 + 0.25 * (y1 - y0)), (x1 - inset, y0 + 0.25 * (y1 - y0))], fabric.edge, 0.006)


def _case(box: Points, fabric: Fabric, canvas: Canvas) -> None:
    (x0, y0), (x1, y1) = box
    canvas.fill(rectangle(x0, y0, x1, y1), fabric, edge=0.008)
    canvas.line([(x0, (y0 + y1) / 2), (x1, (y0 + y1) / 2)], fabric.edge, 0.005)
    canvas.fill(rectangle(*(0.6 * box + 0.4 * box.mean(axis=0)).ravel()), fabric, edge=0.005)


def _plant(box: Points, fabric: Fabric, canvas: Canvas) -> None:
    (x0, y0), (x1, y1) = box
    width, height = x1 - x0, y1 - y0
    for row in range(4):
        for column in range(4):
            x = x0 + width * (column + 0.5 + 0.25 * (row % 2)) / 4.3
            y = y0 + height * (row + 0.5) / 4
            leaf = ellipse(x, y, 0.2 * width, 0.22 * height, 12)
            canvas.fill(leaf, fabric, edge=0.005)


OBJECTS: tuple[Callable[[Points, Fabric, Canvas], None], ...] = (_bag, _case, _plant)


def draw_object(canvas: Canvas, rng: np.random.Generator, fabric: Fabric, box: Points) -> None:
    """Draw a bag, a case or a plant that fills the box [(x0, y0), (x1, y1)] in body units."""
    OBJECTS[rng.integers(len(OBJECTS))](box, fabric, canvas)


def draw_foreground(canvas: Canvas, rng: np.random.Generator, keep_free: Points) -> None:
    """Draw up to three objects in front of the figure, none of them over the box `keep_free`."""
    for _ in range(int(rng.integers(0, 4))):
        centre = rng.uniform((-0.4, canvas.camera.top), (0.4, canvas.camera.bottom))
        half = rng.uniform(0.03, 0.12, 2) * 1.2 * (canvas.camera.bottom - canvas.camera.top)
        box = np.stack([centre - half, centre + half])
        fabric = solid(sample_colour(rng))
        # The generator is drawn even if the object is not, so that the next object is the same in both cases.
        kind_rng = np.random.default_rng(rng.integers(2**32))
        if np.any(box[1] < keep_free[0]) or np.any(box[0] - (0.0, 0.07) > keep_free[1]):
            draw_object(canvas, kind_rng, fabric, box)


# --- light ---------------------------------------------------------------------------


def light(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Apply brightness, contrast, a colour cast, light from one side, sensor noise and a slight blur."""
    side = image.width
    brightness, contrast = rng.uniform(0.8, 1.15), rng.uniform(0.8, 1.15)
    cast = rng.uniform(0.9, 1.1, 3).astype(np.float32)
    slope, angle = rng.uniform(0.0, 0.3), rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-slope, slope, side, dtype=np.float32)
    gain = (1.0 + np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]) * np.float32(brightness * contrast)
    noise_x, noise_y = rng.integers(0, NOISE_SIDE, 2)
    grain, blur = rng.uniform(0.0, 7.0), rng.uniform(0.0, 0.9) * side / 224
    pixels = np.asarray(image, dtype=np.float32) * (gain[:, :, None] * cast)
    pixels += _noise(side, int(noise_x), int(noise_y))[:, :, None] * np.float32(grain)
    pixels += np.float32(128 * (1 - contrast))
    lit = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return lit.filter(ImageFilter.BoxBlur(float(blur))) if blur > 0.25 else lit


def _noise(side: int, x: int, y: int) -> np.ndarray:
    rows, columns = (np.arange(side) + y) % NOISE_SIDE, (np.arange(side) + x) % NOISE_SIDE
    return _noise_tile()[np.ix_(rows, columns)]


@lru_cache(maxsize=1)
def _noise_tile() -> np.ndarray:
    return np.random.default_rng(23).standard_normal((NOISE_SIDE, NOISE_SIDE), dtype=np.float32)
