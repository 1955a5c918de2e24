"""Batch normalisation over the global batch of several processes, on any device."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MODES = ("sync", "per_worker")


def convert_batchnorm(module: nn.Module, mode: str) -> nn.Module:
    """Make every BatchNorm2d in `module` follow `mode`; returns the module (changed in place).

    "per_worker" leaves them alone: every process normalises by its own share of the batch.
    "sync" takes the statistics from the whole global batch, so that n processes compute what one would.

    Layers that are on a CUDA device become torch.nn.SyncBatchNorm, all others GlobalBatchNorm2d, which works
    with gloo on the CPU (and on CUDA too, only slower: move the model first, then convert).

    Names and shapes in the state dict do not change. ValueError for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"batch norm must be one of {', '.join(MODES)}, not {mode!r}")
    return module if mode == "per_worker" else _synced(module)


def _synced(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.BatchNorm2d) and not isinstance(module, GlobalBatchNorm2d):
        on_cuda = any(tensor.is_cuda for tensor in module.state_dict().values())
        if on_cuda:
            return nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return GlobalBatchNorm2d.of(module)
    for name, child in module.named_children():
        setattr(module, name, _synced(child))
    return module


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose training statistics are those of all processes' batches taken as one.

    Shares may differ in size. With one process, or in evaluation, it is nn.BatchNorm2d. The gradient flows
    through the statistics of all processes: what arrives at x is the gradient of the *sum* of the processes'
    losses.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "GlobalBatchNorm2d":
        """One with `norm`'s own parameters and buffers."""
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        new._parameters = norm._parameters
        new._buffers = norm._buffers
        return new.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        self._check_input_dim(x)
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        mean, variance, count = _global_moments(wide)
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach(), count)
        y = (wide - _per_channel(mean)) * _per_channel(torch.rsqrt(variance + self.eps))
        if self.affine:
            y = y * _per_channel(self.weight) + _per_channel(self.bias)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """nn.BatchNorm2d's rule: momentum (None: plain average), and the unbiased variance."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        unbiased = variance * count / (count - 1).clamp(min=1)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance per channel, and the number of values, over all processes' B×C×H×W.

    Two rounds: deviations are squared around the global mean, so nothing cancels as in E[x²] - E[x]².
    """
    local_count = x.new_full((1,), x.numel() / x.shape[1])
    total = _SumOverProcesses.apply(torch.cat((x.sum((0, 2, 3)), local_count)))
    count = total[-1:].detach()
    mean = total[:-1] / count
    variance = _SumOverProcesses.apply((x - _per_channel(mean)).square().sum((0, 2, 3))) / count
    return mean, variance, count


def _per_channel(c: Tensor) -> Tensor:
    return c[:, None, None]


class _SumOverProcesses(torch.autograd.Function):
    """all_reduce whose gradient is an all_reduce: every process's result depends on every process's input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
