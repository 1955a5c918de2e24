"""One step of training: a global batch in micro-batches, on one process or several, with the same outcome.

Shape suffixes: G images and K pairs (image, attribute) of the global batch, D embedding width, N attributes.
"""

import math
import warnings
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from agman.augmentation import Augmentation
from agman.base import Output
from agman.batchnorm import RunningStatistics
from agman.engine import AnyBatch, Batch, LabelBatch, autocast, prepare, prepare_labelled
from agman.objective import LabelObjective, Objective


class NonFiniteLoss(RuntimeError):
    """A loss or a gradient that is infinite or NaN; no weight was changed by it."""


class StepResult(NamedTuple):
    """Outcome of a step on the global batch; the same on every process."""

    means: dict[str, float]
    """Means over the global batch: "loss", and the terms of `agman.objective.Losses`."""
    triplets: int
    """Number of triplets; 0 in a batch of labelled images."""
    images: int
    """Number of images that passed the backbone."""
    gradient_norm: float
    """L2 norm before clipping."""
    votes: int
    """Number of processes that asked to stop."""

    @property
    def loss(self) -> float:
        """Weighted sum of the losses."""
        return self.means["loss"]


class Stepper:
    """Steps of `optimizer` on `objective`, in this process alone or in all of torch's default process group.

    A global batch is cut into micro-batches, and each process computes its own one after the other. Gradients are those
    of the global batch's loss, however unequal the micro-batches. The model's result for a micro-batch depends on
    nothing outside it but the weights, batch norm's statistics included (unless convert_batchnorm(…, "sync") made them
    global). The losses of a TripletObjective, which takes a `Batch`, do so too; those of a LabelObjective, which takes
    a `LabelBatch`, compare the embeddings of the global batch, and until they are known the activations of all of a
    process's micro-batches are kept.

    In fp32 and fp64 the gradients of micro-batches are added up in float64, so that their order makes no difference:
    the same micro-batches give the same weights on any number of processes, if each computes with the same number of
    threads. With "bf16" they are added up in float32, half the traffic.

    precision: "bf16" runs the model under autocast (embeddings, logits and losses stay float32); "fp32" leaves the
    model's own type alone.
    clip_norm: bound on the gradient's L2 norm; by default it is not clipped.
    augmentation: random changes of the pictures; by default they are only mirrored, as the batch says.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: Optimizer,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        clip_norm: float | None = None,
        augmentation: Augmentation | None = None,
    ):
        self.objective, self.optimizer, self.device = objective, optimizer, torch.device(device)
        self.precision, self.clip_norm, self.augmentation = precision, clip_norm, augmentation
        self.learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._gradients = _GradientSums(torch.float32 if precision == "bf16" else torch.float64)
        self._statistics = RunningStatistics(objective)
        self._recomputes = objective.model.backbone.checkpointing
        self._synced = any(isinstance(module, nn.SyncBatchNorm) for module in objective.modules())
        self._dtype = self.learned[0].dtype
        self._wrapped: Any = objective
        if self.several:
            # Buffers are the same on all processes already: SyncBatchNorm's, and those of RunningStatistics.
            with warnings.catch_warnings():  # deprecated in 2.15; its successor, unknown to 2.11, broadcasts once
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                self._wrapped = DistributedDataParallel(
                    objective, broadcast_buffers=False, gradient_as_bucket_view=True
                )
            self._wrapped.register_comm_hook(self._gradients, _GradientSums.over_processes)

    def step(self, batch: AnyBatch, *, stop: bool = False) -> StepResult:
        """Make one step on this process's micro-batches of a global batch; all processes make it at the same time.

        `stop` is this process's vote to stop; the result tells all processes how many voted so. Raises NonFiniteLoss,
        on all processes alike, before a weight is changed; ValueError for several micro-batches in one process under
        synchronised batch norm.
        """
        if self._synced and len(batch.bounds) > 2:
            raise ValueError("synchronised batch norm needs the whole batch at once: one micro-batch on each process")
        self.optimizer.zero_grad(set_to_none=True)
        self._statistics.begin(batch.global_micro_batches)
        shares = self._triplets(batch) if isinstance(batch, Batch) else self._labels(batch)
        vote = torch.tensor(stop, dtype=torch.float64, device=self.device)
        *totals, votes = self._statistics.end(torch.stack([*shares.values(), vote]), self.several).tolist()
        means = dict(zip(shares, totals, strict=True))
        norm = self._checked_norm(means)
        self.optimizer.step()
        triplets = batch.global_size if isinstance(batch, Batch) else 0
        images = 3 * triplets or batch.global_size
        return StepResult(means, triplets, images, gradient_norm=norm, votes=int(votes))

    def _triplets(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the gradients of a batch of triplets; return this process's shares of the means."""
        means: dict[str, Tensor] = {}
        micro_batches, pixels = batch.micro_batches, self.objective.model.pixels
        for micro_batch in micro_batches:
            last = micro_batch is micro_batches[-1]
            _seed(micro_batch)
            images, attributes = prepare(micro_batch, pixels, self.device, self._dtype, self.augmentation)
            values = None
            if micro_batch.values is not None:
                values = micro_batch.values.flatten(0, 1).to(self.device, non_blocking=True)
            share = len(attributes) / batch.global_size
            with nullcontext() if last or not self.several else self._wrapped.no_sync():
                with autocast(self.device, self.precision):
                    losses = self._wrapped(images, attributes, values)
                self._backward(losses.loss * share)
            for name, value in {"loss": losses.loss.detach(), **losses.terms}.items():
                means[name] = means.get(name, 0) + value.double() * share
            self._statistics.after_micro_batch()
            if not last:
                self._gradients.keep(self.learned)
        if not self.several:
            self._gradients.over_micro_batches(self.learned)
        return means

    def _labels(self, batch: LabelBatch) -> dict[str, Tensor]:
        """Compute the gradients of a batch of labelled images; return this process's shares of the means.

        Every process computes the losses of the global batch, and their gradients with respect to the embeddings and
        logits; it then takes those of its own images back through the model.
        """
        objective = self.objective
        assert isinstance(objective, LabelObjective), "batches of labelled images are a LabelObjective's"
        batch = batch.map(lambda tensor: tensor.to(self.device, non_blocking=True))
        micro_batches, pixels, outputs = batch.micro_batches, objective.model.pixels, []
        for micro_batch in micro_batches:
            _seed(micro_batch)
            images = prepare_labelled(micro_batch, pixels, self.device, self._dtype, self.augmentation)
            own = micro_batch.own_pairs
            image_index = batch.image_index[own] - micro_batch.begin
            with autocast(self.device, self.precision):
                outputs.append(objective.embed(images, image_index, batch.attributes[own]))
            self._statistics.after_micro_batch()
        embedding_kd, logits_gn = self._collected(batch, outputs)
        losses = objective.losses(embedding_kd, logits_gn, batch.image_index, batch.attributes, batch.values)
        first = batch.begin == 0  # losses, and gradients beside the model, are the same on all: one process adds them
        of_outputs, beside = self._gradients_of(losses.loss, embedding_kd, logits_gn, first)
        for micro_batch, output in zip(micro_batches, outputs, strict=True):
            rows = slice(micro_batch.begin, micro_batch.begin + len(micro_batch.images))
            # The gradient of this sum is that of the loss by way of this micro-batch's outputs.
            surrogate = (output.embedding * of_outputs[0][micro_batch.own_pairs]).sum()
            if output.logits is not None:
                surrogate = surrogate + (output.logits * of_outputs[1][rows]).sum()
            if micro_batch is not micro_batches[-1]:
                self._backward(surrogate)
                self._gradients.keep(self.learned)
            else:
                self._backward(self._wrapped(surrogate + beside))
        if not self.several:
            self._gradients.over_micro_batches(self.learned)
        return {name: value.double() * first for name, value in {"loss": losses.loss.detach(), **losses.terms}.items()}

    def _backward(self, loss: Tensor) -> None:
        with self._statistics.unchanged() if self._recomputes else nullcontext():
            loss.backward()

    def _gradients_of(
        self, loss: Tensor, embedding_kd: Tensor, logits_gn: Tensor | None, first: bool
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the loss's gradients by embeddings and logits, and a sum whose gradient is that beside the model."""
        outputs = [embedding_kd] if logits_gn is None else [embedding_kd, logits_gn]
        named = self.objective.named_parameters()
        beside: list[Tensor] = [one for name, one in named if one.requires_grad and not name.startswith("model.")]
        found = torch.autograd.grad(loss, outputs + beside)
        products = [(p * g).sum() * first for p, g in zip(beside, found[len(outputs) :], strict=True)]
        return found[: len(outputs)], torch.stack(products).sum() if products else loss.new_zeros(())

    def _collected(self, batch: LabelBatch, outputs: list[Output]) -> tuple[Tensor, Tensor | None]:
        """Return the embeddings K×D and the logits G×N (None without branch 1) of all processes, as leaves."""
        embedding_kd = torch.cat([output.embedding.detach() for output in outputs])
        logits = [output.logits.detach() for output in outputs if output.logits is not None]
        logits_gn = torch.cat(logits) if logits else None
        if self.several:
            embedding_kd = _of_all(embedding_kd, batch.own_pairs.start, len(batch.image_index))
            if logits_gn is not None:
                logits_gn = _of_all(logits_gn, batch.begin, batch.global_size)
        return embedding_kd.requires_grad_(), None if logits_gn is None else logits_gn.requires_grad_()

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


def _seed(micro_batch: AnyBatch) -> None:
    """Make random changes of pictures, and stochastic depth, depend on the micro-batch and not on the process."""
    for seed in micro_batch.seeds:
        torch.manual_seed(seed)


def _of_all(own: Tensor, begin: int, rows: int) -> Tensor:
    """Return the rows of all processes, this one's from row `begin`. Adding zeros changes no bit."""
    every = own.new_zeros(rows, own.shape[1])
    every[begin : begin + len(own)] = own
    dist.all_reduce(every)
    return every


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
