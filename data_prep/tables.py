"""The tables of a prepared dataset: their schemas, and the description in `dataset.json`.

`attribute` and `value` are 0-based indices into the description's attributes and their values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from data_prep.storage import Storage

if TYPE_CHECKING:  # whoever opens a dataset imports this module, and pandas takes time
    import pandas as pd

SCHEMA_VERSION = 1
ROW_GROUP = 1024**2
"""Rows of a row group, as PyArrow chooses it."""
SPLITS = ("train", "valid", "test")
ASEN_SPLIT, CSN_SPLIT = "ASEN's", "CSN's"
"""Origins of the splits on which results are published."""
DESCRIPTION = "dataset.json"
REPORT = "report.html"
"""Page about the dataset, made from the tables; not part of the dataset."""
UNUSED_FILE = "unused.parquet"
"""Files below the root that no row of the annotation names; only a table's dataset has it."""
NEAR_DUPLICATES_FILE = "near_duplicates.parquet"
"""Pairs of pictures that are nearly the same; datasets of an earlier version may lack it."""
REVIEWED_FILE = "reviewed.parquet"
"""Labels that a person has kept or given; only datasets with corrections have it."""
TABLES = (
    *("images.parquet", "labels.parquet", "retrieval.parquet", "regions.parquet", "rejects.parquet"),
    UNUSED_FILE,
    NEAR_DUPLICATES_FILE,
    REVIEWED_FILE,
)
"""Single files beside the description."""
REGIONS_FILE = "regions.parquet"
"""Region of each attribute in the drawn pictures of a prepared dataset."""
DRAWN_REGIONS_FILE = "drawn_regions.parquet"
"""The same table beside the pictures, with `path` instead of `image_id`. Only drawn datasets have it."""

IMAGES = pa.schema(
    [
        ("image_id", pa.int64()),
        ("path", pa.string()),
        ("split", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("group", pa.string()),
    ]
)
"""`group` names what is not divided between splits, such as a product; null where it is not known, and missing in
datasets of an earlier version."""
LABELS = pa.schema([("image_id", pa.int64()), ("attribute", pa.int16()), ("value", pa.int32()), ("split", pa.string())])
REVIEWED = pa.schema([("image_id", pa.int64()), ("attribute", pa.int16()), ("value", pa.int32())])
RETRIEVAL = pa.schema(
    [
        ("split", pa.string()),
        ("role", pa.string()),
        ("image_id", pa.int64()),
        ("attribute", pa.int16()),
        ("value", pa.int32()),
    ]
)
TRIPLETS = pa.schema(
    [("anchor", pa.int64()), ("positive", pa.int64()), ("negative", pa.int64()), ("attribute", pa.int16())]
)
PACKED = pa.schema([("image_id", pa.int64()), ("jpeg", pa.binary()), ("width", pa.int32()), ("height", pa.int32())])
REGIONS = pa.schema(
    [
        ("image_id", pa.int64()),
        ("attribute", pa.int16()),
        ("x0", pa.float32()),
        ("y0", pa.float32()),
        ("x1", pa.float32()),
        ("y1", pa.float32()),
    ]
)
UNUSED = pa.schema([("path", pa.string()), ("picture", pa.bool_())])
NEAR_DUPLICATES = pa.schema(
    [
        ("path", pa.string()),
        ("split", pa.string()),
        ("other_path", pa.string()),
        ("other_split", pa.string()),
        ("distance", pa.int32()),
        ("jpeg", pa.binary()),
        ("other_jpeg", pa.binary()),
    ]
)
"""`distance` is the number of bits in which the hashes differ; the first pairs have small copies. A picture that was
left out has no split."""
REJECTS = pa.schema([("source", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("detail", pa.string())])


Change = Literal["crop", "jitter"]
CHANGES: tuple[Change, ...] = ("crop", "jitter")
"""Random changes of training pictures that an attribute can forbid."""


class Attribute(BaseModel):
    """An attribute (such as collar design) and the names of its values, ordered by their indices."""

    model_config = ConfigDict(frozen=True)
    name: str
    values: tuple[str, ...]
    forbids: tuple[Change, ...] | None = None
    """Random changes of training pictures that would change the value; None: those that the name implies."""

    @property
    def forbidden(self) -> tuple[str, ...]:
        """Random changes that are not made of pictures with a label under this attribute."""
        if self.forbids is not None:
            return self.forbids
        implied = {"crop": ("length",), "jitter": ("color", "colour")}
        return tuple(change for change, words in implied.items() if any(word in self.name.lower() for word in words))


class DatasetInfo(BaseModel):
    """Content of `dataset.json`."""

    schema_version: int
    name: str
    layout: str
    attributes: tuple[Attribute, ...]
    image_size: int
    """Short side of the packed images, in pixels."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How models see pictures that are not square: see pictures.to_square."""
    seed: int
    images: dict[str, int]
    """Number of images per split."""
    queries: dict[str, int]
    candidates: dict[str, int]
    triplets: int
    """Triplets per training epoch."""
    triplet_epochs: int
    rows_in: int
    """Annotation rows read. Each is a label (or a given triplet), a repeat or a row of `rejects.parquet`."""
    repeats: int = 0
    """Rows that repeat another row."""
    given_triplets: int = 0
    """Triplets that the dataset brings."""
    rejects: dict[str, int]
    """Number of rejected rows per reason."""
    lost: dict[str, dict[str, int]] = {}
    """Split -> labels (or triplets), queries, candidates -> number of those that were rejected as damaged."""
    split_origin: str = ""
    """Who made the split, and with which seed; empty for datasets of an earlier version."""
    queries_of: dict[str, list[int]] = {}
    """Split -> number of queries of each attribute; empty for datasets of an earlier version."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how the annotation was read."""
    labels_digest: str = ""
    """sha256 of the labels as they were read, before corrections; empty for datasets of an earlier version."""
    corrections: dict[str, int] = {}
    """keep, change and drop -> number of such corrections of labels that were applied."""
    command: str = ""
    """Command that made the dataset; empty if it was made from Python or by an earlier version."""
    digest: str
    """sha256 of the tables' files. Datasets with equal digests are equal."""
    versions: dict[str, str]

    @property
    def attribute_names(self) -> list[str]:
        """Names of the attributes, ordered by their indices."""
        return [attribute.name for attribute in self.attributes]


def write_table(file: Storage, columns: dict, schema: pa.Schema, **options: object) -> None:
    """Write one Parquet file with exactly this schema."""
    with file.atomic_file() as path:
        pq.write_table(pa.table(columns, schema=schema), path, **options)


@contextmanager
def table_writer(file: Storage, schema: pa.Schema) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Write one Parquet file with exactly this schema, as `write_table` writes it, from any number of blocks."""
    waiting, written = schema.empty_table(), 0
    with file.atomic_file() as path, pq.ParquetWriter(path, schema) as writer:

        def write(block: pd.DataFrame) -> None:
            nonlocal waiting, written
            waiting = pa.concat_tables([waiting, pa.table({name: block[name] for name in schema.names}, schema)])
            groups = len(waiting) // ROW_GROUP * ROW_GROUP
            if groups:
                writer.write_table(waiting.slice(0, groups), ROW_GROUP)
                waiting, written = waiting.slice(groups), written + groups

        yield write
        if len(waiting) or not written:
            writer.write_table(waiting, ROW_GROUP)


def read_labels(file: pa.NativeFile, split: str) -> pd.DataFrame:
    """Return image_id, attribute and value of a split's labels."""
    table = pq.read_table(file, columns=["image_id", "attribute", "value"], filters=[("split", "=", split)])
    labels = table.to_pandas(split_blocks=True, self_destruct=True)  # else it is in memory twice
    del table
    pa.default_memory_pool().release_unused()  # Arrow keeps half as much again for itself
    return labels


def digest_of(folder: Storage, known: dict[str, str], fit: str = "crop") -> str:
    """Return the sha256 of the names and bytes of every Parquet file below `folder`, ordered by name, and of `fit`.

    `known` maps names of files that need not be read again to their sha256.
    """
    total = hashlib.sha256()
    for name in folder.files():
        if name.endswith(".parquet"):
            total.update(name.encode())
            total.update(bytes.fromhex(known[name]) if name in known else _sha256(folder / name))
    if fit != "crop":  # so that datasets of earlier versions keep their digests
        total.update(f"fit={fit}".encode())
    return total.hexdigest()


def _sha256(file: Storage) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()
