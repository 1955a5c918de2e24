"""A training: its objects, its epochs in this process, and its state. Imports neither Ray nor MLflow.

Ray Train runs it in every worker, Ray Tune in a trial's own process, a test in a plain one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file

import agman
from agman.batchnorm import convert_batchnorm, freeze_batchnorm
from agman.checkpoint import WEIGHTS, write_model
from agman.engine import AnyBatch
from agman.loop import Prefetcher, RunningMeans, pinned
from agman.memory import keep_freed_memory
from agman.optimizer import (
    averaged,
    cosine_decay,
    is_backbones_own,
    set_learning_rate,
    step_decay,
    warm_up,
)
from agman.stepping import NonFiniteLoss, StepResult
from data_prep.balanced import BalancedSampler
from data_prep.batches import batches_per_epoch, cut, plan_epoch, rows_of_worker
from data_prep.dataset import Dataset, ImageStore
from data_prep.triplets import Triplets
from pipeline.config.schema import TrainConfig
from pipeline.evaluation.chance import chance_beside
from pipeline.evaluation.validation import MEAN_COSINE, SPLIT, Validation, score_name
from pipeline.training.build import build_augmentation, build_objective, fitted, resolved, steps_of, steps_per_epoch
from pipeline.training.checkpoints import Saver

STATE_FILE = "state.pt"
COUNTERS = ("epoch", "step", "step_in_epoch", "best", "score", "chance", "epochs_since_best", "signs")
"""Attributes of a training that its snapshots hold as they are."""

ALIKE = 0.95
"""Mean cosine of validation embeddings from which they count as alike."""
AT_MARGIN, GUESSED = 0.01, 0.55
"""Largest distance of the triplet loss from the margin, as a fraction of it, and largest accuracy of a collapse."""

Ending = Literal["finished", "stopped"]
Point = tuple[int, dict[str, float]]
"""Metrics at a step."""


@dataclass(frozen=True)
class WorkerContext:
    """This process's rank among the workers, and its device."""

    rank: int = 0
    workers: int = 1
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class StepEnd:
    """Outcome of a step, the same on every worker."""

    epoch: int
    """Epoch of this step, counted from 1."""
    step: int
    result: StepResult
    recent: dict[str, float]
    """Means over the last steps (agman.loop.RunningMeans.means)."""
    score: float | None
    """Validation score of the epoch before."""
    chance: float | None
    """Score of a random ranking there."""


@dataclass(frozen=True)
class EpochEnd:
    """Outcome of an epoch, the same on every worker."""

    epoch: int
    step: int
    metrics: dict[str, float]
    warning: str = ""
    """Signs that the embeddings have collapsed, in words, if they last: two epochs, or until the end."""


class NonFiniteBatch(NonFiniteLoss):
    """A batch whose loss or gradient is infinite or NaN; `record` names its triplets."""

    def __init__(self, message: str, record: dict[str, Any]):
        super().__init__(message, record)
        self.record = record

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class TrainingSnapshot:
    """A training's state at one step, in memory; `write` makes a folder of it (see pipeline.training.checkpoints)."""

    step: int
    epoch: int
    metrics: dict[str, float]
    score: float | None
    model: dict[str, torch.Tensor]
    build: dict[str, Any]
    description: dict[str, Any]
    state: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write the model, loadable by itself, and the rest of the state that a resumed training needs."""
        with (folder / STATE_FILE).open("wb") as file:  # to a path, torch hides that the disk is full
            torch.save(self.state, file)
        write_model(folder, self.model, self.build, self.description)


class Training:
    """One training's state: model, optimizer, and progress.

    dtype: type of the weights. float64 serves to check that two ways of computing agree.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        worker: WorkerContext,
        run_id: str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        config = resolved(config, worker.device, worker.workers, worker.threads)
        self.micro_batches = config.micro_batches or worker.workers
        self.config = config = fitted(config, dataset, self.micro_batches)
        self.steps_per_epoch = steps_per_epoch(dataset, config, self.micro_batches)
        self.steps = steps_of(config, dataset, self.micro_batches)
        """Steps of the complete training."""
        self.dataset, self.worker, self.run_id = dataset, worker, run_id
        self.image_size = config.image_size or dataset.info.image_size
        self.epoch = 0
        """Number of complete epochs."""
        self.step = 0
        self.step_in_epoch = 0
        self.best: float | None = None
        """Best validation score so far."""
        self.epochs_since_best = 0
        self.score: float | None = None
        """Validation score of the last epoch."""
        self.chance: float | None = None
        """Score that a random ranking has there."""
        self.means, self.recent = RunningMeans(), RunningMeans()
        """Means of this epoch, and of the steps since the last point of the curves."""
        self.points: list[Point] = []
        """Metrics that are not known to be logged yet; checkpoints carry them. The saver's thread removes them from
        the front."""
        self.signs = ""
        """Signs of a collapse in the last epoch."""
        self._rates: dict[str, float] = {}
        self._copies: dict[str, torch.Tensor] = {}
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.threads or 1)
        keep_freed_memory()
        self.objective = build_objective(config, dataset)
        self.model = self.objective.model
        self.objective.to(worker.device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        convert_batchnorm(self.objective, config.batch_norm)
        self.averaged = averaged(self.model, config.ema) if config.ema else None
        """Copy of the model with running averages of its weights."""
        if config.compile:
            self.model.compile()
        self.optimizer = agman.build_optimizer(
            self.objective, config.lr, config.optimizer, config.weight_decay, config.backbone_lr_scale
        )
        self._sampler = None
        if config.batches == "balanced":
            self._sampler = BalancedSampler(dataset.labels_of("train"))

    @property
    def precision(self) -> str:
        """Precision of the model's passes: fp32 or bf16."""
        return self.config.precision or "fp32"

    @property
    def judged(self) -> agman.RetrievalModel:
        """Model that is evaluated and registered: the running average, if there is one."""
        if self.averaged is None:
            return self.model
        model = self.averaged.module
        assert isinstance(model, agman.RetrievalModel)
        return model

    @property
    def ended(self) -> bool:
        """Whether no epoch is left, or early stopping has ended the training."""
        patience = self.config.patience
        return self.epoch >= self.config.epochs or (patience is not None and self.epochs_since_best >= patience)

    def run(
        self,
        *,
        saver: Saver | None = None,
        stop: Callable[[], bool] = lambda: False,
        step_end: Callable[[StepEnd], None] = lambda end: None,
        epoch_end: Callable[[EpochEnd], None] = lambda end: None,
    ) -> Ending:
        """Train the epochs that are left; return "stopped" if a worker's `stop` said so (asked before every step).

        The saver, which one worker has, gets a snapshot when one is due, at the end of every epoch, and before
        stopping. Raises NonFiniteBatch, on all workers at the same step.
        """
        if self.ended:
            return "finished"
        load, validation = self._loader(), self._validation()
        batches = load(self.epoch)
        stepper = None
        try:
            while not self.ended:
                self._set_mode()
                if stepper is None or self.epoch == self.config.freeze_backbone:  # it knows what is learned
                    stepper = self._stepper()
                self._set_learning_rate()
                votes = 0
                for result in agman.train_epoch(stepper, batches, (self.means, self.recent), stop=stop):
                    self._count_step()
                    rates = self.recent.means() or self._rates
                    step_end(StepEnd(self.epoch + 1, self.step, result, rates, self.score, self.chance))
                    if saver:
                        saver.after_step(self.step, self.snapshot)
                    votes = result.votes
                if votes:
                    if saver:
                        saver.save(self.snapshot)
                    return "stopped"
                self.epoch, self.step_in_epoch = self.epoch + 1, 0
                if self.epoch < self.config.epochs:
                    batches = load(self.epoch)  # in the background, while validation runs
                end = self._end_epoch(validation)
                if saver:
                    saver.save(partial(self.snapshot, end))
                epoch_end(end)
            return "finished"
        except NonFiniteLoss as error:
            raise self._failure(error) from error
        finally:
            batches.close()

    def _set_mode(self) -> None:
        """Set what the coming epoch trains."""
        self.objective.train()
        if self.config.batch_norm == "frozen":
            freeze_batchnorm(self.model.backbone)
        if self.config.freeze_backbone:
            for name, parameter in self.objective.named_parameters():
                if is_backbones_own(name):
                    parameter.requires_grad_(self.epoch >= self.config.freeze_backbone)

    def _stepper(self) -> agman.Stepper:
        return agman.Stepper(
            self.objective,
            self.optimizer,
            device=self.worker.device,
            precision=self.precision,
            clip_norm=self.config.clip_norm,
            augmentation=build_augmentation(self.config, self.dataset),
        )

    def _set_learning_rate(self) -> None:
        """Set the learning rate of the next step."""
        set_learning_rate(self.optimizer, self._learning_rate(self.step, self.epoch))

    def _learning_rate(self, step: int, epoch: int) -> float:
        config = self.config
        warm = round(config.warmup * self.steps)
        if config.schedule == "step":
            factor = step_decay(epoch, config.lr_decay, config.lr_decay_epochs)
        else:
            factor = cosine_decay(max(0, step - warm), self.steps - warm)
        return config.lr * factor * warm_up(step, warm)

    def _loader(self) -> Callable[[int], Prefetcher[AnyBatch]]:
        """Return a function that begins to load an epoch's batches."""
        threads = self.config.threads or 1
        needed, interpolation = self._images_needed(), self.model.pixels.interpolation
        images = ImageStore(self.dataset, "train", self.image_size, needed, threads, interpolation=interpolation)
        values_of = self.dataset.values_of() if self.config.needing_values and not self._sampler else None

        def batch(plan: dict[str, Any]) -> AnyBatch:
            image_ids = plan.pop("image_ids")
            if self._sampler:
                return pinned(agman.LabelBatch(images.read(image_ids), **plan), self.worker.device)
            if values_of:
                known = values_of(image_ids[plan["index"].numpy()], plan["attributes"].numpy())
                plan["values"] = torch.from_numpy(known)
            return pinned(agman.Batch(images.read(image_ids), **plan), self.worker.device)

        def load(epoch: int) -> Prefetcher[AnyBatch]:
            return Prefetcher(map(batch, self._plans(epoch)), self.config.prefetch)

        return load

    def _validation(self) -> Validation | None:
        if not score_name(self.dataset):
            return None
        worker, threads = self.worker, self.config.threads or 1
        interpolation = self.model.pixels.interpolation
        return Validation(
            self.dataset, self.image_size, worker.rank, worker.workers, worker.device, threads, interpolation
        )

    def _count_step(self) -> None:
        self.step += 1
        self.step_in_epoch += 1
        if self.averaged:
            self.averaged.update_parameters(self.model)
        self._set_learning_rate()
        if self.recent.steps >= self.config.log_every:
            self._rates = self.recent.means()
            self.points.append((self.step, {f"steps/{name}": value for name, value in self._rates.items()}))
            self.recent.clear()

    def _end_epoch(self, validation: Validation | None) -> EpochEnd:
        config = self.config
        metrics = {f"train/{name}": value for name, value in self.means.means().items()}
        metrics["train/lr"] = self._learning_rate(self.step - 1, self.epoch - 1)
        self.means.clear()
        if validation:
            metrics |= validation.metrics(self.judged, self.precision)
            name = score_name(self.dataset) or ""
            score = metrics[name]
            better = self.best is None or score > self.best
            self.best = score if better else self.best
            self.epochs_since_best = 0 if better else self.epochs_since_best + 1
            self.score, self.chance = score, chance_beside(name, metrics)
        self.points.append((self.step, metrics))
        before, self.signs = self.signs, collapse(metrics, config.margin)
        lasting = before or self.ended  # random weights begin alike: one epoch says little
        return EpochEnd(self.epoch, self.step, metrics, self.signs if lasting else "")

    def snapshot(self, end: EpochEnd | None = None) -> TrainingSnapshot:
        """Return the present state; `end` if this is an epoch's end. The next snapshot reuses this one's memory."""
        metrics = end.metrics if end else {}
        info = self.dataset.info
        description = {
            "attributes": info.attribute_names,
            "image_size": self.image_size,
            "fit": self.dataset.info.fit,
            "step": self.step,
            "dataset": info.name,
            "dataset_digest": info.digest,
            "data": {
                "layout": info.layout,
                "drawn": self.dataset.drawn,
                "values": [len(attribute.values) for attribute in info.attributes],
                "images": info.images,
                "queries": info.queries,
                "queries_of": info.queries_of,
                "split": info.split_origin,
                "triplets": info.triplets,
            },
            "training": self.config.model_dump(),
            "initial_weights": self.model.backbone.origin,
            "run_id": self.run_id,
        }
        optimizer = self.optimizer.state_dict()
        state = {name: getattr(self, name) for name in COUNTERS} | {
            "means": self.means.as_dict(),
            "recent": self.recent.as_dict(),
            "points": list(self.points),
            "optimizer": optimizer | {"state": self._copied_state(optimizer["state"])},
            "beside_model": {key: tensor.detach().cpu().clone() for key, tensor in self._beside_model().items()},
        }
        model = {
            key: self._copied(f"model.{key}", tensor, torch.contiguous_format)
            for key, tensor in self.judged.state_dict().items()
        }
        if self.averaged:
            learned = self.model.state_dict().items()
            state["learned"] = {key: self._copied(f"learned.{key}", tensor) for key, tensor in learned}
        score = metrics.get(score_name(self.dataset) or "")
        return TrainingSnapshot(
            self.step, self.epoch, metrics, score, model, dict(self.model.config), description, state
        )

    def load(self, folder: Path) -> None:
        """Continue from a snapshot of the same training."""
        weights = load_file(folder / WEIGHTS)
        state = torch.load(folder / STATE_FILE, weights_only=True, map_location="cpu")
        self.model.load_state_dict(state.get("learned", weights))
        if self.averaged:
            self.averaged.module.load_state_dict(weights)
            self.averaged.n_averaged.fill_(state["step"])
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.means, self.recent = RunningMeans(**state["means"]), RunningMeans(**state["recent"])
        self.points[:] = [(step, dict(metrics)) for step, metrics in state["points"]]
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["beside_model"], strict=False)

    def _copied_state(self, state: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """Copy Adam's moments. They keep their parameter's memory order, on which the fused kernels rely."""
        return {
            number: {key: self._copied(f"optimizer.{number}.{key}", tensor) for key, tensor in of_parameter.items()}
            for number, of_parameter in state.items()
        }

    def _copied(
        self, name: str, tensor: torch.Tensor, layout: torch.memory_format = torch.preserve_format
    ) -> torch.Tensor:
        """Copy a tensor to the CPU, into the memory of the copy before: fresh memory costs more than the copying."""
        if name not in self._copies:
            self._copies[name] = torch.empty_like(tensor, device="cpu", memory_format=layout)
        return self._copies[name].copy_(tensor.detach())

    def _beside_model(self) -> dict[str, torch.Tensor]:
        """Return what the objective learns besides the model: loss weights and proxies."""
        return {k: v for k, v in self.objective.state_dict().items() if not k.startswith("model.")}

    def _triplets(self, epoch: int) -> Triplets:
        return self.dataset.triplets("train", epoch)[: self.config.max_triplets]

    def _plans(self, epoch: int) -> Iterator[dict[str, Any]]:
        """Return the plans of the batches of an epoch that are left."""
        where = {"seed": self.config.seed, "epoch": epoch, "start": self.step_in_epoch} | self._division
        batch_size = self.config.batch_size
        if self._sampler:
            images_per_value = self.config.images_per_value
            plans = self._sampler.plan_epoch(batch_size=batch_size, images_per_value=images_per_value, **where)
        else:
            plans = plan_epoch(self._triplets(epoch), batch_size=batch_size, **where)
        return itertools.islice(plans, self.steps - epoch * self.steps_per_epoch - self.step_in_epoch)

    @property
    def _division(self) -> dict[str, int]:
        """Arguments of plan_epoch and rows_of_worker. By default each worker has one micro-batch."""
        return {"rank": self.worker.rank, "workers": self.worker.workers, "micro_batches": self.micro_batches}

    def _images_needed(self) -> np.ndarray:
        """Return the ids of the images that this worker needs for the epochs that are left."""
        if self._sampler:
            return self._sampler.image_ids
        prepared = self.dataset.info.triplet_epochs
        needed = [np.empty(0, np.int64)]
        for epoch in {epoch % prepared for epoch in range(self.epoch, self.config.epochs)}:
            triplets = self._triplets(epoch)
            rows = rows_of_worker(len(triplets), self.config.batch_size, **self._division)
            needed += [np.unique(ids[rows]) for ids in (triplets.anchor, triplets.positive, triplets.negative)]
        return np.unique(np.concatenate(needed))

    def _failure(self, error: NonFiniteLoss) -> NonFiniteBatch:
        """Return an error that names the global batch's images."""
        paths = self.dataset.images.set_index("image_id")["path"]
        if self._sampler:
            whole = {"rank": 0, "workers": 1, "micro_batches": 1, "start": self.step_in_epoch}
            plan = next(
                self._sampler.plan_epoch(
                    batch_size=self.config.batch_size,
                    images_per_value=self.config.images_per_value,
                    seed=self.config.seed,
                    epoch=self.epoch,
                    **whole,
                )
            )
            columns = {"image": plan["image_ids"].tolist()}
            named = {"image": [str(paths[image]) for image in columns["image"]]}
        else:
            triplets = self._triplets(self.epoch)
            bounds = cut(len(triplets), batches_per_epoch(len(triplets), self.config.batch_size))
            rows = slice(*bounds[self.step_in_epoch : self.step_in_epoch + 2].tolist())
            columns = {name: column.tolist() for name, column in triplets[rows].columns().items()}
            named = {
                name: [str(paths[image]) for image in columns[name]] for name in ("anchor", "positive", "negative")
            }
        record = {
            "error": str(error),
            "epoch": self.epoch + 1,
            "step": self.step + 1,
            "images" if self._sampler else "triplets": columns,
            "paths": named,
        }
        return NonFiniteBatch(f"step {self.step + 1} (epoch {self.epoch + 1}): {error}", record)


def collapse(metrics: dict[str, float], margin: float) -> str:
    """Return the signs in an epoch's metrics that all embeddings are alike, in words; empty if there are none.

    Equal embeddings give every triplet the margin as its loss. A loss that passes the margin on its way down has more
    right triplets than guessing has. A model that beats chance has not collapsed.
    """
    if metrics.get(f"{SPLIT}/above_chance_low", 0.0) > 0:
        return ""
    loss, right, cosine = (metrics.get(name) for name in ("train/loss_triplet", "train/triplet_accuracy", MEAN_COSINE))
    signs = []
    if loss is not None and right is not None and abs(loss - margin) <= AT_MARGIN * margin and right <= GUESSED:
        signs.append(f"the triplet loss {loss:.4f} is at the margin {margin:g}")
    if cosine is not None and cosine >= ALIKE:
        signs.append(f"the mean cosine of validation embeddings is {cosine:.3f}")
    return f"the embeddings hardly differ: {' and '.join(signs)}" if signs else ""
