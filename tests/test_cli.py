"""The `agman` command as a user types it: help, mistakes, and what scripts rely on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Finished

from data_prep.dataset import Dataset

Command = Callable[..., Finished]


@pytest.mark.parametrize("command", ["sample", "prep", "train", "evaluate", "tune", "report", "demo"])
def test_help_shows_every_option_with_its_meaning(agman_command: Command, command: str) -> None:
    done = agman_command(command, "--help")
    assert done.code == 0
    assert "--json" in done.out
    options = [line.split()[0] for line in done.out.splitlines() if line.strip().startswith("--")]
    assert len(options) >= 3


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
        (("train", "--data", "nowhere"), "nowhere: not a prepared dataset"),
        (("train", "--data", "DATA", "margn=0.3"), "did you mean 'margin'?"),
        (("train", "--data", "DATA", "--workers", "0"), "0 is not in the range x>=1"),
        (("tune", "--data", "DATA", "--space", "margin"), "did you mean 'margins'?"),
        (("evaluate", "nowhere", "--data", "DATA"), "nowhere: no model there"),
    ],
)
def test_a_mistake_is_answered_in_one_line_and_leaves_nothing(
    agman_command: Command, dataset: Dataset, tmp_path: Path, typed: tuple[str, ...], message: str
) -> None:
    done = agman_command(*(str(dataset.path) if word == "DATA" else word for word in typed))
    assert done.code == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("agman: ")
    assert message in last
    assert done.out == ""
    assert not {path.name for path in tmp_path.iterdir()} - {"mlflow.db"}


def test_a_number_of_workers_beyond_the_cluster_is_refused(agman_command: Command, dataset: Dataset) -> None:
    done = agman_command("train", "--data", dataset.path, "--workers", 40, "backbone=resnet18", "batch_size=48")
    assert done.code == 2, done.err
    assert "--workers 40: the cluster has" in done.err


def test_sample_and_prep_print_their_figures_as_json(agman_command: Command, tmp_path: Path) -> None:
    drawn = agman_command("sample", "fashionai", "--out", "raw", "--images", 80, "--size", 32, "--json")
    assert drawn.code == 0, drawn.err
    assert json.loads(drawn.out) == {"images": 80, "labels": 80, "out": "raw"}
    prepared = agman_command(
        "prep", "fashionai", "--root", "raw", "--out", "data", "--image-size", 32, "--triplets", 50, "--json"
    )
    assert prepared.code == 0, prepared.err
    figures = json.loads(prepared.out.splitlines()[-1])
    assert (figures["rows_in"], figures["labels"], figures["rejects"]) == (80, 80, 0)
    assert figures["digest"] == Dataset(tmp_path / "data").info.digest
    assert "80 annotation rows = 80 labels + 0 rejects" in prepared.err


def test_show_config_lists_every_setting(agman_command: Command, dataset: Dataset) -> None:
    done = agman_command("train", "--data", dataset.path, "--show-config", "margin=0.3")
    assert done.code == 0
    assert "Margin of the triplet loss" in done.err
    assert "0.3" in done.err
