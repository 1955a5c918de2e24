"""Rank 0's part of a training, in this process: what becomes of it where a batch makes NaN."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import agman
from data_prep.dataset import Dataset
from data_prep.storage import Storage
from pipeline.config.schema import make_config
from pipeline.tracking import runs as tracking
from pipeline.training.checkpoints import Checkpoint, Checkpoints, Snapshot
from pipeline.training.progress import ProgressBoard
from pipeline.training.ray_driver import TrainJob, _lead
from pipeline.training.trainer import NonFiniteBatch, Training, WorkerContext

SETTINGS = {"backbone": "tiny", "embedding_dim": 16, "batch_size": 12, "epochs": 1, "max_triplets": 24}
SETTINGS |= {"threads": 1, "precision": "fp32", "seed": 11, "lr": 1e30, "log_every": 1, "checkpoint_every": 2}


@pytest.fixture
def board(ray_started: None) -> Iterator[Any]:
    board = ProgressBoard.remote()  # type: ignore[attr-defined]
    yield board
    ray.kill(board)


def test_what_is_being_written_when_a_batch_makes_nan_still_becomes_a_checkpoint(
    dataset: Dataset, tracking_store: str, board: Any, tmp_path: Path
) -> None:
    met = threading.Event()

    class Slow(Checkpoints):
        """Is not done with the first step's when the second step's batch makes NaN."""

        def add(self, snapshot: Snapshot) -> Checkpoint:
            assert met.wait(60)
            time.sleep(0.5)
            return super().add(snapshot)

    class Watched(Training):
        def _failure(self, error: agman.NonFiniteLoss) -> NonFiniteBatch:
            met.set()
            return super()._failure(error)

    config = make_config(SETTINGS)
    run = tracking.start_run(dataset.info, "training", {})
    training = Watched(config, dataset, WorkerContext(), run.run_id)
    kept = Slow(Storage(tmp_path / "checkpoints"))
    with pytest.raises(NonFiniteBatch, match=r"^step 2 \(epoch 1\)"):
        _lead(training, kept, TrainJob(dataset.storage, config, Storage(tmp_path), run, steps=2), board)
    assert [checkpoint.step for checkpoint in kept.complete()] == [1]
    assert [step for step, _ in tracking.metric_history(run, "steps/loss")] == [1]
