"""How long a model takes for an image."""

from __future__ import annotations

import statistics
import time

import torch

import agman

IMAGES, REPEATS = 8, 5


def milliseconds_an_image(model: agman.RetrievalModel, image_size: int, precision: str) -> float:
    """Median over a few batches of 8 images under one attribute, on the model's device and this process's threads."""
    device = next(model.parameters()).device
    images = torch.zeros(IMAGES, 3, image_size, image_size, dtype=torch.uint8)
    batch = (images, torch.arange(IMAGES), torch.zeros(IMAGES, dtype=torch.int64))
    seconds = []
    for _ in range(1 + REPEATS):  # the first warms up
        started = time.perf_counter()
        agman.embed_batches(model, [batch], device=device, precision=precision)  # ends with a copy to the CPU
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:]) / IMAGES
