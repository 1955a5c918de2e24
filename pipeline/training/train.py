"""`agman train`: one training from its settings to a registered model, continued by the same command."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from data_prep.cluster import ray_session
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline.cluster.orphans import orphans_removed
from pipeline.cluster.resources import cpus_for_elastic, gpus_for
from pipeline.common.console import say
from pipeline.common.errors import JobFailed
from pipeline.common.files import read_json, write_json
from pipeline.common.lock import locked
from pipeline.common.signals import saying_how_to_go_on
from pipeline.config.schema import TrainConfig
from pipeline.config.settings import typed
from pipeline.evaluation.validation import score_name
from pipeline.registry import models as registry
from pipeline.tracking import runs as tracking
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.ray_driver import (
    CHECKPOINTS,
    DESCRIPTION,
    FINISHED,
    OUTCOME,
    STOPPED,
    UNLOGGED,
    Task,
    Workers,
    run_workers,
)
from pipeline.training.trainer import build_model, resolved, steps_per_epoch

NOT_DECISIVE = ("threads", "prefetch", "checkpoint_every", "keep_best", "log_every")
"""Settings that a training may be continued with others of."""


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    run: tracking.Run
    checkpoint: Storage
    """Folder of the best checkpoint (by the validation score; the latest where there is no validation split)."""
    metrics: dict[str, float]
    """Of the epoch that the checkpoint is from."""
    steps: int
    seconds: float
    registered: registry.Registered | None
    """None if that was not asked for."""


def check(config: TrainConfig, dataset: Dataset, workers: int) -> None:
    """Find what a user can mend before anything starts. Raises InputError."""
    info = dataset.info
    if config.parts and config.parts < workers:
        raise InputError(
            f"parts={config.parts} with --workers {workers}: each worker computes one part or more; raise parts or "
            "lower --workers"
        )
    if not info.images["train"]:
        raise InputError(f"{dataset.path}: the dataset has no training images")
    if config.needing_values and not all(attribute.values for attribute in info.attributes):
        raise InputError(f"{' '.join(config.needing_values)}: {dataset.path} has triplets but no values to learn")
    if config.image_size and config.image_size > info.image_size:
        raise InputError(
            f"image_size={config.image_size}, but {dataset.path} holds images of {info.image_size} px; "
            f"use image_size={info.image_size} or prepare it again with --image-size {config.image_size}"
        )
    resolved(config)  # refuses settings that exclude each other
    try:
        build_model(config, dataset)
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
    steps_per_epoch(dataset, config, config.parts or workers)


def train(
    dataset: Dataset,
    config: TrainConfig,
    *,
    workers: int | Workers = 1,
    storage: str | Path = "runs",
    name: str | None = None,
    fresh: bool = False,
    parent: tracking.Run | None = None,
) -> Trained:
    """Train on `workers` DDP workers, and register the best checkpoint.

    With a `parent`, the search that the training belongs to, it is not registered, for that is the parent's to decide;
    asked for again when it has finished, it is given as it is.

    A training is known by the settings and the dataset that decide its outcome, and lives in `storage / name` (by
    default a name made of them): if it was begun before, and did not finish, it is continued; `fresh` begins it anew
    in any case. Global batch and learning rate are the same on any number of workers. Raises InputError for what a
    user can mend, JobFailed, and KeyboardInterrupt after Ctrl-C or SIGTERM (the state is saved then).
    """
    least, most = (workers, workers) if isinstance(workers, int) else workers
    check(config, dataset, most)
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(ray_session())
        stack.enter_context(orphans_removed())
        use_gpu, cpus = gpus_for(least), cpus_for_elastic(least, most)
        asked = config
        config = resolved(config, "cuda" if use_gpu else "cpu", most, cpus)
        digest = _digest(dataset, config)
        place = _claimed(stack, Storage(storage), name or f"{dataset.info.name}-{config.model}-{digest[:8]}", fresh)
        begun = read_json(place / DESCRIPTION)
        if begun.get("digest", digest) != digest:
            raise InputError(f"{place}: holds a training of other settings or another dataset; give another name")
        # Another number of threads rounds differently, so a training keeps the one that it began with.
        threads = asked.threads or begun.get("threads", config.threads)
        config = config.model_copy(update={"threads": threads})
        say(f"settings: {typed(config)}")
        if config.weights is None and not config.proxy_weight:
            say("note: the backbone starts from random weights; the paper's recipe has weights=IMAGENET1K_V1")
        label = str(place).rpartition("/")[2]
        params = config.model_dump() | {"workers": str(most) if least == most else f"{least}-{most}"}
        stack.enter_context(tracking.answering())
        run = stack.enter_context(tracking.run(dataset.info, label, params, begun.get("run_id"), parent, job="train"))
        write_json(
            place / DESCRIPTION, {"digest": digest, "run_id": run.run_id, "threads": threads, "settings": params}
        )
        stack.enter_context(saying_how_to_go_on("the same command continues"))
        kept = Checkpoints(place / CHECKPOINTS, config.keep_best)
        latest, outcome = kept.latest(), read_json(place / OUTCOME)
        if latest and outcome.get("state") == FINISHED:
            say(f"{place} is trained already")
        else:
            if latest:
                say(f"continuing {place} from step {latest.step:,}")
            steps = config.epochs * steps_per_epoch(dataset, config, config.parts or least)
            task = Task(dataset.storage, config, place, tracking.Run(run.uri, run.run_id), steps)
            resources = {"CPU": float(cpus), "GPU": float(use_gpu)}
            outcome = run_workers(task, f"training {label}", (least, most), resources)
        if outcome["state"] == STOPPED:
            where = f"saved at step {outcome['step']:,}" if outcome["step"] else "before the first step was saved"
            raise KeyboardInterrupt(f"{where}; the same command continues")
        if outcome["state"] != FINISHED:
            raise JobFailed(f"training failed: {outcome['message']}; what is saved is in {place}")
        if outcome["epoch"] < config.epochs:
            say(f"stopped early: no better {score_name(dataset)} in {config.patience} epochs up to {outcome['epoch']}")
        best = kept.best() or kept.latest()
        assert best is not None, "a finished training has saved its last epoch"
        registered = None
        with tracking.answering(f"{place} is trained, and the same command goes on from there"):
            tracking.wait_for_store(run)
            run.log_points(outcome.pop(UNLOGGED, []))
            if not parent:
                with kept.opened(best) as folder:
                    registered = registry.register(folder, dataset.info.name, run, once=True)
                outcome["registered"] = registered.uri
        write_json(place / OUTCOME, outcome)
        return Trained(run, best.place, best.metrics, outcome["step"], time.perf_counter() - started, registered)


def preview(config: TrainConfig, dataset: Dataset | None, workers: int) -> TrainConfig:
    """`config` as a training on this machine would resolve it, checked against the dataset if there is one.

    Raises InputError.
    """
    if dataset:
        check(config, dataset, workers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return resolved(config, device, workers, max(1, (os.cpu_count() or 1) // workers))


def _digest(dataset: Dataset, config: TrainConfig) -> str:
    """Of all that decides a training's outcome."""
    decisive = config.model_dump(exclude=set(NOT_DECISIVE)) | {"dataset": dataset.info.digest}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _claimed(stack: ExitStack, storage: Storage, name: str, fresh: bool) -> Storage:
    """The folder of the training to continue or to begin, this process's alone for as long as the stack lives.

    Finished ones are passed over: the same settings again are NAME-2, NAME-3 ...
    """
    for number in itertools.count(1):
        place = storage / (name if number == 1 else f"{name}-{number}")
        if "registered" in read_json(place / OUTCOME) or (fresh and (place / DESCRIPTION).exists()):
            continue
        if place.local:
            stack.enter_context(locked(place.local, "--fresh"))
        return place
    raise AssertionError("counting does not end")
