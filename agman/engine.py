"""Inputs and outputs of a model: batches of triplets, and embeddings of (image, attribute) pairs.

Shape suffixes: U distinct images of a batch, B triplets, I = 3B images of the triplets, V values of an image,
K pairs, S pixels.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from agman.base import RetrievalModel
from agman.pixels import Pixels, normalise

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, slots=True)
class Batch:
    """The triplets that one process computes of a global batch. An image that is in two triplets is held once."""

    images: Tensor
    """U×3×S×S, uint8."""
    index: Tensor
    """3×B, int64: rows anchor, positive, negative; entries are rows of `images`."""
    flip: Tensor
    """3×B, bool: which occurrences are mirrored left to right."""
    attributes: Tensor
    """B, int64."""
    global_size: int
    """Triplets in the global batch, over all processes."""
    values: Tensor | None = None
    """3×B×V, int64: the images' values under their triplet's attribute, ascending, at least one, then -1.

    Only proxies, mining and InfoNCE need them.
    """
    bounds: tuple[int, ...] = ()
    """Bounds of this process's micro-batches among its triplets, e.g. (0, 4, 8); by default one micro-batch."""
    global_micro_batches: int = 1
    """Micro-batches of the global batch, over all processes."""
    seeds: tuple[int, ...] = ()
    """Seed of torch's generator for each micro-batch's forward pass; if empty, the generator is not reseeded."""

    def __post_init__(self) -> None:
        triplets = len(self.attributes)
        if triplets == 0:
            raise ValueError("a batch needs at least one triplet on every process")
        if self.images.ndim != 4 or self.images.shape[1] != 3 or self.images.dtype != torch.uint8:
            raise ValueError(f"images must be U×3×S×S uint8, not {tuple(self.images.shape)} {self.images.dtype}")
        if self.index.shape != (3, triplets) or self.flip.shape != (3, triplets):
            found = f"{tuple(self.index.shape)} and {tuple(self.flip.shape)}"
            raise ValueError(f"{triplets} attributes need index and flip of shape {(3, triplets)}, not {found}")
        if self.values is not None and (self.values.ndim != 3 or self.values.shape[:2] != (3, triplets)):
            raise ValueError(
                f"{triplets} triplets need values of shape (3, {triplets}, V), not {tuple(self.values.shape)}"
            )
        if self.global_size < triplets:
            raise ValueError(f"global_size {self.global_size} is less than this process's {triplets} triplets")
        bounds = self.bounds or (0, triplets)
        count = len(bounds) - 1
        if bounds[0] != 0 or bounds[-1] != triplets or any(b <= a for a, b in itertools.pairwise(bounds)):
            raise ValueError(f"bounds {self.bounds} do not cut {triplets} triplets into micro-batches of at least one")
        if self.global_micro_batches < count:
            raise ValueError(f"global_micro_batches {self.global_micro_batches} is less than this process's {count}")
        if self.seeds and len(self.seeds) != count:
            raise ValueError(f"{len(self.seeds)} seeds for {count} micro-batches")

    @property
    def micro_batches(self) -> list["Batch"]:
        """Micro-batches as separate batches, each with all images of this batch."""
        if len(self.bounds) <= 2:
            return [self]
        return [self._micro_batch(number, slice(*cut)) for number, cut in enumerate(itertools.pairwise(self.bounds))]

    def _micro_batch(self, number: int, cut: slice) -> "Batch":
        return replace(
            self,
            index=self.index[:, cut],
            flip=self.flip[:, cut],
            attributes=self.attributes[cut],
            values=None if self.values is None else self.values[:, cut],
            bounds=(),
            seeds=self.seeds[number : number + 1],
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return a batch whose tensors are `function` of this one's, e.g. copies on another device."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        mapped: dict[str, Any] = {name: function(one) for name, one in values.items() if isinstance(one, Tensor)}
        return replace(self, **mapped)


def prepare(
    batch: Batch, pixels: Pixels, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return images 3B×3×S×S (anchors, positives, negatives) and attributes B, on the device.

    Bytes cross to the device once for each distinct image; gathering, mirroring and normalising happen there.
    """
    images_u, index, flip, attributes = (
        tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.index, batch.flip, batch.attributes)
    )
    images_i = images_u[index.flatten()]
    images_i = torch.where(flip.flatten()[:, None, None, None], images_i.flip(-1), images_i)
    return normalise(images_i, pixels, dtype), attributes


def embed_batches(
    model: RetrievalModel,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    device: torch.device | str,
    precision: str = "fp32",
) -> Tensor:
    """Return the embeddings of all pairs of all batches in their order: K×D float32 on the CPU.

    A batch is (images U×3×S×S uint8, image_index K, attributes K), see `RetrievalModel.embed_pairs`. Runs in
    evaluation and inference mode; the model's mode is restored afterwards.
    """
    was_training = model.training
    dtype = next(model.parameters()).dtype
    embeddings = [torch.empty(0, model.embedding_dim)]
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, precision):
            for batch in batches:
                images, image_index, attributes = (tensor.to(device, non_blocking=True) for tensor in batch)
                images = normalise(images, model.pixels, dtype)
                embeddings.append(model.embed_pairs(images, image_index, attributes).float().cpu())
    finally:
        model.train(was_training)
    return torch.cat(embeddings)


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """Return torch's autocast for "bf16", a disabled one for "fp32". Raises ValueError for another precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16")
