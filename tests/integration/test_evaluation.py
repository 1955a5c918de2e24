"""`agman evaluate` and the model registry: what the command logs, and which models it finds."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient
from support.commands import agman_exit_code
from support.registered import STEP, register_random

from agman.tagger import TAGGER
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline.common.errors import JobFailed
from pipeline.evaluation.evaluate import Evaluation, evaluate
from pipeline.evaluation.log import log_evaluation
from pipeline.registry.loading import find_model, load, load_with_tagger
from pipeline.registry.models import Registered, register
from pipeline.registry.prototypes import add_prototypes
from pipeline.reports.model.page import write_report
from pipeline.tracking.runs import Run, find_run, metric_history, start_run


@pytest.fixture(scope="module")
def registered(store: Path, dataset: Dataset) -> Registered:
    return register_random(dataset, store, seed=1)


@pytest.fixture(scope="module")
def run(registered: Registered) -> Run:
    """The run that the registered model says it was trained in."""
    found = find_run(load(registered.uri)[1]["run_id"])
    assert found
    return found


@pytest.fixture(scope="module")
def scored(registered: Registered, dataset: Dataset) -> Evaluation:
    return evaluate(*load(registered.uri), dataset, threads=1)


def describe(dataset: Dataset, run: Run) -> dict[str, Any]:
    return {"step": STEP, "dataset_digest": dataset.info.digest, "run_id": run.run_id}


def test_the_command_scores_a_registered_model_and_logs_to_its_run(
    registered: Registered, run: Run, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agman_exit_code("evaluate", "models:/agman-tiny@champion", "--data", dataset.path, "--json") == 0
    said = capsys.readouterr()
    printed = json.loads(said.out.splitlines()[-1])
    logged = MlflowClient(run.uri).get_run(run.run_id).data.metrics
    name = dataset.info.attribute_names[0]
    for metric in ("map", "map_low", "map_high", f"map_low/{name}", "triplet_accuracy", f"triplet_loss/{name}"):
        assert logged[f"test/{metric}"] == printed[f"test/{metric}"], metric
    assert logged.keys() >= printed.keys()
    assert metric_history(run, "test/map_low") == [(STEP, printed["test/map_low"])]
    assert "MAP on test" in said.err and "not to be compared" in said.err


def test_the_page_on_a_registered_model_is_an_artifact_of_its_run(
    registered: Registered, run: Run, scored: Evaluation, dataset: Dataset, tmp_path: Path
) -> None:
    client = MlflowClient(run.uri)
    write_report(str(find_model(registered.uri)), dataset, tmp_path / "page.html", evaluation=scored)
    assert client.list_artifacts(run.run_id, "report") == []  # a folder is nobody's version
    write_report(registered.uri, dataset, tmp_path / "page.html", evaluation=scored)
    copy = client.download_artifacts(run.run_id, "report/tiny-test.html", str(tmp_path))
    assert Path(copy).read_text() == (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("changes", "precision", "note"),
    [
        ({"dataset_digest": "another"}, "fp32", "another dataset than the model's own"),
        ({"run_id": "0" * 32}, "fp32", f"has no run {'0' * 32}"),
        ({}, "bf16", "metrics of bf16 are not logged"),
    ],
)
def test_a_note_says_why_metrics_are_not_logged(
    scored: Evaluation,
    dataset: Dataset,
    tracking_store: str,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    precision: str,
    note: str,
) -> None:
    mine = start_run(dataset.info, "training", {})
    of_precision = Evaluation(**(vars(scored) | {"precision": precision}))
    log_evaluation(of_precision, describe(dataset, mine) | changes, dataset)
    assert note in capsys.readouterr().err
    assert not MlflowClient(mine.uri).get_run(mine.run_id).data.metrics


def test_a_run_that_refuses_the_metrics_is_reported_in_one_line(
    scored: Evaluation, dataset: Dataset, tracking_store: str
) -> None:
    mine = start_run(dataset.info, "training", {})
    MlflowClient(mine.uri).delete_run(mine.run_id)
    with pytest.raises(JobFailed, match=f"could not be logged to run {mine.run_id}") as failed:
        log_evaluation(scored, describe(dataset, mine), dataset)
    assert "\n" not in str(failed.value)


def test_metrics_are_printed_even_if_the_store_does_not_answer(
    registered: Registered,
    store: Path,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:sesame@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert agman_exit_code("evaluate", store / "model-1", "--data", dataset.path, "--json") == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["test/queries"] == dataset.info.queries["test"]
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("agman: MLFLOW_TRACKING_URI=http://127.0.0.1:9: the tracking store does not answer")
    assert "sesame" not in said.err


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("models:/agman-tyni@champion", "did you mean 'agman-tiny'?"),
        ("models:/agman-tiny@champ", "there are @champion, 1"),
        ("models:/agman-tiny/12", "there are @champion, 1"),
    ],
)
def test_the_message_about_a_missing_model_names_the_existing_ones(
    registered: Registered, model: str, hint: str
) -> None:
    with pytest.raises(InputError, match=re.escape(hint)) as error:
        find_model(model)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{model}: ")


def test_the_message_about_other_attributes_names_them(registered: Registered, dataset: Dataset) -> None:
    names = dataset.info.attribute_names
    with pytest.raises(InputError) as error:
        load("models:/agman-tiny@champion", ["colour", *names[1:], "shape"])
    assert str(error.value) == (
        "models:/agman-tiny@champion: trained for other attributes: it lacks colour, shape; it has besides skirt_length"
    )
    with pytest.raises(InputError, match="the same in another order, skirt_length, sleeve_length"):
        load("models:/agman-tiny@champion", names[::-1])


def test_prototypes_travel_into_the_version_and_what_they_name_is_logged(
    dataset: Dataset, tracking_store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = register_random(dataset, tmp_path, seed=2)
    run = find_run(load(plain.uri)[1]["run_id"])
    assert run
    names, checkpoint = dataset.info.attribute_names, tmp_path / "model-2"
    MlflowClient(tracking_store).delete_registered_model("agman-tiny")
    add_prototypes(checkpoint, dataset, run, Storage(f"memory://{tmp_path.name}/checkpoint"))
    assert (Storage(f"memory://{tmp_path.name}/checkpoint") / TAGGER).read_bytes() == (checkpoint / TAGGER).read_bytes()
    made = register(checkpoint, "tiny", run)
    network, description, tagger = load_with_tagger(made.uri, names)
    assert tagger and list(tagger.namers) == names and tagger.dataset_digest == dataset.info.digest
    valid = dict(metric_history(run, "valid/tag_accuracy"))[STEP]
    card = MlflowClient(tracking_store).get_model_version("agman-tiny", str(made.version)).description
    assert f"| mean | {100 * valid:.2f} |" in card
    again = register(checkpoint, "tiny", run)
    assert again.version == made.version and "equal weights" in again.note

    capsys.readouterr()
    assert agman_exit_code("evaluate", made.uri, "--data", dataset.path, "--json") == 0
    said = capsys.readouterr()
    printed = json.loads(said.out.splitlines()[-1])
    assert "Values named on test" in said.err and "no values were named" not in said.err
    expected = evaluate(network, description, dataset, tagger=tagger, threads=1).naming[names[0]]
    assert printed[f"test/tag_accuracy/{names[0]}"] == pytest.approx(expected.accuracy, abs=0.02)
    assert metric_history(run, "test/tag_accuracy") == [(STEP, printed["test/tag_accuracy"])]
    mlflow.pyfunc.load_model(made.uri)  # which has the file and does not mind it

    assert agman_exit_code("export", made.uri, "--out", tmp_path / "exported", "--json") == 0
    assert TAGGER in json.loads(capsys.readouterr().out.splitlines()[-1])["files"]
    exported = load_with_tagger(str(tmp_path / "exported"), names)[2]
    assert exported and exported.to_bytes() == tagger.to_bytes()


def test_a_dataset_without_labels_costs_a_note(
    dataset: Dataset, tracking_store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = find_run(load(register_random(dataset, tmp_path, seed=2).uri)[1]["run_id"])
    assert run
    shutil.copytree(dataset.path, tmp_path / "data")
    labels = tmp_path / "data" / "labels.parquet"
    pq.write_table(pq.read_table(labels).slice(0, 0), labels)
    add_prototypes(tmp_path / "model-2", Dataset(tmp_path / "data"), run)
    assert "the model cannot name values" in capsys.readouterr().err
    assert not (tmp_path / "model-2" / TAGGER).exists()
