"""`agman promote`, `rollback`, `report` and `export`: what is done with a trained model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import (
    MODEL,
    NEW_FILE,
    PATH,
    PATH_OR_URI,
    data_option,
    json_option,
    overwrite_option,
    split_option,
)
from pipeline.common.console import emit, progress_bar, say, show_table

if TYPE_CHECKING:
    from pipeline.registry.promotion import Decision


@click.command()
@click.argument("model")
@data_option
@split_option("compare on")
@click.option(
    "--tolerance",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="MAP that any attribute may lose, between 0 and 1.",
)
@click.option("--force", metavar="REASON", help="Promote the model whatever the scores say; the reason is recorded.")
@json_option
def promote(model: str, data: str | Path, as_json: bool, **options: Any) -> None:
    """Make MODEL champion if it beats the champion beyond noise.

    It has to beat chance, too. MODEL is NAME (its challenger), models:/NAME@ALIAS or models:/NAME/VERSION. The exit
    code is 0 after a refusal, too.
    """
    from data_prep.dataset import Dataset

    dataset = Dataset(data)
    from pipeline.registry.promotion import promote as run_promotion

    decision = run_promotion(model, dataset, progress=progress_bar, **options)
    show_decision(decision)
    emit(decision.metrics, as_json)


def show_decision(decision: Decision) -> None:
    """Show chance and the scores of the models under every attribute, and the decision."""
    from pipeline.evaluation.few import marked, meaning_for

    rows = []
    for name, score in decision.challenger_scores.items():
        cells = [marked(name, decision.queries.get(name)) or "all", f"{100 * decision.chance[name]:.2f}"]
        if one := decision.verdict.differences.get(name):
            cells.append(f"{100 * (score.mean - one.mean):.2f}")
        cells.append(f"{100 * score.mean:.2f}")
        if one:
            cells += [f"{100 * one.mean:+.2f}", f"[{100 * one.low:+.2f}, {100 * one.high:+.2f}]"]
        rows.append(cells)
    header = ["attribute", "chance", f"version {decision.version}"]
    if decision.verdict.differences:
        header = [*header[:2], f"champion ({decision.champion})", header[2], "difference", "95 %"]
    show_table(f"{decision.metric} of {decision.name}, times 100", header, rows)
    for line in meaning_for(decision.queries.values()):
        say(line)
    what = "promoted" if decision.promoted else "not promoted"
    how = f", although {decision.verdict.reason}" if decision.forced and not decision.verdict.better else ""
    say(f"{decision.name} version {decision.version} is {what}: {decision.reason}{how}")


@click.command()
@click.argument("name")
@click.option("--reason", required=True, metavar="TEXT", help="Reason for the rollback; it is recorded.")
@json_option
def rollback(name: str, reason: str, as_json: bool) -> None:
    """Make the previous champion of NAME its champion again."""
    from pipeline.registry.promotion import rollback as run_rollback

    now, before = run_rollback(name, reason)
    say(f"{name}: version {now} is the champion again, in the place of version {before}")
    emit({"champion": int(now), "rolled_back": int(before)}, as_json)


@click.command()
@click.argument("model", type=MODEL)
@data_option
@split_option("show the scores of")
@click.option(
    "--out", default=Path("report.html"), show_default=True, type=NEW_FILE, metavar="FILE", help="Page to write."
)
@json_option
def report(model: str, data: str | Path, split: str, out: Path, as_json: bool) -> None:
    """Write a page on MODEL: scores, curves, attention, galleries."""
    from data_prep.dataset import Dataset

    dataset = Dataset(data)
    from pipeline.reports.model.page import write_report

    metrics = write_report(model, dataset, out, split=split)
    say(f"page: {out.absolute()}")
    emit(metrics | {"page": str(out)}, as_json)


@click.command()
@click.argument("model", type=MODEL)
@click.option("--out", required=True, type=PATH, metavar="DIR", help="Folder to write.")
@click.option(
    "--int8",
    type=PATH_OR_URI,
    metavar="SOURCE",
    help="Write ONNX in 8 bits too, for CPUs; pictures of SOURCE, as `agman embed` takes it, calibrate it.",
)
@overwrite_option
@json_option
def export(model: str, out: Path, int8: str | Path | None, overwrite: bool, as_json: bool) -> None:
    """Write MODEL for other programs: safetensors, torch.export, ONNX."""
    from pipeline.registry.export import export as run_export
    from pipeline.retrieval.calibration import calibration_pictures

    pictures = partial(calibration_pictures, int8) if int8 else None
    exported = run_export(model, out, pictures=pictures, overwrite=overwrite)
    show_exported(exported)
    emit(exported, as_json)


def show_exported(exported: dict[str, Any]) -> None:
    """Show the files with their sizes and largest differences from the model."""
    rows = []
    for name, size in exported["files"].items():
        difference = exported["difference"].get(name)
        rows.append([name, f"{size / 1e6:.1f} MB", "" if difference is None else f"{difference:.1e}"])
    show_table(exported["out"], ["file", "size", "largest difference from the model"], rows)
    for name, cosine in exported["cosine"].items():
        say(f"{name}: mean cosine {cosine:.4f} with the model's embeddings, on pictures that did not calibrate it")
