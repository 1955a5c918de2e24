"""`agman audit`: labels that look wrong, and a page to go through them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_prep.words import counted
from pipeline.cli.options import MODEL, PATH, data_option, json_option, overwrite_option
from pipeline.common.console import emit, printable, progress_bar, say, show_table

if TYPE_CHECKING:
    from pipeline.evaluation.audit import Audit
    from pipeline.reports.audit import Written

MOST = 5
"""Pairs of values that are listed."""


@click.command()
@click.argument("model", type=MODEL)
@data_option
@click.option(
    "--out", default=Path("audit"), show_default=True, type=PATH, metavar="DIR", help="Folder to write: page and table."
)
@click.option(
    "--attribute", "attributes", multiple=True, metavar="NAME", help="May be given several times; by default all."
)
@overwrite_option
@json_option
def audit(model: str, data: str | Path, out: Path, attributes: tuple[str, ...], overwrite: bool, as_json: bool) -> None:
    """Find labels of OUT that look wrong to MODEL.

    They are written to a page, to go through them with the keyboard. Its corrections are applied by `agman prep …
    --corrections FILE`.
    """
    from data_prep.dataset import Dataset

    dataset = Dataset(data)
    from pipeline.evaluation.audit import audit as run_audit
    from pipeline.registry.loading import load, shown
    from pipeline.reports.audit import check_audit_folder, write_audit

    check_audit_folder(out, dataset, overwrite)
    network, description = load(model, dataset.info.attribute_names)
    found = run_audit(network, description, dataset, attributes, progress=progress_bar)
    emit(show_audit(found, write_audit(found, shown(model), out, overwrite=overwrite)), as_json)


def show_audit(found: Audit, written: Written) -> dict[str, Any]:
    """Show counts of every attribute and the values that are mixed up; return the result for --json."""
    from pipeline.evaluation.audit import ALONE, KINDS, NEAR_DUPLICATE

    rows = [
        [one.name, f"{one.labels:,}", f"{one.contradicted:,}", f"{one.wrong:,.0f}", f"{one.unjudged:,}"]
        for one in found.attributes
    ]
    header = ["attribute", "labels", "contradicted", "wrong, estimated", "not judged"]
    show_table(f"labels of {found.dataset.info.name}", header, rows)
    say(
        f"near-duplicates with different labels: {found.count(NEAR_DUPLICATE):,}; labels of pictures like no other: "
        f"{found.count(ALONE):,}"
    )
    if found.dataset.near_duplicates is None:
        say("note: the dataset has no table of near-duplicates; `agman prep` again makes one")
    if found.unlabelled:
        names = ", ".join(map(printable, found.unlabelled))
        say(f"note: not audited, for lack of labelled pictures of two values: {names}")
    pairs = sorted((pair for one in found.attributes for pair in one.mixed_up), key=lambda pair: -pair.share)
    for pair in pairs[:MOST]:
        first, second = map(printable, pair.values)
        say(f"hardly told apart: {pair.attribute} {first} and {second} ({100 * pair.share:.0f} % taken for the other)")
    say(f"page: {written.page.absolute()}, with {written.shown:,} of {counted(len(found.findings), 'finding')}")
    say(f"table: {written.table.absolute()}")
    return {
        **{kind: found.count(kind) for kind in KINDS},
        **{f"wrong/{one.name}": one.wrong for one in found.attributes},
        "not_told_apart": [[pair.attribute, *pair.values, pair.share] for pair in pairs],
        "shown": written.shown,
        "page": str(written.page),
        "table": str(written.table),
    }
