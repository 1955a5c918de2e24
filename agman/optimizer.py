"""The optimizer, its learning rate at every step, and running averages of the weights."""

import math

from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

OPTIMIZERS = ("adam", "adamw")
LR_SCALE = "lr_scale"
"""Key of a parameter group: factor on the learning rate."""


def build_optimizer(
    objective: nn.Module,
    lr: float = 1e-4,
    name: str = "adam",
    weight_decay: float = 0.01,
    backbone_lr_scale: float = 1.0,
) -> Optimizer:
    """Return an optimizer over every parameter that is learned, the loss weights' included.

    "adam" is the paper's. "adamw" decays weights (Loshchilov & Hutter, ICLR 2019), except for vectors and scalars:
    biases, norms and factors. `backbone_lr_scale` is the factor on the learning rate of the backbone's own layers,
    which may start from trained weights. The fused implementation updates all parameters in one pass over memory.
    Raises ValueError for another name.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"the optimizer must be one of {', '.join(OPTIMIZERS)}, not {name!r}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter_name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = backbone_lr_scale if is_backbones_own(parameter_name) else 1.0
        decay = weight_decay if name == "adamw" and parameter.ndim > 1 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    listed = [
        {"params": parameters, "lr": lr * scale, LR_SCALE: scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]
    return (Adam if name == "adam" else AdamW)(listed, lr=lr, fused=True)


def is_backbones_own(name: str) -> bool:
    """Return whether a parameter of an objective belongs to the network under the model, not to what is added to it."""
    return name.startswith("model.backbone.") and not name.startswith("model.backbone.low.")


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(LR_SCALE, 1.0)


def step_decay(epoch: int, gamma: float = 0.9, every_epochs: int = 3) -> float:
    """Return the factor on the learning rate in an epoch, counted from 0, on the paper's schedule: γ^⌊epoch/every⌋."""
    return gamma ** (epoch // every_epochs)


def cosine_decay(step: int, steps: int) -> float:
    """Return the factor at a step, counted from 0, of `steps`: half a cosine from 1 to almost 0 (SGDR, ICLR 2017)."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def warm_up(step: int, steps: int) -> float:
    """Return the factor at a step, counted from 0, that grows evenly to 1 in the first `steps` (Goyal et al., 2017)."""
    return min(1.0, (step + 1) / (steps + 1))


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of the model that follows its weights: w̄ ← d·w̄ + (1 - d)·w at every `update_parameters`.

    d = min(decay, (1 + t)/(10 + t)) after t updates, so that short trainings forget their beginning too. Buffers, such
    as batch norm's statistics, are those of the model.
    """

    def average(mean: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        return mean.lerp(current.to(mean.dtype), 1 - min(decay, (1 + int(updates)) / (10 + int(updates))))

    return AveragedModel(model, avg_fn=average)
