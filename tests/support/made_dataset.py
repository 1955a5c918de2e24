"""A prepared dataset written row by row, whose every number is known."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from data_prep import tables
from data_prep.dataset import Dataset
from data_prep.storage import Storage
from data_prep.tables import SPLITS, Attribute, DatasetInfo, write_table

COLOURS = [(200, 30, 30), (30, 160, 30), (40, 60, 200)]
HOSTILE = "<script>document.title='gone'</script><img src=x onerror=alert(1)>\x1b[31m\x00\u202e{{ 7*7 }} \ufffd&amp;"
SHAPES = Attribute(name="shape_of_it", values=("round", "square", "<i>odd</i> $x{", "unseen"))
TONES = Attribute(name="tone", values=tuple(f"tone {n}" for n in range(41)))
Pairs = list[tuple[str, str, int, int, int]]


def jpeg(image_id: int) -> bytes:
    """Return an upright image, 32×48: the top third is white, the rest in one of three colours."""
    image = Image.new("RGB", (32, 48), COLOURS[image_id % 3])
    image.paste("white", (0, 0, 32, 16))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def info_of(**fields: Any) -> DatasetInfo:
    """Return the description of a dataset without pictures, with some fields of the test's own."""
    none: dict[str, Any] = {name: {} for name in ("images", "queries", "candidates", "rejects", "versions")}
    none |= {"attributes": (), "triplets": 0, "triplet_epochs": 1, "rows_in": 0}
    plain = {"name": "tiny", "layout": "drawn", "image_size": 32, "seed": 1, "digest": "0" * 64}
    plain["schema_version"] = tables.SCHEMA_VERSION
    return DatasetInfo(**none | plain | fields)


@dataclass
class Made:
    """Rows of a dataset to write."""

    images: dict[int, str]
    """Image index -> split."""
    attributes: tuple[Attribute, ...] = (SHAPES, TONES)
    labels: list[tuple[int, int, int]] = field(default_factory=list)
    """Image index, attribute, value."""
    pairs: Pairs = field(default_factory=list)
    """Split, role, image index, attribute, value."""
    rejects: list[tuple[str, int, str, str]] = field(default_factory=list)
    triplets: dict[str, list[tuple[int, int, int, int]]] = field(default_factory=dict)
    given: int = 0
    repeats: int = 3


def write(made: Made, where: str | Path, row_group_size: int = 4) -> Dataset:
    """Write the tables and images of a prepared dataset."""
    out = Storage(where)
    ids = list(made.images)

    def rows(name: str, schema: pa.Schema, lines: list[tuple]) -> None:
        columns = list(zip(*lines, strict=True)) or [()] * len(schema)
        write_table(out / name, dict(zip(schema.names, map(list, columns), strict=True)), schema)

    rows("images.parquet", tables.IMAGES, [(i, f"{i}.jpg", made.images[i], 32, 48, None) for i in ids])
    rows("labels.parquet", tables.LABELS, [(*label, made.images[label[0]]) for label in made.labels])
    rows("retrieval.parquet", tables.RETRIEVAL, made.pairs)
    rows("rejects.parquet", tables.REJECTS, made.rejects)
    for split in set(made.images.values()):
        rows(f"triplets/split={split}/epoch=0/part-00000.parquet", tables.TRIPLETS, made.triplets.get(split, []))
        packed = [i for i in ids if made.images[i] == split]
        columns = {"image_id": packed, "jpeg": [jpeg(i) for i in packed]}
        columns |= {"width": [32] * len(packed), "height": [48] * len(packed)}
        file = out / f"packed/split={split}/part-00000.parquet"
        write_table(file, columns, tables.PACKED, row_group_size=row_group_size)
    per_split = Counter(made.images.values())
    roles = Counter((split, role) for split, role, *_ in made.pairs)
    info = info_of(
        name="made",
        layout="darn",
        attributes=made.attributes,
        seed=7,
        images={split: per_split[split] for split in SPLITS},
        queries={split: roles[split, "query"] for split in SPLITS},
        candidates={split: roles[split, "candidate"] for split in SPLITS},
        triplets=len(made.triplets.get("train", [])),
        rows_in=len(made.labels) + made.given + made.repeats + len(made.rejects),
        repeats=made.repeats,
        given_triplets=made.given,
        rejects=dict(Counter(reject[2] for reject in made.rejects).most_common()),
        digest="ab" * 32,
        versions={"python": "3.99"},
    )
    (out / tables.DESCRIPTION).write_bytes(info.model_dump_json().encode())
    return Dataset(where)


def labelled() -> Made:
    """Return 60 images with two attributes, one with a long tail, and queries and candidates in valid and test."""
    rng = np.random.default_rng(3)
    images = {i: "train" if i < 40 else "valid" if i < 48 else "test" for i in range(60)}
    labels = [(i, 0, int(rng.integers(3))) for i in images]
    labels += [(i, 1, int(40 * rng.random() ** 4)) for i in images]
    labels += [(41, 1, 40), (59, 0, 2)] if (59, 0, 2) not in labels else [(41, 1, 40)]
    pairs = [
        (images[i], "query" if i % 3 == 0 else "candidate", i, attribute, value)
        for i, attribute, value in labels
        if images[i] != "train"
    ]
    reasons = ["missing_image"] * 9 + ["bad_line"] + ["not_in_split"] * 2
    rejects = [(f"list {HOSTILE}.txt", 1000 + i, reason, HOSTILE) for i, reason in enumerate(reasons)]
    triplets = {"train": [(0, 1, 2, 0), (3, 4, 5, 1)], "valid": [(40, 41, 42, 0)], "test": [(50, 51, 52, 1)]}
    return Made(images, labels=labels, pairs=pairs, rejects=rejects, triplets=triplets)
