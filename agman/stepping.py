"""One step of training: a global batch in micro-batches, on one process or several, with the same outcome.

Shape suffix: B triplets of a micro-batch.
"""

import math
import warnings
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer

from agman.batchnorm import RunningStatistics
from agman.engine import Batch, autocast, prepare
from agman.objective import Losses, TripletObjective

LOSSES = Losses._fields[:-1]


class NonFiniteLoss(RuntimeError):
    """A loss or a gradient that is infinite or NaN; no weight was changed by it."""


class StepResult(NamedTuple):
    """Outcome of a step on the global batch; the same on every process."""

    loss: float
    """Mean over the global batch's triplets, as are the other losses."""
    loss_triplet: float
    loss_class: float
    loss_proxy: float
    loss_info_nce: float
    correct: int
    """Triplets with cos(I, I⁺) > cos(I, I⁻)."""
    triplets: int
    gradient_norm: float
    """L2 norm before clipping."""
    votes: int
    """Number of processes that asked to stop."""


class Stepper:
    """Steps of `optimizer` on `objective`, in this process alone or in all of torch's default process group.

    A global batch is cut into micro-batches, and each process computes its own one after the other. Gradients are
    means over the global batch, however unequal the micro-batches. The result of a micro-batch depends on nothing
    outside it but the weights, batch norm's statistics included (unless convert_batchnorm(…, "sync") made them
    global). In fp32 and fp64 the gradients of micro-batches are added up in float64, so that their order makes no
    difference: the same micro-batches give the same weights on any number of processes, if each computes with the same
    number of threads. With "bf16" they are added up in float32, half the traffic.

    precision: "bf16" runs the model under autocast (embeddings, logits and losses stay float32); "fp32" leaves the
    model's own type alone.
    clip_norm: bound on the gradient's L2 norm; by default it is not clipped.
    """

    def __init__(
        self,
        objective: TripletObjective,
        optimizer: Optimizer,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        clip_norm: float | None = None,
    ):
        self.objective, self.optimizer, self.device = objective, optimizer, torch.device(device)
        self.precision, self.clip_norm = precision, clip_norm
        self.learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._gradients = _GradientSums(torch.float32 if precision == "bf16" else torch.float64)
        self._statistics = RunningStatistics(objective)
        self._synced = any(isinstance(module, nn.SyncBatchNorm) for module in objective.modules())
        self._wrapped: Any = objective
        if self.several:
            # Buffers are the same on all processes already: SyncBatchNorm's, and those of RunningStatistics.
            with warnings.catch_warnings():  # deprecated in 2.15; its successor, unknown to 2.11, broadcasts once
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                self._wrapped = DistributedDataParallel(
                    objective, broadcast_buffers=False, gradient_as_bucket_view=True
                )
            self._wrapped.register_comm_hook(self._gradients, _GradientSums.over_processes)

    def step(self, batch: Batch, *, stop: bool = False) -> StepResult:
        """Make one step on this process's micro-batches of a global batch; all processes make it at the same time.

        `stop` is this process's vote to stop; the result tells all processes how many voted so. Raises NonFiniteLoss,
        on all processes alike, before a weight is changed; ValueError for several micro-batches in one process under
        synchronised batch norm.
        """
        micro_batches = batch.micro_batches
        if self._synced and len(micro_batches) > 1:
            raise ValueError("synchronised batch norm needs the whole batch at once: one micro-batch on each process")
        self.optimizer.zero_grad(set_to_none=True)
        self._statistics.begin(batch.global_micro_batches)
        sums = torch.zeros(len(LOSSES) + 3, dtype=torch.float64, device=self.device)
        for micro_batch in micro_batches:
            last = micro_batch is micro_batches[-1]
            with nullcontext() if last or not self.several else self._wrapped.no_sync():
                losses = self._losses(micro_batch)
                (losses.loss * (len(micro_batch.attributes) / batch.global_size)).backward()
            sums[:-1] += _sums(losses, len(micro_batch.attributes))
            self._statistics.after_micro_batch()
            if not last:
                self._gradients.keep(self.learned)
        if not self.several:
            self._gradients.over_micro_batches(self.learned)
        sums[-1] = stop
        *totals, correct, triplets, votes = self._statistics.end(sums, self.several).tolist()
        means = dict(zip(LOSSES, (total / triplets for total in totals), strict=True))
        norm = self._checked_norm(means)
        self.optimizer.step()
        return StepResult(**means, correct=int(correct), triplets=int(triplets), gradient_norm=norm, votes=int(votes))

    def _losses(self, micro_batch: Batch) -> Losses:
        images, attributes = prepare(micro_batch, self.objective.model.pixels, self.device, self.learned[0].dtype)
        values = image_index = None
        if micro_batch.values is not None:
            values = micro_batch.values.flatten(0, 1).to(self.device, non_blocking=True)
            image_index = micro_batch.index.flatten().to(self.device, non_blocking=True)
        for seed in micro_batch.seeds:
            torch.manual_seed(seed)  # stochastic depth then depends on the micro-batch, not on the process
        with autocast(self.device, self.precision):
            return self._wrapped(images, attributes, values, image_index)

    def _checked_norm(self, losses: dict[str, float]) -> float:
        """Clip the gradient and return its norm. All processes have the same gradient, so all raise or none does."""
        gradients = [parameter.grad for parameter in self.learned if parameter.grad is not None]
        total = nn.utils.get_total_norm(gradients)
        norm = float(total)
        if not (math.isfinite(norm) and math.isfinite(losses["loss"])):
            found = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            raise NonFiniteLoss(f"the loss or its gradient is not finite: {found}, gradient's norm {norm:.4g}")
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.learned, self.clip_norm, total)
        return norm


def _sums(losses: Losses, triplets: int) -> Tensor:
    """Return sums over a micro-batch's triplets, float64: the losses, the correct ones, their number."""
    sums = torch.stack([getattr(losses, name).detach().double() for name in LOSSES]) * triplets
    return torch.cat((sums, losses.correct.detach().double()[None], sums.new_full((1,), triplets)))


class _GradientSums:
    """Sums of gradients over a process's micro-batches, and over the processes, in float64 or in float32."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.kept: dict[Tensor, Tensor] = {}

    def keep(self, learned: list[nn.Parameter]) -> None:
        """Move the gradients of any micro-batch but the last into the sums; in float32, torch itself adds them up."""
        if self.dtype == torch.float32:
            return
        for parameter in learned:
            if parameter.grad is None:
                continue
            if parameter in self.kept:
                self.kept[parameter] += parameter.grad
            else:
                self.kept[parameter] = parameter.grad.to(self.dtype)
            parameter.grad = None

    def over_micro_batches(self, learned: list[nn.Parameter]) -> None:
        """Add the sums to the last micro-batch's gradients, if there is only one process."""
        for parameter in learned:
            if parameter in self.kept and parameter.grad is not None:
                parameter.grad.copy_(self.kept.pop(parameter).add_(parameter.grad))

    def over_processes(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """Add up a bucket over the processes: DistributedDataParallel's hook in the last backward pass."""
        buffer = bucket.buffer()
        total = buffer.to(self.dtype)
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            if parameter in self.kept:
                offset = gradient.storage_offset() - buffer.storage_offset()
                total.as_strided(gradient.size(), gradient.stride(), offset).add_(self.kept.pop(parameter))
        summed = dist.all_reduce(total, async_op=True).get_future()
        return summed.then(lambda future: buffer.copy_(future.value()[0]))


def build_optimizer(objective: nn.Module, lr: float = 1e-4) -> Adam:
    """Return the paper's Adam over every parameter that is learned, the loss weights' included.

    The fused implementation updates all parameters in one pass over memory.
    """
    return Adam([parameter for parameter in objective.parameters() if parameter.requires_grad], lr=lr, fused=True)


def learning_rate(epoch: int, lr: float = 1e-4, gamma: float = 0.9, every_epochs: int = 3) -> float:
    """Return the learning rate of an epoch, counted from 0, on the paper's schedule: lr·gamma^⌊epoch/every_epochs⌋."""
    return lr * gamma ** (epoch // every_epochs)
