"""`agman runs`: what it lists, and what `agman runs clean` removes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.commands import Agman

from data_prep.storage import Storage
from pipeline.common.lock import locked
from pipeline.training.jobs import clean, jobs_in

SIZE = 1_000


def checkpoint(folder: Path, step: int, score: float | None) -> None:
    place = folder / "checkpoints" / f"step-{step:08d}-0123abcd"
    place.mkdir(parents=True)
    metrics = {"train/loss": 1.0} if score is None else {"valid/map": score, "valid/chance": 0.125}
    (place / "model.safetensors").write_bytes(b"x" * SIZE)
    (place / "checkpoint.json").write_text(json.dumps({"step": step, "score": score, "metrics": metrics}))


def training(folder: Path, outcome: dict[str, Any] | None, description: str = "training.json") -> None:
    for step, score in ((4, 0.25), (8, 0.5), (12, None)):
        checkpoint(folder, step, score)
    (folder / description).write_text("{}")
    (folder / "lock").touch()
    if outcome is not None:
        (folder / "outcome.json").write_text(json.dumps(outcome))


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    training(runs / "done", {"state": "finished", "registered": "models:/agman-x/1"})
    training(runs / "stopped", {"state": "stopped", "step": 12})
    training(runs / "not-registered", {"state": "finished"})
    training(runs / "killed", None)
    for name, finished in (("study-done", True), ("study-open", False)):
        training(runs / name / "final" / "trial-0", {"state": "finished"})
        (runs / name / "search.json").write_text(json.dumps({"run_id": "0", "finished": finished}))
    training(runs / "compare" / "agman-0", {"state": "finished"})
    (runs / "compare" / "comparison.json").write_text("{}")
    checkpoint(runs / "mine", 1, 0.9)  # no job of ours
    return runs


def test_trainings_and_studies_are_listed_with_state_score_and_size(agman_here: Agman, storage: Path) -> None:
    done = agman_here("runs", "--json")
    assert done.code == 0, done.err
    jobs = {Path(job["folder"]).name: job for job in json.loads(done.out)["jobs"]}
    assert {name: (job["kind"], job["state"]) for name, job in jobs.items()} == {
        "compare": ("comparison", "kept"),
        "done": ("training", "finished"),
        "killed": ("training", "unfinished"),
        "not-registered": ("training", "unfinished"),
        "stopped": ("training", "stopped"),
        "study-done": ("study", "finished"),
        "study-open": ("study", "unfinished"),
    }
    assert all((job["score"], job["chance"]) == (0.5, 0.125) and job["size"] > 3 * SIZE for job in jobs.values())
    assert "not-registered" in agman_here("runs").out


@pytest.mark.parametrize("typed", ["runs clean --storage runs", "runs --storage runs clean"])
def test_clean_removes_checkpoints_of_finished_jobs_only(agman_here: Agman, storage: Path, typed: str) -> None:
    before = {path for path in storage.rglob("*") if path.is_file()}
    foreseen = agman_here(*typed.split(), "--dry-run", "--json")
    assert {path for path in storage.rglob("*") if path.is_file()} == before
    done = agman_here(*typed.split(), "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["freed"] == json.loads(foreseen.out)["freed"] > 6 * SIZE
    gone = before - {path for path in storage.rglob("*") if path.is_file()}
    assert gone == {
        path
        for path in before
        if "checkpoints" in path.parts and {"done", "study-done"} & set(path.relative_to(storage).parts)
    }
    assert json.loads((storage / "done" / "outcome.json").read_text())["registered"] == "models:/agman-x/1"
    assert json.loads((storage / "study-done" / "search.json").read_text())["finished"] is True
    scores = {job.folder.local.name: (job.score, job.chance) for job in jobs_in(Storage(storage)) if job.folder.local}
    assert scores["done"] == scores["study-done"] == (0.5, 0.125), "they are kept"
    assert json.loads(agman_here(*typed.split(), "--json").out)["freed"] == 0


def test_a_running_job_is_left_alone(storage: Path) -> None:
    listed = {job.folder.local.name: job for job in jobs_in(Storage(storage)) if job.folder.local}
    with locked(storage / "done", "--storage"):
        (running,) = [job for job in jobs_in(Storage(storage)) if job.state == "running"]
        assert running.folder.local == storage / "done"
        assert clean(running) == clean(listed["done"]) == 0
    assert clean(listed["done"]) > 3 * SIZE


def test_a_missing_folder_is_one_line(agman_here: Agman, tmp_path: Path) -> None:
    done = agman_here("runs", "clean")
    assert done.code == 2
    assert done.err == "agman: --storage runs: no such folder; give the one that `agman train` wrote\n"
    assert not list(tmp_path.iterdir())
