"""Batch normalisation over the global batch of several processes, on any device."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

MODES = ("per_part", "sync")


def convert_batchnorm(module: nn.Module, mode: str) -> nn.Module:
    """Make every BatchNorm2d in `module` follow `mode`; returns the module (changed in place).

    "per_part" leaves them alone: every part of a global batch is normalised by its own statistics.
    "sync" takes the statistics from the whole global batch, so that n processes compute what one would.

    Layers that are on a CUDA device become torch.nn.SyncBatchNorm, all others GlobalBatchNorm2d, which works
    with gloo on the CPU (and on CUDA too, only slower: move the model first, then convert).

    Names and shapes in the state dict do not change. ValueError for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"batch norm must be one of {', '.join(MODES)}, not {mode!r}")
    return module if mode == "per_part" else _synced(module)


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
    through the statistics of all processes: what arrives at x is the gradient of the *sum* of their losses.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "GlobalBatchNorm2d":
        """One with `norm`'s own parameters and buffers. ValueError for a layer that lacks some of them."""
        if not norm.affine or not norm.track_running_stats or norm.momentum is None:
            raise ValueError(f"only affine layers with running statistics and a momentum can be synchronised: {norm}")
        new = cls(norm.num_features, norm.eps, norm.momentum)
        new._parameters = norm._parameters
        new._buffers = norm._buffers
        return new.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, variance, count = _GlobalNorm.apply(x, self.weight, self.bias, self.eps)
        self._track(mean, variance, count)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """nn.BatchNorm2d's rule: momentum, and the unbiased variance."""
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)


class _GlobalNorm(torch.autograd.Function):
    """Batch normalisation with one exchange of statistics forward, and one of gradient sums backward.

    With x̂ = (x - m)/σ, N values per channel and sums over all processes:

        ∂L/∂x = w/σ · (∂y - Σ∂y/N - x̂·Σ(∂y·x̂)/N)

    The passes over the data are torch's own kernels for fixed statistics (C channels; x is B×C×H×W).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        mean, variance, count = _global_moments(x, weight, eps)
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        # With statistics taken for fixed: w/σ·∂y, and this process's Σ(∂y·x̂) and Σ∂y.
        fixed, sum_scaled, sum_plain = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        both = torch.stack((sum_scaled, sum_plain))
        dist.all_reduce(both)
        inverse_std = torch.rsqrt(variance + ctx.eps)
        rescale = inverse_std * weight
        slope = rescale * inverse_std * both[0] / count
        offset = rescale * both[1] / count - mean * slope
        # x·slope + offset, in one pass of the kernel that does just that.
        zeros, ones = torch.zeros_like(slope), torch.ones_like(slope)
        gradient_x = fixed - F.batch_norm(x, zeros, ones, slope, offset, training=False, eps=0.0)
        return gradient_x, sum_scaled, sum_plain, None


def _global_moments(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance per channel, and the number of values, over all processes' B×C×H×W.

    Each process's variance is around its own mean, and the parts are put together without E[x²] - E[x]², in
    which everything would cancel (Chan, Golub & LeVeque 1983).
    """
    # torch's kernel for training has the moments as a by-product, several times faster than var_mean.
    _, local_mean, inverse_std = torch.native_batch_norm(x, weight, None, None, None, True, 0.0, eps)
    local_variance = (inverse_std.double() ** -2 - eps).clamp(min=0).to(local_mean.dtype)
    local_count = local_mean.new_full((1,), x.numel() / x.shape[1])
    mine = torch.cat((local_mean, local_variance, local_count))
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    mean_pc, variance_pc, count_p1 = torch.stack(parts).double().split((len(local_mean), len(local_mean), 1), dim=1)
    count = count_p1.sum(0)
    share_p1 = count_p1 / count
    mean = (share_p1 * mean_pc).sum(0)
    variance = (share_p1 * (variance_pc + (mean_pc - mean).square())).sum(0)
    return mean.to(mine.dtype), variance.to(mine.dtype), count.to(mine.dtype)


class RunningStatistics:
    """The running statistics of batch norm per part: one update a step, whichever process computes which part.

    After a step they are the mean, over all parts of the global batch, of what each part alone would have made of
    those before the step. Layers with synchronised statistics are left to themselves.
    """

    def __init__(self, module: nn.Module):
        self._running: list[Tensor] = []
        self._counts: list[Tensor] = []
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d) and not isinstance(norm, GlobalBatchNorm2d):
                held = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
                mean, variance, count = (tensor for tensor in held if tensor is not None)
                self._running += [mean, variance]
                self._counts.append(count)
        self._parts = 1

    def begin(self, parts: int) -> None:
        """Before a step on a global batch of `parts`."""
        self._parts = parts
        if self._idle:
            return
        self._before = torch.cat(self._running)
        self._counts_before = torch.stack(self._counts)
        self._total = torch.zeros_like(self._before, dtype=torch.float64)

    def after_part(self) -> None:
        """After a part's forward pass: its statistics are noted, and undone for the next."""
        if self._idle:
            return
        self._total += torch.cat(self._running).double() / self._parts
        self._write(self._before)

    def end(self, figures: Tensor, several: bool) -> Tensor:
        """After the last part. Adds up over the processes, and the float64 `figures` in the same message."""
        if self._idle:
            if several:
                dist.all_reduce(figures)
            return figures
        message = torch.cat((figures, self._total))
        if several:
            dist.all_reduce(message)
        self._write(message[len(figures) :])
        for count, before in zip(self._counts, self._counts_before.tolist(), strict=True):
            count.fill_(before + 1)
        return message[: len(figures)]

    @property
    def _idle(self) -> bool:
        return self._parts == 1 or not self._running

    def _write(self, flat: Tensor) -> None:
        torch._foreach_copy_(self._running, flat.split([len(buffer) for buffer in self._running]))
