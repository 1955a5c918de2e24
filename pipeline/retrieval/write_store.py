"""`agman index --to`: writes a gallery into a vector store, and measures the recall that its search reaches.

A stopped writing continues: `store.json`, marked as incomplete, names the table, and the engine says how many rows it
has. The table of an earlier version of the gallery at the same address is removed once the new one is complete.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.errors import InputError, StorageError
from data_prep.progress import Progress, silent
from pipeline.common.lock import locked
from pipeline.retrieval.exact import nearest_rows
from pipeline.retrieval.faiss_index import OVERSAMPLES, RECALL, RECALL_AT, SAMPLE, recall_of, sample_queries
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.store_index import Engine, Record, StoreIndex, open_store, read_record, write_record
from pipeline.retrieval.stores import Store

DEFAULT = {"lancedb": "lancedb", "qdrant": "http://localhost:6333"}
"""Address of each engine if none is given: a folder in the gallery, a server on this machine."""


def write_store(gallery: Gallery, engine: Engine, uri: str | Path | None = None, progress: Progress = silent) -> Record:
    """Write a gallery into a vector store, which approximate searches use from then on; continue a stopped writing.

    Raises InputError for an address that the engine does not take, a missing package, or a column that the engine
    cannot hold; StorageError if the engine is away, full or refuses.

    Args:
        gallery: gallery.
        engine: kind of the vector store.
        uri: its address; by default that of an earlier writing, else DEFAULT.
        progress: progress display.
    """
    with locked(gallery.folder, "another gallery"):
        record = _record(gallery, engine, uri)
        store = open_store(gallery.folder, record, gallery.layout)
        try:
            if record.complete and store.rows() == len(gallery):
                return record
            if gallery.stored:
                raise InputError(
                    f"{gallery.folder}: its vectors are in a vector store alone; it cannot be written again"
                )
            record = record.model_copy(update={"complete": False})
            write_record(gallery.folder, record)
            write_rows(gallery, store, progress)
            store.finish(progress)
            if (written := store.rows()) != len(gallery):
                raise StorageError(f"{record.uri}: has {written or 0:,} of {len(gallery):,} rows")
            record = measured(gallery, store, record)
            for table in filter(None, (record.replaces, record.unfinished)):
                store.drop(table)
            record = record.model_copy(update={"complete": True, "replaces": None, "unfinished": None})
            write_record(gallery.folder, record)
            return record
        except StorageError as error:
            raise StorageError(f"{error}; the same command continues") from error
        finally:
            store.close()


def _record(gallery: Gallery, engine: Engine, uri: str | Path | None) -> Record:
    """Return the record of an earlier writing to the same address, or one of a new table."""
    former = read_record(gallery.folder)
    if uri is None:
        uri = former.uri if former and former.engine == engine else DEFAULT[engine]
    elif "://" not in str(uri):
        uri = Path(uri).absolute()
    name, here = f"agman-{secrets.token_hex(8)}", str(gallery.folder.resolve())
    new = Record(engine=engine, uri=str(uri), table=name, version=gallery.version, gallery=here)
    if former is None or (former.engine, former.uri) != (new.engine, new.uri):
        return new
    if former.version == gallery.version:
        return former
    if former.gallery != here:  # a copied folder: the table is the original's
        return new
    return new.model_copy(update={"replaces": former.table, "unfinished": former.replaces})


def write_rows(gallery: Gallery, store: Store, progress: Progress) -> None:
    """Write the rows that the table does not have yet; it has the first ones."""
    have = store.rows()
    if have is None:
        store.create()
    have = have or 0
    if have > len(gallery):
        raise InputError(f"{gallery.folder}: the vector store's table has {have:,} rows; give another --uri")
    # A server may have taken a part of a write; a complete table must not get its last batch twice.
    start = have if have == len(gallery) else have - have % store.batch
    advance = progress("rows written", len(gallery))
    advance(start)
    for begin in range(start, len(gallery), store.batch):
        end = min(begin + store.batch, len(gallery))
        cells = pa.table({}) if gallery.columns is None else gallery.columns.slice(begin, end - begin)
        store.add(begin, gallery.images[begin:end], cells, gallery.block(begin, end))
        advance(end - begin)


def measured(gallery: Gallery, store: Store, record: Record) -> Record:
    """Choose the least effort, then the fewest candidates, whose recall reaches RECALL, under one attribute and all."""
    every = range(len(gallery.info.attributes))
    queries = np.stack([sample_queries(gallery.matrix(number), SAMPLE, 0) for number in every], axis=1)

    def exact(numbers: Sequence[int]) -> np.ndarray:
        return nearest_rows([gallery.matrix(number) for number in numbers], queries[:, numbers], RECALL_AT)[1]

    def recall(one: Record, numbers: Sequence[int], true: np.ndarray) -> float:
        index = StoreIndex(store, gallery.layout, one)
        return recall_of(index.search(queries[:, numbers], numbers, RECALL_AT, [1.0] * len(numbers))[1], true)

    alone = [exact([number]) for number in every]
    for effort in store.efforts:
        record = record.model_copy(update={"effort": effort, "oversample": OVERSAMPLES[0]})
        reached = min(recall(record, [number], alone[number]) for number in every)
        if reached >= RECALL:
            break
    if len(every) == 1:
        return record.model_copy(update={"recall": reached})
    together = exact(every)
    for oversample in OVERSAMPLES:
        record = record.model_copy(update={"oversample": oversample})
        summed = recall(record, every, together)
        if summed >= RECALL:
            break
    return record.model_copy(update={"recall": min(reached, summed)})
