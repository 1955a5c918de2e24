"""The preparation job: annotation -> checked images -> the Parquet tables of one dataset."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import pandas as pd
import pyarrow.parquet as pq

from data_prep import fashionai, tables
from data_prep.annotation import Annotation, Reject, count_reasons
from data_prep.errors import InputError
from data_prep.packing import Packing, pack
from data_prep.progress import Progress, silent
from data_prep.storage import Storage
from data_prep.tables import DESCRIPTION, DRAWN_REGIONS_FILE, REGIONS_FILE, SPLITS, DatasetInfo, digest_of, write_table
from data_prep.triplets import TripletSampler
from data_prep.whole import whole_dataset


class Reader(Protocol):
    """A layout's adapter: reads what lies below `root` into rows that all have a split."""

    def __call__(self, root: Path, split_files: Path | None, seed: int) -> Annotation: ...


LAYOUTS: dict[str, Reader] = {"fashionai": fashionai.read}

EVALUATION_SHARE = 5
"""Validation and test get one fifth of the training triplets, as UT-Zap50K's lists do (200k : 40k)."""


@dataclass(frozen=True)
class Prepared:
    """What a preparation made: the dataset's description and the values too rare to be an anchor's."""

    info: DatasetInfo
    skipped: dict[str, list[tuple[str, str, int]]]
    """split -> (attribute, value, images)."""


def prepare(
    layout: str,
    root: Path,
    out: str | Path,
    *,
    split_files: Path | None = None,
    name: str | None = None,
    triplets: int = 100_000,
    epochs: int = 10,
    seed: int = 0,
    image_size: int = 224,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Prepared:
    """Turn the official files of `layout` below `root` into the tables of data_prep.tables at `out`.

    `image_size` is the packed images' short side in pixels; `triplets` are drawn for each of `epochs`
    training epochs. `out` is a folder or a URI. Equal input and seed give equal tables. A preparation that was
    stopped goes on with what it had packed when it is asked for again. `progress(title, total)` returns a function
    that is told of every step. Raises InputError for what a user can mend.
    """
    name = name or layout
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise InputError(f"name {name!r}: use letters, digits, '-' and '_' (it names a registered model)")
    for folder in (root, split_files):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
    root = root.resolve()
    with whole_dataset(out, overwrite=overwrite, inputs=(root, split_files)) as aside:
        annotation = LAYOUTS[layout](root, split_files, seed)
        if not annotation.rows:
            raise InputError(f"{root}: {_nothing_left(annotation)}")
        rows_in = len(annotation)
        rows, rejects, packing = _pack(annotation, root, aside, image_size, seed, progress)
        if rows.empty:
            raise InputError(f"{root}: none of {rows_in:,} rows has a readable image, e.g. {rejects[-1].detail}")
        assert rows_in == len(rows) + len(rejects)
        _write_labels(aside, rows, rejects)
        _write_regions(aside, root, rows, annotation)
        skipped = _write_triplets(aside, rows, annotation, triplets, epochs, seed)
        info = DatasetInfo(
            schema_version=tables.SCHEMA_VERSION,
            name=name,
            layout=layout,
            attributes=annotation.attributes,
            image_size=image_size,
            seed=seed,
            images=_per_split(rows.drop_duplicates("image_id")),
            queries=_per_split(rows[rows.role == "query"]),
            candidates=_per_split(rows[rows.role == "candidate"]),
            triplets=triplets,
            triplet_epochs=epochs,
            rows_in=rows_in,
            rejects=count_reasons(rejects),
            digest=digest_of(aside, packing.sha256),
            versions={"python": platform.python_version()}
            | {package: version(package) for package in ("numpy", "pandas", "pyarrow", "pillow")},
        )
        (aside / DESCRIPTION).write_bytes(info.model_dump_json(indent=1).encode() + b"\n")
    return Prepared(info, skipped)


def _nothing_left(annotation: Annotation) -> str:
    if not annotation.rejects:
        return "the annotation is empty"
    first = annotation.rejects[0]
    return (
        f"all {len(annotation.rejects):,} annotation rows were rejected, the first at "
        f"{first.source} line {first.line}: {first.reason} ({first.detail})"
    )


def _per_split(rows: pd.DataFrame) -> dict[str, int]:
    counts = rows["split"].value_counts()
    return {split: int(counts.get(split, 0)) for split in SPLITS}


def _pack(
    annotation: Annotation,
    root: Path,
    aside: Storage,
    image_size: int,
    seed: int,
    progress: Progress,
) -> tuple[pd.DataFrame, list[Reject], Packing]:
    """Pack all images; rows of a refused one become rejects. Adds image_id, width and height to the rows."""
    rows = annotation.frame()
    rows["image_id"] = pd.factorize(rows["path"], sort=True)[0]
    images = rows.drop_duplicates("image_id").sort_values("image_id")[["image_id", "path", "split"]]
    packing = pack(images, root, aside, image_size, seed, progress)
    rejects = list(annotation.rejects)
    for row in rows.merge(packing.refused, on="image_id").itertuples():
        rejects.append(Reject(str(row.source), int(row.line), str(row.reason), str(row.detail)))  # type: ignore[arg-type]
    rows = rows.merge(packing.sizes, on="image_id").sort_values(["image_id", "attribute"], kind="stable")
    return rows, rejects, packing


def _write_labels(aside: Storage, rows: pd.DataFrame, rejects: list[Reject]) -> None:
    images = rows.drop_duplicates("image_id")
    write_table(aside / "images.parquet", {n: images[n] for n in tables.IMAGES.names}, tables.IMAGES)
    write_table(aside / "labels.parquet", {n: rows[n] for n in tables.LABELS.names}, tables.LABELS)
    retrieval = rows[rows["role"] != ""]
    columns = {n: retrieval[n] for n in tables.RETRIEVAL.names}
    write_table(aside / "retrieval.parquet", columns, tables.RETRIEVAL)
    rejected = pd.DataFrame(rejects, columns=tables.REJECTS.names)
    write_table(aside / "rejects.parquet", {n: rejected[n] for n in tables.REJECTS.names}, tables.REJECTS)


def _write_regions(aside: Storage, root: Path, rows: pd.DataFrame, annotation: Annotation) -> None:
    """Carry over where drawn images say each attribute is; photographs have no such file."""
    if not (root / DRAWN_REGIONS_FILE).is_file():
        return
    regions = pq.read_table(root / DRAWN_REGIONS_FILE).to_pandas()
    index = {attribute.name: i for i, attribute in enumerate(annotation.attributes)}
    regions["attribute"] = regions["attribute"].map(index)
    regions = regions.merge(rows.drop_duplicates("path")[["path", "image_id"]], on="path")
    regions = regions.sort_values(["image_id", "attribute"])
    write_table(aside / REGIONS_FILE, {n: regions[n] for n in tables.REGIONS.names}, tables.REGIONS)


def _write_triplets(
    aside: Storage, rows: pd.DataFrame, annotation: Annotation, n: int, epochs: int, seed: int
) -> dict[str, list[tuple[str, str, int]]]:
    """Training triplets for every epoch; one smaller set each for validation and test."""
    skipped = {}
    for number, split in enumerate(SPLITS):
        labels = rows[rows["split"] == split]
        if labels.empty:
            continue
        sampler = TripletSampler(labels)
        skipped[split] = [
            (annotation.attributes[a].name, annotation.attributes[a].values[v], images)
            for a, v, images in sampler.skipped
        ]
        if split == "train" and not len(sampler.attributes):
            raise InputError("no training triplet can be drawn: no attribute has two values, one with two images")
        train = split == "train"
        for epoch in range(epochs if train else 1):
            drawn = sampler.sample(n if train else max(1, n // EVALUATION_SHARE), [seed, number, epoch])
            part = aside / "triplets" / f"split={split}" / f"epoch={epoch}" / "part-00000.parquet"
            write_table(part, drawn.columns(), tables.TRIPLETS)
    return skipped
