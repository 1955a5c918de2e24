"""Losses of Ray Train's own checkpoints (Ray 2.60), for which pipeline.training.checkpoints exists.

A test that fails here means that Ray has learnt it, and that code of ours may go.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray.train
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import TorchTrainer

pytestmark = pytest.mark.slow
EVERY, STEPS, KILLED_AT = 5, 40, 33


def trainer(folder: Path, killed_at: int | None = None) -> TorchTrainer:
    """Return a training of steps that only wait, with a checkpoint after every fifth, written in the background."""

    def save(checkpoint: Checkpoint, name: str) -> Checkpoint:
        path = folder / "run" / name
        path.mkdir()
        (path / "step").write_bytes(Path(checkpoint.path, "step").read_bytes())
        return Checkpoint(path)

    def train(settings: dict[str, Any]) -> None:
        found, start = ray.train.get_checkpoint(), 0
        if found:
            start = int(Path(found.path, "step").read_text())
        with (folder / "starts").open("a") as file:
            print(start, file=file)
        for step in range(start + 1, STEPS + 1):
            time.sleep(0.05)
            if step % EVERY == 0:
                state = folder / f"state-{step}"
                state.mkdir(exist_ok=True)
                (state / "step").write_text(str(step))
                ray.train.report(
                    {"step": step},
                    checkpoint=Checkpoint(state),
                    checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
                    checkpoint_upload_fn=save,
                    delete_local_checkpoint_after_upload=False,
                )
            if step == killed_at and not start and not (folder / "killed").exists():
                (folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)

    return TorchTrainer(
        train,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            name="run",
            storage_path=str(folder),
            failure_config=ray.train.FailureConfig(max_failures=2),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )


@pytest.fixture(autouse=True)
def rays_own_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", raising=False)


def test_complete_checkpoints_of_a_killed_worker_are_forgotten(tmp_path: Path) -> None:
    """Ray's controller takes one report at a time, every two seconds; what waits is lost with the worker."""
    trainer(tmp_path, KILLED_AT).fit()
    first, second = map(int, (tmp_path / "starts").read_text().split())
    assert first == 0
    assert KILLED_AT - second > EVERY, "more steps are repeated than lie between two checkpoints"
    assert len(list((tmp_path / "run").glob("checkpoint_*"))) > 1, "the forgotten ones are never removed"


def test_a_training_whose_record_is_torn_cannot_go_on(tmp_path: Path) -> None:
    """Ray writes its record in place, so a kill in the middle leaves half of it."""
    trainer(tmp_path).fit()
    record = tmp_path / "run" / "checkpoint_manager_snapshot.json"
    record.write_text(record.read_text()[:100])
    with pytest.raises(Exception, match=r"CheckpointManager|snapshot"):
        trainer(tmp_path).fit()
