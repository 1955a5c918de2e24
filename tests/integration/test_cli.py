"""The `agman` command as a user types it: help, mistakes, and what scripts rely on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import pytest
from mlflow.tracking import MlflowClient
from support.commands import Agman

from data_prep.dataset import Dataset
from data_prep.storage import Storage
from pipeline.cli import cli
from pipeline.training.checkpoints import Checkpoints


@pytest.mark.parametrize("command", ["sample", "prep", "train", "evaluate", "tune", "report", "export", "demo"])
def test_help_shows_every_option_with_its_meaning(agman_here: Agman, command: str) -> None:
    done = agman_here(command, "--help")
    assert done.code == 0
    assert "--json" in done.out
    for option in cli.commands[command].params:
        if isinstance(option, click.Option):
            assert option.opts[0] in done.out
            assert option.help, f"{command} {option.opts[0]} does not say what it means"
            has_default = isinstance(option.default, (int, str, Path)) and not option.is_flag
            assert not has_default or option.show_default, f"{command} {option.opts[0]} does not show its default"


def test_the_bare_command_shows_the_help(agman_here: Agman) -> None:
    done = agman_here()
    assert done.code == 2
    assert "Commands:" in done.err
    assert len(done.err.splitlines()) > 8


def test_the_installed_command_answers(agman_command: Agman, tmp_path: Path) -> None:
    """In a process of its own, by the name that the package installs; the other tests here run in this one."""
    helped = agman_command("--help")
    assert (helped.code, helped.err) == (0, "")
    assert "Commands:" in helped.out
    refused = agman_command("train", "--data", "nowhere")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("agman: nowhere: not a prepared dataset")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("sampel",), "No such command 'sampel'. Did you mean 'sample'?"),
        (("sample", "fashonai", "--out", "x"), "'fashonai' is not"),
        (("sample", "fashionai", "--out", "x", "--imges", "4"), "No such option '--imges'. Did you mean '--images'?"),
        (("sample", "fashionai", "--out", "x", "--images", "none"), "'none' is not a valid integer"),
        (("sample", "fashionai"), "Missing option '--out'"),
        (("prep", "fashionai", "--root", "nowhere", "--out", "x"), "nowhere: no such folder"),
        (("prep", "fashionai", "--root", ".", "--out", "x"), "not FashionAI's layout"),
        (("prep", "deepfashion", "--root", ".", "--out", "x"), "not DeepFashion's layout"),
        (("prep", "zappos50k", "--root", ".", "--out", "x"), "not UT-Zap50K's layout"),
        (("prep", "darn", "--root", ".", "--out", "x"), "not DARN's layout"),
        (
            ("prep", "darn", "--root", ".", "--out", "x", "--crop-boxes"),
            "are for deepfashion, not for darn",
        ),
        (("prep", "deepfashion", "--root", ".", "--out", "x", "--annotation", "fine"), "no Anno_fine/train_attr.txt"),
        (("prep", "deepfashion", "--root", ".", "--out", "x", "--annotation", "rough"), "'rough' is not one of"),
        (("prep", "fashionai", "--root", ".", "--out", "x", "--max-rejects", "2"), "2.0 is not in the range 0<=x<=1"),
        (("prep", "fashionai", "--root", ".", "--out", "x", "--triplets", "10000000000"), "is not in the range"),
        (("train", "--data", "nowhere"), "nowhere: not a prepared dataset"),
        (("train", "--data", "DATA", "margn=0.3"), "did you mean 'margin'?"),
        (("train", "--data", "DATA", "--workers", "0"), "'0': at least 1, and MIN not above MAX"),
        (("tune", "--data", "DATA", "--space", "margin"), "did you mean 'margins'?"),
        (("tune", "--data", "DATA", "lr=0.1"), "the space 'margins' varies it"),
        (("train",), "Missing option '--data'"),
        (("evaluate", "x", "--data", "DATA", "--split", "train"), "'train' is not one of"),
        (("evaluate", "nowhere", "--data", "DATA"), "nowhere: no model there"),
        (("export", "nowhere", "--out", "x"), "nowhere: no model there"),
    ],
)
def test_a_mistake_is_answered_in_one_line_and_leaves_nothing(
    agman_here: Agman, dataset: Dataset, tmp_path: Path, typed: tuple[str, ...], message: str
) -> None:
    done = agman_here(*(str(dataset.path) if word == "DATA" else word for word in typed))
    assert done.code == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("agman: ")
    assert message in last
    assert done.out == ""
    assert not {path.name for path in tmp_path.iterdir()} - {"mlflow.db"}


def test_a_number_of_workers_beyond_the_cluster_is_refused(agman_here: Agman, dataset: Dataset, tmp_path: Path) -> None:
    done = agman_here("train", "--data", dataset.path, "--workers", 40, "backbone=resnet18", "batch_size=48")
    assert done.code == 2, done.err
    assert "--workers 40: the cluster has" in done.err
    assert not list(tmp_path.iterdir()), "a request that cannot be done left a run behind"


def test_ctrl_c_saves_the_training_and_ends_its_run(agman_here: Agman, dataset: Dataset, tmp_path: Path) -> None:
    """(test_train_kills.py sends the signals to processes of their own, and continues them.)"""

    def interrupt() -> None:
        deadline = time.monotonic() + 240
        while not over.wait(0.05) and time.monotonic() < deadline:
            if list(tmp_path.glob("runs/*/checkpoints/step-*")):  # the first epoch is done
                break
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    over, thread = threading.Event(), threading.Thread(target=interrupt)
    settings = ["backbone=resnet18", "embedding_dim=16", "epochs=10000", "checkpoint_every=1000000"]
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


def test_a_bar_that_nobody_reads_holds_nothing_up() -> None:
    """As in `agman train 2>&1 | head`; tqdm alone would wait for its own lock for ever."""
    script = """
import sys
from pipeline.common.console import bar_of
bar = bar_of("steps", 100)
bar.mininterval = 0
print(sys.stdin.readline(), flush=True)  # nobody reads stderr from here on
for _ in range(100):
    bar.update(1)
bar.close()
print("done", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        process.stderr.close()
        try:
            out, _ = process.communicate("go\n", timeout=60)
        finally:
            process.kill()
    assert out.split() == ["go", "done"]


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
    assert "Margin of the triplet loss" in done.err
    assert "0.3" in done.err
