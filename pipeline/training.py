"""`agman train`: the loop in Ray Train's DDP workers, checkpoints, one MLflow run, a registered model."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch

from data_prep.cluster import ray_session
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline import tracking
from pipeline.cluster import cpus_for, gpus_for
from pipeline.config import TrainConfig
from pipeline.console import say
from pipeline.errors import JobFailed
from pipeline.loop import EpochEnd, Share, Training, build_model, resolved, steps_per_epoch
from pipeline.progress_board import Reporter, shown

CHECKPOINTS_KEPT = 2  # the best two; Ray keeps the latest beside them
WORKER_RESTARTS = 3


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    run: tracking.Run
    checkpoint: Path
    """Folder of the best checkpoint (by validation MAP; the latest where there is no validation split)."""
    metrics: dict[str, float]
    """Of the epoch that the checkpoint is from."""
    steps: int
    seconds: float


def check(config: TrainConfig, dataset: Dataset, workers: int) -> None:
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
    steps_per_epoch(dataset, config, workers)


def train(dataset: Dataset, config: TrainConfig, *, workers: int, storage: Path, name: str) -> Trained:
    """Train on `workers` DDP workers; every epoch ends with a checkpoint below `storage/name`."""
    config = resolved(config)
    check(config, dataset, workers)
    if config.weights is None:
        say("note: the backbone starts from random weights; the paper's recipe has weights=IMAGENET1K_V1")
    started = time.perf_counter()
    params = config.model_dump() | {"workers": workers}
    with ExitStack() as stack:
        stack.enter_context(ray_session())
        use_gpu, cpus = gpus_for(workers), cpus_for(workers)
        run = stack.enter_context(tracking.run(dataset.info, name, params, job="train"))
        with shown(f"training {name}", config.epochs * steps_per_epoch(dataset, config, workers)) as board:
            trainer = ray.train.torch.TorchTrainer(
                _worker,
                train_loop_config={
                    "data": dataset.storage,
                    "config": config.model_dump(),
                    "run": run,
                    "board": board,
                    "threads": cpus,
                },
                scaling_config=ray.train.ScalingConfig(
                    num_workers=workers, use_gpu=use_gpu, resources_per_worker=_resources(cpus, use_gpu)
                ),
                run_config=ray.train.RunConfig(
                    name=name,
                    storage_path=str(storage.absolute()),
                    failure_config=ray.train.FailureConfig(max_failures=WORKER_RESTARTS),
                    checkpoint_config=_kept(dataset),
                ),
            )
            try:
                result = trainer.fit()
            except ray.train.TrainingFailedError as error:
                raise JobFailed(f"{_cause(error)}; checkpoints, if it came to any, are in {storage / name}") from error
            except SystemExit as stop:  # what Ray makes of Ctrl-C
                raise KeyboardInterrupt from stop
        checkpoint, metrics = _best(result, dataset)
        return Trained(
            run=run,
            checkpoint=Path(checkpoint.path),
            metrics={key: value for key, value in metrics.items() if "/" in key},
            steps=int(result.metrics["step"]),
            seconds=time.perf_counter() - started,
        )


def _cause(error: ray.train.TrainingFailedError) -> str:
    """The first worker's own error in one line, or Ray's."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return f"training failed ({_last_line(error)})"
    rank, failure = next(iter(failures.items()))
    return f"training failed on worker {rank} ({_last_line(failure)})"


def _last_line(error: BaseException) -> str:
    """A Ray error's text ends with the line that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _resources(cpus: int, use_gpu: bool) -> dict[str, float]:
    return {"CPU": float(cpus), "GPU": float(use_gpu)}


def _kept(dataset: Dataset) -> Any:
    by_map = {"checkpoint_score_attribute": "valid/map"} if dataset.info.queries["valid"] else {}
    return ray.train.CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT, **by_map)


def _best(result: Any, dataset: Dataset) -> tuple[Any, dict[str, Any]]:
    if not dataset.info.queries["valid"]:
        return result.checkpoint, result.metrics
    return max(result.best_checkpoints, key=lambda kept: kept[1]["valid/map"])


def _worker(settings: dict[str, Any]) -> None:
    """What every DDP worker runs."""
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    share = Share(context.get_world_rank(), context.get_world_size(), str(device), settings["threads"])
    run: tracking.Run = settings["run"]
    training = Training(TrainConfig(**settings["config"]), Dataset(settings["data"]), share, run.run_id)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            training.load(Path(folder))
    reporter = Reporter(settings["board"])

    def step_end(step: int, loss: float) -> None:
        if share.rank == 0:
            reporter.tell(step, f"epoch {training.epoch + 1}, loss {loss:.4f}")

    def epoch_end(end: EpochEnd) -> None:
        reported = end.metrics | {"step": end.step, "epoch": end.epoch}
        if share.rank != 0:
            return ray.train.report(reported)
        with tempfile.TemporaryDirectory() as aside:
            folder = Path(aside) / "checkpoint"
            training.save(folder)
            ray.train.report(reported, checkpoint=ray.train.Checkpoint.from_directory(folder))
        # After the checkpoint stands: a restart from it logs no epoch twice.
        run.log(end.metrics, end.step)

    training.run(epoch_end, step_end)
