"""The training of one trial of a study, in a process that Ray Tune keeps for the next trial.

The process imports this before its first epoch, so a trial of one worker imports neither MLflow nor Optuna.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune as ray_tune

from data_prep.dataset import Dataset
from data_prep.storage import Storage
from data_prep.words import counted
from pipeline.common.errors import JobFailed
from pipeline.config.schema import make_config
from pipeline.evaluation.validation import METRIC
from pipeline.inference.latency import milliseconds_an_image
from pipeline.training.build import steps_of
from pipeline.training.checkpoints import Checkpoints, Saver, Snapshot
from pipeline.training.trainer import NonFiniteBatch, Training, WorkerContext

CHECKPOINTS, WORKER = "checkpoints", "worker"
"""Names in a trial's folder: its checkpoints, and the id of the Ray worker that runs it."""


@dataclass(frozen=True)
class TrialJob:
    """Everything that the trials of a study have in common; it is sent to their processes."""

    data: Storage
    base: dict[str, Any]
    """Settings that do not vary."""
    folder: Path
    """Folder of the study, which all machines see."""
    cpus: int
    """CPUs of each worker."""
    gpus: float
    """GPUs of each worker."""
    workers: int = 1
    """Workers of each trial."""
    against: tuple[str, ...] = ()
    """Objectives beside MAP."""

    def trial_folder(self, number: int) -> Storage:
        """Return a trial's folder. It is removed when the trial has ended; a failed one loses only its checkpoints."""
        return Storage(self.folder / f"trial-{number:04d}")


def worker_of(job: TrialJob, number: int) -> str:
    """Return the id of the Ray worker that runs the trial or ran it last; empty before that."""
    try:
        return (job.trial_folder(number) / WORKER).read_bytes().decode()
    except FileNotFoundError:
        return ""


def run_trial(config: dict[str, Any], job: TrialJob) -> None:
    """Run one training, in this process or on workers of its own, and report after every epoch.

    An error is reported, not raised: Ray restarts trials that raise, and only killed processes are to be restarted.
    """
    # The process takes the next trial when this one has ended. Ray loses a trial if it does not wait long enough.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "86400"
    number, started = config["trial"], time.monotonic()

    def report(result: dict[str, Any]) -> None:
        ray_tune.report(result | {"seconds": time.monotonic() - started})

    try:
        if not job.folder.is_dir():
            raise JobFailed(f"{job.folder}: this trial's machine does not see it; --storage must be shared by all")
        (job.trial_folder(number) / WORKER).write_bytes(ray.get_runtime_context().get_worker_id().encode())
        run = _on_workers if job.workers > 1 else _here
        run(number, job.base | config["setting"], job, report)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        reason = first if isinstance(error, JobFailed) else f"{type(error).__name__}: {first}"
        report({"epoch": 0, METRIC: math.nan, "failed": reason})


Report = Callable[[dict[str, Any]], None]
"""Report of an epoch's metrics to Ray Tune."""


class _TrialSaver(Saver):
    """A saver that leaves out the end of the last epoch, from which nothing continues.

    A process that is killed after that and before its report is heard trains the epoch once more.
    """

    def __init__(self, training: Training, kept: Checkpoints):
        super().__init__(kept, training.config.checkpoint_every, start=training.step)
        self._training = training

    def save(self, take: Callable[[], Snapshot]) -> None:
        if not self._training.ended:
            super().save(take)


def _here(number: int, settings: dict[str, Any], job: TrialJob, report: Report) -> None:
    config = make_config(settings)
    worker = WorkerContext(device="cuda" if job.gpus and torch.cuda.is_available() else "cpu", threads=job.cpus)
    training = Training(config, Dataset(job.data), worker)
    kept = Checkpoints(job.trial_folder(number) / CHECKPOINTS, keep_best=0)
    if latest := kept.latest():
        with kept.opened(latest) as folder:
            training.load(folder)
        if not training.step_in_epoch:  # the driver may not have heard of this epoch's end
            report(result_of(training, latest.metrics, job.against))
    saver = _TrialSaver(training, kept)
    try:
        training.run(saver=saver, epoch_end=lambda end: report(result_of(training, end.metrics, job.against)))
    except NonFiniteBatch as error:
        file = job.trial_folder(number) / f"non-finite-step-{error.record['step']}.json"
        file.write_bytes((json.dumps(error.record, indent=2) + "\n").encode())
        raise JobFailed(f"{error}; its pictures are in {file}") from error
    except SystemExit:  # stopped: the folder may be gone, and nobody waits for a report
        with suppress(Exception):
            saver.finish()
        raise
    finally:
        saver.finish()  # does nothing the second time


def _on_workers(number: int, settings: dict[str, Any], job: TrialJob, report: Report) -> None:
    from pipeline.tracking import runs as tracking
    from pipeline.training import ray_driver as workers

    config, folder, dataset = make_config(settings), job.trial_folder(number), Dataset(job.data)
    no_run = tracking.Run("", f"trial {number}")
    workers.write_json(folder / workers.DESCRIPTION, {"run_id": no_run.run_id})
    steps = steps_of(config, dataset, config.micro_batches or job.workers)
    result = partial(result_of, against=job.against)
    task = workers.TrainJob(job.data, config, folder, no_run, steps, at_epoch_end=result)
    resources = {"CPU": float(job.cpus), "GPU": job.gpus}
    outcome = workers.run_workers(task, f"trial {number}", (job.workers, job.workers), resources, report=report)
    if outcome["state"] == workers.FAILED:
        raise JobFailed(outcome["message"])


def result_of(training: Training, metrics: dict[str, float], against: tuple[str, ...]) -> dict[str, Any]:
    """Return what a trial reports after an epoch. `ended` is the reason why this epoch was the last, or empty."""
    result: dict[str, Any] = metrics | {"epoch": training.epoch, "ended": ""}
    if not training.ended:
        return result
    config = training.config
    full = training.epoch >= config.epochs
    patience = counted(config.patience or 0, "epoch")
    result["ended"] = f"all of {counted(config.epochs, 'epoch')}" if full else f"no better MAP in {patience}"
    if "embedding_dim" in against:
        result["embedding_dim"] = training.model.embedding_dim
    if "latency_ms" in against:
        result["latency_ms"] = milliseconds_an_image(training.model, training.image_size, training.precision)
    return result
