"""Test MAP of the demo's training in fp32 and in bf16, with three seeds: `agman bench precision`.

Drawn garments in FashionAI's layout, one process, no Ray. Both precisions have the same triplets, batches and initial
weights.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.common import SMALL, drawn_dataset, write_table
from data_prep.dataset import Dataset
from pipeline.common.console import mean_and_deviation, say
from pipeline.config.schema import TrainConfig, make_config
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.expectations import expectations
from pipeline.training.trainer import Training, WorkerContext

CONFIG = make_config(SMALL)
IMAGES, SIZE, TRIPLETS, EPOCHS, THREADS = 4_000, 64, 1_600, 5, 2
SEEDS = (0, 1, 2)


def score(dataset: Dataset, config: TrainConfig) -> float:
    """Train and return the test MAP."""
    training = Training(config, dataset, WorkerContext(threads=THREADS))
    training.run()
    evaluation = evaluate(training.model, {"image_size": SIZE}, dataset, threads=THREADS)
    return evaluation.metrics["test/map"]


def main() -> None:
    """Train with every precision and seed; write the table."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = drawn_dataset(Path(folder), images=IMAGES, size=SIZE, triplets=TRIPLETS, epochs=EPOCHS)
        expected = expectations(dataset, "test")
        assert expected
        maps: dict[str, list[float]] = {"fp32": [], "bf16": []}
        rows = []
        for seed in SEEDS:
            for precision, found in maps.items():
                config = CONFIG.model_copy(update={"precision": precision, "seed": seed, "epochs": EPOCHS})
                value = score(dataset, config)
                say(f"{precision}, seed {seed}: test MAP {value:.4f}")
                found.append(value)
                rows.append([precision, str(seed), f"{100 * value:.2f}"])
    for precision, found in maps.items():
        rows.append([precision, "mean ± standard deviation", mean_and_deviation(found)])
    rows.append(["chance", "", f"{100 * expected.over_all.chance:.2f}"])
    notes = (
        f"Test MAP × 100 of AG-MAN (ResNet-18, {CONFIG.embedding_dim} dimensions, {SIZE} px) after {EPOCHS} epochs of "
        f"{TRIPLETS:,} triplets on {IMAGES:,} drawn garments, from random weights with small settings; "
        f"{THREADS} threads."
    )
    write_table("precision", ["precision", "seed", "MAP"], rows, notes)
