"""The page on a model: its content as plain values, rendered by the template."""

from __future__ import annotations

import platform
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mlflow.exceptions import MlflowException

import agman
from data_prep import atomic
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline.common.console import say
from pipeline.config.schema import TrainConfig, without_effect
from pipeline.evaluation.chance import GUESSING
from pipeline.evaluation.evaluate import Evaluation, evaluate
from pipeline.registry.loading import load_with_tagger, shown
from pipeline.reports import charts
from pipeline.reports.evaluation import map_table, naming_table, triplet_table
from pipeline.reports.html import render
from pipeline.reports.model.attention import Attention, attention
from pipeline.reports.model.confusion import Confusion, confusions
from pipeline.reports.model.embedding_map import embedding_maps
from pipeline.reports.model.galleries import AttributeGallery, galleries
from pipeline.reports.model.scores import ScoreTable, score_table
from pipeline.reports.model.study import StudySection, study_section
from pipeline.reports.model.triplets import AttributeTriplets, shown_triplets
from pipeline.tracking import runs as tracking

if TYPE_CHECKING:
    from pipeline.tuning.tune import StudyResult

LOSSES = ("train/loss", "train/loss_triplet", "train/loss_class", "train/loss_pairs", "train/loss_proxy")


@dataclass(frozen=True)
class ModelPage:
    """Content of the template."""

    dataset: str
    drawn: bool
    """Whether the images are drawn, not photographs."""
    other_dataset: bool
    """Whether the model was trained on another dataset than the one it is scored on."""
    model: str
    run_id: str | None
    split: str
    made: datetime
    metrics: dict[str, float]
    paper: tuple[str, list[str], list[list[str]]]
    """Table as the papers print it; see map_table and triplet_table."""
    scores: ScoreTable | None
    """None if the dataset gives triplets and no queries; only then there are `triplets`."""
    naming: tuple[str, list[str], list[list[str]]] | None
    """Title, header and rows of the named values; None if the model has no prototypes."""
    curves: list[charts.Chart]
    attention: Attention
    galleries: list[AttributeGallery]
    triplets: list[AttributeTriplets]
    confusions: list[Confusion]
    maps: list[charts.Chart]
    study: StudySection | None
    settings: dict[str, Any]
    facts: dict[str, str]
    commands: list[str]


def write_report(
    model: str,
    dataset: Dataset,
    out: Path,
    *,
    split: str = "test",
    study: StudyResult | None = None,
    evaluation: Evaluation | None = None,
) -> dict[str, float]:
    """Write one self-contained HTML page on `model` to `out`, and return the metrics of the evaluation.

    `model` is a registry URI, a run's URI or a checkpoint folder. It is scored on `split`, unless its
    `evaluation` is given. The page of a registered model or a run is also logged to the run that trained it, as
    `report/DATASET-SPLIT.html`. Raises InputError if the model does not exist, or the page cannot be written.
    """
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; give a file")
    network, description, tagger = load_with_tagger(model, dataset.info.attribute_names)
    evaluation = evaluation or evaluate(network, description, dataset, split, tagger=tagger)
    page = ModelPage(
        dataset=dataset.info.name,
        drawn=dataset.drawn,
        other_dataset=description["dataset_digest"] != dataset.info.digest,
        model=shown(model),
        run_id=description["run_id"],
        split=evaluation.split,
        made=datetime.now(UTC),
        metrics={name.split("/", 1)[1]: value for name, value in evaluation.metrics.items()},
        paper=map_table(evaluation) if evaluation.results else triplet_table(evaluation),
        scores=score_table(evaluation, dataset.info.attribute_names) if evaluation.results else None,
        naming=naming_table(evaluation) if evaluation.naming else None,
        curves=_curves(description["run_id"]),
        attention=attention(network, description["image_size"], dataset, evaluation),
        galleries=galleries(evaluation, dataset) if evaluation.results else [],
        triplets=[] if evaluation.results else shown_triplets(evaluation, dataset),
        confusions=confusions(evaluation, dataset),
        maps=embedding_maps(evaluation, dataset),
        study=study_section(study) if study else None,
        settings=description["training"],
        facts=_facts(dataset, network, description),
        commands=commands(shown(model), dataset, out, evaluation.split, description["training"]),
    )
    _write(out, render("report.html.j2", page))
    if model.startswith(("models:/", "runs:/")):
        _send(out, description["run_id"], f"report/{dataset.info.name}-{evaluation.split}.html")
    return evaluation.metrics


def _send(page: Path, run_id: str | None, name: str) -> None:
    """Log the page to the run that trained the model. If the store does not answer, only say so."""
    try:
        run = tracking.find_run(run_id)
    except (InputError, MlflowException) as error:
        return say(f"note: the page is not logged to MLflow ({tracking.reason(error)})")
    if run:
        run.log_page(Storage(page), name)


def _write(out: Path, html: str) -> None:
    """Write the page atomically. Raises InputError if it cannot be written."""
    try:
        with atomic.file(out) as staging:
            staging.write_text(html, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from error


def _curves(run_id: str | None) -> list[charts.Chart]:
    """Draw the curves of the training, if this tracking store has them."""
    run = tracking.find_run(run_id)
    if not run:
        return []
    with tracking.answering():
        histories = {name: tracking.metric_history(run, name) for name in LOSSES}
        losses = {name: history for name, history in histories.items() if any(value for _, value in history)}
        scores = {"MAP": tracking.metric_history(run, "valid/map")}
        scores = (
            scores if scores["MAP"] else {"triplet accuracy": tracking.metric_history(run, "valid/triplet_accuracy")}
        )
        chances = dict(tracking.metric_history(run, "valid/chance")).values()
    chance = next(iter(chances), None) if "MAP" in scores else GUESSING
    valid = [charts.validation(history, name, chance) for name, history in scores.items() if history]
    return ([charts.losses(losses)] if losses else []) + valid


def _facts(dataset: Dataset, network: agman.RetrievalModel, description: dict[str, Any]) -> dict[str, str]:
    info = dataset.info
    return {
        "images": ", ".join(f"{count:,} {split}" for split, count in info.images.items()),
        "image size": f"{description['image_size']} px (packed: {info.image_size} px)",
        "made square by": description.get("fit", "crop"),
        "pixels": network.pixels.words,
        "triplets": f"{info.triplets:,} in an epoch; epochs prepared: {info.triplet_epochs}",
        "dataset digest": info.digest,
        "trained on digest": description["dataset_digest"] or "unknown",
        "MLflow run": description["run_id"] or "none",
        "parameters": f"{sum(parameter.numel() for parameter in network.parameters()):,}",
        "software": f"agman-pipeline {version('agman-pipeline')}, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}",
    }


def commands(model: str, dataset: Dataset, out: Path, split: str, training: dict[str, Any]) -> list[str]:
    """Return the commands that lead from the dataset's official files (in DIR) to this page."""
    info, data = dataset.info, shlex.quote(str(dataset.path))
    unread = without_effect(TrainConfig.model_construct(**training))  # `agman train` would refuse them
    settings = [f"{key}={value}" for key, value in training.items() if value is not None and key not in unread]
    trained = [f"agman train --data {data} {shlex.join(settings)}"] if training else []
    table = " --table FILE --image COLUMN --attribute NAME" if info.layout == "table" else ""
    return [
        info.command
        or f"agman prep {info.layout} --root DIR{table} --out {data} --name {info.name} --image-size {info.image_size} "
        f"--triplets {info.triplets} --epochs {info.triplet_epochs} --seed {info.seed} --fit {info.fit}",
        *trained,
        f"agman evaluate {shlex.quote(model)} --data {data} --split {split}",
        f"agman report {shlex.quote(model)} --data {data} --split {split} --out {shlex.quote(str(out))}",
    ]
