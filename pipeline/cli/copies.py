"""`agman copies`: pictures of a gallery that agree in their design."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_prep.errors import InputError
from data_prep.words import counted
from pipeline.cli.options import PATH, json_option, overwrite_option
from pipeline.common.console import emit, progress_bar, say, show_table

if TYPE_CHECKING:
    from pipeline.retrieval.copies import Copies, Limit


@click.command()
@click.argument("gallery", type=PATH)
@click.option(
    "--min-similarity", type=float, metavar="COSINE", help="Least cosine under each attribute, above 0 and at most 1."
)
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    metavar="NAME",
    help="Attribute in which pictures agree; may be given several times; by default all.",
)
@click.option(
    "--differs",
    multiple=True,
    metavar="NAME",
    help="Attribute or catalogue's column in which the two have different values; may be given several times.",
)
@click.option("--out", type=PATH, metavar="FOLDER", help="Folder to write: copies.html and copies.parquet.")
@overwrite_option
@json_option
def copies(
    gallery: Path,
    min_similarity: float | None,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find images of GALLERY that agree in design: possible copies.

    Without --min-similarity nothing is written: a table shows how many pairs each similarity gives.
    """
    from pipeline.retrieval.copies import find_copies, limits
    from pipeline.retrieval.gallery import Gallery

    opened = Gallery.open(gallery)
    if min_similarity is None:
        show_limits(limits_of := limits(opened, **options, progress=progress_bar))
        if limits_of:
            chosen = limits_of[min(1, len(limits_of) - 1)].min_similarity
            typed = [str(gallery), *(word for name in options["attributes"] for word in ("--attribute", name))]
            typed += [word for name in options["differs"] for word in ("--differs", name)]
            typed += ["--min-similarity", f"{chosen:g}", "--out", str(out or "copies")]
            say(f"choose one, e.g.: agman copies {shlex.join(typed)}")
        emit({"limits": [asdict(one) for one in limits_of]}, as_json)
        return
    if out is None:
        raise InputError("--min-similarity needs --out FOLDER, where the page and the table are written")
    from pipeline.reports.copies import check_copies_out, write_copies

    check_copies_out(out, opened, overwrite)
    found = find_copies(opened, min_similarity, **options, progress=progress_bar)
    page = write_copies(found, out, overwrite)
    emit(show_copies(found, page), as_json)


def show_limits(found: list[Limit]) -> None:
    """Show what every similarity gives."""
    rows = [
        [f"{one.min_similarity:.4f}", *(f"{n:,}" for n in (one.pairs, one.pictures, one.groups, one.largest))]
        for one in found
    ]
    header = ["--min-similarity", "pairs", "pictures", "groups", "largest group"]
    show_table("pairs of pictures that agree, the same photographs among them", header, rows)


def show_copies(found: Copies, page: Path) -> dict[str, Any]:
    """Show the numbers of pairs and groups; return the result for --json."""
    same, same_groups = int(found.same.sum()), sum(group.same_photograph for group in found.groups)
    pairs, groups = len(found.same) - same, len(found.groups) - same_groups
    say(
        f"{counted(pairs, 'pair')} in {counted(groups, 'group')}, and {counted(same, 'pair')} of the same photograph "
        f"in {counted(same_groups, 'group')}, among {counted(len(found.gallery), 'picture')}"
    )
    if found.unreadable:
        say(f"note: {counted(len(found.unreadable), 'picture')} of the pairs cannot be read now")
    say(f"page: {page.absolute()}")
    return {
        "pictures": len(found.gallery),
        "pairs": pairs,
        "groups": groups,
        "same_photograph": same,
        "same_photograph_groups": same_groups,
        "unreadable": len(found.unreadable),
        "page": str(page),
    }
