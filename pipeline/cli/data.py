"""`agman sample` and `agman prep`: draw a dataset, prepare a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import PATH, PATH_OR_URI, json_option, overwrite_option, seed_option
from pipeline.common.console import emit, printable, progress_bar, say, show_table

if TYPE_CHECKING:
    from data_prep.storage import Storage
    from pipeline.evaluation.expectations import Expectations
    from pipeline.reports.dataset.page import PrepSummary

LAYOUT = click.Choice(["fashionai", "deepfashion", "zappos50k", "darn"])


@click.command()
@click.argument("layout", type=LAYOUT)
@click.option("--out", required=True, type=PATH, metavar="DIR", help="Folder to write.")
@click.option("--images", default=2_000, show_default=True, type=click.IntRange(1), help="Number of images to draw.")
@click.option(
    "--size", default=224, show_default=True, type=click.IntRange(32, 2048), help="Side of the images in pixels."
)
@seed_option
@click.option("--split-files", type=PATH, metavar="DIR", help="Draw exactly the rows of this annotation instead.")
@overwrite_option
@json_option
def sample(layout: str, out: Path, as_json: bool, **options: Any) -> None:
    """Draw a dataset in LAYOUT's official files."""
    from data_prep.synthetic.samples import sample as draw_dataset

    drawn = draw_dataset(layout, out, progress=progress_bar, **options)
    say(f"{drawn.images:,} images with {drawn.labels:,} labels in {out}")
    emit({"images": drawn.images, "labels": drawn.labels, "out": str(out)}, as_json)


@click.command()
@click.argument("layout", type=LAYOUT)
@click.option("--root", required=True, type=PATH, metavar="DIR", help="Folder of the dataset.")
@click.option("--out", required=True, type=PATH_OR_URI, metavar="OUT", help="Prepared dataset to write: folder or URI.")
@click.option(
    "--split-files",
    type=PATH,
    metavar="DIR",
    help="ASEN split files or CSN triplet lists, if they are not in the root.",
)
@click.option(
    "--annotation",
    type=click.Choice(["coarse", "fine"]),
    help="DeepFashion: raw annotation to read.  [default: coarse if it exists]",
)
@click.option("--categories", is_flag=True, help="DeepFashion: add the clothing category as an attribute.")
@click.option("--crop-boxes", is_flag=True, help="DeepFashion: crop every image to its bounding box.")
@click.option("--name", metavar="NAME", help="Name of the experiment and the registered model.  [default: the layout]")
@click.option(
    "--triplets",
    type=click.IntRange(1, 100_000_000),
    help="Triplets per training epoch.  [default: 100000; all, where the dataset gives them]",
)
@click.option(
    "--epochs",
    type=click.IntRange(1, 10_000),
    help="Epochs of triplets; longer trainings repeat them.  [default: 10; 1, where the dataset gives them]",
)
@click.option(
    "--image-size",
    default=224,
    show_default=True,
    type=click.IntRange(32, 2048),
    help="Short side of packed images, pixels.",
)
@click.option(
    "--max-rejects",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Stop if more than this share of the annotation rows is rejected.",
)
@seed_option
@overwrite_option
@json_option
def prep(layout: str, root: Path, out: str | Path, as_json: bool, **options: Any) -> None:
    """Convert LAYOUT's official files to Parquet tables, triplets and packed images, and describe them on a page."""
    from data_prep.dataset import Dataset
    from data_prep.prepare import prepare

    prepare(layout, root, out, progress=progress_bar, **options)
    from pipeline.reports.dataset.page import write_prep_report

    dataset = Dataset(out)
    emit(show_prepared(write_prep_report(dataset), dataset.path), as_json)


def show_prepared(summary: PrepSummary, out: Path | Storage) -> dict[str, Any]:
    """Show counts, chance and ceiling (of test, else of valid), rejects and rare values; return the JSON result."""
    from data_prep.tables import SPLITS

    contents, info = summary.contents, summary.contents.info
    rows = [[s, *(f"{counts[s]:,}" for counts in (info.images, info.queries, info.candidates))] for s in SPLITS]
    show_table(f"{info.name} in {out}", ["split", "images", "queries", "candidates"], rows)
    for split in ("test", "valid"):
        if split in summary.expected:
            _show_expected(summary.expected[split])
            break
    say(contents.accounting)
    for rejected in contents.rejected:
        say(f"  {rejected.count:,} {rejected.reason}: {rejected.meaning}")
        for example in rejected.examples[:1]:
            say(f"    e.g. {printable(example.source)} line {example.line}: {printable(example.detail)}")
    if contents.rejected:
        say(f"  each with its file and line in {out / 'rejects.parquet'}")
    for split in contents.values[0].images if contents.values else ():
        seen, rare = (sum(getattr(one, what)(split) for one in contents.values) for what in ("seen", "too_rare"))
        if rare:
            say(f"note: {split}: {rare:,} of {seen:,} values have fewer than two images, too few for an anchor")
    say(f"page: {summary.page}")
    expected = {
        f"{what}/{split}": getattr(of_split.over_all, what)
        for what in ("chance", "ceiling")
        for split, of_split in summary.expected.items()
    }
    return {
        "rows_in": info.rows_in,
        "labels": sum(contents.labels.values()),
        "repeats": info.repeats,
        "rejects": contents.rejects,
        "images": info.images,
        "queries": info.queries,
        "candidates": info.candidates,
        "digest": info.digest,
        "out": str(out),
        **expected,
        "report": str(summary.page),
    }


def _show_expected(expected: Expectations) -> None:
    rows = [
        [one.name, f"{one.queries:,}", f"{one.candidates:,}", f"{one.chance:.4f}", f"{one.ceiling:.4f}"]
        for one in (*expected.attributes, expected.over_all, expected.macro)
    ]
    title = f"MAP to expect on {expected.split}: of a random ranking, and at most"
    show_table(title, ["attribute", "queries", "candidates", "chance MAP", "ceiling"], rows)
