"""Batch normalisation of micro-batches: which values normalise, and how the running statistics are kept equal."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

MODES = ("per_micro_batch", "sync", "frozen")


def convert_batchnorm(module: nn.Module, mode: str) -> nn.Module:
    """Make every batch norm layer in `module` follow `mode`, and return the module.

    "per_micro_batch" changes nothing: every micro-batch is normalised by its own statistics.
    "frozen" changes nothing either: see `freeze_batchnorm`.
    "sync" replaces the layers by torch.nn.SyncBatchNorm, which normalises by the statistics of the global batch: then
    n processes compute what one would. Layers inside `module` are replaced in place. Names and shapes in the state
    dict do not change.

    Raises ValueError for an unknown mode, and for "sync" on a device other than a GPU.
    """
    if mode not in MODES:
        raise ValueError(f"batch norm must be one of {', '.join(MODES)}, not {mode!r}")
    if mode != "sync":
        return module
    if not all(tensor.is_cuda for tensor in module.state_dict().values()):
        raise ValueError("synchronised batch norm needs GPUs: move the module to one first")
    from timm.layers import convert_sync_batchnorm  # torch's own loses the activation in timm's layers

    return convert_sync_batchnorm(module)


def freeze_batchnorm(module: nn.Module) -> None:
    """Let every batch norm layer in `module` normalise by its running statistics and leave them as they are.

    Its factors are learned as before. Call it after each `module.train()`.
    """
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm):
            norm.eval()


class RunningStatistics:
    """Running statistics of batch norm over micro-batches: one update a step, whichever process computes which.

    Each micro-batch updates the statistics from before the step; after the step they are the mean of these results over
    all micro-batches of the global batch. Layers with synchronised or frozen statistics are left alone.
    """

    def __init__(self, module: nn.Module):
        self._norms: list[nn.BatchNorm2d] = []
        self._running: list[Tensor] = []
        self._counts: list[Tensor] = []
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d) and norm.training:
                held = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
                mean, variance, count = (tensor for tensor in held if tensor is not None)
                self._norms.append(norm)
                self._running += [mean, variance]
                self._counts.append(count)
        self._micro_batches = 1

    def begin(self, micro_batches: int) -> None:
        """Prepare for a step on a global batch of `micro_batches`."""
        self._micro_batches = micro_batches
        if self._idle:
            return
        self._before = torch.cat(self._running)
        self._counts_before = torch.stack(self._counts)
        self._total = torch.zeros_like(self._before, dtype=torch.float64)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Leave the statistics alone in a backward pass that computes activations again: it has seen the batch."""
        momenta, counts = [norm.momentum for norm in self._norms], [count.clone() for count in self._counts]
        for norm in self._norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, count, momentum, before in zip(self._norms, self._counts, momenta, counts, strict=True):
                norm.momentum = momentum
                count.copy_(before)

    def after_micro_batch(self) -> None:
        """Add the statistics after a micro-batch's forward pass to the mean, and restore those from before the step."""
        if self._idle:
            return
        self._total += torch.cat(self._running).double() / self._micro_batches
        self._write(self._before)

    def end(self, sums: Tensor, several: bool) -> Tensor:
        """Write the step's statistics; return the float64 `sums` added up over the processes in the same message."""
        message = sums if self._idle else torch.cat((sums, self._total))
        if several:
            dist.all_reduce(message)
        if self._idle:
            return message
        self._write(message[len(sums) :])
        for count, before in zip(self._counts, self._counts_before.tolist(), strict=True):
            count.fill_(before + 1)
        return message[: len(sums)]

    @property
    def _idle(self) -> bool:
        return self._micro_batches == 1 or not self._running

    def _write(self, flat: Tensor) -> None:
        for buffer, values in zip(self._running, flat.split([len(buffer) for buffer in self._running]), strict=True):
            buffer.data.copy_(values)  # in place unseen by autograd: a backward pass may still be to come
