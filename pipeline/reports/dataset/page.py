"""The page on a prepared dataset: its content as plain values, rendered by the template."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.dataset import Dataset
from data_prep.storage import Storage
from data_prep.tables import REPORT, SPLITS
from pipeline.evaluation.expectations import Expectations, expectations
from pipeline.reports.charts import DARK, LIGHT, data_uri
from pipeline.reports.dataset.charts import Distribution, distributions
from pipeline.reports.dataset.contact_sheet import Strip, contact_sheet
from pipeline.reports.dataset.contents import EXAMPLES, Contents, contents, label_differences
from pipeline.reports.html import render


@dataclass(frozen=True)
class PrepSummary:
    """Counts and expectations of a prepared dataset, for the page and for the terminal."""

    contents: Contents
    expected: dict[str, Expectations]
    """Chance and ceiling of valid and test, if they have queries."""
    page: Storage
    """File of the page."""


@dataclass(frozen=True)
class Picture:
    """One picture of a pair."""

    picture: str
    path: str
    split: str


@dataclass(frozen=True)
class Pair:
    """Two pictures that are nearly the same."""

    picture: Picture
    other: Picture
    differences: str
    """Attributes under which their labels differ, with both labels; empty for none."""
    distance: int


@dataclass(frozen=True)
class _DatasetPage:
    """Content of the template."""

    contents: Contents
    expected: dict[str, Expectations]
    drawn: bool
    tiles: dict[str, str]
    counts: dict[str, dict[str, int]]
    """Name -> split -> count; only counts that are not all 0."""
    distributions: list[Distribution]
    colours: dict[str, tuple[str, str]]
    """Split -> colour in the charts, light and dark."""
    sheet: list[Strip]
    pairs: list[Pair]
    """Near-duplicates, nearest first."""
    facts: dict[str, str]
    examples: int = EXAMPLES


def write_prep_report(dataset: Dataset) -> PrepSummary:
    """Write one self-contained HTML page on `dataset` beside its tables, and return its summary.

    The same dataset gives the same page. At most a few thousand images are read.
    """
    counted = contents(dataset)
    found = {split: expectations(dataset, split) for split in SPLITS[1:]}
    expected = {split: of_split for split, of_split in found.items() if of_split}
    page = _DatasetPage(
        contents=counted,
        expected=expected,
        drawn=dataset.drawn,
        tiles=_tiles(counted, expected),
        counts=_counts(counted),
        distributions=distributions(counted),
        colours={
            split: (LIGHT.series[i], DARK.series[i]) for i, split in enumerate(SPLITS) if counted.info.images[split]
        },
        sheet=contact_sheet(dataset),
        pairs=_pairs(dataset),
        facts=_facts(counted),
    )
    file = dataset.storage / REPORT
    file.write_bytes(render("prep_report.html.j2", page).encode())
    return PrepSummary(counted, expected, file)


def _pairs(dataset: Dataset) -> list[Pair]:
    found = dataset.near_duplicates
    if found is None:
        return []
    shown = found[found["jpeg"].notna()]
    differences = label_differences(dataset, shown)
    return [
        Pair(
            Picture(data_uri("image/jpeg", row["jpeg"]), row["path"], row["split"] or "left out"),
            Picture(data_uri("image/jpeg", row["other_jpeg"]), row["other_path"], row["other_split"] or "left out"),
            different,
            row["distance"],
        )
        for row, different in zip(shown.to_dict("records"), differences, strict=True)
    ]


def _tiles(counted: Contents, expected: dict[str, Expectations]) -> dict[str, str]:
    info = counted.info
    tiles = {"images": f"{sum(info.images.values()):,}", "attributes": f"{len(info.attributes):,}"}
    if labels := sum(counted.labels.values()):
        tiles["labels"] = f"{labels:,}"
    if info.given_triplets:
        tiles["triplets given"] = f"{info.given_triplets:,}"
    tiles["rejects"] = f"{counted.rejects:,}"
    for split, of_split in expected.items():
        tiles[f"chance MAP, {split}"] = f"{100 * of_split.over_all.chance:.2f}"
        tiles[f"ceiling, {split}"] = f"{100 * of_split.over_all.ceiling:.2f}"
    return tiles


def _counts(counted: Contents) -> dict[str, dict[str, int]]:
    info = counted.info
    columns = {
        "images": info.images,
        "labels": counted.labels,
        "queries": info.queries,
        "candidates": info.candidates,
        "triplets an epoch": {split: int(counts.sum()) for split, counts in counted.triplets.items()},
    }
    return {
        name: {split: column.get(split, 0) for split in SPLITS}
        for name, column in columns.items()
        if any(column.values())
    }


def _facts(counted: Contents) -> dict[str, str]:
    info = counted.info
    return ({"command": info.command} if info.command else {}) | {
        "layout": info.layout,
        "image size": f"{info.image_size} px, the short side of a packed image",
        "fit": info.fit,
        "split": info.split_origin or "unknown",
        **({"corrections applied": counted.corrections} if info.corrections else {}),
        "epochs of triplets": f"{info.triplet_epochs:,}; longer trainings repeat them",
        "seed": str(info.seed),
        "digest": info.digest,
        "schema version": str(info.schema_version),
        "software": ", ".join(f"{name} {version}" for name, version in info.versions.items()),
    }
