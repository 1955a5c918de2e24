"""How fast garments are drawn, on one core, JPEG encoding included: `python -m benchmarks.drawing`."""

from __future__ import annotations

import io
import time

from benchmarks.record import write_table
from data_prep.fashionai_vocabulary import ATTRIBUTES
from data_prep.garments import draw

IMAGES = 400


def images_per_second(size: int) -> float:
    """Draw IMAGES pictures over all attributes and values after a warm-up that fills the pattern caches."""
    wanted = [(name, value) for name, values in ATTRIBUTES.items() for value in range(len(values))]
    started = 0.0
    for number in range(-len(wanted), IMAGES):
        if number == 0:
            started = time.perf_counter()
        name, value = wanted[number % len(wanted)]
        drawing = draw(name, value, seed=number + len(wanted), size=size)
        drawing.image.save(io.BytesIO(), "JPEG", quality=drawing.jpeg_quality)
    return IMAGES / (time.perf_counter() - started)


def main() -> None:
    rows = [[f"{size}", f"{images_per_second(size):.0f}"] for size in (64, 112, 224)]
    write_table("drawing", ["size, px", "images/s on one core"], rows, "Wanted: at least 50 images/s at 224 px.")


if __name__ == "__main__":
    main()
