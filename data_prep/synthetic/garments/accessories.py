"""Additions to a catalogue outfit: belts, emblems, hats and bags, and the wall that belongs to a style."""

from collections.abc import Callable

import numpy as np

from data_prep.synthetic.garments.canvas import Canvas
from data_prep.synthetic.garments.cloth import Fabric
from data_prep.synthetic.garments.figure import WAIST, Figure
from data_prep.synthetic.garments.geometry import Points, ellipse, mirrored, points, rectangle, smooth, symmetric

CREAM = Fabric((250, 246, 232), (35, 30, 30))  # light with dark edges: visible on any cloth
INK = Fabric((35, 30, 30), (250, 246, 232))
BELT_HALF = 0.076


def _nothing(canvas: Canvas) -> None:
    """Draw neither belt nor emblem."""


# --- belts ---------------------------------------------------------------------------


def _band(canvas: Canvas, half_height: float, fabric: Fabric) -> None:
    canvas.fill(rectangle(-BELT_HALF, WAIST - half_height, BELT_HALF, WAIST + half_height), fabric, edge=0.006)


def _thin_belt(canvas: Canvas) -> None:
    _band(canvas, 0.01, CREAM)


def _wide_belt(canvas: Canvas) -> None:
    _band(canvas, 0.03, CREAM)


def _buckled_belt(canvas: Canvas) -> None:
    _band(canvas, 0.012, INK)
    canvas.fill(rectangle(-0.027, WAIST - 0.022, 0.027, WAIST + 0.022), CREAM, edge=0.005)
    canvas.fill(rectangle(-0.013, WAIST - 0.011, 0.013, WAIST + 0.011), INK)


def _bow_belt(canvas: Canvas) -> None:
    _band(canvas, 0.007, CREAM)
    draw_bow(canvas, 0.0, WAIST, 0.05, CREAM)


def _chain_belt(canvas: Canvas) -> None:
    for x in np.linspace(-BELT_HALF, BELT_HALF, 7):
        canvas.fill(ellipse(x, WAIST, 0.011, 0.011, 12), CREAM, edge=0.005)


BELTS: dict[str, Callable[[Canvas], None]] = {
    "no belt": _nothing,
    "thin belt": _thin_belt,
    "wide belt": _wide_belt,
    "buckled belt": _buckled_belt,
    "bow belt": _bow_belt,
    "chain belt": _chain_belt,
}


def draw_bow(canvas: Canvas, x: float, y: float, half: float, fabric: Fabric) -> None:
    """Draw a bow with its knot at (x, y); `half` is half its width."""
    loop = np.array([(0.0, 0.0), (0.8, -0.55), (1.0, 0.0), (0.8, 0.5)]) * half
    end = np.array([(0.0, 0.0), (0.35, 1.1), (0.62, 0.95)]) * half
    for piece in (end, loop):
        for side in (piece, mirrored(piece)):
            canvas.fill(side + points([(x, y)]), fabric)
    canvas.fill(ellipse(x, y, 0.2 * half, 0.22 * half, 10), fabric)


# --- emblems on the chest ------------------------------------------------------------

EMBLEM_AT, EMBLEM_HALF = 0.298, 0.028


def _emblem(canvas: Canvas, outline: Points, fabric: Fabric = CREAM) -> None:
    """Paint the outline, whose unit is half the emblem, with an edge that stands out from any print."""
    canvas.fill(outline * EMBLEM_HALF + (0.0, EMBLEM_AT), fabric, edge=0.011)


def _heart(canvas: Canvas) -> None:
    half = [(0.0, -0.5), (0.35, -0.95), (0.9, -0.8), (1.0, -0.2), (0.6, 0.4), (0.0, 1.0)]
    _emblem(canvas, symmetric(smooth(half, rounds=1)))


def _star(canvas: Canvas) -> None:
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2, 0.45, 1.1)
    _emblem(canvas, np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1))


def _pocket(canvas: Canvas) -> None:
    """Draw a patch pocket on one side of the chest."""
    patch = points([(0.5, -0.7), (1.9, -0.7), (1.9, 0.6), (1.2, 1.0), (0.5, 0.6)])
    _emblem(canvas, patch)
    _emblem(canvas, points([(0.5, -0.7), (1.9, -0.7), (1.9, -0.3), (0.5, -0.3)]), INK)


def _bars(canvas: Canvas) -> None:
    for y in (-0.7, 0.35):
        _emblem(canvas, rectangle(-1.8, y, 1.8, y + 0.45))


def _ring(canvas: Canvas) -> None:
    _emblem(canvas, ellipse(0.0, 0.0, 1.05, 1.05, 24))
    _emblem(canvas, ellipse(0.0, 0.0, 0.55, 0.55, 20), INK)


EMBLEMS: dict[str, Callable[[Canvas], None]] = {
    "plain front": _nothing,
    "heart print": _heart,
    "pocket": _pocket,
    "star print": _star,
    "bar print": _bars,
    "ring print": _ring,
}

# --- hats and bags -------------------------------------------------------------------


def _sun_hat(canvas: Canvas, fabric: Fabric) -> None:
    canvas.fill(smooth([(-0.11, 0.04), (0.0, 0.015), (0.11, 0.04), (0.0, 0.05)], closed=True, rounds=2), fabric)
    crown = smooth([(0.0, -0.032), (0.045, -0.028), (0.056, 0.03), (0.0, 0.036)], rounds=2)
    canvas.fill(symmetric(crown), fabric)
    canvas.line([(-0.053, 0.02), (0.053, 0.02)], fabric.edge, 0.01)


def _cap(canvas: Canvas, fabric: Fabric) -> None:
    dome = smooth([(0.0, -0.018), (0.045, -0.012), (0.052, 0.034), (0.0, 0.036)], rounds=2)
    canvas.fill(symmetric(dome), fabric)
    canvas.fill(smooth([(0.03, 0.026), (0.1, 0.03), (0.108, 0.044), (0.02, 0.042)], closed=True, rounds=2), fabric)


def _beret(canvas: Canvas, fabric: Fabric) -> None:
    canvas.fill(smooth([(-0.05, 0.034), (-0.085, 0.004), (-0.02, -0.026), (0.055, 0.012), (0.045, 0.034)],
                       closed=True, rounds=2), fabric)  # fmt: skip
    canvas.line([(-0.015, -0.018), (-0.018, -0.034)], fabric.edge, 0.007)


def _hair_bow(canvas: Canvas, fabric: Fabric) -> None:
    draw_bow(canvas, 0.03, 0.004, 0.045, fabric)


def _bareheaded(canvas: Canvas, fabric: Fabric) -> None:
    """Draw nothing on the head."""


HATS: dict[str, Callable[[Canvas, Fabric], None]] = {
    "bareheaded": _bareheaded,
    "sun hat": _sun_hat,
    "cap": _cap,
    "beret": _beret,
    "hair bow": _hair_bow,
}


def draw_bag(canvas: Canvas, figure: Figure, fabric: Fabric) -> None:
    """Draw a handbag in the right hand."""
    x, y = figure.arms[0][2] + (0.004, 0.03)
    canvas.line(
        smooth([(x - 0.03, y + 0.05), (x - 0.015, y), (x + 0.015, y), (x + 0.03, y + 0.05)]), fabric.edge, 0.008
    )
    body = [(x - 0.045, y + 0.045), (x + 0.045, y + 0.045), (x + 0.058, y + 0.125), (x - 0.058, y + 0.125)]
    canvas.fill(body, fabric, edge=0.006)
    canvas.line([(x - 0.046, y + 0.07), (x + 0.046, y + 0.07)], fabric.edge, 0.006)


def draw_wall(canvas: Canvas, half: float, colour: Fabric, accent: Fabric) -> Points:
    """Draw the arch behind a figure, with a band of the accent colour at its foot; return its corners."""
    top = smooth([(0.0, -0.03), (0.75 * half, -0.02), (half, 0.13), (half, 0.9)], rounds=2)
    canvas.fill(symmetric(top), colour, edge=0.0)
    canvas.fill(rectangle(-half, 0.9, half, 1.04), accent, edge=0.0)
    return points([(-half, -0.03), (half, 1.04)])
