"""The preset `strong` with one setting changed at a time: `AGMAN_PHOTOS=FOLDER agman bench recipe`.

The same pictures, network and judge as in `agman bench quality`, AGMAN_STEPS (100) steps and AGMAN_SEEDS (1) seeds.
Results are kept in `work/quality`, so a stopped run goes on. One seed moves the MAP by about half a point: this table
tells what matters from what does not, and no more.
"""

from __future__ import annotations

import json
import os
import statistics
from typing import Any

os.environ.setdefault("AGMAN_SEEDS", "1")

import torch

from agman.base import RetrievalModel
from benchmarks import quality
from benchmarks.common import write_table
from data_prep.dataset import Dataset
from pipeline.common.console import say
from pipeline.config.schema import TrainConfig, make_config

CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"batch_norm": "per_micro_batch"},
    {"ema": 0.9},
    {"lr": 4e-3},
    {"temperature": 0.05},
    {"images_per_value": None},
    {"backbone_lr_scale": 0.15},
    {"jitter": 0.2},
    {"proxy_weight": 0.0},
    {"class_weight": 0.0},
    {"embedding_dim": 128},
    {"temperature": 0.2},
    {"lr": 1e-3},
    {"erasing": 0.25},
    {"pair_loss": "multi_similarity"},
    {"pair_loss": "semi_hard_triplet"},
)
"""Differences from the preset."""


def score(dataset: Dataset, change: dict[str, Any], seed: int) -> float:
    """Train, and return the test MAP; from the file of an earlier run if there is one."""
    config: TrainConfig = make_config(quality.config_of("strong", seed).model_dump() | change)
    named = "-".join(f"{key}={value}" for key, value in change.items()) or "strong"
    file = quality.WORK / f"recipe-{named}-{quality.STEPS}-seed-{seed}-{dataset.info.digest[:8]}.json"
    if file.exists():
        return float(json.loads(file.read_text()))
    found: list[float] = []

    def after(step: int, model: RetrievalModel) -> bool:
        if step == quality.STEPS:
            found.append(quality.Judge(dataset, model.pixels)(model))
        return step >= quality.STEPS

    quality.trained(dataset, config, after)
    quality.WORK.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found[0]))
    say(f"{named}, seed {seed}: MAP {100 * found[0]:.2f}")
    return found[0]


def main() -> None:
    """Train every change with every seed; write the table."""
    torch.set_num_threads(1)
    dataset, expected = quality.data()
    scores = [[score(dataset, change, seed) for seed in range(quality.SEEDS)] for change in CHANGES]
    base = statistics.mean(scores[0])
    rows = []
    for change, of_seeds in zip(CHANGES, scores, strict=True):
        named = ", ".join(f"{key}={value}" for key, value in change.items()) or "strong"
        mean = statistics.mean(of_seeds)
        rows.append([named, f"{100 * mean:.2f}", f"{100 * (mean - base):+.2f}" if change else ""])
    rows.append(["chance", f"{100 * expected.over_all.chance:.2f}", ""])
    write_table("recipe", ["setting", "test MAP × 100", "− strong"], rows, quality.settings(dataset))


if __name__ == "__main__":
    main()
