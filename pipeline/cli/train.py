"""`agman train` and `agman evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_prep.words import counted
from pipeline.cli.options import (
    MODEL,
    PATH_OR_URI,
    WorkerRange,
    data_option,
    json_option,
    precision_option,
    recipe_options,
    split_option,
    storage_option,
)
from pipeline.common.console import emit, progress_bar, say, show, show_table

if TYPE_CHECKING:
    from pipeline.config.schema import TrainConfig
    from pipeline.training.train import Trained


@click.command()
@click.option("--data", type=PATH_OR_URI, metavar="OUT", help="Prepared dataset: folder or URI.")
@click.option(
    "--workers",
    default="1",
    show_default=True,
    type=WorkerRange(),
    help="DDP workers, one GPU each if there are GPUs; MIN-MAX: as many as the cluster has resources for.",
)
@storage_option
@click.option("--fresh", is_flag=True, help="Start a new training, even if the same training can be continued.")
@click.option("--show-config", is_flag=True, help="List every setting with its value and meaning, and stop.")
@recipe_options
@json_option
def train(
    data: str | Path | None,
    workers: tuple[int, int],
    preset: str | None,
    config_file: Path | None,
    storage: str | Path,
    fresh: bool,
    show_config: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train a model on Ray, log it to MLflow and register it.

    The same command continues a training that was stopped or killed.
    """
    from pipeline.config.schema import load_config

    config = load_config(config_file, settings, preset)
    if not show_config and data is None:
        raise click.UsageError("Missing option '--data'.")
    from data_prep.dataset import Dataset

    dataset = Dataset(data) if data is not None else None
    from pipeline.training.train import preview
    from pipeline.training.train import train as run_training

    if show_config or dataset is None:
        config = preview(config, dataset, workers[1])
        show_settings(config, preset)
        return emit(config.model_dump(), as_json)
    emit(show_trained(run_training(dataset, config, workers=workers, storage=storage, fresh=fresh)), as_json)


def show_settings(config: TrainConfig, preset: str | None) -> None:
    """Show what the preset says of itself, and every setting with its value, its allowed values and its meaning."""
    from pipeline.config.presets import PRESETS
    from pipeline.config.settings import described

    if preset:
        show(f"preset {preset}: {PRESETS[preset].about}")
    show_table("settings, given as KEY=VALUE", ["key", "value", "allowed", "meaning"], described(config))


def show_trained(trained: Trained) -> dict[str, Any]:
    """Show the metrics of the best checkpoint, and where the model is; return the result for --json."""
    from pipeline.common.errors import without_credentials
    from pipeline.evaluation.chance import chance_beside
    from pipeline.evaluation.few import marked, meaning_for

    shown = {  # a part of the loss that is switched off is 0; chance stands beside its score
        name: value
        for name, value in trained.metrics.items()
        if (value or not name.startswith("train/loss_")) and "chance" not in name
    }
    rows = []
    for name, value in shown.items():
        chance = chance_beside(name, trained.metrics)
        attribute = name.removeprefix("valid/map/")
        rows.append(
            [marked(name, trained.queries.get(attribute)), f"{value:.4f}", "" if chance is None else f"{chance:.4f}"]
        )
    took = f"{counted(trained.steps, 'step')} in {trained.seconds:,.0f} s"
    title = f"trained: {took}; at the epoch of the best checkpoint"
    show_table(title, ["metric", "value", "chance"], rows)
    for line in meaning_for(trained.queries.values()):
        say(line)
    say(f"checkpoint  {trained.checkpoint}")
    if trained.registered:
        say(f"registered  {trained.registered.uri} ({trained.registered.alias})")
        if trained.registered.note:
            say(f"note: {trained.registered.note}")
    say(f"mlflow      run {trained.run.run_id} in {without_credentials(trained.run.uri)}")
    return trained.metrics | {
        "steps": trained.steps,
        "seconds": round(trained.seconds, 1),
        "run_id": trained.run.run_id,
        "model_uri": trained.registered.uri if trained.registered else None,
        "alias": trained.registered.alias if trained.registered else None,
        "checkpoint": str(trained.checkpoint),
    }


@click.command()
@click.argument("model", type=MODEL)
@data_option
@split_option("score")
@precision_option("Number format of the embeddings; bf16 is faster on hardware that supports it.")
@json_option
def evaluate(model: str, data: str | Path, split: str, precision: str, as_json: bool) -> None:
    """Score MODEL on a split of a dataset.

    MODEL is models:/NAME@ALIAS, runs:/RUN_ID, a checkpoint folder or a published .pth.tar. The metrics are logged to
    the MLflow run that trained the model, if the dataset is the one it was trained on.
    """
    from data_prep.dataset import Dataset

    dataset = Dataset(data)
    from pipeline.evaluation.evaluate import evaluate as run_evaluation
    from pipeline.evaluation.log import log_evaluation
    from pipeline.registry.loading import load_with_tagger
    from pipeline.reports.evaluation import show_evaluation

    network, description, tagger = load_with_tagger(model, dataset.info.attribute_names)
    evaluation = run_evaluation(
        network, description, dataset, split, tagger=tagger, precision=precision, progress=progress_bar
    )
    show_evaluation(evaluation)
    if not evaluation.naming:
        fitting = " of this dataset's values" if tagger else ""
        say(f"note: no values were named, since the model has no prototypes{fitting}; `agman tag --data` makes some")
    emit(evaluation.metrics, as_json)  # before logging, because the store may not answer
    log_evaluation(evaluation, description, dataset)
