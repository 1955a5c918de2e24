"""The 26 collars of DARN: FashionAI's necklines, necks, collars and lapels, and nine others."""

from collections.abc import Callable

import numpy as np

from data_prep.synthetic.garments.accessories import CREAM, draw_bow
from data_prep.synthetic.garments.canvas import Canvas
from data_prep.synthetic.garments.cloth import Fabric
from data_prep.synthetic.garments.figure import CHIN, NECK_BASE, SHOULDER
from data_prep.synthetic.garments.geometry import (
    Points,
    across,
    ellipse,
    mirrored,
    points,
    rectangle,
    smooth,
    symmetric,
)
from data_prep.synthetic.garments.tops import (
    CLOSED_EDGE,
    COLLARS,
    COWL_EDGE,
    LAPELS,
    NECKLINES,
    NECKS,
    SHOULDER_TIP,
    draw_collar,
    draw_lapel,
    draw_neck,
)

FASHIONAI_NAME = {
    "round neck": "Round",
    "v neck": "V",
    "deep v neck": "Deep V",
    "square neck": "Square",
    "sweetheart neck": "Sweetheart",
    "turtleneck": "Turtle",
    "low turtleneck": "Low Turtle",
    "ruffled neck": "Ruffle Semi-High",
    "cowl": "Draped",
    "shirt collar": "Shirt",
    "peter pan collar": "Peter Pan",
    "puritan collar": "Puritan",
    "rib collar": "Rib",
    "notched lapel": "Notched",
    "bound edge": "Collarless",
    "shawl lapel": "Shawl",
    "wide shawl lapel": "Plus Size Shawl",
}
BUTTON_HEIGHT = 0.335  # where lapels close: below the lowest neckline
SHOULDER_END = points([SHOULDER_TIP, (0.092, 0.258)])


def _bowed(depth: float, half: float) -> Points:
    """Return an upper edge with a round opening of this depth and half width."""
    angle = np.linspace(np.pi / 2, 0.0, 14)
    top = NECK_BASE - 0.002 + 0.25 * max(0.0, half - 0.05)
    arc = np.stack([half * np.cos(angle), top + depth * np.sin(angle)], axis=1)
    return across(np.concatenate([arc, SHOULDER_END]))


LAPEL_EDGE = across(np.concatenate([points([(0.0, BUTTON_HEIGHT), (0.034, 0.166)]), SHOULDER_END]))
SLANTED_EDGE = np.concatenate([
    mirrored(SHOULDER_END)[::-1], points([(-0.05, NECK_BASE - 0.004), (0.02, 0.285), (0.085, SHOULDER - 0.006)]),
    SHOULDER_END,
])  # fmt: skip
OWN_EDGES = {"boat neck": _bowed(0.012, 0.094), "scoop neck": _bowed(0.105, 0.062), "slanted neck": SLANTED_EDGE}


def upper_edge(collar: str) -> Points:
    """Return the upper edge of the bodice under a collar, from left to right."""
    if collar in OWN_EDGES:
        return OWN_EDGES[collar]
    name = FASHIONAI_NAME.get(collar, "")
    if name in LAPELS:
        return LAPEL_EDGE
    if name == "Draped":
        return COWL_EDGE
    return NECKLINES[name](0.0) if name in NECKLINES else CLOSED_EDGE


def draw_darn_collar(canvas: Canvas, fabric: Fabric, collar: str) -> Points:
    """Paint a collar on the bodice; return the corners of the deciding area, which all collars share."""
    name = FASHIONAI_NAME.get(collar, "")
    if collar in OWN_COLLARS:
        OWN_COLLARS[collar](canvas, fabric)
    elif name in COLLARS:
        draw_collar(canvas, fabric, name)
    elif name in LAPELS:
        draw_lapel(canvas, fabric, name, BUTTON_HEIGHT)
    elif name in NECKS:
        draw_neck(canvas, fabric, name)
    else:
        canvas.line(upper_edge(collar)[2:-2], fabric.edge, 0.009)
    return points([(-0.135, CHIN - 0.012), (0.135, 0.36)])


def _keyhole(canvas: Canvas, fabric: Fabric) -> None:
    canvas.fill(ellipse(0.0, 0.245, 0.02, 0.034), Fabric(fabric.edge, fabric.edge), edge=0.008)
    canvas.line(CLOSED_EDGE[2:-2], fabric.edge, 0.008)


def _sailor(canvas: Canvas, fabric: Fabric) -> None:
    """Draw two broad straight-edged leaves with a light border and a tie."""
    leaf = points(
        [(0.03, 0.155), (0.05, 0.166), (0.118, 0.196), (0.12, 0.262), (0.06, 0.285), (0.0, 0.315), (0.028, 0.2)]
    )
    for side in (leaf, mirrored(leaf)):
        canvas.fill(side, fabric, edge=0.005)
        canvas.line(side[2:6] * (0.88, 1.0) - (0.0, 0.012), CREAM.colour, 0.007)
    canvas.fill(points([(0.0, 0.3), (0.022, 0.355), (-0.022, 0.355)]), CREAM)


def _hood(canvas: Canvas, fabric: Fabric) -> None:
    """Draw a hood laid back on the shoulders, with two cords."""
    roll = smooth([(0.0, 0.215), (0.05, 0.2), (0.06, 0.15), (0.04, 0.12), (0.075, 0.112), (0.112, 0.165), (0.1, 0.225),
                   (0.0, 0.262)], rounds=2)  # fmt: skip
    canvas.fill(symmetric(roll), fabric, edge=0.006)
    for x in (-0.03, 0.03):
        canvas.line([(x, 0.235), (1.2 * x, 0.34)], CREAM.edge, 0.012)
        canvas.line([(x, 0.235), (1.2 * x, 0.34)], CREAM.colour, 0.007)


def _bow(canvas: Canvas, fabric: Fabric) -> None:
    _stand(canvas, fabric)
    draw_bow(canvas, 0.0, 0.215, 0.085, fabric)


def _stand(canvas: Canvas, fabric: Fabric) -> None:
    canvas.fill(symmetric([(0.0, 0.168), (0.036, 0.158), (0.042, 0.186), (0.0, 0.204)]), fabric)


def _jabot(canvas: Canvas, fabric: Fabric) -> None:
    """Draw a stand collar with a fall of frills down the chest."""
    _stand(canvas, fabric)
    for half, y in ((0.03, 0.325), (0.038, 0.285), (0.034, 0.245), (0.024, 0.21)):
        frill = [
            (0.0, y - 0.035),
            (0.4 * half, y - 0.02),
            (half, y + 0.012),
            (0.55 * half, y + 0.004),
            (0.0, y + 0.024),
        ]
        canvas.fill(symmetric(frill), fabric, edge=0.006)


def _zipped(canvas: Canvas, fabric: Fabric) -> None:
    """Draw a high stand, open at the top, on a short zip."""
    flap = points([(0.008, 0.21), (0.022, 0.145), (0.055, 0.14), (0.058, 0.19)])
    canvas.fill_both(flap, fabric, edge=0.006)
    canvas.line([(0.0, 0.2), (0.0, 0.32)], CREAM.edge, 0.014)
    canvas.line([(0.0, 0.2), (0.0, 0.32)], CREAM.colour, 0.006)
    canvas.fill(rectangle(-0.009, 0.312, 0.009, 0.345), CREAM)


OWN_COLLARS: dict[str, Callable[[Canvas, Fabric], None]] = {
    "keyhole": _keyhole,
    "sailor collar": _sailor,
    "hood": _hood,
    "bow": _bow,
    "jabot": _jabot,
    "zipped collar": _zipped,
}
