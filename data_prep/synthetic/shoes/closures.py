"""The closures. All are on the instep or the ankle, so that every category can have every closure."""

from collections.abc import Callable

import numpy as np

from data_prep.synthetic.garments.accessories import CREAM, INK
from data_prep.synthetic.garments.canvas import Canvas
from data_prep.synthetic.garments.geometry import ellipse, points, rectangle, smooth
from data_prep.synthetic.shoes.last import Last
from data_prep.synthetic.shoes.uppers import SHAFT

Draw = Callable[[Canvas, Last, str], None]
RIDGE = ((-0.1, -0.02, 0.05, 0.14, 0.22), (0.17, 0.215, 0.215, 0.185, 0.155))  # the instep's x and height


def _ridge(x: float) -> float:
    return float(np.interp(x, *RIDGE))


def _strap(canvas: Canvas, last: Last, x: float, half: float, light: bool) -> None:
    """Draw a band over the instep around `x`."""
    fabric = CREAM if light else INK
    band = [(x - half, 0.03), (x - half, _ridge(x - half)), (x + half, _ridge(x + half)), (x + half, 0.03)]
    canvas.fill(last.on(band), fabric, edge=0.007)


def _lace_up(canvas: Canvas, last: Last, category: str) -> None:
    """Draw four crossings of a light lace and a bow."""
    for x in (-0.06, 0.02, 0.1, 0.18):
        lace = last.on([(x + 0.02, _ridge(x) + 0.008), (x - 0.035, 0.45 * _ridge(x))])
        canvas.line(lace, INK.colour, 0.034)
        canvas.line(lace, CREAM.colour, 0.022)
    (knot,) = last.on([(-0.08, _ridge(-0.08) + 0.02)])
    for x, y in ((-0.09, -0.05), (0.05, -0.08)):
        loop = smooth(knot + points([(0.0, 0.0), (x, y), (x + 0.03, y + 0.07)]), closed=True, rounds=2)
        canvas.fill(loop, CREAM, edge=0.012)


def _slip_on(canvas: Canvas, last: Last, category: str) -> None:
    """Draw nothing."""


def _zipper(canvas: Canvas, last: Last, category: str) -> None:
    """Draw a long dark zip with light teeth and a pull."""
    top = last.placed([(-0.25, SHAFT + 0.06)])[0] if category == "Boots" else last.on([(-0.12, 0.2)])[0]
    foot = last.on([(-0.2 if category == "Boots" else 0.2, 0.04)])[0]
    canvas.line(points([top, foot]), INK.colour, 0.05)
    count = round(float(np.hypot(*(foot - top))) / 0.03)
    across = np.array([(foot - top)[1], -(foot - top)[0]]) / np.hypot(*(foot - top)) * 0.017
    for share in np.linspace(0.03, 0.97, count):
        middle = top + share * (foot - top)
        canvas.line(points([middle - across, middle + across]), CREAM.colour, 0.012)
    canvas.fill(top + ellipse(0.0, 0.0, 0.026, 0.036, 12), CREAM, edge=0.008)


def _hook_and_loop(canvas: Canvas, last: Last, category: str) -> None:
    """Draw two wide light straps."""
    for x in (-0.045, 0.12):
        _strap(canvas, last, x, 0.055, light=True)
        canvas.line(last.on([(x - 0.03, 0.06), (x + 0.03, 0.06)]), INK.colour, 0.012)


def _buckle(canvas: Canvas, last: Last, category: str) -> None:
    """Draw one dark strap with a big square frame."""
    _strap(canvas, last, 0.05, 0.06, light=False)
    (centre,) = last.on([(0.05, 0.11)])
    canvas.fill(rectangle(*(centre - 0.075), *(centre + 0.075)), CREAM, edge=0.01)
    canvas.fill(rectangle(*(centre - 0.04), *(centre + 0.04)), INK, edge=0)
    canvas.line(centre + points([(0.0, 0.0), (0.075, 0.0)]), CREAM.colour, 0.016)


def _ankle_strap(canvas: Canvas, last: Last, category: str) -> None:
    """Draw a band around the ankle, above the shoe, that a strap at the back holds up."""
    canvas.fill(last.on([(-0.5, 0.05), (-0.5, 0.4), (-0.455, 0.4), (-0.455, 0.05)]), INK, edge=0.006)
    (x0, y), (x1, _) = last.on([(-0.5, 0.36), (-0.13, 0.36)])
    canvas.fill(rectangle(x0, y - 0.035, x1, y + 0.035), INK, edge=0.006)
    canvas.fill(ellipse(0.4 * x0 + 0.6 * x1, y, 0.035, 0.035, 14), CREAM, edge=0.008)


def _pull_on(canvas: Canvas, last: Last, category: str) -> None:
    """Draw two loops of tape to pull the shoe on by, at the opening."""
    if category == "Boots":
        tops = last.placed([(-0.42, SHAFT), (-0.18, SHAFT)])
    elif category == "Slippers":
        tops = last.on([(-0.12, 0.17), (-0.01, 0.21)])
    else:
        tops = last.on([(-0.46, 0.2), (-0.04, 0.2)])
    for x, y in tops:
        for fabric, half in ((CREAM, 0.045), (INK, 0.02)):
            low, high = y + (0.045 if fabric is CREAM else 0.0), y - (0.1 if fabric is CREAM else 0.07)
            canvas.fill(rectangle(x - half, high, x + half, low), fabric, edge=0.008)


def _elastic_gore(canvas: Canvas, last: Last, category: str) -> None:
    """Draw a dark wedge of ribbed elastic in the side."""
    top, x = (0.36, -0.3) if category == "Boots" else (0.19, -0.02)
    wide = 0.13
    wedge = [(x - wide, top), (x + wide, top), (x + 0.4 * wide, 0.03), (x - 0.4 * wide, 0.03)]
    canvas.fill(last.on(wedge), INK, edge=0.008)
    for share in np.linspace(-0.75, 0.75, 5):
        rib = [(x + share * wide, top - 0.015), (x + 0.4 * share * wide, 0.045)]
        canvas.line(last.on(rib), CREAM.colour, 0.01)


def _button_loop(canvas: Canvas, last: Last, category: str) -> None:
    """Draw three round buttons down the instep."""
    for x in (-0.06, 0.05, 0.16):
        (centre,) = last.on([(x, 0.62 * _ridge(x))])
        canvas.fill(centre + ellipse(0.0, 0.0, 0.04, 0.04, 16), CREAM, edge=0.012)


def _toggle(canvas: Canvas, last: Last, category: str) -> None:
    """Draw a cord in a zigzag that ends in a barrel."""
    cord = last.on([(0.2, 0.14), (0.12, 0.06), (0.08, 0.19), (0.0, 0.06), (-0.05, 0.2)])
    canvas.line(cord, CREAM.colour, 0.032)
    canvas.line(cord, INK.colour, 0.018)
    x, y = cord[-1]
    canvas.line([(x, y), (x - 0.05, y - 0.07)], INK.colour, 0.018)
    canvas.fill(rectangle(x - 0.1, y - 0.12, x - 0.01, y - 0.055), CREAM, edge=0.012)


CLOSURES: dict[str, Draw] = {
    "Lace up": _lace_up,
    "Slip-On": _slip_on,
    "Zipper": _zipper,
    "Hook and Loop": _hook_and_loop,
    "Buckle": _buckle,
    "Ankle Strap": _ankle_strap,
    "Pull-on": _pull_on,
    "Elastic Gore": _elastic_gore,
    "Button Loop": _button_loop,
    "Toggle": _toggle,
}
