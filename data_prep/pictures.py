"""From a picture to the square of pixels that a model sees: one way, for training, evaluation and serving."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
"""Larger pictures are refused: decoding one would take a gigabyte."""


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation means it, in RGB."""
    return ImageOps.exif_transpose(image).convert("RGB")


def to_square(image: Image.Image, side: int) -> torch.Tensor:
    """An RGB picture as uint8 3×S×S: its short side resized to S pixels, the middle of the long side kept."""
    fitted = image if image.size == (side, side) else ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)
