"""A training's workers on Ray: what each of them runs, and how the driver starts them, follows them and stops them.

Ray Train starts the group anew when some are lost. Whatever dies, the next group goes on from the newest whole
checkpoint.
"""

from __future__ import annotations

import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
from pipeline.training.progress import FRUITLESS_STARTS, Reporter, hears, shown
from pipeline.training.trainer import Ending, NonFiniteBatch, StepEnd, Training, WorkerContext

CHECKPOINTS, OUTCOME, DESCRIPTION = "checkpoints", "outcome.json", "training.json"
"""In a training's folder."""
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
UNLOGGED = "unlogged"
"""In an outcome: the metrics that the tracking store has not taken, for the driver to log."""
PARTS_OF_LOSS = ("triplet", "class", "proxy", "info_nce")
Workers = tuple[int, int]
"""At least and at most so many; the same twice, unless the group may shrink and grow."""


@dataclass(frozen=True)
class TrainJob:
    """What the workers are to do; it travels to them."""

    data: Storage
    config: TrainConfig
    path: Storage
    """The training's folder."""
    run: tracking.Run
    steps: int
    """Of the whole training."""
    at_epoch_end: Callable[[Training, dict[str, float]], dict[str, Any]] | None = None
    """A search's trial: what rank 0 tells of an epoch, from its metrics; it waits until the driver has dealt with it.
    Such a training is its driver's to log."""


class GivenUp(Exception):
    """The user has asked to stop while there were no workers to do so."""


# The driver


def run_workers(
    job: TrainJob,
    title: str,
    workers: Workers,
    resources: dict[str, float],
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run the workers to their end, and tell what that was: its `state`, and `step` and `epoch`, or a `message`.

    The first Ctrl-C or SIGTERM lets them save and stop; raises KeyboardInterrupt at the second. `report` gets what
    `job.at_epoch_end` makes of every epoch; what it raises ends the workers.
    """
    (job.path / OUTCOME).delete()
    with (
        _signals() as stop,
        shown(title, job.steps, stop) as board,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
    ):
        trainer = ray.train.torch.TorchTrainer(
            _worker,
            train_loop_config={"job": job, "board": board},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers[0] if workers[0] == workers[1] else workers,
                use_gpu=resources["GPU"] > 0,
                resources_per_worker=resources,
            ),
            run_config=ray.train.RunConfig(
                name="ray",
                storage_path=scratch,  # Ray's own notes; checkpoints are ours
                failure_config=ray.train.FailureConfig(max_failures=-1),  # the board counts fruitless starts
                worker_runtime_env=ONE_HEAP,
            ),
        )

        def look_after() -> None:
            if report and (result := ray.get(board.result.remote())):
                report(result)
                ray.get(board.taken.remote())
            if stop.is_set() and not hears(board) and not read_json(job.path / OUTCOME):
                raise GivenUp

        try:
            error = _fit_while_controllers_die(trainer, board, look_after)
        except GivenUp:
            latest = Checkpoints(job.path / CHECKPOINTS).latest()
            return {"state": STOPPED, "step": latest.step if latest else 0}
        finally:
            _release(board)
        why_not = ""
        with suppress(RayError):
            why_not = ray.get(board.why_not.remote())
    message = why_not or (_last_line(error) if error else "the workers ended without a word")
    return read_json(job.path / OUTCOME) or {"state": FAILED, "message": message}


def _fit_while_controllers_die(
    trainer: Any, board: ActorHandle, look_after: Callable[[], None]
) -> BaseException | None:
    reached, fruitless = -1, 0
    while True:
        error = _fit(trainer, look_after)
        if not isinstance(error, RayActorError | OutOfMemoryError):
            return error
        step = ray.get(board.look.remote())[0]
        fruitless = 0 if step > reached else fruitless + 1
        reached = max(reached, step)
        if fruitless >= FRUITLESS_STARTS:
            return error
        say_above("the controller of the workers died; starting anew from the last checkpoint")
        _release(board)


def _fit(trainer: Any, look_after: Callable[[], None]) -> BaseException | None:
    """What it failed with. In a thread of its own, since Ray would take the main thread's signals for itself.

    Raises what `look_after` raises, which is called all the time; the trainer is then left to the end of the process.
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
    """End what is left of the workers: Ray's own cleaner of a dead controller fails where two clusters share a host."""
    with suppress(RayError):
        _, group = ray.get(board.held.remote())
        if group:
            remove_placement_group(group)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second interrupts at once."""
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
    """A Ray error's text ends with the line that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# The workers


def _worker(settings: dict[str, Any]) -> None:
    """What every worker runs. Ends in an outcome that rank 0 writes, or in an error after which Ray starts anew."""
    context = ray.train.get_context()
    worker = WorkerContext(context.get_world_rank(), context.get_world_size(), str(ray.train.torch.get_device()))
    job, board = settings["job"], settings["board"]
    if _agreed(worker, lambda: _begin(job, board, worker.workers)):
        return
    try:
        outcome = _train_share(job, board, worker)
    except NonFiniteBatch as error:
        outcome = {"state": FAILED, "message": f"{error}; its triplets are in {_noted(job, error, worker)}"}
    except Exception as error:
        with suppress(RayError):
            ray.get(board.failed.remote(f"worker {worker.rank}: {type(error).__name__}: {_last_line(error)}"))
        raise
    if worker.rank == 0:
        write_json(job.path / OUTCOME, outcome)


def _begin(job: TrainJob, board: ActorHandle, workers: int) -> str:
    """Why not to begin, if so."""
    leader, group = ray.get_runtime_context().current_actor, get_current_placement_group()
    return str(ray.get(board.begin.remote(workers, leader, group)))


def _train_share(job: TrainJob, board: ActorHandle, worker: WorkerContext) -> dict[str, Any]:
    config, run = job.config, job.run
    _check_shared(job, worker)
    training = Training(config, Dataset(job.data), worker, run.run_id)
    kept = Checkpoints(job.path / CHECKPOINTS, config.keep_best)
    if latest := _agreed(worker, kept.latest):
        with kept.opened(latest) as folder:
            training.load(folder)
    ending, unlogged = _lead(training, kept, job, board) if worker.rank == 0 else (training.run(), [])
    state = FINISHED if ending == "finished" else STOPPED
    return {"state": state, "step": training.step, "epoch": training.epoch, UNLOGGED: unlogged}


def _check_shared(job: TrainJob, worker: WorkerContext) -> None:
    """Raises InputError where the driver's folder is not this machine's: nobody would find the checkpoints."""
    if worker.rank == 0 and read_json(job.path / DESCRIPTION).get("run_id") != job.run.run_id:
        raise InputError(
            f"{job.path}: the workers' machine does not see this folder; --storage must be shared by all, "
            "a network folder or a URI"
        )


def _lead(training: Training, kept: Checkpoints, job: TrainJob, board: ActorHandle) -> tuple[Ending, tracking.Points]:
    """Rank 0's part: checkpoints, MLflow, the live line, the wish to stop. Also gives what is left to be logged."""
    reporter = Reporter(board, last=job.steps)

    def step_end(end: StepEnd) -> None:
        reporter.tell(end.step, lambda: _note(end, job.config.epochs))

    if job.at_epoch_end:
        return _lead_trial(training, kept, job, board, stop=reporter.stop, step_end=step_end), []
    return _lead_logged(training, kept, job, stop=reporter.stop, step_end=step_end)


def _lead_trial(training: Training, kept: Checkpoints, job: TrainJob, board: ActorHandle, **run: Any) -> Ending:
    at_epoch_end = job.at_epoch_end
    assert at_epoch_end

    def tell(metrics: dict[str, float]) -> None:
        ray.get(board.epoch_ended.remote(at_epoch_end(training, metrics)))
        while ray.get(board.waits.remote()):
            time.sleep(0.05)

    latest = kept.latest()
    if latest and not training.step_in_epoch:  # the driver may not have heard of this epoch's end
        tell(latest.metrics)
    saver = Saver(kept, job.config.checkpoint_every, start=training.step)
    try:
        return training.run(saver=saver, epoch_end=lambda end: tell(end.metrics), **run)
    finally:
        saver.finish()


def _lead_logged(training: Training, kept: Checkpoints, job: TrainJob, **run: Any) -> tuple[Ending, tracking.Points]:
    log = tracking.PointLog(job.run, training.points)

    def complete(checkpoint: Checkpoint) -> None:
        log.send(until=checkpoint.step)

    with tracking.system_metrics(job.run):
        log.send()  # what the checkpoint carries; the run takes none twice
        saver = Saver(kept, job.config.checkpoint_every, complete, start=training.step)
        try:
            ending = training.run(saver=saver, **run)
        except NonFiniteBatch:
            log.send()  # how it came to that
            with suppress(Exception):  # what is being written may still become a checkpoint
                saver.finish()
            raise
        saver.finish()
    log.send(patient=False)
    return ending, training.points  # a store that is silent now is no reason to train again


def _noted(job: TrainJob, error: NonFiniteBatch, worker: WorkerContext) -> Storage:
    """Where the batch's triplets are written down; rank 0 does it."""
    file = job.path / f"non-finite-step-{error.record['step']}.json"
    if worker.rank == 0:
        write_json(file, error.record)
        if not job.at_epoch_end:
            with suppress(MlflowException, OSError):  # without the store the file must do
                job.run.log_text(json.dumps(error.record, indent=2), str(file).rpartition("/")[2])
    return file


def _agreed(worker: WorkerContext, decide: Callable[[], Any]) -> Any:
    """What rank 0 decides, on every worker."""
    answer = [decide() if worker.rank == 0 else None]
    if worker.workers > 1:
        dist.broadcast_object_list(answer)
    return answer[0]


def _note(end: StepEnd, epochs: int) -> str:
    """The live line's end."""
    parts = [f"epoch {end.epoch}/{epochs}", f"loss {end.result.loss:.4f}"]
    parts += [f"{name} {value:.4f}" for name in PARTS_OF_LOSS if (value := getattr(end.result, f"loss_{name}"))]
    if end.score is not None:
        parts.append(f"valid {end.score:.4f}")
    if "triplets_per_second" in end.recent:
        parts.append(f"{end.recent['triplets_per_second']:.1f} triplets/s")
        parts.append(f"wait {end.recent['data_wait_share']:.1%}")
    return ", ".join(parts)
