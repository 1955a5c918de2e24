"""How a network takes its pictures: resized by an interpolation, then normalised by a mean and a deviation."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Pixels(NamedTuple):
    """Interpolation, mean and deviation of a network's pretraining, which all its later pictures get too."""

    mean: tuple[float, float, float]
    """Mean of red, green and blue in [0, 1]."""
    std: tuple[float, float, float]
    """Deviation of the same."""
    interpolation: str = "lanczos"
    """Resampling filter of a picture that is resized: bilinear, bicubic or lanczos."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Pixels":
        """Return what `_asdict` gave, after it was JSON."""
        return cls(tuple(values["mean"]), tuple(values["std"]), values["interpolation"])

    @property
    def words(self) -> str:
        """One line for people."""
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"resized by {self.interpolation}, minus the mean {mean}, over the deviation {std}"


IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Values for torchvision's networks, and for every model whose description names none."""


def normalise(images: Tensor, pixels: Pixels, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uint8 images, N×3×S×S, normalised by the mean and standard deviation of a model's `pixels`.

    The result is in the memory order channels_last, in which convolutions are faster on CPUs and GPUs.
    Raises ValueError if the images are not uint8.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images to normalise must be uint8, not {images.dtype}: are they normalised already?")
    mean = torch.tensor(pixels.mean, device=images.device, dtype=dtype)[:, None, None]
    std = torch.tensor(pixels.std, device=images.device, dtype=dtype)[:, None, None]
    return ((images.to(dtype) / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
