"""Galleries in vector stores: an engine such as LanceDB or Qdrant has the vectors, and finds the candidates.

`write_store.py` writes a table of the engine: a line for each row of the gallery, with a vector for every attribute and
the columns of the catalogue. The gallery's `store.json` names engine, address and table (`Record`).

No engine sums the cosines of several vectors. A search therefore asks the engine for the rows nearest to the query
under each requested attribute, `oversample` times as many as are wanted, and scores their union exactly, with the
vectors that the engine returns. Only the selection of candidates is approximate, never a score.

Shape suffixes: Q queries, A requested attributes, N all attributes, D embedding width, R rows, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from data_prep import atomic
from data_prep.errors import InputError, StorageError
from pipeline.retrieval.exact import best_of, exact_scores
from pipeline.retrieval.states import STORE_FILE
from pipeline.retrieval.stores import Layout, Near, Store
from pipeline.retrieval.where import Condition, checked

FETCH = 1_000
"""Rows whose vectors are fetched at a time."""
Engine = Literal["lancedb", "qdrant"]


class Record(BaseModel):
    """Content of `store.json`: where a gallery's vectors are."""

    model_config = ConfigDict(frozen=True)

    engine: Engine
    uri: str
    """Address without credentials; a relative path begins in the gallery."""
    table: str
    """Name of the engine's table or collection."""
    version: str
    """Version of the gallery (`Gallery.version`) that was written."""
    gallery: str = ""
    """Absolute folder of the gallery that was written; a copy of it must not remove the table."""
    replaces: str | None = None
    """Table of an earlier version at the same address, which is removed once this one is complete."""
    unfinished: str | None = None
    """A table that the earlier version would have replaced, if its writing had not been stopped."""
    complete: bool = False
    effort: int | None = None
    """Lists (LanceDB) or candidates (Qdrant) that the engine looks at in a search; None for an exact one."""
    oversample: int = 0
    """Candidates of an attribute, for each wanted row."""
    recall: float = 0.0
    """Smallest measured recall, under one attribute or under all of them."""


class StoreIndex:
    """Search of a gallery in a vector store."""

    def __init__(self, store: Store, layout: Layout, record: Record):
        self._store, self._layout, self.record = store, layout, record

    def search(
        self,
        queries_qad: np.ndarray,
        numbers: Sequence[int],
        top: int,
        weights_a: Sequence[float],
        where: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (float32, Q×K) and rows (int64, Q×K) as `exact.nearest_rows`, of rows that satisfy `where`.

        Raises InputError for an invalid condition; StorageError if the engine does not answer.
        """
        condition = self._condition(where)
        best = []
        for query_ad in queries_qad:
            near = [(number, query_ad[i]) for i, number in enumerate(numbers)]
            found = self._union(near, top, condition, numbers)
            scores = exact_scores(found.vectors_acd, query_ad, np.arange(len(found.rows_c)), np.asarray(weights_a))
            best.append(best_of(scores, found.rows_c, top))
        wanted = min((len(rows) for _, rows in best), default=0)
        return (
            np.array([scores[:wanted] for scores, _ in best], np.float32).reshape(len(best), wanted),
            np.array([rows[:wanted] for _, rows in best], np.int64).reshape(len(best), wanted),
        )

    def candidates(self, near: Sequence[tuple[int, np.ndarray]], top: int, where: str | None = None) -> np.ndarray:
        """Return the rows near any of the vectors, each (index of an attribute, D), that satisfy `where`, sorted."""
        return self._union(near, top, self._condition(where), ()).rows_c

    def vectors(self, number: int, rows_c: np.ndarray) -> np.ndarray:
        """Return the embeddings of rows under an attribute, float32 C×D. Raises StorageError if one is not there."""
        parts = [self._store.vectors(number, rows_c[start : start + FETCH]) for start in range(0, len(rows_c), FETCH)]
        found = np.concatenate([*parts, np.empty((0, self._layout.width), np.float32)])
        if len(found) != len(rows_c):
            raise StorageError(f"{self.record.uri}: table {self.record.table} has not all rows of the gallery")
        return found

    def _condition(self, where: str | None) -> Condition | None:
        return None if where is None else checked(self._layout.columns, where)

    def _union(
        self,
        near: Sequence[tuple[int, np.ndarray]],
        top: int,
        condition: Condition | None,
        numbers: Sequence[int],
    ) -> Near:
        """Return the candidates of all vectors, once each, ordered by row; at least `top`, if so many there are."""
        efforts = dict.fromkeys((self.record.effort, None))  # a second, exact try, where an index has found too few
        for effort in efforts:
            limit = self.record.oversample * top
            found = [self._store.near(number, one, limit, effort, condition, numbers) for number, one in near]
            rows, first = np.unique(np.concatenate([one.rows_c for one in found]), return_index=True)
            if len(rows) >= top or effort is None:
                break
        vectors = [np.concatenate([one.vectors_acd[i] for one in found])[first] for i in range(len(numbers))]
        return Near(rows, vectors)


class StoredMatrix:
    """Embeddings of a gallery under one attribute, float32 R×D, that are in a vector store alone.

    It is indexed like a matrix by a row, a slice, or an array of rows; they are fetched each time.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, index: Callable[[], StoreIndex | None], number: int, shape: tuple[int, int]):
        self._index, self._number, self.shape = index, number, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | np.integer | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            return self[np.arange(*rows.indices(len(self)))]
        if isinstance(rows, int | np.integer):
            return self[np.array([rows])][0]
        index = self._index()
        if index is None:
            raise InputError(f"the record of the vector store, {STORE_FILE}, is gone; run `agman embed` again")
        return index.vectors(self._number, np.asarray(rows, np.int64))


def open_index(gallery: Path, layout: Layout, rows: int, version: str) -> StoreIndex | None:
    """Open the search of the vector store that a gallery's record names; return None without a record.

    Raises InputError if the record is damaged, incomplete or of another version of the gallery, or if the table has
    other vectors; StorageError if the engine is away.
    """
    record = read_record(gallery)
    if record is None:
        return None
    again = f"run `agman index {gallery} --to {record.engine}`"
    if record.version != version:
        raise InputError(f"{gallery}: has changed since it was written to {record.uri}; {again} again")
    if not record.complete:
        raise InputError(f"{gallery}: not yet completely written to {record.uri}; {again} to continue")
    store = open_store(gallery, record, layout)
    if (found := store.rows()) != rows:
        have = "is not there" if found is None else f"has {found:,} rows instead of {rows:,}"
        store.close()
        raise InputError(f"{record.uri}: table {record.table} {have}; {again} again")
    return StoreIndex(store, layout, record)


def open_store(gallery: Path, record: Record, layout: Layout) -> Store:
    """Connect to the engine of a record. Raises InputError if its package is missing, StorageError if it is away."""
    uri = str(gallery / record.uri) if "://" not in record.uri else record.uri
    try:
        if record.engine == "lancedb":
            from pipeline.retrieval.lancedb_store import LanceStore

            return LanceStore(uri, record.table, layout)
        from pipeline.retrieval.qdrant_store import QdrantStore

        return QdrantStore(uri, record.table, layout)
    except ModuleNotFoundError as error:
        raise InputError(
            f"--to {record.engine}: needs the package {error.name}; pip install 'agman-pipeline[stores]'"
        ) from error


def read_record(gallery: Path) -> Record | None:
    """Read a gallery's record; return None without. Raises InputError if it is damaged."""
    file = gallery / STORE_FILE
    try:
        return Record.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise InputError(f"{file}: damaged; delete it, and run `agman index` again") from error


def write_record(gallery: Path, record: Record) -> None:
    """Write a gallery's record in one step."""
    with atomic.file(gallery / STORE_FILE) as staging:
        staging.write_text(record.model_dump_json(indent=2) + "\n")
