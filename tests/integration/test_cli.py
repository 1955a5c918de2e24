"""The `agman` command as a user types it: its processes, signals, and what scripts rely on."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from support.commands import Agman

from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline.registry.loading import find_model
from pipeline.tracking.runs import tracking_uri
from pipeline.training.checkpoints import Checkpoints


def test_the_installed_command_answers(agman_command: Agman, tmp_path: Path) -> None:
    """Run in a process of its own, by the name that the package installs; the other tests run in this process."""
    helped = agman_command("--help")
    assert (helped.code, helped.err) == (0, "")
    assert "Commands:" in helped.out
    refused = agman_command("train", "--data", "nowhere")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("agman: nowhere: not a prepared dataset")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("typed", [("evaluate", "nowhere", "--data", "DATA"), ("export", "nowhere", "--out", "x")])
def test_a_model_that_does_not_exist_is_refused_in_one_line(
    agman_here: Agman, dataset: Dataset, tmp_path: Path, typed: tuple[str, ...]
) -> None:
    done = agman_here(*(str(dataset.path) if word == "DATA" else word for word in typed))
    assert (done.code, done.out) == (2, "")
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("agman: nowhere: no model there") and "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "typed",
    ["evaluate models:/agman-x@champion --data DATA", "report runs:/0a0a --data DATA", "rollback agman-x --reason r"],
)
def test_reading_says_where_it_looked_and_creates_no_store(
    agman_here: Agman, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    done = agman_here(*typed.replace("DATA", str(dataset.path)).split())
    assert done.code == 2, done.err
    (line,) = done.err.splitlines()
    assert f"sqlite:///{tmp_path / 'mlflow.db'}: no tracking store there or in a folder above" in line
    assert "MLFLOW_TRACKING_URI names a store elsewhere" in line
    assert not list(tmp_path.iterdir())


def test_the_store_of_a_folder_above_is_found(
    empty_store: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert tracking_uri() == f"sqlite:///{below / 'mlflow.db'}"
    above = empty_store(tmp_path)
    assert tracking_uri() == above
    with pytest.raises(InputError, match=f"runs:/0a: .*not found; looked in {above}; MLFLOW_TRACKING_URI names"):
        find_model("runs:/0a")
    with pytest.raises(InputError, match=f"no model is registered in {above}"):
        find_model("models:/agman-x@champion")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert tracking_uri() == f"sqlite:///{below / 'other.db'}"


def test_a_number_of_workers_beyond_the_cluster_is_refused(agman_here: Agman, dataset: Dataset, tmp_path: Path) -> None:
    done = agman_here("train", "--data", dataset.path, "--workers", 40, "backbone=tiny", "batch_size=48")
    assert done.code == 2, done.err
    assert "--workers 40: the cluster has" in done.err
    assert not list(tmp_path.iterdir()), "a request that cannot be done left a run behind"


def test_ctrl_c_saves_the_training_and_ends_its_run(agman_here: Agman, dataset: Dataset, tmp_path: Path) -> None:
    # tests/integration/test_train_kills.py sends signals to other processes and continues their trainings.

    def interrupt() -> None:
        deadline = time.monotonic() + 240
        while not over.wait(0.05) and time.monotonic() < deadline:
            if list(tmp_path.glob("runs/*/checkpoints/step-*")):  # the first epoch is done
                break
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    over, thread = threading.Event(), threading.Thread(target=interrupt)
    settings = ["backbone=tiny", "embedding_dim=16", "epochs=10000", "checkpoint_every=1000000", "threads=1"]
    thread.start()
    try:
        done = agman_here("train", "--data", dataset.path, *settings)
    finally:
        over.set()
        thread.join()
    assert done.code == 130, done.err
    said = done.err.strip().splitlines()[-1]
    stopped = re.fullmatch(r"agman: interrupted: saved at step ([\d,]+); the same command continues", said)
    assert stopped, said
    assert "Traceback" not in done.err
    (place,) = tmp_path.glob("runs/*")
    latest = Checkpoints(Storage(place / "checkpoints")).latest()
    assert latest and latest.step == int(stopped[1].replace(",", "")) >= 4
    assert json.loads((place / "outcome.json").read_text())["state"] == "stopped"
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["KILLED"]


def test_sample_and_prep_print_their_figures_as_json(agman_here: Agman, tmp_path: Path) -> None:
    drawn = agman_here("sample", "fashionai", "--out", "raw", "--images", 80, "--size", 32, "--json")
    assert drawn.code == 0, drawn.err
    assert json.loads(drawn.out) == {"images": 80, "labels": 80, "out": "raw"}
    prepared = agman_here(
        "prep", "fashionai", "--root", "raw", "--out", "data", "--image-size", 32, "--triplets", 50, "--json"
    )
    assert prepared.code == 0, prepared.err
    figures = json.loads(prepared.out.splitlines()[-1])
    assert [figures[n] for n in ("rows_in", "labels", "repeats", "rejects")] == [160, 80, 80, 0]
    assert figures["digest"] == Dataset(tmp_path / "data").info.digest
    assert "160 annotation rows = 80 labels + 80 repeats of those labels + 0 rejects" in prepared.err
    assert 0 <= figures["chance/test"] <= figures["ceiling/test"] <= 1
    assert (tmp_path / "data" / "report.html") == Path(figures["report"])
    assert "160 annotation rows" in Path(figures["report"]).read_text(encoding="utf-8")


def test_show_config_lists_every_setting(agman_here: Agman, dataset: Dataset) -> None:
    done = agman_here("train", "--data", dataset.path, "--show-config", "margin=0.3")
    assert done.code == 0
    (margin,) = [line for line in done.out.splitlines() if "Margin of the triplet loss" in line]
    assert "0.3" in margin
    assert done.err == ""
