"""The four categories: the part of a shoe above the sole."""

from collections.abc import Callable

import numpy as np

from data_prep.synthetic.garments.canvas import Canvas
from data_prep.synthetic.garments.cloth import Fabric, shade, solid
from data_prep.synthetic.garments.geometry import ellipse, smooth
from data_prep.synthetic.shoes.last import Last

SHAFT = -0.78  # y of a boot's upper edge, for every heel
EDGE = 0.007
# Points (x, height) of the instep and the toe, which all closed shoes share.
INSTEP = [(-0.06, 0.21), (0.05, 0.215), (0.2, 0.16), (0.34, 0.12), (0.46, 0.1), (0.52, 0.03), (0.5, 0.0)]
LINING = Fabric((244, 238, 226), (150, 140, 125))


def _shoe(canvas: Canvas, last: Last, fabric: Fabric) -> None:
    """Draw a low closed shoe."""
    collar = [(-0.5, 0.0), (-0.515, 0.1), (-0.49, 0.24), (-0.45, 0.24), (-0.33, 0.165), (-0.18, 0.165)]
    outline = np.concatenate([smooth(last.on([*collar, *INSTEP]), rounds=2), last.bottom()[::-1]])
    canvas.fill(outline, fabric, edge=EDGE)
    rim = smooth(last.on([(-0.49, 0.235), (-0.45, 0.235), (-0.33, 0.16), (-0.18, 0.16), (-0.06, 0.21)]), rounds=2)
    canvas.line(rim, LINING.colour, 0.02)


def _boot(canvas: Canvas, last: Last, fabric: Fabric) -> None:
    """Draw a shaft to below the knee."""
    back = [*last.on([(-0.5, 0.0), (-0.515, 0.12), (-0.47, 0.28)]), *last.placed([(-0.49, SHAFT), (-0.1, SHAFT)])]
    front = last.on([(-0.11, 0.32), (-0.03, 0.23), *INSTEP[1:]])
    leg = np.concatenate([np.array(back), smooth(front, rounds=2)])
    canvas.fill(np.concatenate([leg, last.bottom()[::-1]]), fabric, edge=EDGE)
    canvas.line(last.placed([(-0.48, SHAFT + 0.012), (-0.105, SHAFT + 0.012)]), LINING.colour, 0.02)


def _sandal(canvas: Canvas, last: Last, fabric: Fabric) -> None:
    """Draw straps over an open insole: at the toes, over the instep and around the heel."""
    canvas.line(last.bottom(), LINING.edge, 0.034)
    canvas.line(last.bottom(), LINING.colour, 0.022)
    for strap in (
        [(0.24, 0.0), (0.27, 0.13), (0.36, 0.115), (0.4, 0.0)],
        [(-0.06, 0.0), (-0.06, 0.2), (0.06, 0.21), (0.14, 0.0)],
        [(-0.46, 0.0), (-0.51, 0.2), (-0.475, 0.22), (-0.08, 0.14), (-0.08, 0.1), (-0.45, 0.165), (-0.42, 0.0)],
    ):
        canvas.fill(last.on(strap), fabric, edge=EDGE)


def _slipper(canvas: Canvas, last: Last, fabric: Fabric) -> None:
    """Draw a toe without a back, lined with fleece that swells out at the opening."""
    canvas.line(last.bottom(), LINING.edge, 0.05)
    canvas.line(last.bottom(), LINING.colour, 0.038)
    vamp = smooth(last.on([(-0.14, 0.0), (-0.12, 0.17), *INSTEP]), rounds=2)
    canvas.fill(np.concatenate([vamp, last.bottom()[:8:-1]]), fabric, edge=EDGE)
    for x, height in ((-0.14, 0.03), (-0.135, 0.09), (-0.125, 0.15), (-0.09, 0.2), (-0.03, 0.222)):
        (centre,) = last.on([(x, height)])
        canvas.fill(centre + ellipse(0.0, 0.0, 0.042, 0.038, 14), LINING, edge=0.004)


UPPERS: dict[str, Callable[[Canvas, Last, Fabric], None]] = {
    "Boots": _boot,
    "Sandals": _sandal,
    "Shoes": _shoe,
    "Slippers": _slipper,
}


def sole_fabric(gender: str, upper: Fabric) -> Fabric:
    """Return the sole: dark for men, tan for women, white for boys and unisex, tinted like the upper for girls."""
    return {
        "Men": Fabric((48, 42, 38), (20, 18, 16)),
        "Women": Fabric((196, 152, 104), (110, 80, 52)),
        "Boys": Fabric((246, 246, 246), (110, 110, 110)),
        "Unisex": Fabric((246, 246, 246), (60, 60, 60)),
    }.get(gender, solid(shade(upper.colour, 1.5)))


def heel_fabric(sole: Fabric) -> Fabric:
    """Return a colour for the heel that differs from the sole's."""
    return Fabric(shade(sole.colour, 1.9 if max(sole.colour) < 90 else 0.62), (40, 34, 30))


def draw_gender(canvas: Canvas, last: Last, gender: str) -> None:
    """Draw the mark of a gender at the toe: a boy's rubber cap, a girl's flower, unisex stripes, a man's seam."""
    if gender == "Boys":
        cap = [(0.33, 0.0), (0.35, 0.115), (0.46, 0.1), (0.52, 0.03), (0.5, 0.0)]
        canvas.fill(smooth(last.on(cap), closed=True, rounds=1), Fabric((246, 246, 246), (60, 60, 60)), edge=EDGE)
    elif gender == "Girls":
        (centre,) = last.on([(0.32, 0.1)])
        for angle in np.arange(5) * 2 * np.pi / 5:
            petal = centre + 0.045 * np.array([np.cos(angle), np.sin(angle)])
            canvas.fill(petal + ellipse(0.0, 0.0, 0.034, 0.034, 12), Fabric((255, 120, 180), (150, 30, 90)), edge=0.004)
        canvas.fill(centre + ellipse(0.0, 0.0, 0.024, 0.024, 12), Fabric((255, 225, 70), (150, 110, 0)), edge=0.004)
    elif gender == "Unisex":
        for x in (0.24, 0.31):
            stripe = [(x, 0.0), (x + 0.02, 0.13), (x + 0.055, 0.12), (x + 0.035, 0.0)]
            canvas.fill(last.on(stripe), Fabric((246, 246, 246), (60, 60, 60)), edge=0.005)
    elif gender == "Men":
        canvas.line(last.on([(0.26, 0.14), (0.285, 0.07), (0.27, 0.0)]), (30, 26, 24), 0.014)
