"""A training on Ray: what each worker runs, and how the driver starts, follows and stops the workers.

Ray Train restarts the group of workers when it loses some. Whatever dies, the next group continues from the newest
complete checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist
from mlflow.exceptions import MlflowException
from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.util.placement_group import get_current_placement_group, remove_placement_group

from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline.cluster.resources import ONE_HEAP
from pipeline.common.console import say_above
from pipeline.common.files import read_json, write_json
from pipeline.config.schema import TrainConfig
from pipeline.tracking import runs as tracking
from pipeline.training.checkpoints import Checkpoint, Checkpoints, Saver
from pipeline.training.jobs import CHECKPOINTS, DESCRIPTION, FAILED, FINISHED, OUTCOME, STOPPED
from pipeline.training.progress import FRUITLESS_STARTS, Reporter, hears, shown
from pipeline.training.trainer import Ending, EpochEnd, NonFiniteBatch, StepEnd, Training, WorkerContext

UNLOGGED = "unlogged"
"""Key in an outcome: metrics that could not be logged, for the driver to log."""
WARNING = "warning"
"""Key in an outcome, and tag of the run: signs of a collapse after the last epoch."""
REMEDY = "longer training, a smaller lr or pretrained weights may help"
LOSS_TERMS = ("loss_triplet", "loss_pairs", "loss_class", "loss_proxy")
Workers = tuple[int, int]
"""Smallest and largest number of workers; equal unless the group may shrink and grow."""


@dataclass(frozen=True)
class TrainJob:
    """Description of a training, sent to its workers."""

    data: Storage
    config: TrainConfig
    path: Storage
    """Folder of the training."""
    run: tracking.Run
    steps: int
    """Number of steps of the complete training."""
    at_epoch_end: Callable[[Training, dict[str, float]], dict[str, Any]] | None = None
    """Function that makes an epoch's result from its metrics, only for a trial of a study. Rank 0 reports the result
    and waits until the driver has dealt with it; the driver logs the trial's metrics."""


class StoppedWithoutWorkers(Exception):
    """Stop that the user asked for while there were no workers."""


# The driver


def run_workers(
    job: TrainJob,
    title: str,
    workers: Workers,
    resources: dict[str, float],
    report: Callable[[dict[str, Any]], None] | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> dict[str, Any]:
    """Run the workers to their end and return the outcome: its `state`, and `step` and `epoch`, or a `message`.

    At the first Ctrl-C or SIGTERM they save and stop; the second raises KeyboardInterrupt. `report` is called with
    the result that `job.at_epoch_end` makes of every epoch; an error that it raises ends the workers. The `callbacks`
    run in Ray Train's controller and hear of every epoch's metrics, and of workers that are lost.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # an epoch's report waits until Ray has looked
    (job.path / OUTCOME).delete()
    with (
        _signals() as stop,
        shown(title, job.steps, stop) as board,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
    ):
        trainer = ray.train.torch.TorchTrainer(
            partial(_worker, job, board),  # the controller would unpickle a train_loop_config, and import MLflow for it
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers[0] if workers[0] == workers[1] else workers,
                use_gpu=resources["GPU"] > 0,
                resources_per_worker=resources,
            ),
            run_config=ray.train.RunConfig(
                name=PurePosixPath(str(job.path)).name,
                storage_path=scratch,  # for Ray's own state; checkpoints are in the training's folder
                failure_config=ray.train.FailureConfig(max_failures=-1),  # the board counts restarts without progress
                worker_runtime_env=ONE_HEAP,
                callbacks=list(callbacks),
            ),
        )

        def look_after() -> None:
            if report and (result := ray.get(board.result.remote())):
                report(result)
                ray.get(board.taken.remote())
            if stop.is_set() and not hears(board) and not read_json(job.path / OUTCOME):
                raise StoppedWithoutWorkers

        try:
            error = _fit_with_new_controllers(trainer, board, look_after)
        except StoppedWithoutWorkers:
            latest = Checkpoints(job.path / CHECKPOINTS).latest()
            return {"state": STOPPED, "step": latest.step if latest else 0}
        finally:
            _release(board)
        why_not = ""
        with suppress(RayError):
            why_not = ray.get(board.why_not.remote())
    message = why_not or (_last_line(error) if error else "the workers ended without an outcome")
    return read_json(job.path / OUTCOME) or {"state": FAILED, "message": message}


def _fit_with_new_controllers(trainer: Any, board: ActorHandle, look_after: Callable[[], None]) -> BaseException | None:
    """Fit, and fit again while the controller dies and progress is made; return the error that fitting failed with."""
    reached, fruitless = -1, 0
    while True:
        error = _fit(trainer, look_after)
        if not isinstance(error, RayActorError | OutOfMemoryError):
            return error
        step = ray.get(board.step.remote())
        fruitless = 0 if step > reached else fruitless + 1
        reached = max(reached, step)
        if fruitless >= FRUITLESS_STARTS:
            return error
        say_above("the controller of the workers died; starting anew from the last checkpoint")
        _release(board)


def _fit(trainer: Any, look_after: Callable[[], None]) -> BaseException | None:
    """Fit in a thread, since Ray would handle the main thread's signals itself; return the error it failed with.

    `look_after` is called all the time. If it raises, so does this function, and the trainer's thread is left alone
    until the process ends.
    """
    ended: Future[BaseException | None] = Future()

    def fit() -> None:
        try:
            trainer.fit()
            ended.set_result(None)
        except BaseException as error:
            ended.set_result(error)

    threading.Thread(target=fit, daemon=True).start()
    while True:  # in slices: a signal's handler runs between them
        with suppress(TimeoutError):
            return ended.result(timeout=0.2)
        look_after()


def _release(board: ActorHandle) -> None:
    """Remove the workers' placement group: Ray's own cleaner fails if two clusters share a host."""
    with suppress(RayError):
        _, group = ray.get(board.held.remote())
        if group:
            remove_placement_group(group)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; the second raises KeyboardInterrupt."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals are the main thread's
        return

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say_above("stopping: the state is saved first; once more stops at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(error: BaseException) -> str:
    """Return the last line of a Ray error's text, which says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# The workers


def _worker(job: TrainJob, board: ActorHandle) -> None:
    """Run one worker. Rank 0 writes the outcome; after an error Ray restarts the group."""
    context = ray.train.get_context()
    worker = WorkerContext(context.get_world_rank(), context.get_world_size(), str(ray.train.torch.get_device()))
    if _agreed(worker, lambda: _register(job, board, worker.workers)):
        return
    try:
        outcome = _train(job, board, worker)
    except NonFiniteBatch as error:
        outcome = {"state": FAILED, "message": f"{error}; its triplets are in {_record(job, error, worker)}"}
    except Exception as error:
        with suppress(RayError):
            ray.get(board.failed.remote(f"worker {worker.rank}: {type(error).__name__}: {_last_line(error)}"))
        raise
    if worker.rank == 0:
        write_json(job.path / OUTCOME, outcome)


def _register(job: TrainJob, board: ActorHandle, workers: int) -> str:
    """Tell the board that a group starts; return why it must not, or an empty string."""
    leader = ray.cloudpickle.dumps(ray.get_runtime_context().current_actor)
    return str(ray.get(board.begin.remote(workers, leader, get_current_placement_group())))


def _train(job: TrainJob, board: ActorHandle, worker: WorkerContext) -> dict[str, Any]:
    config, run = job.config, job.run
    _check_shared(job, worker)
    training = Training(config, Dataset(job.data), worker, run.run_id)
    kept = Checkpoints(job.path / CHECKPOINTS, config.keep_best)
    if latest := _agreed(worker, kept.latest):
        with kept.opened(latest) as folder:
            training.load(folder)
    if worker.rank == 0:
        ending, unlogged = _lead(training, kept, job, board)
    else:
        ending, unlogged = training.run(epoch_end=_report), []
    state = FINISHED if ending == "finished" else STOPPED
    return {
        "state": state,
        "step": training.step,
        "epoch": training.epoch,
        WARNING: training.signs,
        UNLOGGED: unlogged,
    }


def _report(end: EpochEnd) -> None:
    """Tell Ray Train an epoch's metrics, on every worker; they are sent in the background."""
    ray.train.report(
        end.metrics | {"epoch": end.epoch, "step": end.step},
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
    )


def _check_shared(job: TrainJob, worker: WorkerContext) -> None:
    """Raise InputError if this machine does not see the driver's folder: nobody would find the checkpoints."""
    if worker.rank == 0 and read_json(job.path / DESCRIPTION).get("run_id") != job.run.run_id:
        raise InputError(
            f"{job.path}: the workers' machine does not see this folder; --storage must be shared by all, "
            "a network folder or a URI"
        )


def _lead(training: Training, kept: Checkpoints, job: TrainJob, board: ActorHandle) -> tuple[Ending, tracking.Points]:
    """Train as rank 0: with checkpoints, MLflow and the progress bar. Also return the points that are not logged."""
    reporter = Reporter(board, last=job.steps)

    def step_end(end: StepEnd) -> None:
        reporter.tell(end.step, lambda: _note(end, job.config.epochs))

    told: list[str] = []

    def epoch_end(end: EpochEnd) -> None:
        _report(end)
        if end.warning and not told:
            told.append(f"warning: epoch {end.epoch}: {end.warning}; {REMEDY}")
            board.tell.remote(told[0])

    if job.at_epoch_end:
        return _lead_trial(training, kept, job, board, stop=reporter.stop, step_end=step_end), []
    return _lead_logged(training, kept, job, stop=reporter.stop, step_end=step_end, epoch_end=epoch_end)


def _lead_trial(training: Training, kept: Checkpoints, job: TrainJob, board: ActorHandle, **run: Any) -> Ending:
    at_epoch_end = job.at_epoch_end
    assert at_epoch_end

    def tell(metrics: dict[str, float]) -> None:
        ray.get(board.epoch_ended.remote(at_epoch_end(training, metrics)))
        while ray.get(board.waits.remote()):
            time.sleep(0.05)

    def epoch_end(end: EpochEnd) -> None:
        _report(end)
        tell(end.metrics)

    latest = kept.latest()
    if latest and not training.step_in_epoch:  # the driver may not have got this epoch's result
        tell(latest.metrics)
    saver = Saver(kept, job.config.checkpoint_every, start=training.step)
    try:
        return training.run(saver=saver, epoch_end=epoch_end, **run)
    finally:
        saver.finish()


def _lead_logged(training: Training, kept: Checkpoints, job: TrainJob, **run: Any) -> tuple[Ending, tracking.Points]:
    log = tracking.PointLog(job.run, training.points)

    def complete(checkpoint: Checkpoint) -> None:
        log.send(until=checkpoint.step)

    with tracking.system_metrics(job.run):
        log.send()  # points that the checkpoint holds; those that the run has already are skipped
        saver = Saver(kept, job.config.checkpoint_every, complete, start=training.step)
        try:
            ending = training.run(saver=saver, **run)
        except NonFiniteBatch:
            log.send()  # the points up to this step, for whoever looks for the cause
            with suppress(Exception):  # what is being written may still become a checkpoint
                saver.finish()
            raise
        saver.finish()
    log.send(patient=False)
    return ending, training.points  # a store that is silent now is no reason to train again


def _record(job: TrainJob, error: NonFiniteBatch, worker: WorkerContext) -> Storage:
    """Return the file with the batch's triplets, which rank 0 writes."""
    file = job.path / f"non-finite-step-{error.record['step']}.json"
    if worker.rank == 0:
        write_json(file, error.record)
        if not job.at_epoch_end:
            with suppress(MlflowException, OSError):  # the file remains if the store does not answer
                job.run.log_text(json.dumps(error.record, indent=2), str(file).rpartition("/")[2])
    return file


def _agreed(worker: WorkerContext, decide: Callable[[], Any]) -> Any:
    """Return rank 0's decision on every worker."""
    answer = [decide() if worker.rank == 0 else None]
    if worker.workers > 1:
        dist.broadcast_object_list(answer)
    return answer[0]


def _note(end: StepEnd, epochs: int) -> str:
    """Return the text after the progress bar."""
    parts = [f"epoch {end.epoch}/{epochs}", f"loss {end.result.loss:.4f}"]
    means = end.result.means
    parts += [f"{name.removeprefix('loss_')} {means[name]:.4f}" for name in LOSS_TERMS if means.get(name)]
    if end.score is not None:
        beside = "" if end.chance is None else f" (chance {end.chance:.4f})"
        parts.append(f"valid {end.score:.4f}{beside}")
    if "images_per_second" in end.recent:
        unit = "triplets" if "triplets_per_second" in end.recent else "images"
        parts.append(f"{end.recent[f'{unit}_per_second']:.1f} {unit}/s")
        parts.append(f"wait {end.recent['data_wait_share']:.1%}")
    return ", ".join(parts)
