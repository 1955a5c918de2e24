"""What every model of the registry is to its users: the objective, the engine, checkpoints, serving.

Shape suffixes: B images, N attributes known, K (image, attribute) pairs, D embedding width, H, W image size.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SMALLEST_IMAGE = 32  # pixels a side; a ResNet divides by 32


class Output(NamedTuple):
    embedding: Tensor
    """B×D, unit length."""
    logits: Tensor | None
    """B×N, branch 1's guess at the attribute type; None without branch 1."""


class RetrievalModel(nn.Module):
    """An embedding of unit length for every (image, attribute) pair.

    Images are B×3×H×W, normalised floats, of any size from 32 pixels; attributes are int64 or int32 numbers
    from 0. Wrong shapes or types raise ValueError. Numbers out of range do so on the CPU only: looking at
    them on a device would make the program wait for it.
    """

    config: dict[str, Any]
    """What `agman.build(**config)` makes this model's like from. Initial weights are no part of it."""
    n_attributes: int
    embedding_dim: int
    classify: bool
    """With branch 1, so that forward gives logits."""

    def forward(self, images: Tensor, attributes: Tensor) -> Output:
        """B images, each under its own one of B attributes."""
        raise NotImplementedError

    def embed_all(self, images: Tensor) -> Tensor:
        """B×N×D: every image under every attribute, from one pass through the backbone."""
        raise NotImplementedError

    def embed_pairs(self, images: Tensor, image_index: Tensor, attributes: Tensor) -> Tensor:
        """K×D: for pair k, image `image_index[k]` of the B images under `attributes[k]`.

        The backbone sees every image once. All N attributes of it are computed and the asked ones picked:
        beside the backbone that costs nothing, and no image's feature map is copied for its second attribute.
        """
        check_indices("image_index", image_index, (len(image_index),), len(images))
        check_indices("attributes", attributes, (len(image_index),), self.n_attributes)
        return self.embed_all(images)[image_index, attributes]

    def attention(self, images: Tensor, attributes: Tensor) -> Tensor:
        """B×h×w: where in each of B images the model looks for its attribute; every map sums to 1."""
        raise NotImplementedError

    def check(self, images: Tensor, attributes: Tensor) -> None:
        """ValueError unless these are images and an attribute for each."""
        check_images(images)
        check_indices("attributes", attributes, (len(images),), self.n_attributes)


def check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < SMALLEST_IMAGE:
        wanted = f"B×3×H×W with H, W >= {SMALLEST_IMAGE}"
        raise ValueError(f"images must be {wanted}, not {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be normalised floats, not {images.dtype}")


def check_indices(name: str, index: Tensor, shape: tuple[int, ...], below: int) -> None:
    if index.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, not {tuple(index.shape)}")
    if index.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must be int64 or int32, not {index.dtype}")
    if index.device.type != "cpu" or torch.compiler.is_compiling() or not len(index):
        return  # looking at the numbers would wait for the device, or break the graph
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= below:
        raise ValueError(f"{name} must lie in 0..{below - 1}, found {low if low < 0 else high}")
