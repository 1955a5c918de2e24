"""Inputs and outputs of a model: batches of triplets or of labelled images, and embeddings of (image, attribute) pairs.

Shape suffixes: U distinct images of a batch, B triplets, I = 3B images of the triplets, V values of an image,
G images of a global batch, K pairs, S pixels.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from agman.augmentation import Augmentation
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

    Only proxies need them.
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
        _check_micro_batches(self, triplets, "triplets")

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
        return replace(self, **_mapped(self, function))


@dataclass(frozen=True, slots=True)
class LabelBatch:
    """The images that one process computes of a global batch of G labelled images, and the labels of all G.

    An image occurs once, and is used under every attribute that it has a label for.
    """

    images: Tensor
    """U×3×S×S, uint8: this process's images, neighbours in the global batch."""
    flip: Tensor
    """U, bool: which of them are mirrored left to right."""
    begin: int
    """Row of this process's first image in the global batch."""
    global_size: int
    """G, over all processes."""
    image_index: Tensor
    """K, int64: the image of each pair of the global batch as its row there, ascending."""
    attributes: Tensor
    """K, int64."""
    values: Tensor
    """K×V, int64: the image's values under the attribute, ascending, at least one, then -1."""
    bounds: tuple[int, ...] = ()
    """Bounds of this process's micro-batches among its images, e.g. (0, 4, 8); by default one micro-batch."""
    global_micro_batches: int = 1
    """Micro-batches of the global batch, over all processes."""
    seeds: tuple[int, ...] = ()
    """Seed of torch's generator for each micro-batch's forward pass; if empty, the generator is not reseeded."""

    def __post_init__(self) -> None:
        images, pairs = len(self.images), len(self.image_index)
        if images == 0:
            raise ValueError("a batch needs at least one image on every process")
        if self.images.ndim != 4 or self.images.shape[1] != 3 or self.images.dtype != torch.uint8:
            raise ValueError(f"images must be U×3×S×S uint8, not {tuple(self.images.shape)} {self.images.dtype}")
        if self.flip.shape != (images,):
            raise ValueError(f"{images} images need flip of shape {(images,)}, not {tuple(self.flip.shape)}")
        if self.attributes.shape != (pairs,) or self.values.ndim != 2 or len(self.values) != pairs:
            found = f"{tuple(self.attributes.shape)} and {tuple(self.values.shape)}"
            raise ValueError(f"{pairs} pairs need attributes of shape {(pairs,)} and values {pairs}×V, not {found}")
        if self.begin + images > self.global_size:
            raise ValueError(
                f"images {self.begin} to {self.begin + images - 1} are not in a batch of {self.global_size}"
            )
        _check_micro_batches(self, images, "images")

    @property
    def micro_batches(self) -> list["LabelBatch"]:
        """Micro-batches as separate batches."""
        bounds = self.bounds or (0, len(self.images))
        return [
            replace(
                self,
                images=self.images[begin:end],
                flip=self.flip[begin:end],
                begin=self.begin + begin,
                bounds=(),
                seeds=self.seeds[number : number + 1],
            )
            for number, (begin, end) in enumerate(itertools.pairwise(bounds))
        ]

    @property
    def own_pairs(self) -> slice:
        """Rows of the pairs whose images this process has."""
        edges = torch.tensor([self.begin, self.begin + len(self.images)], device=self.image_index.device)
        return slice(*torch.searchsorted(self.image_index, edges).tolist())

    def map(self, function: Callable[[Tensor], Tensor]) -> "LabelBatch":
        """Return a batch whose tensors are `function` of this one's, e.g. copies on another device."""
        return replace(self, **_mapped(self, function))


AnyBatch = Batch | LabelBatch


def _check_micro_batches(batch: AnyBatch, size: int, unit: str) -> None:
    bounds = batch.bounds or (0, size)
    count = len(bounds) - 1
    if bounds[0] != 0 or bounds[-1] != size or any(b <= a for a, b in itertools.pairwise(bounds)):
        raise ValueError(f"bounds {batch.bounds} do not cut {size} {unit} into micro-batches of at least one")
    if batch.global_micro_batches < count:
        raise ValueError(f"global_micro_batches {batch.global_micro_batches} is less than this process's {count}")
    if batch.seeds and len(batch.seeds) != count:
        raise ValueError(f"{len(batch.seeds)} seeds for {count} micro-batches")


def _mapped(batch: AnyBatch, function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    values = {one.name: getattr(batch, one.name) for one in fields(batch)}
    return {name: function(one) for name, one in values.items() if isinstance(one, Tensor)}


def prepare(
    batch: Batch,
    pixels: Pixels,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    augmentation: Augmentation | None = None,
) -> tuple[Tensor, Tensor]:
    """Return images 3B×3×S×S (anchors, positives, negatives) and attributes B, on the device.

    Bytes cross to the device once for each distinct image; gathering, mirroring, changing and normalising happen there.
    """
    images_u, index, flip, attributes = (
        tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.index, batch.flip, batch.attributes)
    )
    images_i = images_u[index.flatten()]
    images_i = torch.where(flip.flatten()[:, None, None, None], images_i.flip(-1), images_i)
    if augmentation:
        attributes_i = attributes.repeat(3)
        used_in = attributes_i[:, None] == torch.arange(int(attributes.max()) + 1, device=attributes.device)
        images_i = augmentation(images_i, used_in)
    return normalise(images_i, pixels, dtype), attributes


def prepare_labelled(
    batch: LabelBatch,
    pixels: Pixels,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    augmentation: Augmentation | None = None,
) -> Tensor:
    """Return a batch's own images U×3×S×S on the device, mirrored, changed and normalised."""
    images, flip = (tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.flip))
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    if augmentation:
        own, attributes = batch.own_pairs, batch.attributes.to(device)
        used_un = torch.zeros(len(images), int(attributes.max()) + 1, dtype=torch.bool, device=images.device)
        used_un[batch.image_index[own].to(device) - batch.begin, attributes[own]] = True
        images = augmentation(images, used_un)
    return normalise(images, pixels, dtype)


def embed_batches(
    model: RetrievalModel,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    device: torch.device | str,
    precision: str = "fp32",
) -> Tensor:
    """Return the embeddings of all pairs of all batches in their order: K×D float32 on the CPU.

    A batch is (images U×3×S×S uint8, image_index K, attributes K), see `RetrievalModel.embed_pairs`. Runs in
    evaluation and inference mode; every module's mode is restored afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
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
        for module, mode in modes:  # one by one: frozen batch norm stays frozen
            module.training = mode
    return torch.cat(embeddings)


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """Return torch's autocast for "bf16", a disabled one for "fp32". Raises ValueError for another precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16")
