"""The human figure: landmarks of the body, its pose, and how skin, hair and shoes are painted.

The unit is the body's height: y = 0 at the top of the head, y = 1 on the floor, x = 0 on the centre line.
"""

from dataclasses import dataclass

import numpy as np

from data_prep.synthetic.garments.canvas import Canvas
from data_prep.synthetic.garments.cloth import Colour, Fabric, contrasting, shade, solid
from data_prep.synthetic.garments.geometry import Points, along, ellipse, mirrored, points, smooth, symmetric, tube

# Heights of the landmarks. The neck is longer than in anatomy, as in fashion drawings.
CHIN, NECK_BASE, SHOULDER, ARMPIT, BUST = 0.120, 0.178, 0.196, 0.258, 0.285
WAIST, HIP, CROTCH, MID_THIGH, KNEE, CALF, ANKLE, FLOOR = 0.395, 0.485, 0.525, 0.610, 0.720, 0.830, 0.935, 1.0

NECK_HALF, SHOULDER_HALF = 0.030, 0.104
TORSO_HEIGHTS = (SHOULDER, ARMPIT, BUST, WAIST, HIP, CROTCH)
TORSO_HALVES = (0.100, 0.078, 0.084, 0.064, 0.092, 0.094)
ARM_HALVES = (0.031, 0.027, 0.023, 0.020, 0.015)
LEG_HALVES = (0.050, 0.042, 0.033, 0.031, 0.018)
UPPER_ARM, FOREARM, THIGH, SHANK = 0.160, 0.145, 0.222, 0.218

SKIN_TONES: tuple[Colour, ...] = (
    (250, 222, 200), (241, 200, 170), (224, 172, 135), (198, 140, 100), (160, 105, 70), (115, 72, 48),
    (80, 50, 36),
)  # fmt: skip
HAIR_TONES: tuple[Colour, ...] = (
    (25, 20, 20), (60, 38, 25), (105, 65, 35), (170, 120, 60), (220, 190, 120), (140, 50, 30),
    (150, 150, 150),
)  # fmt: skip
HAIR_STYLES = ("none", "short", "bob", "long", "bun")


@dataclass(frozen=True)
class Figure:
    """Pose, proportions and colours of one person. Arms and legs are (3, 2) joints, right side first."""

    arms: tuple[Points, Points]
    legs: tuple[Points, Points]
    build: float  # size of limbs and torso, relative to the average
    skin: Fabric
    hair: Fabric
    hair_style: str
    hair_end: float
    shoe: Fabric
    has_face: bool


def sample_figure(rng: np.random.Generator) -> Figure:
    """Sample a person in a standing pose."""
    skin = _jittered(rng, SKIN_TONES[rng.integers(len(SKIN_TONES))])
    return Figure(
        arms=(_sample_arm(rng), mirrored(_sample_arm(rng))),
        legs=(_sample_leg(rng), mirrored(_sample_leg(rng))),
        build=float(rng.uniform(0.92, 1.1)),
        skin=solid(skin),
        hair=solid(_jittered(rng, HAIR_TONES[rng.integers(len(HAIR_TONES))])),
        hair_style=str(rng.choice(HAIR_STYLES)),
        hair_end=float(rng.uniform(0.2, 0.36)),
        shoe=solid(contrasting(rng, (skin,))),
        has_face=bool(rng.random() < 0.85),
    )


def arms_apart(rng: np.random.Generator, widest: float) -> tuple[Points, Points]:
    """Sample arms that leave the torso's outline free; `widest` is the largest angle of an upper arm in degrees."""
    right, left = (
        _bones((0.091, SHOULDER + 0.020), (upper, upper + rng.uniform(-8, 4)), (UPPER_ARM, FOREARM))
        for upper in rng.uniform(widest - 9, widest, 2)
    )
    return right, mirrored(left)


def torso_half(height: np.ndarray | float) -> np.ndarray:
    """Return half the torso's width at each height."""
    return np.interp(np.asarray(height, dtype=float), TORSO_HEIGHTS, TORSO_HALVES)


def torso_side(top: float, bottom: float, ease: float) -> Points:
    """Return the right side of the torso from `top` down to `bottom`, `ease` outside the skin."""
    heights = np.linspace(top, bottom, 10)
    return np.stack([torso_half(heights) + ease, heights], axis=1)


def draw_behind(canvas: Canvas, figure: Figure) -> None:
    """Draw the parts behind the garments: long hair, legs with shoes, torso and neck."""
    if figure.hair_style == "long":
        back = [(0.0, 0.0), (0.055, 0.03), (0.07, 0.12), (0.075, figure.hair_end), (0.0, figure.hair_end + 0.01)]
        canvas.fill(smooth(symmetric(back), closed=True), figure.hair)
    for leg, outward in zip(figure.legs, (1.0, -1.0), strict=True):
        ankle_x = leg[2, 0]
        shoe = [
            (ankle_x - 0.022, ANKLE), (ankle_x + 0.022, ANKLE), (ankle_x + 0.03 + 0.012 * outward, 0.985),
            (ankle_x + 0.02 * outward, FLOOR), (ankle_x - 0.03 + 0.012 * outward, 0.985),
        ]  # fmt: skip
        canvas.fill(tube(leg, 0.0, 1.0, _scaled(LEG_HALVES, figure)), figure.skin)
        canvas.fill(smooth(shoe, closed=True, rounds=2), figure.shoe)
    side = torso_side(ARMPIT, CROTCH, 0.0)
    shoulders = [(0.0, 0.1), (NECK_HALF, 0.1), (NECK_HALF, 0.16), (0.045, NECK_BASE), (SHOULDER_HALF, SHOULDER)]
    canvas.fill(symmetric(np.concatenate([points(shoulders), side])), figure.skin)
    collarbone = smooth([(0.012, NECK_BASE + 0.012), (0.045, NECK_BASE + 0.008), (0.085, SHOULDER + 0.004)])
    for bone in (collarbone, mirrored(collarbone)):
        canvas.line(bone, figure.skin.edge, 0.002)


def draw_arm(canvas: Canvas, figure: Figure, arm: Points) -> None:
    """Draw a bare arm with its hand."""
    canvas.fill(tube(arm, 0.0, 1.0, _scaled(ARM_HALVES, figure)), figure.skin)
    canvas.fill(ellipse(arm[0, 0], arm[0, 1], 0.029, 0.027), figure.skin, edge=0)
    hand = along(arm, np.array([0.97, 1.12, 1.24]))
    canvas.fill(smooth(tube(hand, 0.0, 1.0, (0.013, 0.019, 0.022, 0.017, 0.008)), closed=True), figure.skin)


def draw_head(canvas: Canvas, figure: Figure) -> None:
    """Draw head, hair and usually a face; long hair stays behind the shoulders."""
    if figure.hair_style == "bun":
        canvas.fill(ellipse(0.0, 0.002, 0.026, 0.022), figure.hair)
    canvas.fill(ellipse(0.0, 0.066, 0.043, 0.059), figure.skin)
    if figure.hair_style != "none":
        end = {"short": 0.055, "bob": 0.125, "long": 0.14, "bun": 0.05}[figure.hair_style]
        fringe = [(0.0, -0.004), (0.05, 0.01), (0.053, 0.06), (0.05, end), (0.039, end), (0.037, 0.05), (0.0, 0.028)]
        canvas.fill(smooth(symmetric(fringe), closed=True, rounds=2), figure.hair)
    if figure.has_face:
        dark = shade(figure.skin.colour, 0.4)
        for x in (-0.016, 0.016):
            canvas.fill(ellipse(x, 0.062, 0.006, 0.004, 10), solid(dark), edge=0)
        canvas.line(smooth([(-0.012, 0.096), (0.0, 0.101), (0.012, 0.096)]), (170, 60, 60), 0.005)


def _sample_arm(rng: np.random.Generator) -> Points:
    """Sample an arm: hanging, bent outwards, hand towards the hip, or raised; angles are from straight down."""
    upper, fore = {
        "hanging": (rng.uniform(8, 25), rng.uniform(-8, 15)),
        "outwards": (rng.uniform(15, 40), rng.uniform(15, 60)),
        "to the hip": (rng.uniform(28, 45), rng.uniform(-40, -8)),
        "raised": (rng.uniform(50, 75), rng.uniform(110, 165)),
    }[str(rng.choice(["hanging", "hanging", "hanging", "outwards", "to the hip", "raised"]))]
    return _bones((0.091, SHOULDER + 0.020), (upper, fore), (UPPER_ARM, FOREARM))


def _sample_leg(rng: np.random.Generator) -> Points:
    upper = rng.uniform(0, 8)
    return _bones((0.05, HIP + 0.01), (upper, upper - rng.uniform(0, 9)), (THIGH, SHANK))


def _bones(start: tuple[float, float], degrees: tuple[float, float], lengths: tuple[float, float]) -> Points:
    angle, length = np.radians(degrees), np.array(lengths)
    steps = np.stack([np.sin(angle) * length, np.cos(angle) * length], axis=1)
    return np.concatenate([[start], start + np.cumsum(steps, axis=0)])


def _scaled(halves: tuple[float, ...], figure: Figure) -> tuple[float, ...]:
    return tuple(half * figure.build for half in halves)


def _jittered(rng: np.random.Generator, colour: Colour) -> Colour:
    red, green, blue = (int(np.clip(part + rng.integers(-10, 11), 0, 255)) for part in colour)
    return red, green, blue
