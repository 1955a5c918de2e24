"""`agman train`: the loop in Ray Train's DDP workers, checkpoints, one MLflow run, a registered model.

The driver starts the workers and follows them; Ray starts them anew when some are lost. Whatever dies, the next group
of workers continues from the newest whole checkpoint below `storage/name`.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from data_prep.cluster import ray_session
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline import registry, tracking
from pipeline.checkpoints import Checkpoint, Checkpoints, Saver
from pipeline.cluster import cpus_for_elastic, gpus_for
from pipeline.config import TrainConfig
from pipeline.console import say
from pipeline.errors import JobFailed
from pipeline.loop import (
    NonFiniteBatch,
    Share,
    StepEnd,
    Training,
    build_model,
    resolved,
    steps_per_epoch,
)
from pipeline.progress_board import Reporter, hears, shown
from pipeline.summaries import show_settings

CHECKPOINTS, OUTCOME, DESCRIPTION = "checkpoints", "outcome.json", "training.json"
FRUITLESS_STARTS = 3
"""So many groups of workers may start from the same step; then the training has failed."""
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
HARMLESS = ("threads", "prefetch", "checkpoint_every", "keep_best", "log_every")
"""Settings that a training may be continued with others of."""
SHOWN = ("triplet", "class", "proxy", "info_nce")
Workers = tuple[int, int]
"""At least and at most so many; the same twice, unless the group may shrink and grow."""


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
    registered: registry.Registered


def check(config: TrainConfig, dataset: Dataset, parts: int) -> None:
    """Find what a user can mend before anything starts. Raises InputError."""
    info = dataset.info
    if not info.images["train"]:
        raise InputError(f"{dataset.path}: the dataset has no training images")
    if config.needing_values and not all(attribute.values for attribute in info.attributes):
        raise InputError(f"{' '.join(config.needing_values)}: {dataset.path} has triplets but no values to learn")
    if config.image_size and config.image_size > info.image_size:
        raise InputError(
            f"image_size={config.image_size}, but {dataset.path} holds images of {info.image_size} px; "
            f"use image_size={info.image_size} or prepare it again with --image-size {config.image_size}"
        )
    try:
        build_model(config, dataset)
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
    steps_per_epoch(dataset, config, parts)


def train(
    dataset: Dataset,
    config: TrainConfig,
    *,
    workers: int | Workers = 1,
    storage: str | Path = "runs",
    name: str | None = None,
    fresh: bool = False,
) -> Trained:
    """Train on `workers` DDP workers, and register the best checkpoint.

    A training is known by its resolved settings and its dataset, or by `name`: if it was begun before, and did not
    finish, it is continued; `fresh` begins it anew in any case. Global batch and learning rate are the same on any
    number of workers. Raises InputError for what a user can mend, JobFailed, and KeyboardInterrupt after Ctrl-C or
    SIGTERM (the state is saved then).
    """
    least, most = (workers, workers) if isinstance(workers, int) else workers
    check(config, dataset, config.parts or most)
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(ray_session())
        use_gpu, cpus = gpus_for(least), cpus_for_elastic(least, most)
        config = resolved(config, "cuda" if use_gpu else "cpu", most, cpus)
        place = _claimed(stack, Storage(storage), name or _identity(dataset, config), fresh)
        label = str(place).rpartition("/")[2]
        begun = _read_json(place / DESCRIPTION)
        # Another number of threads rounds differently, so a training keeps the one that it began with.
        config = config.model_copy(update={"threads": begun.get("threads", config.threads)})
        show_settings(config)
        if config.weights is None:
            say("note: the backbone starts from random weights; the paper's recipe has weights=IMAGENET1K_V1")
        params = config.model_dump() | {"workers": str(most) if least == most else f"{least}-{most}"}
        run = stack.enter_context(tracking.run(dataset.info, label, params, resume=begun.get("run_id"), job="train"))
        _write_json(place / DESCRIPTION, {"run_id": run.run_id, "threads": config.threads, "settings": params})
        kept = Checkpoints(place / CHECKPOINTS, config.keep_best)
        if latest := kept.latest():
            say(f"continuing {place} from step {latest.step:,}")
        settings = {
            "data": dataset.storage,
            "config": config.model_dump(),
            "place": place,
            "run": tracking.Run(run.uri, run.run_id),
            "steps_per_epoch": steps_per_epoch(dataset, config, config.parts or least),
        }
        outcome = _run(settings, f"training {label}", (least, most), _resources(cpus, use_gpu))
        if outcome["state"] == STOPPED:
            raise KeyboardInterrupt(f"saved at step {outcome['step']:,}; the same command continues")
        if outcome["state"] != FINISHED:
            raise JobFailed(f"training failed: {outcome['message']}; what is saved is in {place}")
        best = kept.best() or kept.latest()
        assert best is not None, "a finished training has saved its last epoch"
        with kept.opened(best) as folder:
            registered = registry.register(folder, dataset.info.name, run)
        _write_json(place / OUTCOME, outcome | {"registered": registered.uri})
        return Trained(run, best.place, best.metrics, outcome["step"], time.perf_counter() - started, registered)


def _resources(cpus: int, use_gpu: bool) -> dict[str, float]:
    return {"CPU": float(cpus), "GPU": float(use_gpu)}


def _identity(dataset: Dataset, config: TrainConfig) -> str:
    """Names a training by what decides its outcome."""
    decisive = config.model_dump(exclude=set(HARMLESS)) | {"dataset": dataset.info.digest}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return f"{dataset.info.name}-{config.model}-{digest[:8]}"


def _claimed(stack: ExitStack, storage: Storage, name: str, fresh: bool) -> Storage:
    """The folder of the training to continue or to begin, this process's alone for as long as the stack lives.

    Finished ones are passed over: the same settings again are NAME-2, NAME-3 ...
    """
    for number in itertools.count(1):
        place = storage / (name if number == 1 else f"{name}-{number}")
        if "registered" in _read_json(place / OUTCOME) or (fresh and (place / DESCRIPTION).exists()):
            continue
        if place.local:
            stack.enter_context(_locked(place.local))
        return place
    raise AssertionError("counting does not end")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{folder}: another process is at this training; wait for it, or give --fresh to begin another"
            ) from error
        yield


def _read_json(file: Storage) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(file: Storage, content: dict[str, Any]) -> None:
    file.write_bytes((json.dumps(content, indent=2) + "\n").encode())


# The driver


def _run(settings: dict[str, Any], title: str, workers: Workers, resources: dict[str, float]) -> dict[str, Any]:
    """Run the workers to their end, and tell what that was: its state, step and message."""
    place: Storage = settings["place"]
    (place / OUTCOME).delete()
    steps = settings["steps_per_epoch"] * settings["config"]["epochs"]
    with _signals() as stop, shown(title, steps, stop) as board, tempfile.TemporaryDirectory() as scratch:
        trainer = ray.train.torch.TorchTrainer(
            _worker,
            train_loop_config=settings | {"board": board},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers[0] if workers[0] == workers[1] else workers,
                use_gpu=resources["GPU"] > 0,
                resources_per_worker=resources,
            ),
            run_config=ray.train.RunConfig(
                name="ray",
                storage_path=scratch,  # Ray's own notes; checkpoints are ours
                failure_config=ray.train.FailureConfig(max_failures=-1),  # the board counts fruitless starts
            ),
        )

        def nobody_hears() -> bool:
            return stop.is_set() and not hears(board) and not _read_json(place / OUTCOME)

        try:
            error = _fit(trainer, nobody_hears)
            for _ in range(FRUITLESS_STARTS):
                if not isinstance(error, RayActorError):
                    break
                say("the controller of the workers died; starting anew from the last checkpoint")
                error = _fit(trainer, nobody_hears)
        except GivenUp:
            latest = Checkpoints(place / CHECKPOINTS).latest()
            return {"state": STOPPED, "step": latest.step if latest else 0}
    return _read_json(place / OUTCOME) or {"state": FAILED, "message": _cause(error)}


class GivenUp(Exception):
    """The user has asked to stop while there were no workers to do so."""


def _fit(trainer: Any, give_up: Callable[[], bool]) -> BaseException | None:
    """What it failed with. In a thread of its own, since Ray would take the main thread's signals for itself.

    Raises GivenUp, with the trainer left to the end of the Ray session, when `give_up` says so.
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
        if give_up():
            raise GivenUp


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
        say("\nstopping: saving first (once more stops at once)")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cause(error: BaseException | None) -> str:
    """The first worker's own error in one line, or Ray's."""
    if error is None:
        return "the workers ended without a word"
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return _last_line(error)
    rank, failure = next(iter(failures.items()))
    return f"worker {rank}: {_last_line(failure)}"


def _last_line(error: BaseException) -> str:
    """A Ray error's text ends with the line that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# The workers


def _worker(settings: dict[str, Any]) -> None:
    """What every DDP worker runs. Ends in an outcome that rank 0 writes, or in an error after which Ray starts anew."""
    context = ray.train.get_context()
    share = Share(context.get_world_rank(), context.get_world_size(), str(ray.train.torch.get_device()))
    board, place = settings["board"], settings["place"]
    try:
        _train_share(settings, share)
    except NonFiniteBatch as error:
        if share.rank == 0:
            name = f"non-finite-step-{error.record['step']}.json"
            _write_json(place / name, error.record)
            settings["run"].log_text(json.dumps(error.record, indent=2), name)
            message = f"{error}; its triplets are in {place / name}"
            _write_json(place / OUTCOME, {"state": FAILED, "message": message})
    except Exception as error:
        board.failed.remote(f"worker {share.rank}: {type(error).__name__}: {_last_line(error)}")
        raise


def _train_share(settings: dict[str, Any], share: Share) -> None:
    config, place, run = TrainConfig(**settings["config"]), settings["place"], settings["run"]
    first = share.rank == 0
    training = Training(config, Dataset(settings["data"]), share, run.run_id)
    kept = Checkpoints(place / CHECKPOINTS, config.keep_best)
    latest = _agreed(share, kept.latest)
    if latest:
        with kept.opened(latest) as folder:
            training.load(folder)
    starts, error = _agreed(share, lambda: _begin(settings["board"], training.step))
    if starts > FRUITLESS_STARTS:
        message = f"{FRUITLESS_STARTS} starts from step {training.step:,} got no further ({error or 'killed'})"
        return _write_json(place / OUTCOME, {"state": FAILED, "message": message}) if first else None
    reporter = Reporter(settings["board"], last=settings["steps_per_epoch"] * config.epochs)
    if not first:
        training.run()
        return None

    def step_end(end: StepEnd) -> None:
        reporter.tell(end.step, lambda: _note(end, config.epochs))

    log = tracking.PointLog(run)

    def stands(checkpoint: Checkpoint) -> None:
        log.add(training.points_until(checkpoint.step))
        if not log.waiting:
            training.forget_points(checkpoint.step)

    with tracking.system_metrics(run):
        log.add(training.points)  # those that the checkpoint carries; the run takes none twice
        saver = Saver(kept, config.checkpoint_every, stands, start=training.step)
        ending = training.run(saver=saver, stop=reporter.stop, step_end=step_end)
        saver.finish()
    log.close()
    state = FINISHED if ending == "finished" else STOPPED
    return _write_json(place / OUTCOME, {"state": state, "step": training.step, "epoch": training.epoch})


def _begin(board: ActorHandle, step: int) -> tuple[int, str]:
    return ray.get(board.begin.remote(step, ray.get_runtime_context().current_actor))


def _agreed(share: Share, decide: Callable[[], Any]) -> Any:
    """What rank 0 decides, on every worker."""
    answer = [decide() if share.rank == 0 else None]
    if share.workers > 1:
        dist.broadcast_object_list(answer)
    return answer[0]


def _note(end: StepEnd, epochs: int) -> str:
    """The live line's end."""
    parts = [f"epoch {end.epoch}/{epochs}", f"loss {end.result.loss:.4f}"]
    parts += [f"{name} {value:.4f}" for name in SHOWN if (value := getattr(end.result, f"loss_{name}"))]
    if end.score is not None:
        parts.append(f"valid {end.score:.4f}")
    if "triplets_per_second" in end.recent:
        parts.append(f"{end.recent['triplets_per_second']:.1f} triplets/s")
        parts.append(f"wait {end.recent['data_wait_share']:.1%}")
    return ", ".join(parts)
