"""The tables of a dataset, written from a checked annotation.

A catalogue may have hundreds of millions of labels: they are sorted and written block by block, and triplets are drawn
from the file, when the annotation is no longer in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep import tables
from data_prep.annotation import TRIPLET_COLUMNS, Annotation, Reject, contained, path_codes
from data_prep.blocks import blocks_of, take
from data_prep.errors import Resumable
from data_prep.storage import Storage
from data_prep.tables import (
    NEAR_DUPLICATES_FILE,
    REGIONS_FILE,
    REVIEWED_FILE,
    SPLITS,
    UNUSED_FILE,
    DatasetInfo,
    read_labels,
    table_writer,
    write_table,
)
from data_prep.triplets import TripletSampler

DRAWN_TRIPLETS, DRAWN_EPOCHS = 100_000, 10
"""Default number of triplets per epoch and of epochs, if the dataset does not bring triplets."""

EVALUATION_SHARE = 5
"""Training triplets for each triplet of validation and of test, as in UT-Zap50K's lists (200k : 40k)."""
NO_TRIPLETS = "no training triplet can be drawn: no attribute has two values, one with two images"


def write_annotation(
    staging: Storage, annotation: Annotation, images: pd.DataFrame, regions: pd.DataFrame | None
) -> None:
    """Write all tables but the triplets and the packed images.

    `images` are the packed ones, with their sizes; `regions` those of drawn images.
    """
    write_table(staging / "images.parquet", {n: images[n] for n in tables.IMAGES.names}, tables.IMAGES)
    _write_labels(staging, annotation, images)
    rejects = pd.DataFrame(annotation.rejects, columns=list(Reject._fields))
    write_table(staging / "rejects.parquet", {n: rejects[n] for n in tables.REJECTS.names}, tables.REJECTS)
    if annotation.near_duplicates is not None:
        pairs = {name: annotation.near_duplicates[name] for name in tables.NEAR_DUPLICATES.names}
        write_table(staging / NEAR_DUPLICATES_FILE, pairs, tables.NEAR_DUPLICATES)
    if annotation.unused is not None:
        write_table(staging / UNUSED_FILE, {n: annotation.unused[n] for n in tables.UNUSED.names}, tables.UNUSED)
    if regions is not None:
        of_images = regions.merge(images[["path", "image_id"]], on="path").sort_values(["image_id", "attribute"])
        write_table(staging / REGIONS_FILE, {n: of_images[n] for n in tables.REGIONS.names}, tables.REGIONS)


def _write_labels(staging: Storage, annotation: Annotation, images: pd.DataFrame) -> None:
    """Write the labels, those that are queries or candidates, and those that a person has reviewed."""
    with ExitStack() as stack:
        write_labels = stack.enter_context(table_writer(staging / "labels.parquet", tables.LABELS))
        write_retrieval = stack.enter_context(table_writer(staging / "retrieval.parquet", tables.RETRIEVAL))
        if annotation.reviewed is not None:
            write_reviewed = stack.enter_context(table_writer(staging / REVIEWED_FILE, tables.REVIEWED))
        for rows in _in_order(annotation.rows, images):
            write_labels(rows)
            write_retrieval(rows[rows["role"] != ""])
            if annotation.reviewed is not None:
                write_reviewed(rows[contained(rows, annotation.reviewed, ["path", "attribute", "value"])])


def _in_order(rows: pd.DataFrame, images: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield rows with their image_id, in blocks that are sorted by image_id, attribute and value."""
    number = _image_ids(rows, images)
    for own in blocks_of(number):
        block = rows.iloc[own].assign(image_id=number[own].astype(np.int64))
        yield block.sort_values(["image_id", "attribute", "value"], kind="stable", ignore_index=True)


def _image_ids(rows: pd.DataFrame, images: pd.DataFrame) -> np.ndarray:
    """Return the image_id of each row (int32)."""
    codes, paths = path_codes(rows)
    once = images.drop_duplicates("path")  # only triplets use a picture in several splits
    position = pc.index_in(
        pa.array(paths, pa.large_string()), value_set=pa.array(once["path"], pa.large_string())
    ).fill_null(-1)
    number = np.append(once["image_id"].to_numpy(np.int32), np.int32(-1))[position.to_numpy()]
    pa.default_memory_pool().release_unused()  # what Arrow keeps of the table of paths
    found = take(number, codes)
    if found.min(initial=0) < 0:
        raise AssertionError(f"{int((found < 0).sum())} labels of pictures that are not among the images")
    return found


def check_written(staging: Storage, info: DatasetInfo) -> None:
    """Raise AssertionError unless the written tables hold all rows that were read."""
    written = info.repeats + info.given_triplets
    for name in ("labels.parquet", "rejects.parquet"):
        with (staging / name).open() as file:
            written += pq.read_metadata(file).num_rows
    if written != info.rows_in:
        raise AssertionError(f"{info.rows_in} rows in, but {written} written")


def write_triplets(
    staging: Storage, given: pd.DataFrame | None, images: pd.DataFrame, n: int | None, epochs: int | None, seed: int
) -> tuple[int, int]:
    """Write the triplets: those that the dataset brings, or else drawn from the labels that are written already.

    Returns the number per training epoch, and the number of epochs.
    """
    if given is not None:
        return _divide(staging, given, images, n, epochs or 1, seed)
    return _draw(staging, n or DRAWN_TRIPLETS, epochs or DRAWN_EPOCHS, seed)


def _draw(staging: Storage, n: int, epochs: int, seed: int) -> tuple[int, int]:
    """Draw training triplets for every epoch, and one smaller set each for validation and test."""
    drawn = (0, 0)
    for number, split in enumerate(SPLITS):
        with (staging / "labels.parquet").open() as file:
            labels = read_labels(file, split)
        if labels.empty:
            continue
        train = split == "train"
        sampler = TripletSampler(labels)
        del labels
        if train and not len(sampler.attributes):  # since the annotation was checked, too many pictures were refused
            raise Resumable(NO_TRIPLETS)
        for epoch in range(epochs if train else 1):
            triplets = sampler.sample(n if train else max(1, n // EVALUATION_SHARE), [seed, number, epoch])
            write_table(_triplet_file(staging, split, epoch), triplets.columns(), tables.TRIPLETS)
        drawn = (n, epochs) if train else drawn
    return drawn


def _divide(
    staging: Storage, given: pd.DataFrame, images: pd.DataFrame, n: int | None, epochs: int, seed: int
) -> tuple[int, int]:
    """Shuffle the dataset's triplets and write `n` (or all) for each training epoch, starting again at the end."""
    rng = np.random.default_rng(seed)
    per_epoch = 0
    for split in SPLITS:
        of_split = given[given["split"] == split]
        if of_split.empty:
            continue
        number = images[images["split"] == split].set_index("path")["image_id"]
        columns = {name: of_split[name].map(number).to_numpy(np.int64) for name in TRIPLET_COLUMNS[:3]}
        columns["attribute"] = of_split["attribute"].to_numpy()
        order = rng.permutation(len(of_split))
        train = split == "train"
        count = n if train and n else len(of_split)
        per_epoch = count if train else per_epoch
        for epoch in range(epochs if train else 1):
            turn = order[np.arange(epoch * count, (epoch + 1) * count) % len(order)]
            part = {name: column[turn] for name, column in columns.items()}
            write_table(_triplet_file(staging, split, epoch), part, tables.TRIPLETS)
    return per_epoch, epochs if per_epoch else 0


def _triplet_file(staging: Storage, split: str, epoch: int) -> Storage:
    return staging / "triplets" / f"split={split}" / f"epoch={epoch}" / "part-00000.parquet"
