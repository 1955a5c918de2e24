"""`agman train`: one training from its settings to a registered model, continued by the same command."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from ray.train import UserCallback

from data_prep.cluster import ray_session
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from data_prep.words import counted
from pipeline.cluster.orphans import orphans_removed
from pipeline.cluster.resources import cpus_for_elastic, gpus_for
from pipeline.common.console import say
from pipeline.common.errors import JobFailed
from pipeline.common.files import read_json, write_json
from pipeline.common.lock import locked
from pipeline.common.markdown import code
from pipeline.common.signals import saying_how_to_go_on
from pipeline.config.schema import TrainConfig
from pipeline.config.settings import typed
from pipeline.evaluation.chance import evidence_in
from pipeline.evaluation.few import validation_queries
from pipeline.evaluation.validation import SPLIT, score_name, score_words
from pipeline.registry import models as registry
from pipeline.registry.prototypes import add_prototypes
from pipeline.tracking import runs as tracking
from pipeline.training.build import NOT_DECISIVE, check, fitted, resolved, steps_of
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.ray_driver import (
    CHECKPOINTS,
    DESCRIPTION,
    FINISHED,
    OUTCOME,
    STOPPED,
    UNLOGGED,
    WARNING,
    TrainJob,
    Workers,
    run_workers,
)


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    run: tracking.Run
    checkpoint: Storage
    """Folder of the best checkpoint by the validation score; of the latest one if there is no validation split."""
    metrics: dict[str, float]
    """Metrics of the checkpoint's epoch."""
    queries: dict[str, int]
    """Number of validation queries of every attribute."""
    steps: int
    seconds: float
    registered: registry.Registered | None
    """Registered version; None for a training of a study, which registers its own choice."""


def train(
    dataset: Dataset,
    config: TrainConfig,
    *,
    workers: int | Workers = 1,
    storage: str | Path = "runs",
    name: str | None = None,
    fresh: bool = False,
    parent: tracking.Run | None = None,
    callbacks: Sequence[UserCallback] = (),
) -> Trained:
    """Train on `workers` DDP workers, and register the best checkpoint.

    A training is identified by the settings and the dataset that decide its outcome, and its folder is
    `storage / name`, by default a name made of them. One that was begun and did not finish is continued; `fresh`
    always begins a new one. Global batch and learning rate are the same on any number of workers.

    With a `parent`, the run of the study or comparison that the training belongs to, the model is not registered,
    since the parent decides that; a finished training is then returned as it is.

    `callbacks` are Ray Train's: their `after_report` is called with every epoch's metrics on every worker, their
    `after_exception` when workers are lost. They run in Ray Train's controller, another process than this one.

    Raises InputError for what a user can correct, JobFailed, and KeyboardInterrupt after Ctrl-C or SIGTERM, when the
    state is saved.
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
        config = fitted(config, dataset, config.micro_batches or least)
        digest = _identity(dataset, config)
        path = _claim(stack, Storage(storage), name or f"{dataset.info.name}-{config.model}-{digest[:8]}", fresh)
        begun = read_json(path / DESCRIPTION)
        if begun.get("digest", digest) != digest:
            raise InputError(f"{path}: holds a training of other settings or another dataset; give another name")
        # Another number of threads rounds differently, so a training keeps the one that it began with.
        threads = asked.threads or begun.get("threads", config.threads)
        config = config.model_copy(update={"threads": threads})
        say(f"settings: {typed(config)}")
        if config.weights is None and not config.proxy_weight and config.batches == "triplets":
            say("note: the backbone starts from random weights; weights=auto takes pretrained ones")
        label = str(path).rpartition("/")[2]
        params = config.model_dump() | {"workers": str(most) if least == most else f"{least}-{most}"}
        stack.enter_context(tracking.answering())
        run = stack.enter_context(
            tracking.open_run(dataset.info, label, params, begun.get("run_id"), parent, job="train")
        )
        run.log_dataset(dataset)
        if not parent:  # whose run has the page, and many trainings
            run.log_dataset_page(dataset)
        write_json(path / DESCRIPTION, {"digest": digest, "run_id": run.run_id, "threads": threads, "settings": params})
        stack.enter_context(saying_how_to_go_on("the same command continues"))
        kept = Checkpoints(path / CHECKPOINTS, config.keep_best)
        latest, outcome = kept.latest(), read_json(path / OUTCOME)
        if latest and outcome.get("state") == FINISHED:
            say(f"{path} is trained already")
        else:
            if latest:
                say(f"continuing {path} from step {latest.step:,}")
            steps = steps_of(config, dataset, config.micro_batches or least)
            job = TrainJob(dataset.storage, config, path, tracking.Run(run.uri, run.run_id), steps)
            resources = {"CPU": float(cpus), "GPU": float(use_gpu)}
            outcome = run_workers(job, f"training {label}", (least, most), resources, callbacks=callbacks)
        if outcome["state"] == STOPPED:
            where = f"saved at step {outcome['step']:,}" if outcome["step"] else "before the first step was saved"
            raise KeyboardInterrupt(f"{where}; the same command continues")
        if outcome["state"] != FINISHED:
            raise JobFailed(f"training failed: {outcome['message']}; what is saved is in {path}")
        if outcome["epoch"] < config.epochs:
            patience = counted(config.patience or 0, "epoch")
            say(f"stopped early: no better {score_name(dataset)} in {patience} up to epoch {outcome['epoch']}")
        best = kept.best() or kept.latest()
        assert best is not None, "a finished training has saved its last epoch"
        registered = None
        with tracking.answering(f"{path} is trained, and the same command goes on from there"):
            tracking.wait_for_store(run)
            run.log_points(outcome.pop(UNLOGGED, []))
            if outcome.get(WARNING):
                run.tag({WARNING: outcome[WARNING]})
            if not parent:
                with kept.opened(best) as folder:
                    add_prototypes(folder, dataset, run, best.path)
                    doubt = _doubt(dataset, best.metrics)
                    registered = registry.register(folder, dataset.info.name, run, doubt=doubt)
                outcome["registered"] = registered.uri
            run.describe(_result(best.metrics, registered))
        write_json(path / OUTCOME, outcome)
        queries = validation_queries(dataset.info.attribute_names, dataset.info.queries_of)
        seconds = time.perf_counter() - started
        return Trained(run, best.path, best.metrics, queries, outcome["step"], seconds, registered)


def _doubt(dataset: Dataset, metrics: dict[str, float]) -> str:
    """Return why validation does not show that a model beats chance; empty if it does."""
    if not score_name(dataset):
        return "the dataset has no validation split"
    count = dataset.info.queries[SPLIT] or len(dataset.triplets(SPLIT))
    found = evidence_in(metrics, SPLIT, count)
    if not found:  # its metrics are an earlier version's
        return "validation was not compared with chance"
    return f"on validation {found.doubt}" if found.doubt else ""


def _result(metrics: dict[str, float], registered: registry.Registered | None) -> dict[str, str]:
    """Return what a run's description says of the best checkpoint."""
    rows = {"result": score_words(metrics)}
    if registered:
        rows["registered"] = f"{code(registered.uri)} ({registered.alias})"
    return {name: text for name, text in rows.items() if text}


def preview(config: TrainConfig, dataset: Dataset | None, workers: int) -> TrainConfig:
    """Return `config` as a training on this machine resolves it; check it against the dataset if there is one.

    Raises InputError.
    """
    if dataset:
        check(config, dataset, workers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return resolved(config, device, workers, max(1, (os.cpu_count() or 1) // workers))


def _identity(dataset: Dataset, config: TrainConfig) -> str:
    """Return a digest of all that decides a training's outcome."""
    decisive = config.model_dump(exclude=set(NOT_DECISIVE)) | {"dataset": dataset.info.digest}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _claim(stack: ExitStack, storage: Storage, name: str, fresh: bool) -> Storage:
    """Return the folder of the training to continue or to begin, locked for this process until the stack is closed.

    Finished trainings are skipped: the same settings again are NAME-2, NAME-3 ...
    """
    for number in itertools.count(1):
        path = storage / (name if number == 1 else f"{name}-{number}")
        if "registered" in read_json(path / OUTCOME) or (fresh and (path / DESCRIPTION).exists()):
            continue
        if path.local:
            stack.enter_context(locked(path.local, "--fresh"))
        return path
    raise AssertionError("counting does not end")
