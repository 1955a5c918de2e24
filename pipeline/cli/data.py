"""`agman sample` and `agman prep`: draw a dataset, prepare a dataset."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_prep.errors import InputError
from data_prep.words import counted
from pipeline.cli.options import PATH, PATH_OR_URI, json_option, overwrite_option, seed_option, typed
from pipeline.common.console import emit, printable, progress_bar, say, show_table

if TYPE_CHECKING:
    from data_prep.request import TableOptions
    from data_prep.storage import Storage
    from pipeline.evaluation.expectations import Expectations
    from pipeline.reports.dataset.page import PrepSummary

LAYOUTS = ("fashionai", "deepfashion", "zappos50k", "darn")
FRACTION = click.FloatRange(0, 0.5)
TABLE_OPTIONS = (
    "table_file",
    "image",
    "levels",
    "attributes",
    "attributes_file",
    "missing",
    "separator",
    "fold_case",
    "min_images",
    "group",
)
"""Options of `agman prep table` alone."""


@click.command()
@click.argument("layout", type=click.Choice(LAYOUTS))
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
    say(f"{counted(drawn.images, 'image')} with {counted(drawn.labels, 'label')} in {out}")
    emit({"images": drawn.images, "labels": drawn.labels, "out": str(out)}, as_json)


def table_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `agman prep table`."""
    options = (
        click.option(
            "--table",
            "table_file",
            type=PATH_OR_URI,
            metavar="FILE",
            help="table: CSV, TSV, JSON Lines or Parquet; file or URI.",
        ),
        click.option(
            "--image", metavar="COLUMN", help="table: column of pictures' paths, or a pattern such as images/{id}.jpg."
        ),
        click.option(
            "--levels", metavar="A/B", help="table: no file, a folder of folders with these names; - is none."
        ),
        click.option(
            "--attribute",
            "attributes",
            multiple=True,
            metavar="NAME[=COLUMN]",
            help="table: attribute to read; several times. Without it, what could be read is listed.",
        ),
        click.option(
            "--attributes-file", type=PATH, metavar="FILE", help="table: YAML of attributes made from columns."
        ),
        click.option("--missing", multiple=True, metavar="A,B", help="table: texts that mean that there is no label."),
        click.option("--separator", metavar="TEXT", help="table: separator of several values in one cell."),
        click.option("--fold-case", is_flag=True, help="table: texts that differ in case only are one value."),
        click.option(
            "--min-images", type=click.IntRange(1), help="table: leave out values with fewer images.  [default: 2]"
        ),
        click.option("--group", metavar="COLUMN", help="table: what is never divided between splits."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("layout", type=click.Choice([*LAYOUTS, "table"]))
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
@table_options
@click.option(
    "--near-duplicates",
    type=click.Choice(["keep", "group", "drop"]),
    help="Made split: only name them, never divide them between splits, or keep one of each.  [default: group]",
)
@click.option("--valid-share", type=FRACTION, help="Fraction of valid in a made split.  [default: 0.1]")
@click.option("--test-share", type=FRACTION, help="Fraction of test in a made split.  [default: 0.1]")
@click.option("--query-share", type=FRACTION, help="Fraction of queries in valid and test, if made.  [default: 0.2]")
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
    "--fit",
    default="crop",
    show_default=True,
    type=click.Choice(["crop", "pad", "stretch"]),
    help="How models see pictures that are not square: their middle, with white beside them, or distorted.",
)
@click.option(
    "--max-rejects",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Stop if more than this share of the annotation rows is rejected.",
)
@click.option(
    "--corrections",
    multiple=True,
    type=PATH,
    metavar="FILE",
    help="Corrected labels, as the page of agman audit writes them; several files are applied in their order.",
)
@seed_option
@overwrite_option
@json_option
def prep(layout: str, root: Path, out: str | Path, as_json: bool, **options: Any) -> None:
    """Prepare a dataset from LAYOUT's files.

    The result is Parquet tables, triplets, packed images and a page. LAYOUT is a dataset whose official files are read,
    or table for your own catalogue.
    """
    from data_prep.dataset import Dataset
    from data_prep.prepare import prepare
    from data_prep.splits import SplitFractions

    given = {name: options.pop(f"{name}_share") for name in ("valid", "test", "query")}
    fractions = SplitFractions(**{name: fraction for name, fraction in given.items() if fraction is not None})
    command = typed(click.get_current_context(), without=("as_json", "overwrite"))
    table = _table_options(layout, options)
    if table and table.table and not (table.attributes or table.attributes_file):
        propose(root, table, command, as_json)
        raise InputError("no attribute is given; the columns are listed above, with what to type")
    prepare(layout, root, out, progress=progress_bar, table=table, fractions=fractions, command=command, **options)
    from pipeline.reports.dataset.page import write_prep_report

    dataset = Dataset(out)
    emit(show_prepared(write_prep_report(dataset), dataset.path), as_json)


def _table_options(layout: str, options: dict[str, Any]) -> TableOptions | None:
    """Take the options of tables out of `options`. Returns None if the layout is another, and none is given."""
    from data_prep.request import TableOptions

    own = {name: options.pop(name) for name in TABLE_OPTIONS}
    given = {name: value for name, value in own.items() if value not in (None, (), False)}
    if layout != "table" and not given:
        return None
    given["missing"] = tuple(word.strip() for text in given.pop("missing", ()) for word in text.split(","))
    if "table_file" in given:
        given["table"] = given.pop("table_file")
    return TableOptions(**given)


def propose(root: Path, table: TableOptions, command: str, as_json: bool) -> None:
    """List how every column of a table would be read, and what to add to the command."""
    from data_prep.layouts.table_columns import column_readings, to_add

    readings = column_readings(root, table)
    rows = [
        [
            one.name,
            one.kind,
            f"{one.values:,}",
            f"{one.coverage:.0%}",
            printable(one.examples, 60),
            f"{one.option} --separator {shlex.quote(one.separator)}" if one.separator else one.option,
        ]
        for one in readings
    ]
    show_table(f"columns of {table.table}", ["column", "is", "values", "filled", "examples", "type"], rows)
    for one in readings:
        for note in one.notes:
            say(f"note: {one.name}: {note}")
    say(f"to read all of these: {command} {to_add(table, readings)}")
    emit({"columns": [vars(one) for one in readings]}, as_json)


def show_prepared(summary: PrepSummary, out: Path | Storage) -> dict[str, Any]:
    """Show counts, chance and ceiling (of test, else of valid), rejects and rare values; return the JSON result."""
    from data_prep.tables import SPLITS

    contents, info = summary.contents, summary.contents.info
    rows = [[s, *(f"{counts[s]:,}" for counts in (info.images, info.queries, info.candidates))] for s in SPLITS]
    show_table(f"{info.name} in {out}", ["split", "images", "queries", "candidates"], rows)
    for split in ("test", "valid"):
        if split in summary.expected:
            more = info.split_origin.startswith("made")
            _show_expected(summary.expected[split], f"--{split}-share and --query-share make more" if more else "")
            break
    if info.split_origin:
        say(f"split: {info.split_origin}")
    say(contents.accounting)
    for line in contents.lost:
        say(f"  {line}")
    for rejected in contents.rejected:
        say(f"  {rejected.count:,} {rejected.reason}: {rejected.meaning}")
        for example in rejected.examples[:1]:
            say(f"    e.g. {printable(example.source)} line {example.line}: {printable(example.detail)}")
    if contents.rejected:
        say(f"  each with its file and line in {out / 'rejects.parquet'}")
    for split in contents.values[0].images if contents.values else ():
        seen, rare = (sum(getattr(one, what)(split) for one in contents.values) for what in ("seen", "too_rare"))
        if rare:
            say(f"note: {split}: fewer than two images, too few for an anchor: {rare:,} of {counted(seen, 'value')}")
    if info.corrections:
        say(f"corrections applied: {contents.corrections}")
    if contents.near_duplicates:
        say(f"near-duplicates: {contents.near_duplicates}")
    for note in info.notes:
        say(f"note: {printable(note, 500)}")
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
        "corrections": info.corrections,
        "images": info.images,
        "queries": info.queries,
        "candidates": info.candidates,
        "digest": info.digest,
        "out": str(out),
        **expected,
        "report": str(summary.page),
    }


def _show_expected(expected: Expectations, more_queries: str) -> None:
    from pipeline.evaluation.few import meaning_for, query_count

    rows = [
        [one.name, query_count(one.queries), f"{one.candidates:,}", f"{one.chance:.4f}", f"{one.ceiling:.4f}"]
        for one in (*expected.attributes, expected.over_all, expected.macro)
    ]
    title = f"MAP to expect on {expected.split}: of a random ranking, and at most"
    show_table(title, ["attribute", "queries", "candidates", "chance MAP", "ceiling"], rows)
    for line in meaning_for(one.queries for one in expected.attributes):
        say("; ".join([line, more_queries] if more_queries else [line]))
