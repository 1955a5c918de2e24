"""A training on Ray Train with two workers, MLflow and the registry, against one in a plain process."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from ray.train import UserCallback

import agman
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError
from pipeline.cli.train import show_trained
from pipeline.config.schema import TrainConfig
from pipeline.evaluation.evaluate import Evaluation, evaluate
from pipeline.evaluation.log import log_evaluation
from pipeline.registry import models as registry
from pipeline.registry.loading import find_model, load
from pipeline.tracking import runs as tracking
from pipeline.training.train import Trained, train
from pipeline.training.trainer import EpochEnd, Training, WorkerContext

CONFIG = TrainConfig(
    backbone="tiny",
    embedding_dim=16,
    batch_size=12,
    epochs=2,
    lr=1e-4,
    proxy_weight=0.5,
    precision="fp32",
    micro_batches=2,
    threads=1,
    seed=11,
)


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


@pytest.fixture(scope="module")
def two_workers(ray_started: None, store: Path, dataset: Dataset) -> Trained:
    class Written(UserCallback):  # a local class, which is sent to Ray Train's controller as it is
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            with (store / "reported.jsonl").open("a") as file:
                print(json.dumps([run_context.run_config.name, *metrics]), file=file)

    return train(dataset, CONFIG, workers=2, storage=store / "runs", name="two", callbacks=[Written()])


def folder_of(trained: Trained) -> Path:
    assert trained.checkpoint.local
    return trained.checkpoint.local


def test_two_ddp_workers_give_the_weights_of_one_process(
    two_workers: Trained, dataset: Dataset, tmp_path: Path
) -> None:
    """The same global batches in the same micro-batches."""
    alone = Training(CONFIG, dataset, WorkerContext())
    ends: list[EpochEnd] = []

    def epoch_end(end: EpochEnd) -> None:
        ends.append(end)
        folder = tmp_path / str(end.epoch)
        folder.mkdir()
        alone.snapshot(end).write(folder)

    assert alone.run(epoch_end=epoch_end) == "finished"
    epoch = max(ends, key=lambda end: end.metrics["valid/map"]).epoch
    kept, _ = agman.load_model(folder_of(two_workers))
    expected, _ = agman.load_model(tmp_path / str(epoch))
    assert two_workers.steps == 8
    assert largest_difference(kept.state_dict(), expected.state_dict()) <= 1e-6
    assert two_workers.metrics["train/loss"] == pytest.approx(ends[epoch - 1].metrics["train/loss"], abs=1e-6)
    assert two_workers.metrics["valid/map"] == pytest.approx(ends[epoch - 1].metrics["valid/map"], abs=1e-6)


def test_callbacks_of_ray_train_hear_of_every_epoch_on_every_worker(two_workers: Trained, store: Path) -> None:
    lines = [json.loads(line) for line in (store / "reported.jsonl").read_text().splitlines()]
    assert {name for name, *_ in lines} == {"two"}  # Ray's API lists the training by its folder's name
    epochs = [reports for _, *reports in lines]
    assert [[(each["epoch"], each["step"]) for each in reports] for reports in epochs] == [[(1, 4)] * 2, [(2, 8)] * 2]
    assert two_workers.metrics.items() <= max(epochs, key=lambda reports: reports[0]["valid/map"])[0].items()


def test_the_run_is_in_mlflow_with_its_configuration_and_metrics(two_workers: Trained, dataset: Dataset) -> None:
    run = MlflowClient(two_workers.run.uri).get_run(two_workers.run.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["margin"] == "0.2"
    assert run.data.params["workers"] == "2"
    assert run.data.tags["dataset_digest"] == dataset.info.digest
    assert {"train/loss", "train/loss_triplet", "train/loss_class", "valid/map"} <= run.data.metrics.keys()
    assert [step for step, _ in tracking.metric_history(two_workers.run, "train/loss")] == [4, 8]


def test_chance_and_the_doubt_are_shown_and_stored(
    two_workers: Trained, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    show_trained(two_workers)
    said = capsys.readouterr()
    lines = (said.out + said.err).splitlines()
    metrics, name = two_workers.metrics, dataset.info.attribute_names[0]
    for end in ("", f"/{name}"):
        (cells,) = [re.findall(r"[^│\s]+", line) for line in lines if f" valid/map{end} " in line]
        assert cells[1:-2] == (["(few)"] if end else [])
        assert cells[-2:] == [f"{metrics[f'valid/{one}{end}']:.4f}" for one in ("map", "chance")]
    assert any(line.startswith("note: not made champion, on validation too few queries") for line in lines)
    run = MlflowClient(two_workers.run.uri).get_run(two_workers.run.run_id)
    wanted = {"valid/chance", f"valid/chance/{name}", "valid/above_chance_low", "valid/mean_cosine"}
    assert wanted <= run.data.metrics.keys()
    outcome = json.loads((folder_of(two_workers).parents[1] / "outcome.json").read_text())
    assert run.data.tags.get("warning", "") == outcome["warning"]
    version = MlflowClient(two_workers.run.uri).get_model_version("agman-tiny", "1")
    assert "| attribute | values | validation | chance |" in version.description
    assert f"{100 * metrics[f'valid/chance/{name}']:.2f}" in version.description


def test_a_registered_model_can_be_used_by_name(two_workers: Trained, dataset: Dataset) -> None:
    first = two_workers.registered
    second = registry.register(folder_of(two_workers), dataset.info.name, two_workers.run)
    assert (first.uri, first.alias) == ("models:/agman-tiny/1", "challenger")
    assert first.note.startswith("not made champion, on validation too few queries to tell a difference from noise")
    assert (second.uri, second.alias) == (first.uri, "champion")  # it is not said to be at chance
    assert second.note == "equal weights are registered already, as version 1"
    names = dataset.info.attribute_names
    trained, _ = agman.load_model(folder_of(two_workers))
    for uri in ("models:/agman-tiny@champion", f"runs:/{two_workers.run.run_id}", str(two_workers.checkpoint)):
        model, description = load(uri, names)
        assert largest_difference(model.state_dict(), trained.state_dict()) == 0
        assert description["attributes"] == names

    scored = evaluate(trained, description, dataset)
    _check_pyfunc("models:/agman-tiny@champion", dataset, scored)


def _check_pyfunc(uri: str, dataset: Dataset, scored: Evaluation) -> None:
    """The registered model's own code gives the embeddings of the evaluation."""
    pairs = scored.pairs.head(3)
    pictures = ImageStore(dataset, "test", dataset.info.image_size).read(pairs["image_id"].to_numpy())
    rows: list[dict[str, Any]] = []
    for picture, attribute in zip(pictures, pairs["attribute"], strict=True):
        data = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(data, "PNG")
        name = dataset.info.attribute_names[attribute]
        rows.append({"image": base64.b64encode(data.getvalue()).decode(), "attribute": name})
    answer = mlflow.pyfunc.load_model(uri).predict(pd.DataFrame(rows))
    assert answer["attributes"].tolist() == [[row["attribute"]] for row in rows]
    np.testing.assert_allclose(np.concatenate(answer["embeddings"]), scored.embeddings[:3], atol=1e-5)


def test_evaluation_agrees_with_ranking_by_hand(two_workers: Trained, dataset: Dataset) -> None:
    model, description = load(str(two_workers.checkpoint), dataset.info.attribute_names)
    scored = evaluate(model, description, dataset)
    precisions = []
    pairs, embeddings = scored.pairs, scored.embeddings.numpy().astype(np.float64)
    for at, query in pairs[pairs["role"] == "query"].iterrows():
        others = pairs[(pairs["role"] == "candidate") & (pairs["attribute"] == query["attribute"])]
        order = np.argsort(-(embeddings[others.index] @ embeddings[at]), kind="stable")
        relevant = (others["value"] == query["value"]).to_numpy()[order]
        ranks = np.flatnonzero(relevant) + 1
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks) if len(ranks) else 0.0)
    assert scored.metrics["test/map"] == pytest.approx(np.mean(precisions), abs=1e-9)
    assert scored.metrics["test/queries"] == len(precisions) == dataset.info.queries["test"]
    assert 0 < scored.metrics["test/chance"] < 1
    log_evaluation(scored, description, dataset)
    logged = MlflowClient(two_workers.run.uri).get_run(two_workers.run.run_id).data.metrics
    assert logged["test/map"] == scored.metrics["test/map"]


def test_an_impossible_training_is_refused_before_anything_starts(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    config = CONFIG.model_copy(update={"micro_batches": 1})
    with pytest.raises(InputError, match="micro_batches=1 with --workers 2"):
        train(dataset, config, workers=(1, 2), storage=tmp_path / "runs", name="never")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_other_attributes_is_refused_by_name(two_workers: Trained) -> None:
    with pytest.raises(InputError, match="trained for other attributes"):
        load(str(two_workers.checkpoint), ["colour", "shape"])


@pytest.mark.parametrize("model", ["models:/agman-nobody@champion", "models:/agman-nobody/1", "runs:/0123", "nowhere"])
def test_a_model_that_is_not_there_is_one_clear_line(store: Path, model: str) -> None:
    with pytest.raises(InputError) as error:
        find_model(model)
    assert "\n" not in str(error.value)
    assert model.split("/")[-1].split("@")[0] in str(error.value)
