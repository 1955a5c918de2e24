"""The four length attributes: where skirt, pants, coat and sleeves end on the body."""

from dataclasses import dataclass

import numpy as np

from data_prep.synthetic.garments.canvas import Canvas
from data_prep.synthetic.garments.cloth import Fabric, shade
from data_prep.synthetic.garments.figure import (
    ANKLE,
    ARM_HALVES,
    ARMPIT,
    CALF,
    FLOOR,
    HIP,
    KNEE,
    LEG_HALVES,
    MID_THIGH,
    NECK_BASE,
    SHOULDER,
    WAIST,
    Figure,
    torso_half,
)
from data_prep.synthetic.garments.geometry import (
    Points,
    across,
    ellipse,
    mirrored,
    points,
    rectangle,
    smooth,
    symmetric,
    tube,
)
from data_prep.synthetic.garments.tops import BUTTON

# Height of the hem on the body.
SKIRT_HEM = {
    "Short": MID_THIGH - 0.02,
    "Knee": KNEE,
    "Midi": CALF - 0.015,
    "Ankle": ANKLE - 0.025,
    "Floor": FLOOR - 0.003,
}
COAT_HEM = {
    "High Waist": WAIST - 0.035,
    "Regular": HIP - 0.015,
    "Long": HIP + 0.06,
    "Micro": MID_THIGH + 0.015,
    "Knee": KNEE,
    "Midi": CALF,
    "Ankle&Floor": ANKLE + 0.015,
}
# Fraction of the leg, 0.5 at the knee and 1 at the ankle.
PANT_END = {"Short": 0.27, "Mid": 0.47, "3-4": 0.66, "Cropped": 0.85, "Full": 1.06}
# Fraction of the arm, 0.5 at the elbow and 1 at the wrist; a cup only covers the shoulder, 1.3 hides the fingers.
SLEEVE_END = {"Cup": 0.12, "Short": 0.29, "Elbow": 0.49, "3-4": 0.67, "Wrist": 0.85, "Long": 1.01, "Extra Long": 1.3}

HEM_SPREAD = 0.012  # greatest distance of a hem from the middle of its value


@dataclass(frozen=True)
class Cut:
    """Cut of the garments apart from the attributes; sampled independently of every value."""

    skirt_flare: float  # growth of half the width per body height below the hip
    skirt_wave: float
    pleats: int
    pant_ease: float
    pant_flare: float
    coat_ease: float
    coat_flare: float
    coat_gap: float  # half the opening at the hem
    sleeve_ease: float
    sleeve_flare: float
    hem_at: float  # -1..1, position within the hem's spread
    turn_up: bool


def sample_cut(rng: np.random.Generator) -> Cut:
    """Sample a cut."""
    return Cut(
        skirt_flare=float(rng.choice([rng.uniform(-0.05, 0.05), rng.uniform(0.15, 0.3), rng.uniform(0.3, 0.5)])),
        skirt_wave=float(rng.choice([0.0, rng.uniform(0.003, 0.008)])),
        pleats=int(rng.choice([0, 0, 4, 7])),
        pant_ease=float(rng.uniform(0.003, 0.016)),
        pant_flare=float(rng.choice([0.0, 0.0, rng.uniform(0.0, 0.025)])),
        coat_ease=float(rng.uniform(0.016, 0.03)),
        coat_flare=float(rng.uniform(0.0, 0.2)),
        coat_gap=float(rng.choice([0.0, rng.uniform(0.015, 0.05)])),
        sleeve_ease=float(rng.uniform(0.006, 0.013)),
        sleeve_flare=float(rng.choice([0.0, rng.uniform(0.0, 0.016)])),
        hem_at=float(rng.uniform(-1.0, 1.0)),
        turn_up=bool(rng.random() < 0.4),
    )


def draw_skirt(canvas: Canvas, figure: Figure, fabric: Fabric, cut: Cut, length: str) -> Points:
    """Draw a skirt from the waist to its hem; return the corners of the deciding area."""
    hem = SKIRT_HEM[length] + HEM_SPREAD * cut.hem_at * (length != "Floor")
    below = hem - HIP
    # A narrow skirt still surrounds both legs; a floor-length one also hides the shoes.
    legs = max(float(np.interp(hem, leg[:, 1], np.abs(leg[:, 0]))) for leg in figure.legs)
    stride = legs + (0.055 if length == "Floor" else 0.035)
    half = max(stride, float(torso_half(HIP)) + 0.012 + cut.skirt_flare * below)
    right = np.linspace(0.0, half, 14)
    droop = 0.012 * (1.0 - (right / half) ** 2) + cut.skirt_wave * np.sin(right * 160.0)
    edge = across(np.stack([right, hem - 0.012 + droop], axis=1))
    side = smooth([(0.066, WAIST), (0.1, HIP), (half, hem - 0.012)], rounds=2)
    canvas.fill(np.concatenate([mirrored(side), edge, side[::-1]]), fabric)
    for x in np.linspace(-0.85, 0.85, cut.pleats):
        canvas.line([(x * 0.08, HIP), (x * half, hem - 0.006)], fabric.edge, 0.003)
    canvas.fill(rectangle(-0.068, WAIST - 0.008, 0.068, WAIST + 0.01), fabric)
    return points([(-half, WAIST), (half, min(hem + 0.03, FLOOR))])


def draw_pants(canvas: Canvas, figure: Figure, fabric: Fabric, cut: Cut, length: str) -> Points:
    """Draw trousers from the waist to the end of the legs; return the points of the deciding area."""
    end = PANT_END[length] + 0.02 * cut.hem_at * (length != "Full")
    halves = [half * figure.build for half in LEG_HALVES]
    legs = [tube(leg, 0.0, end, halves, ease=cut.pant_ease, flare=cut.pant_flare) for leg in figure.legs]
    for leg, joints in zip(legs, figure.legs, strict=True):
        canvas.fill(leg, fabric)
        if cut.turn_up:
            cuff = tube(joints, end - 0.05, end, halves, ease=cut.pant_ease + cut.pant_flare + 0.003)
            canvas.fill(cuff, fabric)
    seat = [(0.068, WAIST - 0.008), (0.1, HIP), (0.1, HIP + 0.03), (0.03, HIP + 0.07), (0.0, HIP + 0.05)]
    canvas.fill(symmetric(seat), fabric, edge=0)
    canvas.fill(rectangle(-0.07, WAIST - 0.008, 0.07, WAIST + 0.01), fabric)
    canvas.line([(0.0, WAIST), (0.0, HIP + 0.05)], fabric.edge)
    return np.concatenate([*legs, points([(0.0, WAIST)])])


def draw_coat(canvas: Canvas, fabric: Fabric, cut: Cut, length: str, button: float) -> Points:
    """Draw the two front panels of a coat, closed at the height `button`; return the corners of its area."""
    hem = COAT_HEM[length] + HEM_SPREAD * cut.hem_at
    button = min(button, hem - 0.02)
    ease = cut.coat_ease
    half = float(torso_half(hem)) + ease + cut.coat_flare * max(0.0, hem - HIP)
    outside = smooth(
        [(0.115, SHOULDER), (0.1, ARMPIT), (float(torso_half(min(hem, WAIST))) + ease, min(hem, WAIST)), (half, hem)],
        rounds=2,
    )
    gap = 0.004 + cut.coat_gap * (hem - button) / (FLOOR - button) * 2.0
    front = smooth([(0.038, 0.166), (0.03, 0.21), (0.004, button), (gap, hem)], rounds=2)
    panel = np.concatenate([points([(0.05, NECK_BASE - 0.004)]), outside, front[::-1]])
    canvas.fill_both(panel, fabric)
    for y in np.arange(button, hem - 0.02, 0.055):
        canvas.fill(ellipse(gap * (y - button) / (hem - button) + 0.012, y, 0.006, 0.006, 10), BUTTON)
    return points([(-half, SHOULDER), (half, min(hem + 0.03, FLOOR))])


def draw_sleeve(canvas: Canvas, figure: Figure, arm: Points, fabric: Fabric, cut: Cut, length: str, *,
                start: float = 0.0) -> None:  # fmt: skip
    """Draw the sleeve of one arm; `start` above 0 leaves the shoulder bare. Sleeveless draws nothing."""
    if length == "Sleeveless":
        return
    halves = [half * figure.build for half in ARM_HALVES]
    at = 0.015 * cut.hem_at * (length != "Cup")
    end = max(SLEEVE_END[length] + at, start + 0.08)
    ease, flare = (0.014, 0.012) if length == "Cup" else (cut.sleeve_ease, cut.sleeve_flare)
    if start == 0.0:
        canvas.fill(ellipse(arm[0, 0], arm[0, 1], 0.03, 0.028), fabric, edge=0)
    canvas.fill(tube(arm, start, end, halves, ease=ease, flare=flare), fabric)
    if cut.turn_up and end > 0.2:
        canvas.fill(tube(arm, end - 0.06, end, halves, ease=ease + flare + 0.002), fabric)
    hem = tube(arm, end - 0.012, end, halves, ease=ease + flare)
    canvas.fill(hem, Fabric(shade(fabric.edge, 0.8), fabric.edge), edge=0)
