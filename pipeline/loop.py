"""The training loop: epochs over a prepared dataset, on this process's share. Knows nothing of Ray.

Ray Train runs it in every worker, Ray Tune in a trial's own process, a test in a plain one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

import agman
from agman.checkpoint import WEIGHTS
from data_prep.batches import BatchPlan, batches_per_epoch, plan_epoch
from data_prep.dataset import Dataset, ImageStore, ValuesOf
from data_prep.errors import InputError
from data_prep.triplets import Triplets
from pipeline.config import TrainConfig

STATE_FILE = "state.pt"
MODEL_OPTIONS = ("embedding_dim", "classify", "sa_kernel", "mask", "rounds")
"""Settings whose None stands for the model's own default."""
LOSSES = ("loss", "loss_triplet", "loss_class", "loss_proxy", "loss_info_nce")


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's."""

    rank: int = 0
    workers: int = 1
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class EpochEnd:
    """What one epoch came to, the same on every worker."""

    epoch: int
    step: int
    metrics: dict[str, float]


class Training:
    """One training's state: model, optimizer, schedule, and how far it has come."""

    def __init__(self, config: TrainConfig, dataset: Dataset, share: Share, run_id: str | None = None):
        self.config, self.dataset, self.share, self.run_id = config, dataset, share, run_id
        self.image_size = config.image_size or dataset.info.image_size
        self.epoch = 0
        """Epochs done."""
        self.step = 0
        torch.manual_seed(config.seed)
        torch.set_num_threads(share.threads)
        agman.keep_freed_memory()
        self.model = build_model(config, dataset)
        weights = agman.LossWeights(config.loss_weighting, config.triplet_weight, config.class_weight)
        proxies = None
        if config.proxy_weight:
            value_counts = [len(attribute.values) for attribute in dataset.info.attributes]
            proxies = agman.ValueProxies(value_counts, self.model.embedding_dim)
        self.objective = agman.TripletObjective(
            self.model,
            config.margin,
            weights,
            proxies,
            config.proxy_weight,
            mining=config.mining,
            info_nce_weight=config.info_nce_weight,
            info_nce_temperature=config.info_nce_temperature,
        )
        # The memory order that convolutions are fastest in, on CPUs and GPUs alike; the numbers are the same.
        self.objective.to(share.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.precision == "fp64":
            self.objective.double()
        self.autocast = "bf16" if config.precision == "bf16" else "fp32"
        agman.convert_batchnorm(self.objective, config.batch_norm)
        self.optimizer = agman.build_optimizer(self.objective, config.lr)
        self.scheduler = agman.build_scheduler(self.optimizer, config.lr_decay, config.lr_decay_epochs)

    def save(self, folder: Path) -> None:
        """Write the model (loadable by itself) and the state that a resumed training needs."""
        description = {
            "attributes": self.dataset.info.attribute_names,
            "image_size": self.image_size,
            "step": self.step,
            "dataset": self.dataset.info.name,
            "dataset_digest": self.dataset.info.digest,
            "training": self.config.model_dump(),
            "run_id": self.run_id,
        }
        agman.save_model(folder, self.model, description)
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "beside_model": self._beside_model(),
            "rng": torch.get_rng_state(),
            "run_id": self.run_id,
        }
        torch.save(state, folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Take up where `save` left off."""
        self.model.load_state_dict(load_file(folder / WEIGHTS))
        state = torch.load(folder / STATE_FILE, weights_only=True, map_location=self.share.device)
        self.epoch, self.step, self.run_id = state["epoch"], state["step"], state["run_id"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.objective.load_state_dict(state["beside_model"], strict=False)
        torch.set_rng_state(state["rng"].cpu())

    def run(self, epoch_end: Callable[[EpochEnd], None], step_end: Callable[[int, float], None]) -> None:
        """Train the epochs that are left. `step_end(step, loss)` after every step, `epoch_end` after every epoch."""
        share, config = self.share, self.config
        wrapped = DistributedDataParallel(self.objective) if share.workers > 1 else self.objective
        images = ImageStore(self.dataset, "train", self.image_size, wanted=self._images_needed(), threads=share.threads)
        values = self.dataset.values_of() if config.needing_values else None
        validation = Validation(self.dataset, "valid", self.image_size, share) if self._validates else None
        while self.epoch < config.epochs:
            self.objective.train()
            started, waited = time.perf_counter(), 0.0
            totals: dict[str, float] = {}
            batches = _ahead(self._plans(self.epoch), images, values)
            while (before := time.perf_counter()) and (batch := next(batches, None)):
                waited += time.perf_counter() - before
                result = agman.train_step(
                    wrapped,
                    self.optimizer,
                    batch,
                    device=share.device,
                    precision=self.autocast,
                    world_size=share.workers,
                    channels_last=True,
                )
                self.step += 1
                _add(totals, result)
                step_end(self.step, float(result.loss))
            seconds = time.perf_counter() - started
            metrics: dict[str, float] = _means(totals, share) | {
                "train/lr": float(self.scheduler.get_last_lr()[0]),
                "train/triplets_per_second": totals["triplets"] * share.workers / seconds,
                "train/data_wait_share": waited / seconds,
            }
            self.scheduler.step()
            self.epoch += 1
            if validation:
                metrics |= validation.maps(self.model, self.autocast)
            epoch_end(EpochEnd(self.epoch, self.step, metrics))

    def _beside_model(self) -> dict[str, torch.Tensor]:
        """What the objective learns that is no part of the model: loss weights and proxies."""
        return {k: v for k, v in self.objective.state_dict().items() if not k.startswith("model.")}

    @property
    def _validates(self) -> bool:
        return self.dataset.info.queries["valid"] > 0

    def _triplets(self, epoch: int) -> Triplets:
        all_of_epoch = self.dataset.triplets("train", epoch)
        return Triplets(*(column[: self.config.max_triplets] for column in all_of_epoch.columns().values()))

    def _plans(self, epoch: int) -> Iterator[BatchPlan]:
        return plan_epoch(
            self._triplets(epoch),
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            epoch=epoch,
            rank=self.share.rank,
            workers=self.share.workers,
        )

    def _images_needed(self) -> np.ndarray:
        """The images of this worker's share of all epochs' triplets."""
        epochs = range(min(self.config.epochs, self.dataset.info.triplet_epochs))
        needed: set[int] = set()
        for epoch in epochs:
            for plan in self._plans(epoch):
                needed.update(plan.image_ids.tolist())
        return np.array(sorted(needed), np.int64)


def steps_per_epoch(dataset: Dataset, config: TrainConfig, workers: int) -> int:
    """Raises InputError where a worker would get no triplet of a batch."""
    triplets = min(config.max_triplets or dataset.info.triplets, dataset.info.triplets)
    return batches_per_epoch(triplets, config.batch_size, workers)


def resolved(config: TrainConfig) -> TrainConfig:
    """`config` with the model's own defaults where it says none. Raises InputError for an unknown model."""
    try:
        defaults = agman.options_of(config.model)
    except ValueError as error:
        raise InputError(str(error)) from error
    absent = [option for option in MODEL_OPTIONS if option in defaults and getattr(config, option) is None]
    return config.model_copy(update={option: defaults[option] for option in absent})


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


def _ahead(plans: Iterator[BatchPlan], images: ImageStore, values: ValuesOf | None) -> Iterator[agman.Batch]:
    """Batches with their images decoded, one batch ahead of the step that needs it."""

    def load(plan: BatchPlan) -> agman.Batch:
        known = None if values is None else values(plan.image_ids[plan.index], plan.attributes)
        return agman.Batch(
            images=images.read(plan.image_ids),
            index=torch.from_numpy(plan.index),
            flip=torch.from_numpy(plan.flip),
            attributes=torch.from_numpy(plan.attributes),
            global_size=plan.global_size,
            values=None if known is None else torch.from_numpy(known),
        )

    with ThreadPoolExecutor(1) as pool:
        first = next(plans, None)
        waiting = pool.submit(load, first) if first else None
        while waiting:
            batch = waiting.result()
            plan = next(plans, None)
            waiting = pool.submit(load, plan) if plan else None
            yield batch


def _add(totals: dict[str, float], result: agman.StepResult) -> None:
    parts = {name: float(getattr(result, name)) for name in LOSSES}
    for name, mean in parts.items():
        totals[name] = totals.get(name, 0.0) + mean * result.triplets
    totals["correct"] = totals.get("correct", 0.0) + float(result.correct)
    totals["triplets"] = totals.get("triplets", 0.0) + result.triplets


def _means(totals: dict[str, float], share: Share) -> dict[str, float]:
    """Means over all workers' triplets of the epoch."""
    names = [*LOSSES, "correct", "triplets"]
    sums = torch.tensor([totals[name] for name in names], dtype=torch.float64, device=share.device)
    if share.workers > 1:
        dist.all_reduce(sums)
    *parts, correct, triplets = sums.tolist()
    means = {f"train/{name}": part / triplets for name, part in zip(names, parts, strict=False)}
    return means | {"train/triplet_accuracy": correct / triplets}


class Validation:
    """The queries and candidates of one split, embedded by all workers and ranked on each."""

    def __init__(self, dataset: Dataset, split: str, image_size: int, share: Share):
        self.share, self.split = share, split
        self.names = dataset.info.attribute_names
        self.pairs = dataset.retrieval(split)
        mine = np.array_split(np.unique(self.pairs["image_id"]), share.workers)[share.rank]
        self.mine = self.pairs[self.pairs["image_id"].isin(mine)]
        self.images = ImageStore(dataset, split, image_size, wanted=mine, threads=share.threads)

    def maps(self, model: agman.RetrievalModel, precision: str) -> dict[str, float]:
        """`valid/map` (query-weighted), `valid/map_macro`, `valid/map/<attribute>` and so on, on every worker."""
        embeddings = embed(model, self.mine, self.images, self.share.device, precision)
        if self.share.workers > 1:
            gathered: list[Any] = [None] * self.share.workers
            dist.all_gather_object(gathered, (self.mine.index.to_numpy(), embeddings))
            embeddings = torch.empty(len(self.pairs), embeddings.shape[1])
            for rows, part in gathered:
                embeddings[torch.from_numpy(rows)] = part
        summary = agman.summarise(rank_candidates(self.pairs, embeddings, self.names))
        return {f"{self.split}/{name}": value for name, value in summary.items() if name.startswith("map")}


def embed(
    model: agman.RetrievalModel,
    pairs: pd.DataFrame,
    images: ImageStore,
    device: str,
    precision: str,
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda images_done: None,
) -> torch.Tensor:
    """Embeddings K×D of (image_id, attribute) pairs, in their order; every image passes the backbone once."""
    ids, image_of_pair = np.unique(pairs["image_id"].to_numpy(), return_inverse=True)
    attributes = pairs["attribute"].to_numpy(np.int64)
    order = np.argsort(image_of_pair, kind="stable")  # pairs of one image lie side by side
    bounds = np.searchsorted(image_of_pair[order], range(0, len(ids) + batch_size, batch_size))

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for number, start in enumerate(range(0, len(ids), batch_size)):
            of_batch = order[bounds[number] : bounds[number + 1]]
            yield (
                images.read(ids[start : start + batch_size]),
                torch.from_numpy(image_of_pair[of_batch] - start),
                torch.from_numpy(attributes[of_batch]),
            )
            advance(len(ids[start : start + batch_size]))

    embedded = agman.embed_pairs(model, batches(), device=device, precision=precision, channels_last=True)
    in_order = torch.empty_like(embedded)
    in_order[torch.from_numpy(order)] = embedded
    return in_order


def rank_candidates(pairs: pd.DataFrame, embeddings: torch.Tensor, names: list[str]) -> dict[str, agman.Retrieval]:
    """Rank every attribute's candidates for each of its queries; `embeddings` are the pairs', in their order."""
    results = {}
    for attribute, name in enumerate(names):
        of_attribute = (pairs["attribute"] == attribute).to_numpy()
        query = of_attribute & (pairs["role"] == "query").to_numpy()
        candidate = of_attribute & (pairs["role"] == "candidate").to_numpy()
        if not query.any():
            continue
        values = torch.from_numpy(pairs["value"].to_numpy(np.int64))
        results[name] = agman.retrieval(embeddings[query], embeddings[candidate], values[query], values[candidate])
    return results
