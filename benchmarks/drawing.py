"""Speed of drawing samples on one core, with JPEG encoding: `agman bench drawing`."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import numpy as np

from benchmarks.common import timed, write_table
from data_prep.layouts.fashionai import ATTRIBUTES
from data_prep.synthetic.garments import Drawing, draw, draw_catalogue
from data_prep.synthetic.garments.vocabulary import DRAWN
from data_prep.synthetic.shoes import SHOE_VALUES, draw_shoe

IMAGES = 400
WARM_UP = 300  # enough to fill the caches of patterns


def fashionai(number: int, size: int) -> Drawing:
    """Draw all attributes and values in turn."""
    wanted = [(name, value) for name, values in ATTRIBUTES.items() for value in range(len(values))]
    name, value = wanted[number % len(wanted)]
    return draw(name, value, seed=number, size=size)


def catalogue(layout: str, values_of_one: int) -> Callable[[int, int], Drawing]:
    """Return a function that draws a label for every attribute, and `values_of_one` for the first attribute."""
    drawn = DRAWN[layout]

    def drawing(number: int, size: int) -> Drawing:
        rng = np.random.default_rng(number)
        labels = [(name, int(rng.integers(len(values)))) for name, values in drawn.items()]
        first = next(iter(drawn))
        more = rng.choice(len(drawn[first]), values_of_one - 1, replace=False).tolist()
        return draw_catalogue(layout, labels + [(first, value) for value in more], seed=number, size=size)

    return drawing


def zappos50k(number: int, size: int) -> Drawing:
    """Draw random values."""
    rng = np.random.default_rng(number)
    return draw_shoe({key: str(rng.choice(names)) for key, names in SHOE_VALUES.items()}, seed=number, size=size)


LAYOUTS: dict[str, Callable[[int, int], Drawing]] = {
    "FashionAI": fashionai,
    "DeepFashion": catalogue("deepfashion", 1),
    "DeepFashion, 3 values of one attribute": catalogue("deepfashion", 3),
    "DARN": catalogue("darn", 1),
    "UT-Zap50K": zappos50k,
}


def images_per_second(drawing: Callable[[int, int], Drawing], size: int) -> float:
    """Draw and encode IMAGES images after a warm-up; return the rate."""

    def draw_all(numbers: range) -> None:
        for number in numbers:
            drawn = drawing(number, size)
            drawn.image.save(io.BytesIO(), "JPEG", quality=drawn.jpeg_quality)

    draw_all(range(WARM_UP))
    return IMAGES / timed(lambda: draw_all(range(WARM_UP, WARM_UP + IMAGES)))[0]


def main() -> None:
    """Measure every layout; write the table."""
    sizes = (64, 112, 224)
    rows = [[name, *(f"{images_per_second(drawing, size):.0f}" for size in sizes)] for name, drawing in LAYOUTS.items()]
    header = ["images/s on one core", *(f"{size} px" for size in sizes)]
    busy = f"The machine's load average at the end was {os.getloadavg()[0]:.1f}."
    write_table("drawing", header, rows, f"Wanted: at least 50 images/s at 224 px. {busy}")
