"""What the commands tell a person about a finished preparation or training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.storage import Storage
from data_prep.tables import SPLITS
from pipeline.common.console import printable, say, show_table
from pipeline.reports.dataset.expectations import Expectations
from pipeline.reports.dataset.page import PrepSummary


def show_prepared(summary: PrepSummary, out: Path | Storage) -> dict[str, Any]:
    """Counts per split, chance and ceiling (on test if it is there), rejects, rare values; returns them as figures."""
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
            say(f"note: {split}: {rare:,} of {seen:,} values are too rare to be an anchor's (fewer than two images)")
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
