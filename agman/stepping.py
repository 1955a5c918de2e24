"""One step of training: a global batch in parts, on one process or several, with the same outcome.

Shape suffix: B triplets of a part.
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
from torch.optim.lr_scheduler import StepLR

from agman.batchnorm import GlobalBatchNorm2d, RunningStatistics
from agman.engine import Batch, autocast, prepare
from agman.objective import Losses, TripletObjective

LOSSES = Losses._fields[:-1]


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became infinite or NaN; the weights were not touched."""


class StepResult(NamedTuple):
    """What a step came to on the global batch; the same on every process."""

    loss: float
    """This and the other losses: means over the global batch's triplets."""
    loss_triplet: float
    loss_class: float
    loss_proxy: float
    loss_info_nce: float
    correct: int
    """Triplets with cos(I, I⁺) > cos(I, I⁻)."""
    triplets: int
    gradient_norm: float
    """L2, before clipping."""
    votes: int
    """Processes that asked to stop."""


class Stepper:
    """Makes steps of `optimizer` on `objective`: on this process alone, or with all of torch's default process group.

    A global batch is cut into parts, and each process computes its own one after the other. Gradients are means over
    the global batch, however unequal the parts. What is computed from a part depends on nothing outside it but the
    weights, batch norm's statistics included (unless convert_batchnorm(…, "sync") made them global). In fp32 and
    fp64 the parts' gradients are added up in float64, in which their order leaves no trace: so the same parts give
    the same weights on any number of processes, if each computes with the same number of threads. With "bf16" they
    are added up in float32, half the traffic.

    precision "bf16" runs the model under autocast (embeddings, logits and losses stay float32); "fp32" leaves the
    model's own type alone. clip_norm bounds the gradient's L2 norm.
    """

    def __init__(
        self,
        objective: TripletObjective,
        optimizer: Optimizer,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        channels_last: bool = False,
        clip_norm: float | None = None,
    ):
        self.objective, self.optimizer, self.device = objective, optimizer, torch.device(device)
        self.precision, self.channels_last, self.clip_norm = precision, channels_last, clip_norm
        self.learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._sums = _Sums(torch.float32 if precision == "bf16" else torch.float64)
        self._statistics = RunningStatistics(objective)
        self._synced = any(isinstance(module, GlobalBatchNorm2d | nn.SyncBatchNorm) for module in objective.modules())
        self._wrapped: Any = objective
        if self.several:
            # Buffers are the same everywhere already: synchronised batch norm's, and ours below.
            with warnings.catch_warnings():  # torch 2.15's new name for it still sends them once; 2.11 has this one
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                self._wrapped = DistributedDataParallel(
                    objective, broadcast_buffers=False, gradient_as_bucket_view=True
                )
            self._wrapped.register_comm_hook(self._sums, _Sums.over_processes)

    def step(self, batch: Batch, *, stop: bool = False) -> StepResult:
        """One step on this process's share of a global batch; every process makes it at the same time.

        `stop` is this process's vote to stop, which all learn from the result. Raises NonFiniteLoss, on all processes
        alike, before a weight is touched; ValueError for several parts under synchronised batch norm.
        """
        if self._synced and len(batch.parts) > 1:
            raise ValueError("synchronised batch norm takes one part from each process: it needs all of them at once")
        self.optimizer.zero_grad(set_to_none=True)
        self._statistics.begin(batch.global_parts)
        figures = torch.zeros(len(LOSSES) + 3, dtype=torch.float64, device=self.device)
        for number, part in enumerate(batch.parts):
            last = number == len(batch.parts) - 1
            with nullcontext() if last or not self.several else self._wrapped.no_sync():
                losses = self._losses(part)
                (losses.loss * (len(part.attributes) / batch.global_size)).backward()
            figures[:-1] += _figures(losses, len(part.attributes))
            self._statistics.after_part()
            if not last:
                self._sums.keep(self.learned)
        if not self.several:
            self._sums.over_parts(self.learned)
        figures[-1] = stop
        *sums, correct, triplets, votes = self._statistics.end(figures, self.several).tolist()
        means = dict(zip(LOSSES, (total / triplets for total in sums), strict=True))
        norm = self._checked_norm(means)
        self.optimizer.step()
        return StepResult(**means, correct=int(correct), triplets=int(triplets), gradient_norm=norm, votes=int(votes))

    def _losses(self, part: Batch) -> Losses:
        images, attributes = prepare(part, self.device, self.channels_last, self.learned[0].dtype)
        values = photos = None
        if part.values is not None:
            values = part.values.flatten(0, 1).to(self.device, non_blocking=True)
            photos = part.index.flatten().to(self.device, non_blocking=True)
        for seed in part.seeds:
            torch.manual_seed(seed)  # some backbones drop paths at random: by the part, not by the process
        with autocast(self.device, self.precision):
            return self._wrapped(images, attributes, values, photos)

    def _checked_norm(self, losses: dict[str, float]) -> float:
        """The gradient's norm; clips it. All processes have the same gradient, so all raise or none does."""
        gradients = [parameter.grad for parameter in self.learned if parameter.grad is not None]
        total = nn.utils.get_total_norm(gradients)
        norm = float(total)
        if not (math.isfinite(norm) and math.isfinite(losses["loss"])):
            parts = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            raise NonFiniteLoss(f"the loss or its gradient is not finite: {parts}, gradient's norm {norm:.4g}")
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.learned, self.clip_norm, total)
        return norm


def _figures(losses: Losses, triplets: int) -> Tensor:
    """Sums over a part's triplets, float64: the losses, the correct ones, their number."""
    sums = torch.stack([getattr(losses, name).detach().double() for name in LOSSES]) * triplets
    return torch.cat((sums, losses.correct.detach().double()[None], sums.new_full((1,), triplets)))


class _Sums:
    """Adds up gradients over a process's parts, and over the processes, in float64 or in float32."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.kept: dict[Tensor, Tensor] = {}

    def keep(self, learned: list[nn.Parameter]) -> None:
        """After a part that is not the last. In float32 the gradients stay where they are: torch adds to them."""
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

    def over_parts(self, learned: list[nn.Parameter]) -> None:
        """After the last part, of a process that is alone."""
        for parameter in learned:
            if parameter in self.kept and parameter.grad is not None:
                parameter.grad.copy_(self.kept.pop(parameter).add_(parameter.grad))

    def over_processes(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """DistributedDataParallel's hook: called while the last part's backward pass still runs."""
        buffer = bucket.buffer()
        total = buffer.to(self.dtype)
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            if parameter in self.kept:
                offset = gradient.storage_offset() - buffer.storage_offset()
                total.as_strided(gradient.size(), gradient.stride(), offset).add_(self.kept.pop(parameter))
        summed = dist.all_reduce(total, async_op=True).get_future()
        return summed.then(lambda future: buffer.copy_(future.value()[0]))


def build_optimizer(objective: nn.Module, lr: float = 1e-4, fused: bool = True) -> Adam:
    """The paper's Adam, over every parameter that is learned, the loss weights' included.

    fused: all parameters in one pass over memory.
    """
    return Adam([parameter for parameter in objective.parameters() if parameter.requires_grad], lr=lr, fused=fused)


def build_scheduler(optimizer: Optimizer, gamma: float = 0.9, every_epochs: int = 3) -> StepLR:
    """The paper's schedule, lr·gamma every few epochs; step it once after every epoch."""
    return StepLR(optimizer, step_size=every_epochs, gamma=gamma)
