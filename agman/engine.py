"""The training loop's core: one batch, one step, one pass of evaluation. No cluster, no tracking.

Shape suffixes: U distinct images of a batch, B triplets, I = 3B images of the triplets, V values of an image,
K pairs, S pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import StepLR

from agman.base import RetrievalModel
from agman.objective import Losses

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PRECISIONS = ("fp32", "bf16")


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became infinite or NaN; the weights were not touched."""


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


class StepResult(NamedTuple):
    """Losses, means over this process's triplets, and how many are correct; 0-d tensors on the device."""

    loss: Tensor
    loss_triplet: Tensor
    loss_class: Tensor
    loss_proxy: Tensor
    loss_info_nce: Tensor
    correct: Tensor
    triplets: int


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


def train_step(
    objective: nn.Module,
    optimizer: Optimizer,
    batch: Batch,
    *,
    device: torch.device | str,
    precision: str = "fp32",
    world_size: int = 1,
    clip_norm: float | None = None,
    channels_last: bool = False,
) -> StepResult:
    """One step of `optimizer` on `objective`, a TripletObjective or one wrapped by DistributedDataParallel.

    precision "bf16" runs the model under autocast (embeddings, logits and losses stay float32); "fp32" leaves
    the model's own type alone. clip_norm bounds the gradient's L2 norm. Raises NonFiniteLoss before touching
    a weight.
    """
    images, attributes = prepare(batch, device, channels_last, next(objective.parameters()).dtype)
    optimizer.zero_grad(set_to_none=True)
    values = photos = None
    if batch.values is not None:
        values = batch.values.flatten(0, 1).to(device, non_blocking=True)
        photos = batch.index.flatten().to(device, non_blocking=True)
    with _autocast(device, precision):
        losses = objective(images, attributes, values, photos)

    # DDP averages gradients over processes; weighing each by its share makes that the mean over the global
    # batch, however unequal the shares.
    share = len(attributes) * world_size / batch.global_size
    (losses.loss * share).backward()
    _raise_unless_finite(objective, losses)
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(objective.parameters(), clip_norm)
    optimizer.step()
    detached = {name: value.detach() for name, value in losses._asdict().items()}
    return StepResult(**detached, triplets=len(attributes))


def _raise_unless_finite(objective: nn.Module, losses: Losses) -> None:
    # The first gradient is that of the stem. Whatever is not finite in any process's loss flows down to it
    # and DDP spreads it, so all processes raise at the same step and none waits for another.
    stem = next(parameter.grad for parameter in objective.parameters() if parameter.grad is not None)
    losses = Losses(*(value.detach() for value in losses))
    if not bool(torch.isfinite(losses.loss) & torch.isfinite(stem).all()):
        parts = ", ".join(f"{name} {float(value):.4g}" for name, value in zip(losses._fields, losses, strict=True))
        raise NonFiniteLoss(f"the loss or its gradient is not finite on some process; here: {parts}")


def embed_pairs(
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
        with torch.inference_mode(), _autocast(device, precision):
            for images, image_index, attributes in batches:
                images, image_index, attributes = (
                    tensor.to(device, non_blocking=True) for tensor in (images, image_index, attributes)
                )
                embedded = model.embed_pairs(normalise(images, dtype, channels_last), image_index, attributes)
                embeddings.append(embedded.float().cpu())
    finally:
        model.train(was_training)
    return torch.cat(embeddings)


def build_optimizer(objective: nn.Module, lr: float = 1e-4) -> Adam:
    """The paper's Adam, over every parameter that is learned, the loss weights' included."""
    return Adam([parameter for parameter in objective.parameters() if parameter.requires_grad], lr=lr, fused=True)


def build_scheduler(optimizer: Optimizer, gamma: float = 0.9, every_epochs: int = 3) -> StepLR:
    """The paper's schedule, lr·gamma every few epochs; step it once after every epoch."""
    return StepLR(optimizer, step_size=every_epochs, gamma=gamma)


def _autocast(device: torch.device | str, precision: str) -> torch.autocast:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16")
