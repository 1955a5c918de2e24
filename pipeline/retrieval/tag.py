"""`agman tag`: names the values of pictures under every attribute, from the model's prototypes, as one table.

Pictures are embedded in this process, or their embeddings come from a gallery of the same model.

Shape suffixes: Q pictures, N attributes of the model, D embedding width.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from agman.embedder import BATCH, Embedder
from agman.memory import keep_freed_memory
from agman.tagger import Namer, Tagger
from agman.tagging import Threshold
from data_prep import atomic
from data_prep.dataset import Dataset
from data_prep.errors import InputError, StorageError
from data_prep.hints import nearest
from data_prep.progress import Progress, silent
from data_prep.storage import Storage
from pipeline.evaluation.tagging import make_tagger
from pipeline.registry.loading import load_with_tagger, shown
from pipeline.retrieval.dataset_rows import DatasetRows
from pipeline.retrieval.gallery import DESCRIPTION as GALLERY
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.image_sources import Source, find_source
from pipeline.retrieval.picture_embedder import REJECTS, PictureEmbedder

TAGS = pa.schema(
    [
        ("image", pa.string()),
        ("attribute", pa.string()),
        ("value", pa.string()),
        ("probability", pa.float64()),
        ("runner_up", pa.string()),
        ("runner_up_probability", pa.float64()),
    ]
)
"""A row for every picture and attribute. Where no value is sure enough, `value` and its probability are null, and the
runner-up is the most probable value. Probabilities that were not calibrated are null."""
ENDINGS = (".parquet", ".csv")
BLOCK = 4_096
"""Rows of a gallery that are named together."""


@dataclass
class NamedAttribute:
    """One attribute's prototypes, threshold and counts of named values."""

    namer: Namer
    number: int
    """Index among the model's attributes."""
    threshold: Threshold | None = None
    """Least confidence of an answer, with its precision and coverage on validation; None: every picture gets one."""
    values: Counter[str] = field(default_factory=Counter)
    """Value -> number of pictures."""


@dataclass(frozen=True)
class Tagged:
    """A table that was written."""

    out: Path
    pictures: int
    """Pictures in the table."""
    rejects: int
    """Pictures that cannot be embedded."""
    rejects_file: Path
    """Table that names them, if there are some."""
    skipped: int
    """Files that were not taken for pictures."""
    attributes: dict[str, NamedAttribute]
    unnamed: tuple[str, ...]
    """Attributes of the model that are not named for lack of labelled training pictures."""


def tag_images(
    model: str,
    images: str | Path,
    out: Path,
    *,
    attributes: Sequence[str] = (),
    precision: float | None = None,
    data: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Tagged:
    """Name the values of the pictures at `images`, and write the table TAGS to `out`, complete or not at all.

    Pictures that cannot be embedded are listed in `<out>.rejects.parquet`: pictures in = pictures named + rejects.
    Raises InputError for what a user can correct.

    Args:
        model: as `agman evaluate` takes it.
        images: a gallery, or as `pipeline.retrieval.image_sources.find_source` takes it.
        out: .parquet or .csv file.
        attributes: attributes to name; by default all that have prototypes.
        precision: precision on validation below which no value is given; None: always give one.
        data: prepared dataset to make prototypes from, instead of the model's own.
        overwrite: replace a table that this function has written.
        progress: callback for progress bars.
    """
    out = Path(out)
    rejects_file = out.with_name(f"{out.name}.rejects.parquet")
    for file, names in ((out, TAGS.names), (rejects_file, REJECTS.names)):
        _check_out(file, names, overwrite)
    folder = Storage(images).local
    gallery = Gallery.open(folder) if folder and (folder / GALLERY).is_file() else None
    source = None if gallery else find_source(images)
    dataset = Dataset(data) if data is not None else None
    network, description, tagger = load_with_tagger(model, dataset.info.attribute_names if dataset else None)
    embedder = Embedder(network, description)
    if gallery and (gallery.info.model_digest, gallery.info.image_size) != (embedder.digest, embedder.side):
        raise InputError(f"--images {images}: embedded by {gallery.info.model}, which has other weights than {model}")
    if dataset:
        tagger, _ = make_tagger(network, description, dataset, progress=progress)
    if not tagger:
        raise InputError(f"{shown(model)}: has no prototypes; --data OUT makes them from the dataset of its training")
    asked = _asked(tagger, embedder.attributes, attributes, precision)
    facts = {"model": shown(model), "weights_digest": embedder.digest, "dataset_digest": tagger.dataset_digest}
    schema = TAGS.with_metadata(facts | {"precision": str(precision)})
    batches = _of_gallery(gallery, progress) if gallery else _of_source(source, embedder, progress)
    pictures, refused = 0, [REJECTS.empty_table()]
    try:
        with atomic.file(out) as staging, staging.open("wb") as opened, _writer(opened, out.suffix, schema) as writer:
            for names, embeddings, rejects in batches:
                writer.write_table(_named(names, embeddings, asked).replace_schema_metadata(schema.metadata))
                pictures += len(names)
                refused.append(rejects)
            rejected = pa.concat_tables(refused)
            if not pictures:
                first = rejected.slice(0, 1).to_pylist()[0]
                raise InputError(
                    f"no picture can be tagged, {len(rejected):,} refused; {first['image']}: {first['detail']}"
                )
            _write_rejects(rejected, rejects_file)
    except OSError as error:
        raise atomic.not_writable(out, error) from error
    count, skipped = len(rejected), len(source.skipped) if source else 0
    unnamed = () if attributes else tuple(name for name in embedder.attributes if name not in tagger.namers)
    return Tagged(out, pictures, count, rejects_file, skipped, asked, unnamed)


def _check_out(file: Path, names: list[str], overwrite: bool) -> None:
    """Raise InputError if a table with these columns must not be written: of another format, or over another file."""
    if file.suffix not in ENDINGS:
        raise InputError(f"--out {file}: its ending names the format; give a file that ends in {' or '.join(ENDINGS)}")
    if not file.exists():
        return
    if not file.is_file():
        raise InputError(f"--out {file}: is no file; give another path")
    if not overwrite:
        raise InputError(f"--out {file}: exists; give another file or --overwrite")
    if file.suffix == ".csv":
        with file.open(encoding="utf-8", errors="replace") as opened:
            found = [name.strip('"') for name in opened.readline(1_000).strip().split(",")]
    else:
        try:
            found = pq.read_schema(file).names
        except pa.ArrowInvalid:
            found = []
    if found != names:
        raise InputError(f"--out {file}: was not made by this command, so it is not overwritten; give another file")


def _asked(
    tagger: Tagger, known: Sequence[str], names: Sequence[str], precision: float | None
) -> dict[str, NamedAttribute]:
    """Return what is to be named. Raises InputError for attributes that cannot be, or not with this precision."""
    for i, name in enumerate(names):
        if name not in known:
            raise InputError(f"--attribute {name}: unknown; {nearest(name, known)}")
        if name in names[:i]:
            raise InputError(f"--attribute {name}: is given twice")
        if name not in tagger.namers:
            raise InputError(f"--attribute {name}: {tagger.dataset} has no labelled training pictures of it")
    chosen = names or [name for name in known if name in tagger.namers]
    asked = {name: NamedAttribute(tagger.namers[name], list(known).index(name)) for name in chosen}
    if precision is None:
        return asked
    too_much = []
    for name, one in asked.items():
        one.threshold = one.namer.threshold(precision)
        if not one.threshold:
            highest = math.floor(1_000 * one.namer.highest_precision) / 1_000
            too_much.append(f"{name} ({f'at most {highest:.3f}' if one.namer.pictures else 'no labels there'})")
    if too_much:
        instead = "; give less, or name the other attributes with --attribute"
        raise InputError(f"--precision {precision:g}: not shown on validation by {', '.join(too_much)}{instead}")
    return asked


Batch = tuple[Sequence[str], np.ndarray, pa.Table]
"""Names of Q pictures, their embeddings Q×N×D, and the pictures that were rejected beside them."""


def _of_gallery(gallery: Gallery, progress: Progress) -> Iterator[Batch]:
    advance = progress("pictures tagged", len(gallery))
    for start in range(0, len(gallery), BLOCK):
        names = gallery.names(start, start + BLOCK)
        yield names, gallery.block(start, start + BLOCK), REJECTS.empty_table()
        advance(len(names))


def _of_source(source: Source | None, embedder: Embedder, progress: Progress) -> Iterator[Batch]:
    assert source
    keep_freed_memory()
    reader = PictureEmbedder(embedder, source.root, source.column, os.cpu_count() or 1)
    dataset = None
    if source.kind == "dataset":
        with suppress(OSError, ValueError, StorageError, pa.ArrowException):  # then ids are names enough
            dataset = DatasetRows(source.root)
    advance = progress("pictures tagged", len(source.pictures))
    for start in range(0, len(source.pictures), BATCH):
        batch = source.pictures.slice(start, BATCH)
        embeddings, details = reader.embed(batch)
        detail = pa.array(details, pa.string())
        names = batch.filter(detail.is_null())["image"].to_pylist()
        if dataset:
            paths = dataset.paths([*map(int, names)])
            names = [paths.get(int(name), name) for name in names]
        yield names, embeddings, batch.append_column("detail", detail).filter(detail.is_valid()).cast(REJECTS)
        advance(len(batch))


def _named(names: Sequence[str], embeddings_qnd: np.ndarray, asked: dict[str, NamedAttribute]) -> pa.Table:
    """Return the rows of some pictures, picture by picture, and count their values."""
    tables = [_of_attribute(names, embeddings_qnd[:, one.number], attribute, one) for attribute, one in asked.items()]
    by_picture = np.arange(len(names) * len(asked)).reshape(len(asked), -1).T.ravel()
    return pa.concat_tables(tables).take(by_picture)


def _of_attribute(names: Sequence[str], embeddings_qd: np.ndarray, attribute: str, one: NamedAttribute) -> pa.Table:
    namer, nothing = one.namer, len(one.namer.values)
    labels = pa.array([*(v if n else None for v, n in zip(namer.values, namer.counts, strict=True)), None])
    known = namer.probabilities(torch.from_numpy(embeddings_qd))
    known[:, [not count for count in namer.counts]] = -1.0  # behind a seen value whose probability is 0
    ranked = torch.nn.functional.pad(known, (0, 1), value=-1.0).sort(dim=1, descending=True, stable=True)
    sure, best = (column.numpy()[:, :2] for column in ranked)
    answered = sure[:, 0] >= (one.threshold.confidence if one.threshold else 0)
    value = labels.take(pa.array(np.where(answered, best[:, 0], nothing)))
    runner_up = labels.take(pa.array(np.where(answered, best[:, 1], best[:, 0])))
    one.values.update(value.drop_null().to_pylist())
    columns = [pa.array(names, pa.string()), pa.repeat(attribute, len(names))]
    for label, confidence in ((value, sure[:, 0]), (runner_up, np.where(answered, sure[:, 1], sure[:, 0]))):
        unknown = label.is_null().to_numpy(zero_copy_only=False) | (namer.temperature is None)
        columns += [label, pa.array(confidence, mask=unknown)]
    return pa.table(columns, schema=TAGS)


def _writer(file: BinaryIO, ending: str, schema: pa.Schema) -> pq.ParquetWriter | pyarrow.csv.CSVWriter:
    return pyarrow.csv.CSVWriter(file, schema) if ending == ".csv" else pq.ParquetWriter(file, schema)


def _write_rejects(rejects: pa.Table, file: Path) -> None:
    """Write the rejects beside the table; without rejects, remove those of an older table."""
    if len(rejects):
        with atomic.file(file) as staging:
            pq.write_table(rejects, staging)
    else:
        file.unlink(missing_ok=True)
