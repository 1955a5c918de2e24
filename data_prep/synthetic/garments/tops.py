"""The bodice, and the four attributes of its upper edge: neckline, neck, collar and lapel."""

from collections.abc import Callable

import numpy as np

from data_prep.synthetic.garments.canvas import Canvas
from data_prep.synthetic.garments.cloth import Fabric
from data_prep.synthetic.garments.figure import ARMPIT, BUST, CHIN, NECK_BASE, SHOULDER, WAIST, torso_side
from data_prep.synthetic.garments.geometry import Points, across, mirrored, points, smooth, symmetric

EASE = 0.010  # of the bodice around the torso
SHOULDER_TIP = (0.106, SHOULDER)
SIDE = (0.078 + EASE, ARMPIT - 0.008)  # where a strapless edge meets the side


def draw_bodice(canvas: Canvas, fabric: Fabric, edge: Points, hem: float) -> None:
    """Draw a top from its upper `edge`, given from left to right, down to `hem`."""
    side = torso_side(ARMPIT, hem, EASE)
    canvas.fill(np.concatenate([edge, side, mirrored(side)[::-1]]), fabric)


def draw_placket(canvas: Canvas, fabric: Fabric, hem: float) -> None:
    """Draw a row of buttons down the front."""
    canvas.line([(0.0, NECK_BASE + 0.02), (0.0, hem)], fabric.edge, 0.003)
    for y in np.arange(0.24, hem - 0.01, 0.035):
        canvas.fill(points([(-0.004, y - 0.004), (0.004, y - 0.004), (0.004, y + 0.004), (-0.004, y + 0.004)]), BUTTON)


BUTTON = Fabric((245, 240, 230), (70, 60, 50))


# --- neckline_design: the upper edge itself ------------------------------------------


def _with_shoulders(opening: Points, neck: float) -> Points:
    """Return an edge over both shoulders; `opening` runs from the centre line to x = `neck` on the shoulder seam."""
    seam = (neck, NECK_BASE - 0.006 + 0.25 * max(0.0, neck - 0.045))
    return across(np.concatenate([opening, points([seam, SHOULDER_TIP, (0.092, ARMPIT)])]))


def _round(depth: float) -> Points:
    angle = np.linspace(np.pi / 2, 0.0, 14)
    arc = np.stack([0.055 * np.cos(angle), NECK_BASE + (0.042 + depth) * np.sin(angle)], axis=1)
    return _with_shoulders(arc, 0.055)


def _v(depth: float) -> Points:
    return _with_shoulders(points([(0.0, 0.252 + depth)]), 0.05)


def _deep_v(depth: float) -> Points:
    return _with_shoulders(points([(0.0, WAIST - 0.03 + depth)]), 0.06)


def _square(depth: float) -> Points:
    bottom = 0.247 + depth
    return _with_shoulders(points([(0.0, bottom), (0.055, bottom)]), 0.057)


def _sweetheart(depth: float) -> Points:
    """Return two rounded lobes over the bust that meet in a dip, under straps."""
    lobes = smooth([(0.0, 0.278 + depth), (0.008, 0.25), (0.032, 0.228), (0.058, 0.234), (0.066, 0.215)], rounds=2)
    return _with_shoulders(lobes, 0.066)


def _strapless(depth: float) -> Points:
    return across(smooth([(0.0, SIDE[1] + 0.004 + depth), (0.05, SIDE[1] - 0.006), SIDE], rounds=2))


def _straight(depth: float) -> Points:
    return across(points([(0.0, 0.235 + depth), (0.08, 0.235 + depth), SIDE]))


def _off_shoulder(depth: float) -> Points:
    """Return an edge below both shoulders; `draw_neckline` draws the band around the arms."""
    return across(points([(0.0, 0.242 + depth), (0.09, 0.232 + depth), (0.094, ARMPIT)]))


def _one_shoulder(depth: float) -> Points:
    right = smooth([(0.04, NECK_BASE - 0.006), (0.0, 0.212 + depth), (-0.05, 0.238), (-SIDE[0], SIDE[1])])
    return np.concatenate([right[::-1], points([SHOULDER_TIP, (0.092, ARMPIT)])])


NECKLINES: dict[str, Callable[[float], Points]] = {
    "Strapless": _strapless,
    "Deep V": _deep_v,
    "Straight": _straight,
    "V": _v,
    "Square": _square,
    "Off Shoulder": _off_shoulder,
    "Round": _round,
    "Sweetheart": _sweetheart,
    "One Shoulder": _one_shoulder,
}
BARE_SHOULDERS = ("Strapless", "Straight", "One Shoulder")  # no sleeve can hang on these
CLOSED_EDGE = _with_shoulders(points([(0.0, NECK_BASE + 0.022), (0.03, NECK_BASE + 0.010)]), 0.043)


def draw_neckline(canvas: Canvas, fabric: Fabric, shape: str, edge: Points) -> Points:
    """Draw the trim along a neckline, straps or a band around the arms; return the corners of the deciding area."""
    if shape == "Off Shoulder":
        band = [(0.0, edge[:, 1].max() - 0.02), (0.09, 0.228), (0.135, 0.222), (0.14, 0.27), (0.09, 0.278), (0.0, 0.29)]
        canvas.fill(symmetric(band), fabric)
    if shape == "Straight":
        strap = points([(0.058, NECK_BASE + 0.004), (0.070, NECK_BASE + 0.008), (0.074, 0.238), (0.062, 0.238)])
        for side in (strap, mirrored(strap)):
            canvas.fill(side, fabric)
    else:
        seam = edge if shape in (*BARE_SHOULDERS, "Off Shoulder") else edge[2:-2]
        canvas.line(seam, fabric.edge, 0.006)
    return points([(-0.11, NECK_BASE - 0.02), (0.11, max(edge[:, 1].max(), BUST) + 0.015)])


# --- neck_design: what stands or drapes around the neck ------------------------------


def _turtle(canvas: Canvas, fabric: Fabric) -> None:
    """Draw a collar up to the chin, folded over half way."""
    canvas.fill(
        symmetric([(0.0, CHIN - 0.006), (0.036, CHIN - 0.006), (0.042, 0.165), (0.055, 0.188), (0.0, 0.2)]), fabric
    )
    fold = [(0.0, CHIN - 0.006), (0.042, CHIN - 0.008), (0.047, 0.158), (0.03, 0.166), (0.0, 0.169)]
    canvas.fill(symmetric(fold), fabric, edge=0.005)
    for x in np.linspace(-0.036, 0.036, 7):
        canvas.line([(x, CHIN), (x * 1.08, 0.16)], fabric.edge, 0.002)


def _low_turtle(canvas: Canvas, fabric: Fabric) -> None:
    """Draw a smooth low band; half of the neck stays bare."""
    band = [(0.0, 0.163), (0.033, 0.157), (0.04, 0.172), (0.05, 0.188), (0.0, 0.201)]
    canvas.fill(smooth(symmetric(band), closed=True, rounds=1), fabric, edge=0.005)


def _ruffle(canvas: Canvas, fabric: Fabric) -> None:
    """Draw a band of middle height whose upper border is a wide frill."""
    canvas.fill(symmetric([(0.0, 0.16), (0.034, 0.155), (0.052, 0.187), (0.0, 0.2)]), fabric)
    x = np.linspace(-0.066, 0.066, 85)
    wave = 0.0065 * np.sin(x * 2 * np.pi / 0.019)
    top = np.stack([x, 0.139 + wave + 1.2 * x**2], axis=1)
    bottom = np.stack([0.66 * x, 0.172 - 4.0 * x**2], axis=1)
    canvas.fill(np.concatenate([top, bottom[::-1]]), fabric)
    for crest, foot in zip(top[4::6], bottom[4::6], strict=True):
        canvas.line([crest, foot], fabric.edge, 0.003)


def _draped(canvas: Canvas, fabric: Fabric) -> None:
    """Draw a cowl: loose folds that hang from both shoulders, one below the other, far down the chest."""
    for width, top, drop in ((0.088, 0.188, 0.325), (0.079, 0.184, 0.29), (0.068, 0.18, 0.258), (0.056, 0.176, 0.232)):
        fold = smooth([(0.0, drop), (0.03, drop - 0.006), (width * 0.8, (top + drop) / 2), (width, top)])
        lip = smooth([(width - 0.012, top - 0.004), (width * 0.6, drop - 0.06), (0.0, drop - 0.034)])
        canvas.fill(symmetric(np.concatenate([fold, lip])), fabric, edge=0.004)


NECKS: dict[str, Callable[[Canvas, Fabric], None]] = {
    "Turtle": _turtle,
    "Ruffle Semi-High": _ruffle,
    "Low Turtle": _low_turtle,
    "Draped": _draped,
}
COWL_EDGE = _with_shoulders(smooth([(0.0, 0.24), (0.03, 0.232), (0.055, 0.19)]), 0.056)


def draw_neck(canvas: Canvas, fabric: Fabric, shape: str) -> Points:
    """Draw a collar of the neck_design family; return the corners of the deciding area."""
    NECKS[shape](canvas, fabric)
    return points([(-0.085, CHIN - 0.01), (0.085, 0.33 if shape == "Draped" else 0.215)])


# --- collar_design: what lies around the neck ----------------------------------------


def _shirt_collar(canvas: Canvas, fabric: Fabric) -> None:
    """Draw two stiff pointed leaves on a stand."""
    canvas.fill(symmetric([(0.0, 0.168), (0.036, 0.155), (0.04, 0.178), (0.0, 0.198)]), fabric)
    leaf = points([(0.032, 0.142), (0.05, 0.165), (0.067, 0.196), (0.052, 0.246), (0.003, 0.192), (0.026, 0.168)])
    canvas.fill_both(leaf, fabric, edge=0.005)


def _peter_pan_collar(canvas: Canvas, fabric: Fabric) -> None:
    """Draw two small flat leaves with fully rounded ends."""
    outer = smooth([(0.002, 0.196), (0.0, 0.238), (0.03, 0.25), (0.066, 0.232), (0.079, 0.19), (0.062, 0.17)])
    inner = points([(0.042, 0.168), (0.036, 0.182), (0.02, 0.193)])
    leaf = np.concatenate([outer, inner])
    canvas.fill_both(leaf, fabric, edge=0.005)


def _puritan_collar(canvas: Canvas, fabric: Fabric) -> None:
    """Draw a cape of two broad leaves that covers the shoulders and the upper chest."""
    leaf = points(
        [(0.002, 0.19), (0.01, 0.3), (0.075, 0.298), (0.132, 0.248), (0.118, 0.196), (0.044, 0.166), (0.03, 0.18)]
    )
    canvas.fill_both(leaf, fabric, edge=0.005)


def _rib_collar(canvas: Canvas, fabric: Fabric) -> None:
    """Draw a knitted band around the neck: upright ribs between two borders."""
    x = np.linspace(-0.055, 0.055, 21)
    top = np.stack([x * 0.86, 0.176 - 9.0 * x**2 + 0.002], axis=1)
    bottom = np.stack([x * 1.22, 0.226 - 11.0 * x**2], axis=1)
    canvas.fill(np.concatenate([top, bottom[::-1]]), fabric, edge=0.005)
    for upper, lower in zip(top[1:-1], bottom[1:-1], strict=True):
        canvas.line([upper, lower], fabric.edge, 0.003)


COLLARS: dict[str, Callable[[Canvas, Fabric], None]] = {
    "Shirt": _shirt_collar,
    "Peter Pan": _peter_pan_collar,
    "Puritan": _puritan_collar,
    "Rib": _rib_collar,
}


def draw_collar(canvas: Canvas, fabric: Fabric, shape: str) -> Points:
    """Draw a collar of the collar_design family; return the corners of the deciding area."""
    COLLARS[shape](canvas, fabric)
    return points([(-0.12, 0.145), (0.12, 0.3)])


# --- lapel_design: how the front of a coat is folded back ----------------------------


def _notched_lapel(canvas: Canvas, fabric: Fabric, button: float) -> None:
    """Draw a collar piece and a pointed lapel, with an open notch between the two."""
    lapel = points([(0.034, 0.222), (0.088, 0.212), (0.074, 0.262), (0.006, button), (0.028, 0.235)])
    collar = points([(0.03, 0.15), (0.05, 0.162), (0.084, 0.19), (0.062, 0.216), (0.034, 0.222), (0.034, 0.18)])
    for piece in (lapel, collar):
        canvas.fill_both(piece, fabric, edge=0.005)


def _no_lapel(canvas: Canvas, fabric: Fabric, button: float) -> None:
    """Draw only a narrow binding along the front edge."""
    edge = smooth([(0.038, 0.166), (0.03, 0.21), (0.004, button)], rounds=2)
    for side in (edge, mirrored(edge)):
        canvas.line(side, fabric.colour, 0.008)


def _shawl_lapel(canvas: Canvas, fabric: Fabric, button: float) -> None:
    """Draw one rolled band without a notch, as wide as a hand at most."""
    _roll(canvas, fabric, [(0.034, 0.15), (0.06, 0.168), (0.071, 0.21), (0.058, 0.27), (0.004, button)], button)


def _plus_size_shawl(canvas: Canvas, fabric: Fabric, button: float) -> None:
    """Draw a shawl that reaches the ends of the shoulders and hangs far down the chest."""
    outline = [
        (0.034, 0.145),
        (0.085, 0.16),
        (0.142, 0.215),
        (0.128, 0.31),
        (0.075, button + 0.02),
        (0.003, button + 0.035),
    ]
    _roll(canvas, fabric, outline, button)


def _roll(canvas: Canvas, fabric: Fabric, outline: list[tuple[float, float]], button: float) -> None:
    inside = smooth([(0.004, button), (0.03, 0.21), (0.034, 0.15)], rounds=2)
    piece = np.concatenate([smooth(outline), inside])
    canvas.fill_both(piece, fabric, edge=0.005)


LAPELS: dict[str, Callable[[Canvas, Fabric, float], None]] = {
    "Notched": _notched_lapel,
    "Collarless": _no_lapel,
    "Shawl": _shawl_lapel,
    "Plus Size Shawl": _plus_size_shawl,
}


def draw_lapel(canvas: Canvas, fabric: Fabric, shape: str, button: float) -> Points:
    """Draw the lapels of a coat closed at the height `button`; return the corners of the deciding area."""
    LAPELS[shape](canvas, fabric, button)
    return points([(-0.13, 0.145), (0.13, button + 0.04)])
