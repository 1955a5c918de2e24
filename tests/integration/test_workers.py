"""Rank 0's part of a training, run in this process: when a batch makes NaN, and its live line."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from support.stores import out_of_order

from agman.stepping import NonFiniteLoss, StepResult
from data_prep.dataset import Dataset
from data_prep.storage import Storage
from pipeline.config.schema import make_config
from pipeline.tracking import runs as tracking
from pipeline.training.checkpoints import Checkpoint, Checkpoints, Snapshot
from pipeline.training.progress import ProgressBoard
from pipeline.training.ray_driver import TrainJob, _lead, _note, _record
from pipeline.training.trainer import NonFiniteBatch, StepEnd, Training, WorkerContext

SETTINGS = {"backbone": "tiny", "embedding_dim": 16, "batch_size": 12, "epochs": 1, "max_triplets": 24}
SETTINGS |= {"threads": 1, "precision": "fp32", "seed": 11, "lr": 1e30, "log_every": 1, "checkpoint_every": 2}


@pytest.fixture
def board(ray_started: None) -> Iterator[Any]:
    board = ProgressBoard.remote()  # type: ignore[attr-defined]
    yield board
    ray.kill(board)


def lead(job: TrainJob, dataset: Dataset, kept: Checkpoints, board: Any, kind: type[Training] = Training) -> Any:
    """Run rank 0's part in this process; return the error that the second batch raises."""
    with pytest.raises(NonFiniteBatch, match=r"^step 2 \(epoch 1\)") as error:
        _lead(kind(job.config, dataset, WorkerContext(), job.run.run_id), kept, job, board)
    return error.value


@pytest.fixture
def job(dataset: Dataset, tracking_store: str, tmp_path: Path) -> TrainJob:
    run = tracking.start_run(dataset.info, "training", {})
    return TrainJob(dataset.storage, make_config(SETTINGS), Storage(tmp_path / "run"), run, steps=2)


def test_a_checkpoint_that_is_being_written_when_a_batch_makes_nan_is_completed(
    dataset: Dataset, job: TrainJob, board: Any
) -> None:
    met = threading.Event()

    class Slow(Checkpoints):
        """Is still writing the first step when the second step's batch makes NaN."""

        def add(self, snapshot: Snapshot) -> Checkpoint:
            assert met.wait(60)
            time.sleep(0.5)
            return super().add(snapshot)

    class Watched(Training):
        def _failure(self, error: NonFiniteLoss) -> NonFiniteBatch:
            met.set()
            return super()._failure(error)

    kept = Slow(job.path)
    lead(job, dataset, kept, board, Watched)
    assert [checkpoint.step for checkpoint in kept.complete()] == [1]
    assert [step for step, _ in tracking.metric_history(job.run, "steps/loss")] == [1]


def test_a_batch_of_nan_is_recorded_while_the_tracking_store_does_not_answer(
    dataset: Dataset, tracking_store: str, job: TrainJob, board: Any
) -> None:
    with out_of_order(tracking_store, "runs"):
        error = lead(job, dataset, Checkpoints(job.path), board)
        file = _record(job, error, WorkerContext())
    assert str(file) == f"{job.path}/non-finite-step-2.json"
    assert json.loads(file.read_bytes())["step"] == 2


def test_chance_stands_beside_the_score_in_the_live_line() -> None:
    means = {"loss": 0.5, "loss_triplet": 0.2, "loss_class": 0.0, "loss_proxy": 0.0, "triplet_accuracy": 0.75}
    result = StepResult(means, triplets=12, images=36, gradient_norm=1, votes=0)
    assert _note(StepEnd(2, 7, result, {}, 0.4, 0.23), epochs=3) == (
        "epoch 2/3, loss 0.5000, triplet 0.2000, valid 0.4000 (chance 0.2300)"
    )
    assert "valid" not in _note(StepEnd(1, 1, result, {}, None, None), epochs=3)
