"""Training on Ray against a plain torch loop of the same core, 1 and 2 workers, checkpoints: `agman bench train`.

Everything runs on the demo's settings (ResNet-18, 64 px, 32 triplets) on drawn garments; on a GPU, on a ResNet-50 at
224 px with 64 triplets. Rates are those that every training logs, of whole epochs after the first; the ways take turns,
and a row is the median over its turns. CPU workers have one thread each.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.record import write_table
from data_prep.cluster import ray_session
from data_prep.dataset import Dataset
from data_prep.prepare import prepare
from data_prep.samples import sample
from data_prep.storage import Storage
from pipeline import tracking
from pipeline.checkpoints import Checkpoints, Saver
from pipeline.config import TrainConfig, make_config
from pipeline.console import progress_bar, say
from pipeline.loop import EpochEnd, Share, Training
from pipeline.presets import PRESETS
from pipeline.training import train

ON_GPU = torch.cuda.is_available()
SIZE, IMAGES, TRIPLETS, TURNS, EPOCHS = (224, 8_000, 6_400, 3, 3) if ON_GPU else (64, 2_000, 1_600, 2, 2)
CHECKPOINT_EVERY, WINDOWS = 50, 4
SETTINGS = PRESETS["fast" if ON_GPU else "demo"].settings | {
    "weights": None,
    "proxy_weight": 0.0,
    "precision": "bf16",
    "threads": None if ON_GPU else 1,
    "epochs": EPOCHS,
    "max_triplets": TRIPLETS,
    "checkpoint_every": 1_000_000,  # at the ends of epochs alone
}
Rates = tuple[float, float]
"""Triplets a second, share of the time spent waiting for data."""


def rate(ends: list[dict[str, float]]) -> Rates:
    """Of the epochs after the first, in which memory and caches are warm."""
    names = ("train/triplets_per_second", "train/data_wait_share")
    speed, wait = (statistics.median(end[name] for end in ends[1:]) for name in names)
    return speed, wait


def plain(dataset: Dataset, config: TrainConfig, workers: int) -> Rates:
    """torch's own processes."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_plain_worker, args=(workers, dataset.storage, config, folder), nprocs=workers)
        return torch.load(Path(folder, "rates.pt"))


def _plain_worker(rank: int, workers: int, data: Any, config: TrainConfig, folder: str) -> None:
    if workers > 1:
        backend = "nccl" if ON_GPU else "gloo"
        if ON_GPU:
            torch.cuda.set_device(rank)
        dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    ends: list[EpochEnd] = []
    share = Share(rank, workers, f"cuda:{rank}" if ON_GPU else "cpu")
    Training(config, Dataset(data), share).run(epoch_end=ends.append)
    if rank == 0:
        torch.save(rate([end.metrics for end in ends]), f"{folder}/rates.pt")
    if workers > 1:
        dist.destroy_process_group()


def on_ray(dataset: Dataset, config: TrainConfig, workers: int) -> Rates:
    """`agman train`, checkpoint at the end of every epoch, MLflow and all."""
    with tempfile.TemporaryDirectory() as folder:
        trained = train(dataset, config, workers=workers, storage=folder)
        names = ("train/triplets_per_second", "train/data_wait_share")
        histories = [tracking.history(trained.run, name) for name in names]
        return rate([{name: h[n][1] for name, h in zip(names, histories, strict=True)} for n in range(EPOCHS)])


def checkpoint_cost(dataset: Dataset, config: TrainConfig) -> dict[str, float]:
    """Windows of CHECKPOINT_EVERY steps with and without a checkpoint in them, by turns, in one process."""
    config = config.model_copy(update={"epochs": 1, "max_triplets": None})  # no validation between windows
    training = Training(config, dataset, Share(device="cuda" if ON_GPU else "cpu"))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    state = {"began": time.perf_counter(), "steps": -CHECKPOINT_EVERY // 2}  # the first half window warms up
    with tempfile.TemporaryDirectory() as folder:
        kept = Checkpoints(Storage(Path(folder)))
        saver = Saver(kept, 1_000_000)

        def step_end(end: Any) -> None:
            state["steps"] += 1
            if state["steps"] == 0:
                state["began"] = time.perf_counter()
            if state["steps"] <= 0:
                return
            window, within = divmod(state["steps"] - 1, CHECKPOINT_EVERY)
            if within == 5 and window % 2:
                saver.save(training.snapshot)
            if within == CHECKPOINT_EVERY - 1:
                now = time.perf_counter()
                seconds[bool(window % 2)].append(now - state["began"])
                state["began"] = now

        training.run(step_end=step_end, stop=lambda: len(seconds[True]) >= WINDOWS)
        saver.finish()
        size = sum(kept.latest().files.values())  # type: ignore[union-attr]
    with_one, without = (statistics.median(seconds[saved]) for saved in (True, False))
    return {
        "step": 1000 * without / CHECKPOINT_EVERY,
        "cost": with_one / without - 1,
        "stood": saver.waited / len(seconds[True]),
        "share": saver.waited / len(seconds[True]) / without,
        "mib": size / 2**20,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ray_session():
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        root, out = Path(folder, "fashionai"), Path(folder, "out")
        sample("fashionai", root, images=IMAGES, size=SIZE, seed=0, progress=progress_bar)
        enough = (2 * WINDOWS + 1) * CHECKPOINT_EVERY * SETTINGS["batch_size"]
        prepare("fashionai", root, out, image_size=SIZE, triplets=enough, epochs=1, seed=0, progress=progress_bar)
        dataset, config = Dataset(out), make_config(SETTINGS)
        most = min(2, torch.cuda.device_count()) if ON_GPU else 2
        ways: dict[tuple[str, int], Callable[..., Rates]] = {
            (name, workers): way
            for workers in range(1, most + 1)
            for name, way in (("plain torch", plain), ("Ray Train", on_ray))
        }
        found: dict[tuple[str, int], list[Rates]] = {key: [] for key in ways}
        for turn in range(TURNS):
            for (name, workers), way in ways.items():
                speed, wait = way(dataset, config.model_copy(update={"seed": turn}), workers)
                say(f"turn {turn + 1}: {name}, {workers} workers: {speed:.1f} triplets/s, waits {wait:.1%}")
                found[name, workers].append((speed, wait))
        cost = checkpoint_cost(dataset, config)
    median = {key: [statistics.median(column) for column in zip(*rates, strict=True)] for key, rates in found.items()}
    rows = []
    for (name, workers), (speed, wait) in median.items():
        base, alone = median["plain torch", workers][0], median[name, 1][0]
        all_of_way = ", ".join(f"{one:.1f}" for one, _ in found[name, workers])
        rates = [f"{speed:.1f} ({all_of_way})", f"{wait:.2%}", f"{speed / base:.3f}", f"{speed / alone:.2f}"]
        rows.append([name, str(workers), *rates])
    header = [
        "way",
        "workers",
        "triplets/s (turns)",
        "data wait",
        "of plain torch",
        "of 1 worker",
    ]
    notes = (
        f"{SETTINGS['backbone']}, {SIZE} px, {SETTINGS['batch_size']} triplets in the global batch, bf16. "
        f"Checkpoint of {cost['mib']:.0f} MiB in the middle of every second window of {CHECKPOINT_EVERY} steps of "
        f"{cost['step']:.0f} ms, 1 worker: training stood still {1000 * cost['stood']:.0f} ms for each "
        f"({cost['share']:.2%} of the window); windows with one took {cost['cost']:+.2%} (medians of {WINDOWS} each)."
    )
    write_table("train", header, rows, notes)
