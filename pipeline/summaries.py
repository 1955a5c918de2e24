"""What the commands tell a person about a finished preparation or training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.annotation import REASONS
from data_prep.prepare import Prepared
from data_prep.storage import Storage
from data_prep.tables import SPLITS
from pipeline.config import TrainConfig
from pipeline.console import say, show_table

if TYPE_CHECKING:  # these two bring Ray and MLflow, which a preparation does without
    from pipeline.registry import Registered
    from pipeline.training import Trained

NAMED = 4  # of a longer list, how many are named


def show_prepared(prepared: Prepared, out: Path | Storage) -> dict[str, Any]:
    """Counts per split, rejects per reason, skipped values; returns them as figures."""
    info = prepared.info
    rows = [[s, *(f"{counts[s]:,}" for counts in (info.images, info.queries, info.candidates))] for s in SPLITS]
    show_table(f"{info.name} in {out}", ["split", "images", "queries", "candidates"], rows)
    rejected = sum(info.rejects.values())
    given = prepared.given_triplets
    parts = [f"{info.rows_in - rejected - info.repeats - given:,} labels", f"{rejected:,} rejects"]
    parts += [f"{info.repeats:,} repeats of those labels"] * (info.repeats > 0) + [f"{given:,} triplets"] * (given > 0)
    say(f"{info.rows_in:,} annotation rows = {' + '.join(parts)}")
    for reason, count in info.rejects.items():
        say(f"  {count:,} {reason}: {REASONS[reason]}")
    if rejected:
        say(f"  each with its file and line in {out / 'rejects.parquet'}")
    for split, values in prepared.skipped.items():
        if values:
            named = ", ".join(f"{attribute} {value}" for attribute, value, _ in values[:NAMED])
            more = f" and {len(values) - NAMED} more" if len(values) > NAMED else ""
            say(f"note: {split}: fewer than two images, so no anchors, of {named}{more}")
    return {
        "rows_in": info.rows_in,
        "labels": info.rows_in - rejected - info.repeats - given,
        "repeats": info.repeats,
        "rejects": rejected,
        "images": info.images,
        "queries": info.queries,
        "candidates": info.candidates,
        "digest": info.digest,
        "out": str(out),
    }


def show_settings(config: TrainConfig) -> None:
    """The resolved configuration, in the form it is typed."""
    say("settings: " + " ".join(f"{key}={_typed(value)}" for key, value in config.model_dump().items()))


def describe_settings(config: TrainConfig) -> None:
    """Every setting with its value and meaning."""
    rows = [
        [name, _typed(getattr(config, name)), (field.description or "").replace("\n", " ")]
        for name, field in TrainConfig.model_fields.items()
    ]
    show_table("settings, given as KEY=VALUE", ["key", "value", "meaning"], rows)


def _typed(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def show_trained(trained: Trained, registered: Registered) -> dict[str, Any]:
    """Where the model is and what it scored; returns the figures."""
    for name, value in trained.metrics.items():
        say(f"{name:28} {value:.4f}")
    say(f"checkpoint  {trained.checkpoint}")
    say(f"registered  {registered.uri} ({registered.alias})")
    return trained.metrics | {
        "steps": trained.steps,
        "seconds": round(trained.seconds, 1),
        "run_id": trained.run.run_id,
        "model_uri": registered.uri,
        "alias": registered.alias,
        "checkpoint": str(trained.checkpoint),
    }
