"""What each of a training's speed options is worth on this device: `agman bench options`.

The demo's training (ResNet-18, 64 px, 32 triplets; on a GPU a ResNet-50 at 224 px with 64) without Ray, one worker on
all cores; one option at a time is changed against the defaults. The rows take turns; a row is the median of its turns.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.record import write_table
from benchmarks.train import COMMON, IMAGES, WORKS
from data_prep.dataset import Dataset
from data_prep.prepare import prepare
from data_prep.synthetic.samples import sample
from pipeline.common.console import progress_bar, say
from pipeline.config.presets import PRESETS
from pipeline.config.schema import TrainConfig, make_config
from pipeline.training.build import resolved
from pipeline.training.trainer import EpochEnd, Training, WorkerContext

TURNS, EPOCHS = 2, 2
SETTINGS = PRESETS[WORKS[0].preset].settings | COMMON
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
    """Triplets a second and the share of waiting for data, of the last epoch: the first warms up, and compiles."""
    ends: list[EpochEnd] = []
    Training(config, dataset, WorkerContext(device=DEVICE)).run(epoch_end=ends.append)
    torch.compiler.reset()
    return ends[-1].metrics["train/triplets_per_second"], ends[-1].metrics["train/data_wait_share"]


def main() -> None:
    base = SETTINGS | {"epochs": EPOCHS, "threads": os.cpu_count(), "precision": None}
    defaults = resolved(make_config(base), DEVICE)
    found: list[list[tuple[float, float]]] = [[] for _ in CHANGES]
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder, "fashionai"), Path(folder, "out")
        sample("fashionai", root, images=IMAGES, size=SIZE, seed=0, progress=progress_bar)
        prepare("fashionai", root, out, image_size=SIZE, triplets=TRIPLETS, epochs=1, seed=0, progress=progress_bar)
        dataset = Dataset(out)
        for turn in range(TURNS):
            for rates, change in zip(found, CHANGES, strict=True):
                rates.append(measure(dataset, make_config(base | change)))
                say(f"turn {turn + 1}: {_named(change)}: {rates[-1][0]:.1f} triplets/s")
    speeds = [statistics.median(speed for speed, _ in rates) for rates in found]
    rows = [
        [
            _named(change),
            f"{speed:.1f} ({', '.join(f'{one:.1f}' for one, _ in rates)})",
            f"{speed / speeds[0]:.2f}",
            f"{statistics.median(wait for _, wait in rates):.2%}",
        ]
        for change, speed, rates in zip(CHANGES, speeds, found, strict=True)
    ]
    chosen = ", ".join(f"{name}={getattr(defaults, name)}" for name in ("precision", "compile"))
    notes = (
        f"Defaults on this device: {chosen}, micro_batches=1, prefetch=2. {SETTINGS['backbone']}, {SIZE} px, "
        f"{SETTINGS['batch_size']} triplets, {defaults.threads} threads; the rate of an epoch of {TRIPLETS:,} triplets."
    )
    write_table("options", ["changed", "triplets/s (turns)", "of the defaults", "data wait"], rows, notes)


def _named(change: dict[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in change.items()) or "nothing"
