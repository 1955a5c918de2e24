"""The simulation of many workers against 1 and 2 real ones, and what it says of 8 and 64 GPUs: `agman bench scale`.

In one run: the passes of a step on one worker, and on two at once that exchange nothing (on two cores they slow each
other); the all-reduce of two; decoding, reading and writing. With these figures the simulation foretells the demo's
training in bf16 and fp32, and then it is measured, by turns. CPU workers have one thread each.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

import agman
from benchmarks import extrapolation
from benchmarks.record import write_table
from benchmarks.simulation import WARM_UP, Data, Link, Outcome, Store, Work, simulate
from benchmarks.sizes import Sizes, buckets_of, sizes_of
from benchmarks.train import COMMON, plain
from data_prep.dataset import Dataset, ImageStore
from data_prep.prepare import prepare
from data_prep.storage import Storage
from data_prep.synthetic.samples import sample
from pipeline.common.console import progress_bar, say
from pipeline.config.presets import PRESETS
from pipeline.config.schema import TrainConfig, make_config
from pipeline.training.checkpoints import Checkpoints, Saver
from pipeline.training.trainer import Training, WorkerContext

PRECISIONS = {"bf16": 1, "fp32": 2}
"""Bytes sent for each byte of a gradient: fp32's are added up in float64."""
IMAGES, SIZE, TRIPLETS, TURNS, STEPS = 1_000, 64, 320, 3, 10
LONGER = 640
"""Triplets, where checkpoints are measured."""
LARGE_IMAGES, LARGE = 300, 224
EVERY = 8
"""Steps between checkpoints, where their cost is measured."""
MESSAGES = tuple(2**power for power in (12, 16, 20, 23, 25, 26))
"""Bytes of gradients."""


class Passes(NamedTuple):
    """Seconds of a step."""

    forward: float
    backward: float
    optimizer: float

    def __add__(self, other: Any) -> Passes:
        return Passes(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Turn:
    """What was measured in one turn, of one precision."""

    steps: dict[int, list[Passes]]
    """By the number of workers that compute at the same time and exchange nothing."""
    link: Link
    rates: dict[int, float]
    """Steps a second of a real training, by the number of workers."""


class TimedStepper(agman.Stepper):
    """Notes how long the passes of its steps took."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.took: list[Passes] = []

    def step(self, batch: agman.Batch, *, stop: bool = False) -> agman.StepResult:
        self._marks = [time.perf_counter()]
        result = super().step(batch, stop=stop)
        self._marks.append(time.perf_counter())
        self.took.append(Passes(*np.diff(self._marks).tolist()))
        return result

    def _losses(self, micro_batch: agman.Batch) -> Any:
        losses = super()._losses(micro_batch)
        self._marks.append(time.perf_counter())
        return losses

    def _checked_norm(self, losses: dict[str, float]) -> float:
        self._marks.append(time.perf_counter())
        return super()._checked_norm(losses)


def config_of(precision: str, **changes: Any) -> TrainConfig:
    only_at_the_end = {"checkpoint_every": 1_000_000, "max_triplets": TRIPLETS}
    return make_config(PRESETS["demo"].settings | COMMON | only_at_the_end | {"precision": precision} | changes)


def passes(dataset: Dataset, config: TrainConfig, workers: int) -> tuple[list[Passes], list[tuple[float, float]]]:
    """Of all workers' steps, each with its share of the batch; and of two, (bytes, seconds) of all-reduces."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_passes_worker, args=(workers, dataset.storage, config, folder), nprocs=workers)
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(workers)]
    return [Passes(*one) for steps, _ in found for one in steps], [(size, took) for size, took in found[0][1]]


def _passes_worker(rank: int, workers: int, data: Any, config: TrainConfig, folder: str) -> None:
    exchanges = []
    cores = sorted(os.sched_getaffinity(0))
    if 1 < workers <= len(cores):  # else the system may leave two that have waited for each other on one core
        os.sched_setaffinity(0, {cores[rank]})
    training = Training(config, Dataset(data), WorkerContext())
    stepper = TimedStepper(
        training.objective, training.optimizer, precision=training.precision, clip_norm=config.clip_norm
    )
    batch = _batch(config.batch_size // workers, len(training.dataset.info.attributes))
    stepper.step(batch)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
        exchanges = [(float(size), exchange(size, config.precision or "")) for size in MESSAGES]
        dist.barrier()
    for _ in range(WARM_UP + STEPS):
        stepper.step(batch)
    if workers > 1:
        dist.destroy_process_group()
    Path(folder, f"{rank}.json").write_text(json.dumps([stepper.took[1 + WARM_UP :], exchanges]))


def _batch(triplets: int, attributes: int) -> agman.Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3 * triplets, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    index, flip = torch.arange(3 * triplets).view(3, triplets), torch.zeros(3, triplets, dtype=torch.bool)
    return agman.Batch(images, index, flip, torch.arange(triplets) % attributes, global_size=triplets)


def exchange(size: int, precision: str) -> float:
    """Seconds in which a bucket of `size` bytes of gradients is added up, as `agman.Stepper` does it."""
    gradients = torch.ones(size // 4)
    took = []
    for _ in range(12):
        dist.barrier()
        begun = time.perf_counter()
        total = gradients.to(torch.float32 if precision == "bf16" else torch.float64)
        dist.all_reduce(total)
        gradients.copy_(total)
        took.append(time.perf_counter() - begun)
    return statistics.median(took[2:])


def fitted(exchanges: Sequence[tuple[float, float]], wire: int) -> Link:
    """The ring of two that fits best, in relative terms; the cores that compute also move the bytes."""
    seconds = np.array([took for _, took in exchanges])
    factors = np.array([[2.0, wire * size] for size, _ in exchanges])  # of the latency, and of seconds for a byte
    (latency, per_byte), *_ = np.linalg.lstsq(factors / seconds[:, None], np.ones(len(seconds)))
    return Link(1 / per_byte, max(latency, 0.0), overlap=False)


def storing(dataset: Dataset, config: TrainConfig, every: int) -> tuple[Store, list[float]]:
    """What a checkpoint weighs and takes; and the seconds that each step of a training stood still for them."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_storing_worker, args=(dataset.storage, config, folder, every), nprocs=1)
        store, stalls = json.loads(Path(folder, "store.json").read_text())
    return Store(**store), stalls


def _storing_worker(rank: int, data: Any, config: TrainConfig, folder: str, every: int) -> None:
    training = Training(config.model_copy(update={"epochs": 1, "max_triplets": LONGER}), Dataset(data), WorkerContext())
    kept = Checkpoints(Storage(Path(folder, "kept")))
    saver = Saver(kept, every)
    waited: list[float] = []
    training.run(saver=saver, step_end=lambda end: waited.append(saver.waited))
    saver.finish()
    copying, writing = [], []
    for _ in range(3):
        training.step += 1
        begun = time.perf_counter()
        snapshot = training.snapshot()
        copied = time.perf_counter()
        kept.add(snapshot)
        copying.append(copied - begun)
        writing.append(time.perf_counter() - copied)
    size = sum(kept.latest().files.values())  # type: ignore[union-attr]
    store = Store(size, size / statistics.median(copying), size / statistics.median(writing), every)
    Path(folder, "store.json").write_text(json.dumps([asdict(store), np.diff(waited[WARM_UP - 1 :]).tolist()]))


def reading(dataset: Dataset, size: int) -> tuple[float, float, float]:
    """Bytes of a packed picture, bytes a second in which shards are read at the start, pictures decoded a second."""
    torch.set_num_threads(1)
    begun = time.perf_counter()
    images = ImageStore(dataset, "train", size)
    filled = time.perf_counter() - begun
    weight = float(images._bounds[-1])
    rates = []
    for turn in range(4):
        order = np.random.default_rng(turn).permutation(images.image_ids)
        begun = time.perf_counter()
        for start in range(0, len(order), 48):
            images.read(order[start : start + 48])
        rates.append(len(order) / (time.perf_counter() - begun))
    return weight / len(images), weight / filled, max(rates)


def work_of(steps: Sequence[Passes], sizes: Sizes, wire: int) -> Work:
    """Means, with the spread of the passes as jitter: evenly drawn between 1 and 1 + j it deviates by j / √12."""
    forward, backward, optimizer = (statistics.fmean(column) for column in zip(*steps, strict=True))
    both = [one.forward + one.backward for one in steps]
    mean, half = statistics.fmean(both), math.sqrt(3) * statistics.stdev(both)
    least = max(mean - half, 0.2 * mean)
    jitter = 2 * (mean - least) / least
    figures = len(agman.StepResult._fields)  # about as many travel with the statistics
    return Work(
        forward * least / mean,
        backward * least / mean,
        optimizer,
        buckets_of(sizes.gradients, wire),
        statistics=8.0 * (sizes.statistics + figures),
        jitter=jitter,
    )


def foretell(turn: Turn, sizes: Sizes, data: Data, wire: int, workers: int) -> Outcome:
    data = replace(data, images=data.images / workers)
    return simulate(work_of(turn.steps[workers], sizes, wire), workers, turn.link, data)


def take_turn(dataset: Dataset, config: TrainConfig, wire: int, seed: int) -> Turn:
    steps, rates = {}, {}
    for workers in (1, 2):
        steps[workers], exchanges = passes(dataset, config, workers)
        speed, _ = plain(dataset, config.model_copy(update={"seed": seed}), workers)
        rates[workers] = speed / config.batch_size
        say(f"{config.precision}, turn {seed + 1}, {workers} workers: {rates[workers]:.2f} steps/s")
    return Turn(steps, fitted(exchanges, wire), rates)


def compare(dataset: Dataset, precision: str, data: Data, sizes: Sizes) -> tuple[list[list[str]], str]:
    """Rows of the table, and a line of the figures that went into the simulation."""
    wire, config = PRECISIONS[precision], config_of(precision)
    turns = [take_turn(dataset, config, wire, seed) for seed in range(TURNS)]
    store, stalls = storing(dataset, config, EVERY)
    told = {workers: [1 / foretell(turn, sizes, data, wire, workers).step for turn in turns] for workers in (1, 2)}
    found = {workers: [turn.rates[workers] for turn in turns] for workers in (1, 2)}
    scaling = [[two / one for one, two in zip(rates[1], rates[2], strict=True)] for rates in (told, found)]
    rows = [
        _row("steps/s, 1 worker", told[1], found[1], ".2f"),
        _row("steps/s, 2 workers", told[2], found[2], ".2f"),
        _row("2 workers against 1", scaling[0], scaling[1], ".2f"),
    ]
    work = work_of(turns[-1].steps[1], sizes, wire)
    saving = simulate(work, 1, turns[-1].link, data, store, steps=len(stalls))
    what = f"ms that a step stands still, a checkpoint every {EVERY}"
    rows.append(_row(what, [1000 * saving.stall], [1000 * statistics.fmean(stalls)], ".1f"))
    if precision == "bf16":
        waits = simulate(work, 1, turns[-1].link, replace(data, prefetch=0))
        _, share = plain(dataset, config.model_copy(update={"prefetch": 0}), 1)
        rows.append(_row("data wait, 1 worker, prefetch=0", [waits.data_wait / waits.step], [share], ".1%"))
    title = f"ResNet-18, {SIZE} px, {config.batch_size} triplets, {precision}"
    return [[title, *row] for row in rows], f"{precision}: {_described(turns)}; {_described_store(store)}"


def _row(what: str, told: Sequence[float], found: Sequence[float], form: str) -> list[str]:
    """Medians, and the turns that they are of."""
    cells = []
    for turns in (told, found):
        of_turns = f" ({', '.join(f'{one:{form}}' for one in turns)})" if len(turns) > 1 else ""
        cells.append(f"{statistics.median(turns):{form}}{of_turns}")
    return [what, *cells, f"{statistics.median(told) / statistics.median(found) - 1:+.0%}"]


def _described(turns: Sequence[Turn]) -> str:
    """Medians over all turns."""
    parts = []
    for workers in (1, 2):
        columns = zip(*(one for turn in turns for one in turn.steps[workers]), strict=True)
        forward, backward, optimizer = (1000 * statistics.median(column) for column in columns)
        parts.append(f"{workers} at once: forward {forward:.0f}, backward {backward:.0f}, optimizer {optimizer:.0f} ms")
    rate = statistics.median(turn.link.bytes_per_second for turn in turns) / 1e9
    latency = statistics.median(turn.link.latency for turn in turns) * 1e6
    return f"{'; '.join(parts)}; all-reduce of two {rate:.2f} GB/s as sent and {latency:.0f} µs a message"


def _described_store(store: Store) -> str:
    copied, written = store.copy_rate / 1e9, store.upload_rate / 1e6
    return f"checkpoint of {store.bytes / 1e6:.0f} MB: copied at {copied:.1f} GB/s, written at {written:.0f} MB/s"


def make(folder: Path, images: int, size: int) -> Dataset:
    sample("fashionai", folder / "raw", images=images, size=size, seed=0, progress=progress_bar)
    out = folder / "out"
    prepare("fashionai", folder / "raw", out, image_size=size, triplets=LONGER, epochs=1, progress=progress_bar)
    return Dataset(out)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = make(Path(folder, "small"), IMAGES, SIZE)
        large = reading(make(Path(folder, "large"), LARGE_IMAGES, LARGE), LARGE)
        weight, _, decoded = reading(dataset, SIZE)
        config = config_of("bf16")
        data = Data(3.0 * config.batch_size, weight, math.inf, decoded)
        sizes = sizes_of("resnet18", len(dataset.info.attributes), config.embedding_dim or 0, SIZE)
        rows, figures = [], []
        for precision in PRECISIONS:
            of_precision, figure = compare(dataset, precision, data, sizes)
            rows += of_precision
            figures.append(figure)
    notes = (
        "Simulated with what was measured in the same run, two workers with passes of two at once that exchange "
        f"nothing; medians of {TURNS} turns, each simulated with its own figures.\n\n"
        + "\n\n".join(figures)
        + f"\n\nPictures of {SIZE} px: {weight:,.0f} bytes, {decoded:,.0f} decoded a second and core; of {LARGE} px: "
        f"{large[0]:,.0f} bytes (drawn ones), {large[2]:,.0f} a second and core; shards are read, and the pictures "
        f"kept, at {large[1] / 1e6:,.0f} MB/s.\n\n" + extrapolation.tables(decode_rate=large[2], shard_rate=large[1])
    )
    write_table("scale", ["training", "what", "simulated (turns)", "measured (turns)", "error"], rows, notes)
