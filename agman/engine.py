"""What goes into a model and what comes out: a batch of triplets on its way in, embeddings of pairs on their way out.

Shape suffixes: U distinct images of a batch, B triplets, I = 3B images of the triplets, V values of an image,
K pairs, S pixels.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from agman.base import RetrievalModel

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's share of a global batch of triplets. An image in two triplets is there once."""

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
    """Where this process's parts begin and end among its triplets, e.g. (0, 4, 8); by default one part."""
    global_parts: int = 1
    """Parts of the global batch, over all processes."""
    seeds: tuple[int, ...] = ()
    """Of each of this process's parts: torch draws from it in the part's forward pass. None: from where it is."""

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
        if bounds[0] != 0 or bounds[-1] != triplets or any(b <= a for a, b in itertools.pairwise(bounds)):
            raise ValueError(f"bounds {self.bounds} do not cut {triplets} triplets into parts of at least one")
        if self.global_parts < len(bounds) - 1:
            raise ValueError(f"global_parts {self.global_parts} is less than this process's {len(bounds) - 1} parts")
        if self.seeds and len(self.seeds) != len(bounds) - 1:
            raise ValueError(f"{len(self.seeds)} seeds for {len(bounds) - 1} parts")

    @property
    def parts(self) -> list["Batch"]:
        """Each part as a batch of its own, of the same images."""
        if len(self.bounds) <= 2:
            return [self]
        cuts = [slice(*bounds) for bounds in itertools.pairwise(self.bounds)]
        return [
            Batch(
                self.images,
                self.index[:, cut],
                self.flip[:, cut],
                self.attributes[cut],
                self.global_size,
                None if self.values is None else self.values[:, cut],
                global_parts=self.global_parts,
                seeds=self.seeds[number : number + 1],
            )
            for number, cut in enumerate(cuts)
        ]


def normalise(images: Tensor, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    """uint8 ...×3×S×S to ImageNet's zero mean and unit deviation, where the images are. ValueError if not uint8."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images to normalise must be uint8, not {images.dtype}: are they normalised already?")
    mean = torch.tensor(IMAGENET_MEAN, device=images.device, dtype=dtype)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=images.device, dtype=dtype)[:, None, None]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return ((images.to(dtype) / 255 - mean) / std).contiguous(memory_format=layout)


def prepare(
    batch: Batch,
    device: torch.device | str,
    channels_last: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Images 3B×3×S×S (anchors, positives, negatives) and attributes B, on the device.

    Bytes cross to the device once for each distinct image; gathering, mirroring and normalising happen there.
    """
    images_u, index, flip, attributes = (
        tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.index, batch.flip, batch.attributes)
    )
    images_i = images_u[index.flatten()]
    images_i = torch.where(flip.flatten()[:, None, None, None], images_i.flip(-1), images_i)
    return normalise(images_i, dtype, channels_last), attributes


def embed_batches(
    model: RetrievalModel,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    device: torch.device | str,
    precision: str = "fp32",
    channels_last: bool = False,
) -> Tensor:
    """K×D float32 on the CPU: the embeddings of all pairs of all batches, in their order.

    A batch is (images U×3×S×S uint8, image_index K, attributes K), see `RetrievalModel.embed_pairs`. Runs in
    evaluation and inference mode; the model's mode is put back afterwards.
    """
    was_training = model.training
    dtype = next(model.parameters()).dtype
    embeddings = [torch.empty(0, model.embedding_dim)]
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, precision):
            for images, image_index, attributes in batches:
                images, image_index, attributes = (
                    tensor.to(device, non_blocking=True) for tensor in (images, image_index, attributes)
                )
                embedded = model.embed_pairs(normalise(images, dtype, channels_last), image_index, attributes)
                embeddings.append(embedded.float().cpu())
    finally:
        model.train(was_training)
    return torch.cat(embeddings)


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """torch's own for "bf16", none for "fp32". ValueError for another precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16")
