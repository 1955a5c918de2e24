"""`agman demo`: every step on a drawn dataset, in a few minutes on two cores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from data_prep.words import counted
from pipeline.cli.data import show_prepared
from pipeline.cli.options import PATH, json_option, overwrite_option, seed_option
from pipeline.cli.tune import show_study
from pipeline.common.console import emit, progress_bar, say
from pipeline.config.presets import PRESETS

WORKERS = 2
TRIALS = 4
IMAGE_SIZE = 64
TRIPLETS = 1_600
SETTINGS = PRESETS["strong"].settings | {
    "embedding_dim": 128,
    "batch_size": 24,
    "epochs": 4,
    # Drawn pictures of 64 px are no photographs: they need other statistics, more change, and more than 2×2 positions.
    "batch_norm": "per_micro_batch",
    "backbone_lr_scale": 0.5,
    "stride": 16,
}
TRIAL = {"epochs": 1}


@click.command()
@click.option("--out", default=Path("demo"), show_default=True, type=PATH, metavar="DIR", help="Folder to write.")
@click.option("--images", default=4_000, show_default=True, type=click.IntRange(200), help="Number of images to draw.")
@seed_option
@overwrite_option
@json_option
def demo(out: Path, images: int, seed: int, overwrite: bool, as_json: bool) -> None:
    """Run every step, from sample to report, on drawn garments."""
    emit(run_demo(out, images=images, seed=seed, overwrite=overwrite), as_json)


def run_demo(out: Path, *, images: int, seed: int, overwrite: bool) -> dict[str, Any]:
    """Sample, prep, train on two DDP workers, tune, evaluate, register and report; return the result for --json.

    `overwrite` replaces the drawn and the prepared dataset of an earlier demo in `out`.
    """
    from data_prep.cluster import ray_session
    from data_prep.dataset import Dataset
    from data_prep.prepare import prepare
    from data_prep.synthetic.samples import sample
    from pipeline.config.schema import make_config
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.evaluation.log import log_evaluation
    from pipeline.registry.loading import load_with_tagger
    from pipeline.reports.dataset.page import write_prep_report
    from pipeline.reports.evaluation import show_evaluation
    from pipeline.reports.model.page import write_report
    from pipeline.reports.study.page import write_study_report
    from pipeline.tracking.runs import tracking_uri
    from pipeline.training.train import train
    from pipeline.tuning.spaces import find_space
    from pipeline.tuning.tune import tune

    started = time.perf_counter()
    config = make_config(SETTINGS)
    with _step(f"1/6 sample: draw {counted(images, 'garment')} in FashionAI's layout"):
        options: dict[str, Any] = {"seed": seed, "overwrite": overwrite, "progress": progress_bar}
        sample("fashionai", out / "fashionai", images=images, size=IMAGE_SIZE, **options)
    with ray_session():  # one for all steps, because starting it takes seconds
        with _step("2/6 prep: official files to Parquet tables, triplets and packed images"):
            prepare(
                "fashionai",
                out / "fashionai",
                out / "data",
                name="fashionai-demo",
                triplets=TRIPLETS,
                epochs=1,
                image_size=IMAGE_SIZE,
                **options,
            )
            dataset = Dataset(out / "data")
            show_prepared(write_prep_report(dataset), dataset.path)
        storage = out / "runs"
        with _step(f"3/6 train and register: {WORKERS} DDP workers"):
            trained = train(dataset, config, workers=WORKERS, storage=storage)
        with _step(f"4/6 tune: {TRIALS} trials of the batches space"):
            study = tune(
                dataset,
                config.model_copy(update=TRIAL),
                space=find_space("batches"),
                trials=TRIALS,
                concurrent=2,
                final_seeds=0,
                storage=storage,
                seed=seed,
                write_report=write_study_report,
            )
            show_study(study)
    with _step("5/6 evaluate: queries, candidates and triplets of the test split"):
        model, description, tagger = load_with_tagger(str(trained.checkpoint), dataset.info.attribute_names)
        scored = evaluate(model, description, dataset, tagger=tagger, progress=progress_bar)
        show_evaluation(scored)
        log_evaluation(scored, description, dataset)
    registered = trained.registered
    assert registered, "a training without a parent is registered"
    page = out / "report.html"
    with _step("6/6 report"):
        write_report(registered.uri, dataset, page, study=study, evaluation=scored)
    seconds = time.perf_counter() - started

    metrics = scored.metrics
    ratio = metrics["test/map"] / metrics["test/chance"]
    say(f"\ntest MAP {metrics['test/map']:.4f}, chance {metrics['test/chance']:.4f} ({ratio:.2f} times chance)")
    say(f"triplet accuracy {metrics['test/triplet_accuracy']:.4f} (chance 0.5); {seconds:.0f} s in all")
    say(f"page    {page.absolute()}")
    say(f"mlflow  .venv/bin/mlflow ui --backend-store-uri {tracking_uri()}   (then http://127.0.0.1:5000)")
    return metrics | {
        "steps": trained.steps,
        "train/loss": trained.metrics["train/loss"],
        "run_id": trained.run.run_id,
        "model_uri": registered.uri,
        "alias": registered.alias,
        "page": str(page),
        "seconds": round(seconds, 1),
    }


@contextmanager
def _step(title: str) -> Iterator[None]:
    """Show the title before the block and its seconds after it."""
    say(f"\n== {title}")
    started = time.perf_counter()
    yield
    say(f"   {time.perf_counter() - started:.0f} s")
