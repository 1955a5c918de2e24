"""The value Invisible: the attribute's area is outside the image, or something is in front of it."""

from dataclasses import replace

import numpy as np

from data_prep.synthetic.garments.canvas import Camera, Canvas
from data_prep.synthetic.garments.cloth import Fabric, shade
from data_prep.synthetic.garments.figure import CHIN, FLOOR, SHOULDER, WAIST, Figure, draw_head
from data_prep.synthetic.garments.geometry import Points, points, smooth, symmetric
from data_prep.synthetic.garments.scene import draw_object

# Area of the body in which each attribute's values differ: [(x0, y0), (x1, y1)].
# Nothing covers it unless the value is Invisible.
AREAS: dict[str, Points] = {
    "skirt_length": points([(-0.22, WAIST), (0.22, FLOOR)]),
    "sleeve_length": points([(-0.30, SHOULDER - 0.03), (0.30, 0.62)]),
    "coat_length": points([(-0.22, WAIST - 0.06), (0.22, FLOOR)]),
    "pant_length": points([(-0.17, WAIST), (0.17, FLOOR)]),
    "collar_design": points([(-0.13, CHIN), (0.13, 0.31)]),
    "lapel_design": points([(-0.13, CHIN), (0.13, 0.42)]),
    "neckline_design": points([(-0.14, CHIN), (0.14, 0.38)]),
    "neck_design": points([(-0.10, CHIN), (0.10, 0.34)]),
}
# Ranges of the window's top and bottom that leave the area outside.
CROPS = {
    "skirt_length": ((-0.05, 0.12), (0.42, 0.50)),
    "sleeve_length": ((0.64, 0.70), (1.02, 1.12)),
    "coat_length": ((-0.05, 0.05), (0.29, 0.34)),
    "pant_length": ((-0.05, 0.12), (0.42, 0.50)),
    "collar_design": ((0.33, 0.37), (0.75, 1.08)),
    "lapel_design": ((0.44, 0.48), (0.9, 1.08)),
    "neckline_design": ((0.40, 0.44), (0.85, 1.08)),
    "neck_design": ((0.36, 0.40), (0.75, 1.08)),
}
COVERS = {
    "skirt_length": ("thing",),
    "sleeve_length": ("cape", "thing"),
    "coat_length": ("thing",),
    "pant_length": ("thing",),
    "collar_design": ("hair", "scarf", "thing"),
    "lapel_design": ("hair", "scarf", "thing"),
    "neckline_design": ("hair", "scarf", "thing"),
    "neck_design": ("hair", "scarf", "thing"),
}


def sample_occlusion(attribute: str, rng: np.random.Generator) -> str:
    """Sample how the area is occluded: "crop", or a kind of cover."""
    return "crop" if rng.random() < 0.4 else str(rng.choice(COVERS[attribute]))


def framing(camera: Camera, attribute: str, rng: np.random.Generator) -> Camera:
    """Return the camera with its window moved so that the attribute's area is outside."""
    (top, bottom) = (float(rng.uniform(*ends)) for ends in CROPS[attribute])
    return replace(camera, top=top, bottom=bottom)


def draw_cover(canvas: Canvas, kind: str, attribute: str, figure: Figure, fabric: Fabric,
               rng: np.random.Generator) -> None:  # fmt: skip
    """Draw the cover over the attribute's area."""
    bottom = AREAS[attribute][1, 1]
    if kind == "thing":
        margin = rng.uniform(0.0, 0.04, (2, 2)) * [(-1, -1), (1, 1)]
        draw_object(canvas, rng, fabric, AREAS[attribute] + margin)
        return
    if kind == "hair":
        _draw_hair(canvas, figure, bottom)
    elif kind == "scarf":
        _draw_scarf(canvas, fabric, bottom)
    else:
        _draw_cape(canvas, fabric, bottom)
    draw_head(canvas, figure)


def _draw_hair(canvas: Canvas, figure: Figure, bottom: float) -> None:
    """Draw long hair combed over the front."""
    crown = smooth([(0.0, 0.0), (0.055, 0.01), (0.075, 0.1), (0.125, 0.19), (0.135, bottom)], rounds=2)
    x = np.linspace(0.125, 0.0, 15)
    tips = np.stack([x, bottom + 0.03 + 0.02 * (np.arange(15) % 2) + 0.03 * x / 0.135], axis=1)
    canvas.fill(symmetric(np.concatenate([crown, tips])), figure.hair)
    for x in np.linspace(-0.11, 0.11, 15):
        strand = smooth([(0.35 * x, 0.11), (0.7 * x, 0.16), (1.05 * x, 0.26), (x, bottom + 0.03)], rounds=2)
        canvas.line(strand, shade(figure.hair.colour, 1.3 if x > 0 else 0.75), 0.004)


def _draw_scarf(canvas: Canvas, fabric: Fabric, bottom: float) -> None:
    """Draw a wide shawl crossed over the chest, then wound around the neck."""
    end = [(-0.06, 0.3), (0.05, 0.3), (0.075, bottom + 0.1), (-0.03, bottom + 0.11)]
    canvas.fill(end, fabric, edge=0.005)
    wrap = smooth([(0.05, 0.15), (0.12, 0.185), (0.155, 0.26), (0.145, bottom)], rounds=2)
    canvas.fill(symmetric(np.concatenate([wrap, points([(0.0, bottom + 0.05)])])), fabric, edge=0.005)
    canvas.line(smooth([(0.07, 0.18), (0.03, 0.29), (-0.1, bottom + 0.01)]), fabric.edge, 0.006)
    for width, top, drop in ((0.078, 0.142, 0.255), (0.062, 0.118, 0.2)):
        fold = smooth([(0.02, top - 0.01), (width, top), (width * 1.1, drop - 0.05), (0.0, drop)], rounds=2)
        canvas.fill(symmetric(fold), fabric, edge=0.005)


def _draw_cape(canvas: Canvas, fabric: Fabric, bottom: float) -> None:
    """Draw a cape from the neck over both arms."""
    outline = [(0.0, 0.17), (0.05, 0.17), (0.13, 0.2), (0.24, 0.36), (0.32, bottom), (0.0, bottom + 0.05)]
    canvas.fill(smooth(symmetric(outline), closed=True, rounds=2), fabric, edge=0.005)
    for x in (-0.2, -0.1, 0.0, 0.1, 0.2):
        canvas.line([(0.3 * x, 0.2), (x, bottom)], fabric.edge, 0.004)
