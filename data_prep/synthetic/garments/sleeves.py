"""Sleeves of DARN: eight lengths and, whatever the length, seventeen shapes."""

from dataclasses import dataclass

import numpy as np

from data_prep.synthetic.garments.accessories import CREAM, INK
from data_prep.synthetic.garments.canvas import Canvas
from data_prep.synthetic.garments.cloth import Fabric
from data_prep.synthetic.garments.figure import ARM_HALVES, Figure
from data_prep.synthetic.garments.geometry import UNIT, Points, ellipse, points, tube

# Fraction of the arm at which the sleeve ends: 0.5 is the elbow, 1 the wrist. The shortest still has room for a shape.
SLEEVE_END = {
    "cap sleeve": 0.25,
    "short sleeve": 0.38,
    "elbow sleeve": 0.51,
    "below-elbow sleeve": 0.64,
    "three-quarter sleeve": 0.77,
    "bracelet sleeve": 0.9,
    "wrist sleeve": 1.04,
    "over-long sleeve": 1.22,
}


@dataclass(frozen=True)
class SleeveShape:
    """Distance of the cloth from the arm at fractions `at` of the sleeve, and the trim."""

    at: tuple[float, ...]
    ease: tuple[float, ...]  # body heights
    trim: str = ""
    start: float = 0.0  # fraction of the sleeve that is open at the shoulder


_LOOSE = ((0.0, 1.0), (0.01, 0.01))
SLEEVE_SHAPES: dict[str, SleeveShape] = {
    "straight": SleeveShape(*_LOOSE),
    "fitted": SleeveShape((0.0, 1.0), (0.001, 0.001)),
    "bell": SleeveShape((0.0, 1.0), (0.004, 0.05)),
    "trumpet": SleeveShape((0.0, 0.6, 0.62, 1.0), (0.003, 0.003, 0.012, 0.05), "joint"),
    "puffed shoulder": SleeveShape((0.0, 0.2, 0.42, 0.46, 1.0), (0.022, 0.038, 0.02, 0.004, 0.004), "joint"),
    "balloon": SleeveShape((0.0, 0.5, 0.88, 0.9, 1.0), (0.006, 0.04, 0.03, 0.003, 0.003), "pleats"),
    "lantern": SleeveShape((0.0, 0.62, 1.0), (0.002, 0.05, 0.002), "ridge"),
    "leg of mutton": SleeveShape((0.0, 0.12, 1.0), (0.035, 0.05, 0.001)),
    "batwing": SleeveShape((0.0, 0.3, 1.0), (0.07, 0.05, 0.006)),
    "cuffed": SleeveShape(*_LOOSE, "cuff"),
    "banded": SleeveShape(*_LOOSE, "bands"),
    "side stripe": SleeveShape(*_LOOSE, "stripe"),
    "slashed": SleeveShape((0.0, 1.0), (0.014, 0.014), "slash"),
    "tiered": SleeveShape((0.0, 0.32, 0.34, 0.65, 0.67, 1.0), (0.0, 0.032, 0.002, 0.032, 0.002, 0.032), "tiers"),
    "frilled hem": SleeveShape((0.0, 0.78, 0.8, 1.0), (0.005, 0.005, 0.018, 0.036), "frill"),
    "open shoulder": SleeveShape(*_LOOSE, start=0.4),
    "two tone": SleeveShape(*_LOOSE, "lower half"),
}


def draw_shaped_sleeve(canvas: Canvas, figure: Figure, arm: Points, fabric: Fabric, length: str, shape: str) -> None:
    """Draw the sleeve of one arm."""
    cut = SLEEVE_SHAPES[shape]
    end = SLEEVE_END[length]
    if cut.start == 0.0:
        canvas.fill(ellipse(arm[0, 0], arm[0, 1], 0.03, 0.028), fabric, edge=0)
    canvas.fill(_piece(figure, arm, cut, end, cut.start, 1.0), fabric, edge=0.005)
    _draw_trim(canvas, figure, arm, fabric, cut, end)


def _piece(figure: Figure, arm: Points, cut: SleeveShape, end: float, first: float, last: float,
           more: float = 0.0) -> Points:  # fmt: skip
    """Return the outline of the sleeve between its fractions `first` and `last`, made wider by `more`."""
    ease = np.interp(first + (last - first) * UNIT, cut.at, cut.ease) + more
    return tube(arm, first * end, last * end, [half * figure.build for half in ARM_HALVES], ease=ease)


def _draw_trim(canvas: Canvas, figure: Figure, arm: Points, fabric: Fabric, cut: SleeveShape, end: float) -> None:
    count = len(UNIT)
    sleeve = _piece(figure, arm, cut, end, 0.0, 1.0)
    one_side, other_side = sleeve[:count], sleeve[count:][::-1]
    middle = (one_side + other_side) / 2
    if cut.trim == "cuff":
        canvas.fill(_piece(figure, arm, cut, end, 0.74, 1.0, 0.01), CREAM, edge=0.005)
    elif cut.trim == "bands":
        for first in (0.3, 0.56, 0.82):
            canvas.fill(_piece(figure, arm, cut, end, first, first + 0.11), CREAM, edge=0.004)
    elif cut.trim == "stripe":
        canvas.line(middle, INK.colour, 0.024)
        canvas.line(middle, CREAM.colour, 0.014)
    elif cut.trim == "slash":
        opening = np.concatenate([0.7 * middle + 0.3 * one_side, (0.7 * middle + 0.3 * other_side)[::-1]])
        canvas.fill(opening, figure.skin, edge=0.005)
    elif cut.trim == "lower half":
        canvas.fill(_piece(figure, arm, cut, end, 0.5, 1.0), INK, edge=0.005)
    elif cut.trim:
        _draw_seams(canvas, fabric, cut, one_side, other_side)


def _draw_seams(canvas: Canvas, fabric: Fabric, cut: SleeveShape, one: Points, other: Points) -> None:
    """Draw lines across or along the sleeve whose sides are `one` and `other`."""
    across = {"joint": cut.at[-2:-1], "ridge": (0.62,), "tiers": (0.33, 0.66), "frill": (0.79,)}.get(cut.trim, ())
    for share in across:
        canvas.line([_at(one, share), _at(other, share)], fabric.edge, 0.007)
    if cut.trim in ("frill", "pleats"):
        first, last = (0.79, 1.0) if cut.trim == "frill" else (0.35, 0.9)
        for side in (0.2, 0.5, 0.8):
            ends = [
                side * points([_at(one, share)])[0] + (1 - side) * points([_at(other, share)])[0]
                for share in (first, last)
            ]
            canvas.line(points(ends), fabric.edge, 0.005)


def _at(line: Points, share: float) -> tuple[float, float]:
    """Return the point at fraction `share` of a line that has one point for each of UNIT."""
    return float(np.interp(share, UNIT, line[:, 0])), float(np.interp(share, UNIT, line[:, 1]))
