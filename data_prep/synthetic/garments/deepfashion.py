"""One figure of a DeepFashion image: five attributes, each in its own area.

Texture is the print of the top, fabric the weave of the skirt or pants, shape the lengths and widths of all of
them, part the neck, belt and front, and style the wall, shoes, hat and bag.
"""

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from data_prep.synthetic.garments.accessories import BELTS, EMBLEMS, HATS, draw_bag, draw_wall
from data_prep.synthetic.garments.canvas import Canvas
from data_prep.synthetic.garments.cloth import FOLDS, WINDOW, Cloth, Colour, Fabric, shade, solid, tailored
from data_prep.synthetic.garments.figure import CHIN, FLOOR, SHOULDER, WAIST, Figure, draw_arm, draw_behind, draw_head
from data_prep.synthetic.garments.geometry import Points, along, points
from data_prep.synthetic.garments.lengths import SLEEVE_END, Cut, draw_pants, draw_skirt, draw_sleeve, sample_cut
from data_prep.synthetic.garments.tops import CLOSED_EDGE, COLLARS, NECKLINES, draw_bodice, draw_collar, draw_neck
from data_prep.synthetic.garments.vocabulary import HUES, Parts

# Pixels of a pattern's tile across the image: a small window shows a large print.
SCALE_WINDOW = {"large": 190.0, "medium": 300.0, "small": WINDOW[1]}
DIRECTION_ANGLE = {"upright": 0.0, "diagonal": np.pi / 4}
HUE_DEGREES = {
    "red": 0, "orange": 28, "yellow": 50, "lime": 88, "green": 130, "cyan": 178, "azure": 205, "blue": 235,
    "purple": 272, "pink": 322,
}  # fmt: skip
TOP_HEM = {"cropped": 0.345, "waist-length": 0.412, "hip-length": 0.478}
LOWER_LENGTH = {  # names of FashionAI's lengths: of a skirt, of pants
    "short": ("Short", "Short"),
    "mid": ("Knee", "3-4"),
    "long": ("Ankle", "Full"),
}
SLEEVE = {
    "sleeveless": "Sleeveless",
    "short-sleeved": "Short",
    "elbow-sleeved": "Elbow",
    "three-quarter-sleeved": "3-4",
    "long-sleeved": "Long",
}
NECK = {
    "v neck": "V",
    "square neck": "Square",
    "round neck": "Round",
    "turtleneck": "Turtle",
    "shirt collar": "Shirt",
    "peter pan collar": "Peter Pan",
}


@dataclass(frozen=True)
class Dyes:
    """Random hues of one figure's cloths; how light or dark they are follows from the labelled values."""

    top: tuple[float, float]  # hue of ground and of print, 0 to 1
    lower: float
    saturation: float
    fold: float
    fold_at: tuple[int, int]


def sample_dyes(rng: np.random.Generator) -> Dyes:
    """Sample hues and folds."""
    return Dyes(
        top=(float(rng.random()), float(rng.random())),
        lower=float(rng.random()),
        saturation=float(rng.uniform(0.2, 0.85)),
        fold=float(rng.uniform(0.05, 0.3)),
        fold_at=(int(rng.integers(0, FOLDS // 2)), int(rng.integers(0, FOLDS // 2))),
    )


def draw_deepfashion(canvas: Canvas, figure: Figure, values: Mapping[str, Parts], rng: np.random.Generator,
                     room: float) -> dict[str, Points]:  # fmt: skip
    """Paint one dressed figure with `room` body heights to either side; return each attribute's area."""
    dyes, cut = sample_dyes(rng), sample_cut(rng)
    top, lower = _printed(values["texture-related"], dyes, canvas.side), _woven(values["fabric-related"], dyes, canvas)
    silhouette, length, sleeve, hem = values["shape-related"]
    neck, belt, emblem = values["part-related"]
    palette, hat, bag = values["style-related"]
    wall, accent = palette_colours(palette)

    areas = {"style-related": draw_wall(canvas, room, solid(wall), solid(accent))}
    figure = replace(figure, shoe=solid(accent))
    draw_behind(canvas, figure)
    if sleeve == "sleeveless":
        _draw_arms(canvas, figure, cut, top, sleeve)
    skirt = _draw_lower(canvas, figure, lower, cut, silhouette, length)
    areas["fabric-related"] = np.maximum(_box(skirt), (-1.0, TOP_HEM[hem]))
    draw_bodice(canvas, top, NECKLINES[NECK[neck]](0.0) if NECK[neck] in NECKLINES else CLOSED_EDGE, TOP_HEM[hem])
    # A plain collar shows its outline, which a print would break up.
    _draw_neck(canvas, Fabric(shade(top.colour, 0.8), top.edge), NECK[neck])
    EMBLEMS[emblem](canvas)
    BELTS[belt](canvas)
    if sleeve != "sleeveless":
        _draw_arms(canvas, figure, cut, top, sleeve)
    draw_head(canvas, figure)
    HATS[hat](canvas, solid(accent))
    if bag == "handbag":
        draw_bag(canvas, figure, solid(accent))

    bodice = points([(-0.105, SHOULDER - 0.015), (0.105, TOP_HEM[hem])])
    areas["texture-related"] = np.concatenate([bodice, sleeves_box(figure, SLEEVE_END.get(SLEEVE[sleeve], 0.0))])
    areas["shape-related"] = np.concatenate([skirt, bodice, sleeves_box(figure, 1.1), points([(0.0, FLOOR)])])
    areas["part-related"] = points([(-0.11, CHIN - 0.012), (0.11, WAIST + 0.065)])
    return areas


def palette_colours(palette: str) -> tuple[Colour, Colour]:
    """Return the colour of a style's wall, and that of its shoes, hat and bag."""
    tone, _, name = palette.removeprefix("in ").partition(" ")
    if name in HUES:
        hue = HUE_DEGREES[name] / 360
        tones = (0.78, 0.88) if tone == "vivid" else (0.28, 1.0)
        return dyed(hue, *tones), dyed(hue, 1.0, 0.45) if tone == "vivid" else dyed(hue, 0.75, 0.85)
    return {
        "in black and white": ((25, 25, 28), (245, 245, 245)),
        "in brown": ((112, 74, 46), (225, 200, 165)),
        "in grey": ((150, 150, 150), (75, 75, 75)),
    }[palette]


def dyed(hue: float, saturation: float, brightness: float) -> Colour:
    """Return a colour from its hue, saturation and brightness, each 0 to 1."""
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, brightness)
    return int(red * 255), int(green * 255), int(blue * 255)


def _printed(parts: Parts, dyes: Dyes, side: int) -> Fabric:
    """Return the top's cloth: two hues, one light and one dark; the tone says which is the print."""
    kind, direction, scale, tone = parts
    light, dark = dyed(dyes.top[0], 0.28 * dyes.saturation, 0.98), dyed(dyes.top[1], dyes.saturation, 0.36)
    ground, print_colour = (dark, light) if tone == "light on dark" else (light, dark)
    cloth = Cloth(ground, print_colour, kind, SCALE_WINDOW[scale], DIRECTION_ANGLE[direction], dyes.fold, dyes.fold_at)
    return replace(tailored(cloth, side), edge=shade(dark, 0.7))


def _woven(parts: Parts, dyes: Dyes, canvas: Canvas) -> Fabric:
    """Return the lower garment's cloth: one hue from dark to almost white."""
    weave, scale, finish, direction = parts
    dark, bright = dyed(dyes.lower, dyes.saturation, 0.3), dyed(dyes.lower, 0.3 * dyes.saturation, 1.0)
    window, angle = SCALE_WINDOW[scale], DIRECTION_ANGLE[direction]
    cloth = Cloth(dark, bright, f"{weave}, {finish}", window, angle, 0.5 * dyes.fold, dyes.fold_at)
    return replace(tailored(cloth, canvas.side), edge=shade(dark, 0.6))


def _draw_lower(canvas: Canvas, figure: Figure, fabric: Fabric, cut: Cut, silhouette: str, length: str) -> Points:
    skirt_length, pant_length = LOWER_LENGTH[length]
    cut = replace(cut, skirt_wave=0.0, pleats=0, turn_up=False, hem_at=0.5 * cut.hem_at)
    if silhouette.endswith("skirt"):
        flare = 0.6 if silhouette == "flared skirt" else -0.05
        return draw_skirt(canvas, figure, fabric, replace(cut, skirt_flare=flare), skirt_length)
    ease, widening = (0.018, 0.03) if silhouette == "wide pants" else (0.002, 0.0)
    return draw_pants(canvas, figure, fabric, replace(cut, pant_ease=ease, pant_flare=widening), pant_length)


def _draw_neck(canvas: Canvas, fabric: Fabric, neck: str) -> None:
    if neck in COLLARS:
        draw_collar(canvas, fabric, neck)
    elif neck in NECKLINES:
        canvas.line(NECKLINES[neck](0.0)[2:-2], fabric.edge, 0.008)
    else:
        draw_neck(canvas, fabric, neck)


def _draw_arms(canvas: Canvas, figure: Figure, cut: Cut, fabric: Fabric, sleeve: str) -> None:
    cut = replace(cut, sleeve_flare=0.0, turn_up=False)
    for arm in figure.arms:
        draw_arm(canvas, figure, arm)
        draw_sleeve(canvas, figure, arm, fabric, cut, SLEEVE[sleeve])


def sleeves_box(figure: Figure, end: float) -> Points:
    """Return the corners of the box around both sleeves, which end at this fraction of the arms (0: the shoulders)."""
    seam_and_end = np.concatenate([along(arm, np.linspace(0.0, end, 3)) for arm in figure.arms])
    return _box(seam_and_end) + points([(-0.03, -0.03), (0.03, 0.03)])


def _box(outline: Points) -> Points:
    return np.stack([outline.min(axis=0), outline.max(axis=0)])
