"""`agman compare`: real trainings on Ray that are scored once, a command that continues, tables and page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from mlflow.tracking import MlflowClient
from playwright.sync_api import Browser
from support.commands import agman_exit_code
from support.pages import cut_off, inaccessible, open_page, small_charts

from agman.bootstrap import Difference
from agman.pooled import PooledFeatures
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline.cli.tune import show_comparison
from pipeline.compare.compare import Comparison, compare, config_of
from pipeline.compare.systems import SYSTEMS
from pipeline.config.schema import make_config
from pipeline.evaluation.evaluate import evaluate
from pipeline.reports.compare import comparison_table, write_comparison_report
from pipeline.tracking.runs import child_runs, tracking_uri
from pipeline.training.build import build_model

SETTINGS = {"backbone": "tiny", "embedding_dim": 16, "batch_size": 24, "epochs": 1, "proxy_weight": 1, "threads": 1}
ASKED = ("agman", "csn")


@pytest.fixture(scope="module")
def first(store: Path, dataset: Dataset) -> Comparison:
    """A comparison of one seed."""
    return compare(dataset, make_config(SETTINGS), systems=ASKED, seeds=1, storage=store / "runs")


@pytest.fixture(scope="module")
def compared(first: Comparison, dataset: Dataset, store: Path) -> Comparison:
    """The same comparison continued with two seeds; the second seed's records are made up, so it is not trained."""
    for key in ASKED:
        record = json.loads((first.folder / f"{key}-seed-0.json").read_text())
        record["figures"] = {name: 0.9 * value for name, value in record["figures"].items()}
        record["average_precision"] = {n: [0.9 * v for v in ap] for n, ap in record["average_precision"].items()}
        (first.folder / f"{key}-seed-1.json").write_text(json.dumps(record))
    (first.folder / "csn-seed-0.json").unlink()  # as if the command was killed before it wrote the record
    comparison = compare(dataset, make_config(SETTINGS), systems=ASKED, seeds=2, storage=store / "runs")
    write_comparison_report(comparison)
    return comparison


def test_every_system_is_built_as_its_name_says(dataset: Dataset) -> None:
    config = make_config(SETTINGS | {"sa_kernel": 3})
    sizes = {}
    for key in SYSTEMS:
        resolved = config_of(config, key, seed=5)
        assert (resolved.seed, resolved.epochs, resolved.lr) == (5, 1, config.lr)
        sizes[key] = sum(parameter.numel() for parameter in build_model(resolved, dataset).parameters())
    parts = [key for key in SYSTEMS if key.startswith("no_")]
    assert len(parts) == 6 and all(sizes[key] < sizes["agman"] for key in parts)
    assert len({sizes[key] for key in ("agman", *parts)}) == 7


def test_all_are_trained_and_scored_in_one_run(first: Comparison) -> None:
    assert [(one.system, one.seed) for one in first.scored] == [("csn", 0), ("agman", 0)]
    client = MlflowClient(tracking_uri())
    assert client.get_run(first.run.run_id).info.status == "FINISHED"
    assert len(client.get_run(first.run.run_id).inputs.dataset_inputs) == 1
    children = {one.info.run_name: one for one in child_runs(first.run)}
    assert len(children) == 2 and all(one.info.status == "FINISHED" for one in children.values())
    for key in ASKED:
        logged = children[f"{key}-seed-0"].data.metrics["test/map"]
        assert logged == pytest.approx(first.of(key)[0].metrics["test/map"])


def test_the_same_command_trains_nothing_again(first: Comparison, compared: Comparison) -> None:
    assert [(one.system, one.seed) for one in compared.scored] == [("csn", 0), ("agman", 0), ("csn", 1), ("agman", 1)]
    assert [one.metrics for one in compared.scored[:2]] == [one.metrics for one in first.scored]
    assert compared.run.run_id == first.run.run_id and len(child_runs(compared.run)) == 2
    assert len(list(compared.folder.glob("trainings/*"))) == 2
    names = {one.path for one in MlflowClient(tracking_uri()).list_artifacts(compared.run.run_id, "comparison")}
    assert {"comparison/report.html", "comparison/table.csv", "comparison/trainings.parquet"} <= names


def test_the_run_has_metrics_named_by_system(compared: Comparison) -> None:
    found = MlflowClient(tracking_uri()).get_run(compared.run.run_id).data
    logged = found.metrics
    assert logged["test/chance"] == pytest.approx(compared.chance[""])
    for key in ASKED:
        assert logged[f"{key}/test/map"] == pytest.approx(np.mean(compared.of_seeds(key, "map")))
        assert logged[f"{key}/test/map_low"] <= logged[f"{key}/test/map"] <= logged[f"{key}/test/map_high"]
    gain = compared.difference("csn")
    assert gain and (logged["csn/difference_low"], logged["csn/difference_high"]) == (gain.low, gain.high)
    assert "| result | MAP on test, times 100: CSN " in found.tags["mlflow.note.content"]


def test_the_table_shows_means_and_deviations(compared: Comparison) -> None:
    header, rows = comparison_table(compared)
    assert [row[0] for row in rows] == ["CSN", "AG-MAN", "chance"] and header[4:] == [
        f"{name} (few)" for name in compared.attributes
    ]
    chances = [one.metrics["test/chance"] for one in compared.of("csn")[:1]]
    assert rows[2][1] == f"{100 * chances[0]:.2f}" and all(rows[2][4:])
    values = [100 * one.metrics["test/map"] for one in compared.of("csn")]
    assert rows[0][1] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    gain = compared.difference("csn")
    means = [np.mean([one.metrics["test/map"] for one in compared.of(key)]) for key in ("csn", "agman")]
    assert gain and gain.mean == pytest.approx(means[0] - means[1]) and gain.low <= gain.mean <= gain.high
    assert rows[1][2] == ""
    trainings = pd.read_parquet(compared.folder / "report" / "trainings.parquet")
    assert trainings["test/map"].tolist() == [one.metrics["test/map"] for one in compared.scored]


def test_pretrained_features_are_scored_without_training(dataset: Dataset, store: Path, tmp_path: Path) -> None:
    weights = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    config = make_config(SETTINGS | {"backbone": "resnet18", "weights": str(weights)})
    found = compare(dataset, config, systems=("pretrained",), seeds=1, storage=store / "runs")
    (scored,) = found.scored
    assert scored.history == [] and not (found.folder / "trainings").exists()
    model = PooledFeatures(len(dataset.info.attributes), "resnet18", str(weights))
    expected = evaluate(model, {"image_size": dataset.info.image_size}, dataset).metrics["test/map"]
    assert scored.metrics["test/map"] == pytest.approx(expected)
    page = write_comparison_report(found).read_text()
    assert "pretrained features" in page
    with pytest.raises(InputError, match="--system pretrained: weights=none has no pretrained features"):
        compare(dataset, make_config(SETTINGS), systems=("pretrained",), seeds=1, storage=store / "runs")


def test_one_seed_shows_no_deviation(first: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    figures = show_comparison(first, first.folder / "report.html")
    said = "".join(capsys.readouterr())
    assert "times 100, one seed" in said and "±" not in said and "seeds" not in said
    assert "csn/test/map" in figures and not [name for name in figures if name.endswith("deviation")]
    assert figures["test/chance"] == pytest.approx(first.of("csn")[0].metrics["test/chance"])


def test_the_page(compared: Comparison, browser: Browser) -> None:
    file = compared.folder / "report" / "report.html"
    for scheme in ("light", "dark"):
        opened = open_page(browser, file, width=390, color_scheme=scheme)
        page = opened.page
        assert page.locator("tbody tr").count() == 3 and "not photographs" in page.text_content("header")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert cut_off(page) == [] and small_charts(page) == [] and inaccessible(page) == []
        assert page.eval_on_selector_all("img", "all => all.every(one => one.alt && one.naturalWidth)")
        assert opened.console == [] and opened.asked_for == [file.as_uri()]
        page.close()


def test_wrong_requests_are_refused(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("compare", "--data", dataset.path, "--storage", tmp_path / "runs")
    for more, said in {
        ("--system", "ansenet"): "'ansenet' is not one of 'pretrained', 'csn', 'asenet_v2'",
        ("without=asa",): "without=asa: is what a comparison varies",
        ("seed=3",): "seed=3: is what a comparison varies",
        ("image_size=512",): "image_size=512, but",
        ("--seeds", "0"): "0 is not in the range x>=1",
    }.items():
        assert agman_exit_code(*command, *more) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(InputError, match="cannot be cut into"):
        compare(dataset, make_config(SETTINGS | {"batch_size": 2}), systems=["csn"], workers=4, storage=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_the_printed_metrics_are_json(compared: Comparison) -> None:
    figures = show_comparison(compared, compared.folder / "report" / "report.html")
    assert json.loads(json.dumps(figures))["agman/test/map"] == pytest.approx(
        np.mean(compared.of_seeds("agman", "map"))
    )
    assert figures["failed"] == [] and isinstance(compared.difference("csn"), Difference)
