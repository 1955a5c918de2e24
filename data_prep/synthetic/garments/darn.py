"""One figure of a DARN image: a single garment with nine attributes, over leggings and shoes."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from data_prep.synthetic.garments.accessories import CREAM, INK
from data_prep.synthetic.garments.canvas import Canvas
from data_prep.synthetic.garments.cloth import FOLDS, Cloth, Colour, Fabric, sample_colour, shade, solid, tailored
from data_prep.synthetic.garments.collars import draw_darn_collar, upper_edge
from data_prep.synthetic.garments.deepfashion import HUE_DEGREES, SCALE_WINDOW, dyed, sleeves_box
from data_prep.synthetic.garments.figure import (
    ARMPIT,
    BUST,
    FLOOR,
    HIP,
    LEG_HALVES,
    SHOULDER,
    WAIST,
    Figure,
    draw_arm,
    draw_behind,
    draw_head,
)
from data_prep.synthetic.garments.geometry import Points, ellipse, mirrored, points, rectangle, tube
from data_prep.synthetic.garments.sleeves import SLEEVE_END, draw_shaped_sleeve
from data_prep.synthetic.garments.vocabulary import Parts

HEM = {
    "hip length": 0.5,
    "seat length": 0.565,
    "thigh length": 0.635,
    "knee length": 0.71,
    "calf length": 0.785,
    "midi length": 0.86,
    "ankle length": 0.935,
}
# Half widths at the bust, the waist, the hip and the hem.
SILHOUETTE = {
    "straight cut": (0.094, 0.094, 0.104, 0.106),
    "a-line": (0.09, 0.094, 0.125, 0.16),
    "fitted waist": (0.094, 0.064, 0.1, 0.1),
    "hourglass": (0.094, 0.058, 0.12, 0.165),
    "boxy": (0.125, 0.13, 0.13, 0.13),
    "cocoon": (0.1, 0.13, 0.16, 0.095),
    "trapeze": (0.1, 0.14, 0.18, 0.215),
    "peplum": (0.092, 0.074, 0.15, 0.1),
    "dropped waist": (0.094, 0.09, 0.096, 0.175),
    "slanted hem": (0.094, 0.094, 0.106, 0.11),
    "side slits": (0.094, 0.092, 0.112, 0.12),
}
COLOUR_TONES = {  # saturation and brightness
    "vivid": (0.95, 0.95),
    "pale": (0.3, 1.0),
    "deep": (0.95, 0.62),
    "dusty": (0.42, 0.68),
    "dark": (0.85, 0.34),
}
GREYS = {"white": 250, "light grey": 195, "middle grey": 135, "dark grey": 80, "black": 28}


def draw_darn(canvas: Canvas, figure: Figure, values: Mapping[str, Parts], rng: np.random.Generator,
              room: float) -> dict[str, Points]:  # fmt: skip
    """Paint one dressed figure; return each attribute's area. `room` is unused: the garment always fits it."""
    colour = garment_colour(values["clothes color"])
    cloth = _cloth(colour, values["clothes pattern"], rng, canvas.side)
    trim = _trim(colour)
    (silhouette,), (length,), (collar,) = values["clothes shape"], values["clothes length"], values["collar shape"]
    (sleeve_length,), (sleeve_shape,) = values["sleeve length"], values["sleeve shape"]
    front, finish = values["clothes category"]

    draw_behind(canvas, figure)
    _draw_leggings(canvas, figure, rng)
    for arm in figure.arms:
        draw_arm(canvas, figure, arm)
        draw_shaped_sleeve(canvas, figure, arm, cloth, sleeve_length, sleeve_shape)
    side, hem = _side(silhouette, HEM[length]), _hem(silhouette, HEM[length])
    outline = np.concatenate([upper_edge(collar), side, hem[::-1], mirrored(side)[::-1]])
    canvas.fill(outline, cloth, edge=0.006)
    _draw_seams(canvas, cloth, silhouette, HEM[length])
    _draw_finish(canvas, trim, finish, hem)
    neck = draw_darn_collar(canvas, trim, collar)
    _draw_front(canvas, trim, front, side)
    _draw_buttons(canvas, values["clothes button"][0])
    draw_head(canvas, figure)
    return _areas(figure, outline, neck, HEM[length], SLEEVE_END[sleeve_length])


def garment_colour(parts: Parts) -> Colour:
    """Return the colour of a value of "clothes color"."""
    if len(parts) == 1:
        return (GREYS[parts[0]],) * 3
    hue, tone = parts
    return dyed(HUE_DEGREES[hue] / 360, *COLOUR_TONES[tone])


def _trim(colour: Colour) -> Fabric:
    """Return the plain fabric of collars, pockets and bands: darker than the garment or, on a dark one, lighter."""
    if sum(colour) > 260:
        return Fabric(shade(colour, 0.6), shade(colour, 0.3))
    red, green, blue = (part + (255 - part) // 2 for part in colour)
    return Fabric((red, green, blue), (235, 235, 235))


def _cloth(colour: Colour, pattern: Parts, rng: np.random.Generator, side: int) -> Fabric:
    """Return the cloth; its pattern is another tone of the labelled colour, so that the colour stays recognisable."""
    fold, fold_at = float(rng.uniform(0.03, 0.2)), (int(rng.integers(0, FOLDS // 2)), int(rng.integers(0, FOLDS // 2)))
    kind = pattern[0]
    window = SCALE_WINDOW[pattern[1]] if len(pattern) > 1 else SCALE_WINDOW["medium"]
    cloth = Cloth(colour, _trim(colour).colour, kind, window, 0.0, fold, fold_at)
    return replace(tailored(cloth, side), edge=_trim(colour).edge)


def _draw_leggings(canvas: Canvas, figure: Figure, rng: np.random.Generator) -> None:
    fabric, end = solid(sample_colour(rng)), float(rng.choice([0.0, 0.6, 1.03]))
    if end:
        for leg in figure.legs:
            canvas.fill(tube(leg, 0.0, end, [half * figure.build for half in LEG_HALVES], ease=0.002), fabric)


def _side(silhouette: str, hem: float) -> Points:
    """Return the right side from under the arm to the hem."""
    bust, waist, hip, end = SILHOUETTE[silhouette]
    low = (WAIST + 0.075, hip, WAIST + 0.08, 0.082) if silhouette == "peplum" else (HIP, hip, HIP + 0.001, hip)
    heights, halves = (ARMPIT, BUST, WAIST, low[0], low[2], hem), (0.092, bust, waist, low[1], low[3], end)
    y = np.concatenate([np.linspace(ARMPIT, low[0], 12), np.linspace(low[2], hem, 6)])
    return np.stack([np.interp(y, heights, halves), y], axis=1)


def _hem(silhouette: str, hem: float) -> Points:
    """Return the lower edge from left to right."""
    half = SILHOUETTE[silhouette][3]
    x = np.linspace(-half, half, 21)
    drop = 0.008 * (1.0 - (x / half) ** 2)
    if silhouette == "slanted hem":
        drop = 0.055 * x / half
    elif silhouette == "side slits":
        drop = np.where(np.abs(np.abs(x) - 0.72 * half) < 0.11 * half, -0.075, drop)
    return np.stack([x, hem + drop], axis=1)


def _draw_seams(canvas: Canvas, cloth: Fabric, silhouette: str, hem: float) -> None:
    """Draw the lines of a silhouette: the seam of a flounce, and its pleats."""
    if silhouette == "peplum":
        half = SILHOUETTE[silhouette][2]
        canvas.line([(-0.074, WAIST), (0.074, WAIST)], cloth.edge, 0.007)
        canvas.line([(-half, WAIST + 0.075), (half, WAIST + 0.075)], cloth.edge, 0.007)
    elif silhouette == "dropped waist":
        canvas.line([(-0.096, HIP), (0.096, HIP)], cloth.edge, 0.007)
        for x in np.linspace(-0.8, 0.8, 5):
            canvas.line([(0.09 * x, HIP), (0.17 * x, hem)], cloth.edge, 0.004)


def _draw_finish(canvas: Canvas, trim: Fabric, finish: str, hem: Points) -> None:
    """Draw the finish of the hem, within 0.035 above and below it."""
    if finish == "straight hem":
        return
    upper = hem - (0.0, 0.035)
    if finish == "fringed hem":
        for x, y in hem[::2]:
            canvas.line([(x, y - 0.012), (x, y + 0.03)], trim.edge, 0.009)
            canvas.line([(x, y - 0.012), (x, y + 0.03)], trim.colour, 0.005)
        return
    canvas.fill(np.concatenate([upper, hem[::-1]]), trim, edge=0.005)
    if finish == "ribbed hem":
        for top, bottom in zip(upper[1:-1], hem[1:-1], strict=True):
            canvas.line([top, bottom], trim.edge, 0.005)


def _draw_front(canvas: Canvas, trim: Fabric, front: str, side: Points) -> None:
    """Draw pockets or panels, above the widest collars; the middle stays free for the buttons."""
    if front == "chest pocket":
        canvas.fill(points([(0.028, 0.3), (0.084, 0.3), (0.084, 0.35), (0.056, 0.372), (0.028, 0.35)]), trim)
    elif front == "hip pockets":
        for pocket in (rectangle(0.03, 0.425, 0.074, 0.48), rectangle(-0.074, 0.425, -0.03, 0.48)):
            canvas.fill(pocket, trim)
    elif front == "pouch pocket":
        canvas.fill([(-0.035, 0.385), (0.035, 0.385), (0.07, 0.475), (-0.07, 0.475)], trim, edge=0.006)
    elif front == "side panels":
        lower = side[side[:, 1] > 0.3]
        for panel in (lower, mirrored(lower)):
            canvas.fill(np.concatenate([panel, panel[::-1] * (0.62, 1.0)]), trim)


# --- buttons -------------------------------------------------------------------------

TOP_BUTTON, LAST_BUTTON = 0.305, 0.465
COUNTS = {"one": 1, "two": 2, "three": 3, "five": 5}


def _draw_buttons(canvas: Canvas, kind: str) -> None:
    """Draw light buttons with dark edges, above everything else on the front."""
    words = kind.split()
    if kind == "zip":
        canvas.line([(0.0, TOP_BUTTON - 0.02), (0.0, LAST_BUTTON + 0.02)], INK.colour, 0.024)
        for y in np.arange(TOP_BUTTON - 0.015, LAST_BUTTON + 0.02, 0.014):
            canvas.line([(-0.009, y), (0.009, y)], CREAM.colour, 0.006)
    elif kind == "toggles":
        for y in np.linspace(TOP_BUTTON, LAST_BUTTON, 3):
            canvas.line([(-0.05, y), (0.05, y)], INK.colour, 0.01)
            canvas.fill(rectangle(-0.024, y - 0.01, 0.024, y + 0.01), CREAM, edge=0.006)
    elif kind == "one big button":
        _button(canvas, 0.0, WAIST - 0.01, 0.04)
    elif kind == "slanted buttons":
        for x, y in zip(np.linspace(-0.05, 0.05, 4), np.linspace(TOP_BUTTON, LAST_BUTTON, 4), strict=True):
            _button(canvas, x, y)
    elif kind != "no buttons":
        columns = (-0.03, 0.03) if "by" in words else (0.0,)
        count = COUNTS[words[2] if "by" in words else words[0]]
        for x in columns:
            for y in np.linspace(TOP_BUTTON, LAST_BUTTON, count) if count > 1 else (WAIST - 0.01,):
                _button(canvas, x, float(y))


def _button(canvas: Canvas, x: float, y: float, half: float = 0.016) -> None:
    canvas.fill(ellipse(x, y, half, half, 14), CREAM, edge=0.006)


def _areas(figure: Figure, outline: Points, neck: Points, hem: float, sleeve_end: float) -> dict[str, Points]:
    """Return each attribute's area; that of the hem is the same for all lengths."""
    half, lowest = float(outline[:, 0].max()), float(outline[:, 1].max()) + 0.035
    bodice = points([(-half, SHOULDER - 0.02), (half, lowest)])
    garment = np.concatenate([bodice, sleeves_box(figure, sleeve_end) + points([(-0.03, -0.03), (0.03, 0.03)])])
    arms = sleeves_box(figure, 1.1) + points([(-0.03, -0.03), (0.03, 0.06)])
    return {
        "clothes category": points([(-half, BUST), (half, lowest)]),
        "clothes button": points([(-0.065, TOP_BUTTON - 0.03), (0.065, LAST_BUTTON + 0.03)]),
        "clothes color": garment,
        "clothes length": points([(-half, HIP - 0.03), (half, FLOOR)]),
        "clothes pattern": garment,
        "clothes shape": points([(-half, ARMPIT - 0.01), (half, lowest)]),
        "collar shape": neck,
        "sleeve length": arms,
        "sleeve shape": arms,
    }
