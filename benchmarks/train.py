"""Training on Ray against a plain torch loop, with 1 and 2 workers, and the cost of checkpoints: `agman bench train`.

Drawn garments are trained with small settings (ResNet-18, 64 px, 32 triplets, bf16) and the paper's (ResNet-50,
224 px, 16 triplets, fp32 as published); on a GPU with the paper's alone. Rates are those that
every training logs, for the epochs after the first. The ways take turns; a row is the median over its turns. A CPU
worker has one thread. The hardware's limit is two trainings at once, with half the batch each, that exchange nothing.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

import agman
from benchmarks.common import SMALL, drawn_dataset, medians, with_turns, write_table
from benchmarks.model import flops, peak
from data_prep.cluster import ray_session
from data_prep.dataset import Dataset
from data_prep.storage import Storage
from pipeline.common.console import say
from pipeline.config.presets import PUBLISHED
from pipeline.config.schema import TrainConfig, make_config
from pipeline.tracking import runs as tracking
from pipeline.training.checkpoints import Checkpoints, Saver
from pipeline.training.train import train
from pipeline.training.trainer import EpochEnd, Training, WorkerContext

ON_GPU = torch.cuda.is_available()
IMAGES, EPOCHS = 2_000, 2
CHECKPOINT_EVERY = 50
"""Steps between two checkpoints, whose cost is stated as a share of these steps."""
# Ray gives its workers a lower priority than other processes; torch.multiprocessing does not.
SAME_PRIORITY = {"RAY_worker_niceness": "0"}
COMMON = {"weights": None, "proxy_weight": 0.0, "threads": None if ON_GPU else 1, "epochs": EPOCHS}


@dataclass(frozen=True)
class Work:
    """One training that is measured."""

    name: str
    settings: dict[str, Any]
    size: int
    """Side of the images in pixels."""
    triplets: int
    """Triplets of an epoch."""
    turns: int
    steps: int
    """Steps of a window in which a checkpoint is written, or none."""
    windows: int
    """Windows of each kind."""

    @property
    def title(self) -> str:
        """Return what is trained, in a few words."""
        config = self.config
        return f"{config.backbone}, {self.size} px, {config.batch_size} triplets, {config.precision}"

    @property
    def config(self) -> TrainConfig:
        """Return the settings with one checkpoint, at the end."""
        only_at_the_end = {"checkpoint_every": 1_000_000, "max_triplets": self.triplets}
        return make_config(self.settings | COMMON | only_at_the_end)


ON_CPU = (Work("small", SMALL, 64, 1_280, 3, 50, 4), Work("published", PUBLISHED, 224, 64, 3, 2, 2))
WORKS = (Work("published", PUBLISHED, 224, 6_400, 3, 50, 4),) if ON_GPU else ON_CPU
PLAIN, APART, RAY = "plain torch", "plain torch, nothing exchanged", "Ray Train"
Rates = tuple[float, float]
"""Triplets per second, and the fraction of the time spent waiting for data."""


def rate(ends: list[dict[str, float]]) -> Rates:
    """Return the medians over the epochs after the first, in which memory and caches are warm."""
    names = ("train/triplets_per_second", "train/data_wait_share")
    speed, wait = (statistics.median(end[name] for end in ends[1:]) for name in names)
    return speed, wait


def plain(dataset: Dataset, config: TrainConfig, workers: int) -> Rates:
    """Train in torch's own processes, which share every batch."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_plain_worker, args=(workers, dataset.storage, config, folder), nprocs=workers)
        return torch.load(Path(folder, "rates-0.pt"))


def apart(dataset: Dataset, config: TrainConfig, workers: int) -> Rates:
    """Run `workers` independent trainings at once, each with its part of the batch."""
    shares = {"batch_size": config.batch_size // workers, "max_triplets": (config.max_triplets or 0) // workers}
    config = config.model_copy(update=shares)
    with tempfile.TemporaryDirectory() as folder:
        spawn(_plain_worker, args=(workers, dataset.storage, config, folder, True), nprocs=workers)
        rates = [torch.load(Path(folder, f"rates-{rank}.pt")) for rank in range(workers)]
    speeds, waits = zip(*rates, strict=True)
    return sum(speeds), max(waits)


def _plain_worker(rank: int, workers: int, data: Any, config: TrainConfig, folder: str, apart: bool = False) -> None:
    together = workers > 1 and not apart
    if ON_GPU:
        torch.cuda.set_device(rank)
    if together:
        backend = "nccl" if ON_GPU else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    ends: list[EpochEnd] = []
    device = f"cuda:{rank}" if ON_GPU else "cpu"
    share = WorkerContext(rank, workers, device) if together else WorkerContext(device=device)
    Training(config, Dataset(data), share).run(epoch_end=ends.append)
    torch.save(rate([end.metrics for end in ends]), f"{folder}/rates-{rank}.pt")
    if together:
        dist.destroy_process_group()


def on_ray(dataset: Dataset, config: TrainConfig, workers: int) -> Rates:
    """Run `agman train`, with MLflow and a checkpoint at the end of every epoch."""
    with tempfile.TemporaryDirectory() as folder:
        trained = train(dataset, config, workers=workers, storage=folder)
        names = ("train/triplets_per_second", "train/data_wait_share")
        histories = [tracking.metric_history(trained.run, name) for name in names]
        return rate([{name: h[n][1] for name, h in zip(names, histories, strict=True)} for n in range(EPOCHS)])


def checkpoint_cost(dataset: Dataset, work: Work) -> str:
    """Time windows of steps with and without a checkpoint, by turns, in one process; say what a checkpoint costs."""
    config = work.config.model_copy(update={"epochs": 1, "max_triplets": None})  # no validation between windows
    training = Training(config, dataset, WorkerContext(device="cuda" if ON_GPU else "cpu"))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    state = {"began": time.perf_counter(), "steps": -max(1, work.steps // 2)}  # the first half window warms up
    with tempfile.TemporaryDirectory() as folder:
        kept = Checkpoints(Storage(Path(folder)))
        saver = Saver(kept, 1_000_000)

        def step_end(end: Any) -> None:
            state["steps"] += 1
            if state["steps"] == 0:
                saver.save(training.snapshot)  # the next ones reuse its memory
                saver.waited, state["began"] = 0.0, time.perf_counter()
            if state["steps"] <= 0:
                return
            window, within = divmod(state["steps"] - 1, work.steps)
            if within == work.steps // 10 and window % 2:
                saver.save(training.snapshot)
            if within == work.steps - 1:
                now = time.perf_counter()
                seconds[bool(window % 2)].append(now - state["began"])
                state["began"] = now

        training.run(step_end=step_end, stop=lambda: len(seconds[True]) >= work.windows)
        saver.finish()
        size = sum(kept.latest().files.values())  # type: ignore[union-attr]
    with_one, without = (statistics.median(seconds[saved]) for saved in (True, False))
    step, stood = without / work.steps, saver.waited / len(seconds[True])
    return (
        f"{work.title}, 1 worker: a checkpoint of {size / 2**20:.0f} MiB stopped training for {1000 * stood:.0f} ms, "
        f"{stood / step / CHECKPOINT_EVERY:.2%} of {CHECKPOINT_EVERY} steps of {1000 * step:.0f} ms; windows of "
        f"{work.steps} steps with one took {with_one / without - 1:+.2%} (medians of {work.windows} each)."
    )


def flop_per_triplet(dataset: Dataset, config: TrainConfig) -> float:
    """Return the FLOP of convolutions and matrix products, forward and backward, for one triplet."""
    few = {"epochs": 1, "batch_size": 4, "max_triplets": 4, "compile": False}
    device = "cuda" if ON_GPU else "cpu"
    training = Training(config.model_copy(update=few), dataset, WorkerContext(device=device))
    objective = training.objective
    stepper = agman.Stepper(objective, training.optimizer, device=device, precision=training.precision)
    images = torch.zeros(12, 3, training.image_size, training.image_size, dtype=torch.uint8)
    index, flip = torch.arange(12).view(3, 4), torch.zeros(3, 4, dtype=torch.bool)
    batch = agman.Batch(images, index, flip, torch.zeros(4, dtype=torch.int64), global_size=4)
    return flops(lambda: stepper.step(batch)) / 4


def measure(work: Work, folder: Path) -> tuple[list[list[str]], str]:
    """Return rows of the table, and what checkpoints cost."""
    config = work.config
    images = IMAGES if work.size < 224 or ON_GPU else 400
    enough = max(work.triplets, 2 * (work.windows + 1) * work.steps * config.batch_size)
    dataset = drawn_dataset(folder, images=images, size=work.size, triplets=enough)
    flop = flop_per_triplet(dataset, config)
    most = min(2, torch.cuda.device_count()) if ON_GPU else 2
    ways: dict[tuple[str, int], Callable[..., Rates]] = {(PLAIN, 1): plain, (RAY, 1): on_ray}
    if most > 1:
        ways |= {(APART, 2): apart, (PLAIN, 2): plain, (RAY, 2): on_ray}
    found: dict[tuple[str, int], list[Rates]] = {key: [] for key in ways}
    for turn in range(work.turns):
        for (name, workers), way in ways.items():
            speed, wait = way(dataset, config.model_copy(update={"seed": turn}), workers)
            say(f"{work.name}, turn {turn + 1}: {name}, {workers} workers: {speed:.2f} triplets/s, waits {wait:.1%}")
            found[name, workers].append((speed, wait))
    median = {key: medians(rates) for key, rates in found.items()}
    type_of = torch.bfloat16 if config.precision == "bf16" else torch.float32
    torch.set_num_threads(config.threads or torch.get_num_threads())
    top = peak(type_of)
    rows = []
    for (name, workers), (speed, wait) in median.items():
        base, alone = median[PLAIN, workers][0], median[name if name != APART else PLAIN, 1][0]
        rates = [with_turns([one for one, _ in found[name, workers]], ".2f"), f"{wait:.2%}", f"{speed / base:.3f}"]
        rates += [f"{speed / alone:.2f}", f"{speed * flop / workers / top:.0%}"]
        rows.append([work.title, name, str(workers), *rates])
    return rows, checkpoint_cost(dataset, work)


def main() -> None:
    """Measure all trainings; write the table."""
    os.environ |= SAME_PRIORITY
    with tempfile.TemporaryDirectory() as folder, ray_session():
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        found = [measure(work, Path(folder, work.name)) for work in WORKS]
    rows = [row for of_work, _ in found for row in of_work]
    header = ["training", "way", "workers", "triplets/s (turns)", "data wait"]
    header += ["of plain torch", "of 1 worker", "of peak"]
    of_peak = "Of peak: of a product of 4,096 × 4,096 matrices in the same type, by each worker."
    write_table("train", header, rows, "\n".join([of_peak, *(cost for _, cost in found)]))
