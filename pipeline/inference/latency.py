"""Inference time of a model."""

from __future__ import annotations

import statistics
import time

import torch

import agman
from agman.engine import embed_batches

IMAGES, REPEATS = 8, 5
"""Images in a batch, and batches that are measured."""


def milliseconds_an_image(model: agman.RetrievalModel, image_size: int, precision: str) -> float:
    """Measure the time for one image under one attribute, on the model's device and this process's threads.

    The result is the median over REPEATS batches of IMAGES images.
    """
    device = next(model.parameters()).device
    images = torch.zeros(IMAGES, 3, image_size, image_size, dtype=torch.uint8)
    batch = (images, torch.arange(IMAGES), torch.zeros(IMAGES, dtype=torch.int64))
    seconds = []
    for _ in range(1 + REPEATS):  # the first batch warms up
        started = time.perf_counter()
        embed_batches(model, [batch], device=device, precision=precision)  # ends with a copy to the CPU
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:]) / IMAGES
