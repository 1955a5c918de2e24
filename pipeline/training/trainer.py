"""A training: what it consists of, its epochs on this process's share, its state. Knows nothing of Ray.

Ray Train runs it in every worker, Ray Tune in a trial's own process, a test in a plain one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file

import agman
from agman.checkpoint import WEIGHTS, write_model
from data_prep.batches import BatchPlan, batches_per_epoch, cut, plan_epoch, share_of_epoch
from data_prep.dataset import Dataset, ImageStore, ValuesOf
from data_prep.errors import InputError
from data_prep.triplets import Triplets
from pipeline.config.schema import TrainConfig
from pipeline.evaluation.validation import Validation, score_name
from pipeline.training.checkpoints import Saver
from pipeline.training.data_facts import data_facts

STATE_FILE = "state.pt"
MODEL_OPTIONS = ("embedding_dim", "classify", "sa_kernel", "without", "mask", "rounds")
"""Settings whose None stands for the model's own default."""

Ending = Literal["finished", "stopped"]
Point = tuple[int, dict[str, float]]
"""Metrics at a step."""


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's."""

    rank: int = 0
    workers: int = 1
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class StepEnd:
    """What a step came to, the same on every worker."""

    epoch: int
    """Of this step, from 1."""
    step: int
    result: agman.StepResult
    recent: dict[str, float]
    """Means over the last steps (agman.Totals.means)."""
    score: float | None
    """Of the epoch before, on validation."""


@dataclass(frozen=True)
class EpochEnd:
    """What one epoch came to, the same on every worker."""

    epoch: int
    step: int
    metrics: dict[str, float]


class NonFiniteBatch(agman.NonFiniteLoss):
    """A batch whose loss or gradient is infinite or NaN; `record` names its triplets."""

    def __init__(self, message: str, record: dict[str, Any]):
        super().__init__(message, record)
        self.record = record

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Snapshot:
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
        """The model, loadable by itself, and what a resumed training needs beside it."""
        torch.save(self.state, folder / STATE_FILE)
        write_model(folder, self.model, self.build, self.description)


class Training:
    """One training's state: model, optimizer, schedule, and how far it has come."""

    def __init__(self, config: TrainConfig, dataset: Dataset, share: Share, run_id: str | None = None):
        self.config = config = resolved(config, share.device, share.workers, share.threads)
        self.dataset, self.share, self.run_id = dataset, share, run_id
        self.image_size = config.image_size or dataset.info.image_size
        self.epoch = 0
        """Epochs done."""
        self.step = 0
        self.step_in_epoch = 0
        self.best: float | None = None
        """The best validation score so far."""
        self.epochs_since_best = 0
        self.totals, self.recent = agman.Totals(), agman.Totals()
        """Of this epoch, and since the last point of the curves."""
        self.points: list[Point] = []
        """Metrics that are not known to be logged yet; they travel with the checkpoints."""
        self.score: float | None = None
        """Of the last epoch, on validation."""
        self._facts = data_facts(dataset)
        self._rates: dict[str, float] = {}
        self._copies: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()  # of `points`: they are taken away in the saver's thread
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.threads or 1)
        agman.keep_freed_memory()
        self.objective = build_objective(config, dataset)
        self.model = self.objective.model
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.objective.to(share.device, memory_format=layout)  # type: ignore[call-overload]
        if config.precision == "fp64":
            self.objective.double()
        agman.convert_batchnorm(self.objective, config.batch_norm)
        if config.compile:
            self.model.compile()
        self.optimizer = agman.build_optimizer(self.objective, config.lr, fused=bool(config.fused))
        self.scheduler = agman.build_scheduler(self.optimizer, config.lr_decay, config.lr_decay_epochs)

    @property
    def autocast(self) -> str:
        return "bf16" if self.config.precision == "bf16" else "fp32"

    @property
    def ended(self) -> bool:
        """Whether no epoch is left, or early stopping has ended it."""
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
        """Train the epochs that are left; "stopped" if a worker's `stop` said so (asked before every step).

        The saver (one worker's) gets a snapshot when one is due, at the end of every epoch, and before stopping.
        Raises NonFiniteBatch, on all workers at the same step.
        """
        config, share = self.config, self.share
        if self.ended:
            return "finished"
        stepper = agman.Stepper(
            self.objective,
            self.optimizer,
            device=share.device,
            precision=self.autocast,
            channels_last=bool(config.channels_last),
            clip_norm=config.clip_norm,
        )
        threads = config.threads or 1
        images = ImageStore(self.dataset, "train", self.image_size, wanted=self._images_needed(), threads=threads)
        values = self.dataset.values_of() if config.needing_values else None
        validation = None
        if score_name(self.dataset):
            place = {"rank": share.rank, "workers": share.workers}
            validation = Validation(self.dataset, self.image_size, **place, device=share.device, threads=threads)

        def after_step(result: agman.StepResult) -> None:
            self._count_step()
            step_end(StepEnd(self.epoch + 1, self.step, result, self.recent.means() or self._rates, self.score))
            if saver:
                saver.after_step(self.step, self.snapshot)

        def load(epoch: int) -> agman.Ahead[agman.Batch]:
            plans = self._plans(epoch, start=self.step_in_epoch)
            loaded = (_load(plan, images, values) for plan in plans)
            return agman.Ahead((agman.pinned(batch, share.device) for batch in loaded), config.prefetch)

        batches = load(self.epoch)
        try:
            while True:
                self.objective.train()
                totals = [self.totals, self.recent]
                if not agman.train_epoch(stepper, batches, totals, stop=stop, after_step=after_step):
                    if saver:
                        saver.save(self.snapshot)
                    return "stopped"
                self.epoch += 1
                self.step_in_epoch = 0
                if self.epoch < config.epochs:
                    batches = load(self.epoch)  # while validation runs
                end = self._end_epoch(validation)
                if saver:
                    saver.save(lambda end=end: self.snapshot(end))  # type: ignore[misc]
                epoch_end(end)
                if self.ended:
                    return "finished"
        except agman.NonFiniteLoss as error:
            raise self._failure(error) from error
        finally:
            batches.close()

    def _count_step(self) -> None:
        self.step += 1
        self.step_in_epoch += 1
        if self.recent.steps >= self.config.log_every:
            self._rates = self.recent.means()
            with self._lock:
                self.points.append((self.step, {f"steps/{name}": value for name, value in self._rates.items()}))
            self.recent.clear()

    def _end_epoch(self, validation: Validation | None) -> EpochEnd:
        metrics = {f"train/{name}": value for name, value in self.totals.means().items()}
        metrics["train/lr"] = float(self.scheduler.get_last_lr()[0])
        self.totals.clear()
        self.scheduler.step()
        if validation:
            metrics |= validation.metrics(self.model, self.autocast)
            score = metrics[score_name(self.dataset) or ""]
            better = self.best is None or score > self.best
            self.best = score if better else self.best
            self.epochs_since_best = 0 if better else self.epochs_since_best + 1
            self.score = score
        with self._lock:
            self.points.append((self.step, metrics))
        return EpochEnd(self.epoch, self.step, metrics)

    def snapshot(self, end: EpochEnd | None = None) -> Snapshot:
        """The state as it is now; `end` if this is the end of an epoch. The next snapshot takes this one's memory."""
        metrics = end.metrics if end else {}
        description = {
            "attributes": self.dataset.info.attribute_names,
            "image_size": self.image_size,
            "step": self.step,
            "dataset": self.dataset.info.name,
            "dataset_digest": self.dataset.info.digest,
            "data": self._facts,
            "training": self.config.model_dump(),
            "run_id": self.run_id,
        }
        optimizer = self.optimizer.state_dict()
        with self._lock:
            points = list(self.points)
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "best": self.best,
            "score": self.score,
            "epochs_since_best": self.epochs_since_best,
            "totals": self.totals.as_dict(),
            "recent": self.recent.as_dict(),
            "points": points,
            "optimizer": optimizer | {"state": self._copied_state(optimizer["state"])},
            "scheduler": self.scheduler.state_dict(),
            "beside_model": {key: tensor.detach().cpu().clone() for key, tensor in self._beside_model().items()},
        }
        model = {
            key: self._copied(f"model.{key}", tensor, torch.contiguous_format)
            for key, tensor in self.model.state_dict().items()
        }
        score = metrics.get(score_name(self.dataset) or "")
        return Snapshot(self.step, self.epoch, metrics, score, model, dict(self.model.config), description, state)

    def load(self, folder: Path) -> None:
        """Take up where a snapshot of the same training was taken."""
        self.model.load_state_dict(load_file(folder / WEIGHTS))
        state = torch.load(folder / STATE_FILE, weights_only=True, map_location="cpu")
        for name in ("epoch", "step", "step_in_epoch", "best", "score", "epochs_since_best"):
            setattr(self, name, state[name])
        self.totals, self.recent = agman.Totals(**state["totals"]), agman.Totals(**state["recent"])
        self.points = [(step, dict(metrics)) for step, metrics in state["points"]]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        # Saved after an epoch's last step: the schedule goes on without a step here, and torch would warn of that.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        self.objective.load_state_dict(state["beside_model"], strict=False)

    def forget_points(self, logged: list[Point]) -> None:
        """These, the first ones, are logged. There may be another one of the same step by now."""
        with self._lock:
            del self.points[: len(logged)]

    def points_until(self, step: int) -> list[Point]:
        with self._lock:
            return [point for point in self.points if point[0] <= step]

    def _copied_state(self, state: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """Adam's moments keep their parameter's order in memory: the fused kernels go by it."""
        return {
            number: {key: self._copied(f"optimizer.{number}.{key}", tensor) for key, tensor in of_parameter.items()}
            for number, of_parameter in state.items()
        }

    def _copied(
        self, name: str, tensor: torch.Tensor, layout: torch.memory_format = torch.preserve_format
    ) -> torch.Tensor:
        """On the CPU, in the memory of the copy before: fresh memory would cost more than the copying."""
        if name not in self._copies:
            self._copies[name] = torch.empty_like(tensor, device="cpu", memory_format=layout)
        return self._copies[name].copy_(tensor.detach())

    def _beside_model(self) -> dict[str, torch.Tensor]:
        """What the objective learns that is no part of the model: loss weights and proxies."""
        return {k: v for k, v in self.objective.state_dict().items() if not k.startswith("model.")}

    def _triplets(self, epoch: int) -> Triplets:
        all_of_epoch = self.dataset.triplets("train", epoch)
        return Triplets(*(column[: self.config.max_triplets] for column in all_of_epoch.columns().values()))

    def _plans(self, epoch: int, start: int = 0) -> Iterator[BatchPlan]:
        return plan_epoch(
            self._triplets(epoch),
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            epoch=epoch,
            rank=self.share.rank,
            workers=self.share.workers,
            parts=self._parts,
            start=start,
        )

    @property
    def _parts(self) -> int:
        """Synchronised batch norm needs all parts at once: one for each worker that there is now."""
        return self.share.workers if self.config.batch_norm == "sync" else self.config.parts or self.share.workers

    def _images_needed(self) -> np.ndarray:
        """The images of this worker's share of the triplets of all epochs that are left."""
        prepared = self.dataset.info.triplet_epochs
        place = {"rank": self.share.rank, "workers": self.share.workers, "parts": self._parts}
        needed = [np.empty(0, np.int64)]
        for epoch in {epoch % prepared for epoch in range(self.epoch, self.config.epochs)}:
            triplets = self._triplets(epoch)
            rows = share_of_epoch(len(triplets), self.config.batch_size, **place)
            needed += [np.unique(ids[rows]) for ids in (triplets.anchor, triplets.positive, triplets.negative)]
        return np.unique(np.concatenate(needed))

    def _failure(self, error: agman.NonFiniteLoss) -> NonFiniteBatch:
        """Names the global batch that could not be learned from."""
        triplets = self._triplets(self.epoch)
        bounds = cut(len(triplets), batches_per_epoch(len(triplets), self.config.batch_size))
        rows = slice(*bounds[self.step_in_epoch : self.step_in_epoch + 2].tolist())
        paths = self.dataset.images.set_index("image_id")["path"]
        columns = {name: column[rows].tolist() for name, column in triplets.columns().items()}
        named = {name: [str(paths[image]) for image in columns[name]] for name in ("anchor", "positive", "negative")}
        record = {
            "error": str(error),
            "epoch": self.epoch + 1,
            "step": self.step + 1,
            "triplets": columns,
            "paths": named,
        }
        return NonFiniteBatch(f"step {self.step + 1} (epoch {self.epoch + 1}): {error}", record)


def steps_per_epoch(dataset: Dataset, config: TrainConfig, parts: int) -> int:
    """Raises InputError where a part of a batch would get no triplet."""
    triplets = min(config.max_triplets or dataset.info.triplets, dataset.info.triplets)
    return batches_per_epoch(triplets, config.batch_size, parts)


def resolved(config: TrainConfig, device: str = "cpu", workers: int = 1, threads: int = 1) -> TrainConfig:
    """`config` with every None that stands for a default replaced by it.

    The model's own; the device's, as measured (docs/training.md has the table); and what follows from the number of
    workers and of CPU threads for each. Raises InputError for an unknown model, or settings that exclude each other.
    """
    try:
        defaults = agman.options_of(config.model)
    except ValueError as error:
        raise InputError(str(error)) from error
    if config.batch_norm == "sync" and config.parts is not None:
        raise InputError(
            f"parts={config.parts} with batch_norm=sync: synchronised statistics need the whole batch at once; "
            "leave parts out, or take batch_norm=per_part"
        )
    on_gpu = torch.device(device).type == "cuda"
    defaults = {option: defaults.get(option) for option in MODEL_OPTIONS} | {
        "precision": "bf16" if on_gpu or computes_in_bfloat16() else "fp32",
        "channels_last": True,
        "fused": True,
        "compile": False,
        "parts": None if config.batch_norm == "sync" else workers,
        "threads": threads,
    }
    return config.model_copy(update={key: value for key, value in defaults.items() if getattr(config, key) is None})


def computes_in_bfloat16() -> bool:
    """Whether this CPU has instructions for it; elsewhere it is emulated, and slow."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def build_model(config: TrainConfig, dataset: Dataset) -> agman.RetrievalModel:
    """The model that `config` names, for the dataset's attributes.

    Raises ValueError for sizes that cannot be, or a setting that this model does not have.
    """
    options = {option: getattr(config, option) for option in MODEL_OPTIONS}
    return agman.build(
        config.model,
        n_attributes=len(dataset.info.attributes),
        backbone=config.backbone,
        weights=config.weights,
        **{option: value for option, value in options.items() if value is not None},
    )


def build_objective(config: TrainConfig, dataset: Dataset) -> agman.TripletObjective:
    """The model and all that is learned beside it. Raises ValueError as `build_model`."""
    model = build_model(config, dataset)
    proxies = None
    if config.proxy_weight:
        value_counts = [len(attribute.values) for attribute in dataset.info.attributes]
        proxies = agman.ValueProxies(value_counts, model.embedding_dim)
    return agman.TripletObjective(
        model,
        config.margin,
        agman.LossWeights(config.loss_weighting, config.triplet_weight, config.class_weight),
        proxies,
        config.proxy_weight,
        mining=config.mining,
        info_nce_weight=config.info_nce_weight,
        info_nce_temperature=config.info_nce_temperature,
    )


def _load(plan: BatchPlan, images: ImageStore, values: ValuesOf | None) -> agman.Batch:
    """The batch with its images decoded."""
    known = None if values is None else values(plan.image_ids[plan.index], plan.attributes)
    return agman.Batch(
        images=images.read(plan.image_ids),
        index=torch.from_numpy(plan.index),
        flip=torch.from_numpy(plan.flip),
        attributes=torch.from_numpy(plan.attributes),
        global_size=plan.global_size,
        values=None if known is None else torch.from_numpy(known),
        bounds=plan.bounds,
        global_parts=plan.global_parts,
        seeds=plan.seeds,
    )
