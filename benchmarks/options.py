"""The speed of a training with one option at a time changed against the defaults: `agman bench options`.

The demo's training (ResNet-18, 64 px, 32 triplets; on a GPU ResNet-50, 224 px, 64 triplets) runs without Ray, with one
worker on all cores. The rows take turns; a row is the median of its turns.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from benchmarks.common import drawn_dataset, medians, with_turns, write_table
from benchmarks.train import COMMON, IMAGES, WORKS
from data_prep.dataset import Dataset
from pipeline.common.console import say
from pipeline.config.schema import TrainConfig, make_config
from pipeline.training.build import resolved
from pipeline.training.trainer import EpochEnd, Training, WorkerContext

TURNS, EPOCHS = 2, 2
SETTINGS = WORKS[0].settings | COMMON
SIZE, TRIPLETS = WORKS[0].size, WORKS[0].triplets // 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHANGES: tuple[dict[str, object], ...] = (
    {},
    {"precision": "fp32"},
    {"compile": True},
    {"micro_batches": 4},
    {"prefetch": 0},
)


def measure(dataset: Dataset, config: TrainConfig) -> tuple[float, float]:
    """Return triplets per second and the fraction of waiting for data in the last epoch; the first warms up."""
    ends: list[EpochEnd] = []
    Training(config, dataset, WorkerContext(device=DEVICE)).run(epoch_end=ends.append)
    torch.compiler.reset()
    return ends[-1].metrics["train/triplets_per_second"], ends[-1].metrics["train/data_wait_share"]


def main() -> None:
    """Measure all changes; write the table."""
    base = SETTINGS | {"epochs": EPOCHS, "threads": os.cpu_count(), "precision": None}
    defaults = resolved(make_config(base), DEVICE)
    found: list[list[tuple[float, float]]] = [[] for _ in CHANGES]
    with tempfile.TemporaryDirectory() as folder:
        dataset = drawn_dataset(Path(folder), images=IMAGES, size=SIZE, triplets=TRIPLETS)
        for turn in range(TURNS):
            for rates, change in zip(found, CHANGES, strict=True):
                rates.append(measure(dataset, make_config(base | change)))
                say(f"turn {turn + 1}: {_named(change)}: {rates[-1][0]:.1f} triplets/s")
    base_speed = medians(found[0])[0]
    rows = []
    for change, rates in zip(CHANGES, found, strict=True):
        speed, wait = medians(rates)
        turns = with_turns([one for one, _ in rates], ".1f")
        rows.append([_named(change), turns, f"{speed / base_speed:.2f}", f"{wait:.2%}"])
    chosen = ", ".join(f"{name}={getattr(defaults, name)}" for name in ("precision", "compile"))
    notes = (
        f"Defaults on this device: {chosen}, micro_batches=1, prefetch=2. {SETTINGS['backbone']}, {SIZE} px, "
        f"{SETTINGS['batch_size']} triplets, {defaults.threads} threads; the rate of an epoch of {TRIPLETS:,} triplets."
    )
    write_table("options", ["changed", "triplets/s (turns)", "of the defaults", "data wait"], rows, notes)


def _named(change: dict[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in change.items()) or "nothing"
