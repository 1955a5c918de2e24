"""Tables of vector stores: what every engine does for a gallery, and what they share.

`lancedb_store.py` and `qdrant_store.py` are the engines; `store_index.py` searches with them.

Shape suffixes: N attributes, D embedding width, R rows, C candidates, A requested attributes.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np
import pyarrow as pa

from data_prep.errors import InputError, StorageError
from data_prep.progress import Progress
from pipeline.common.errors import reason
from pipeline.retrieval.where import Condition


def split_uri(uri: str) -> tuple[SplitResult, str]:
    """Return the parts of a URI, and the URI to show: without credentials and options. Raises InputError."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise InputError(f"--uri: not an address ({error})") from error
    return parts, f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True)
class Layout:
    """Content of a gallery's rows."""

    attributes: tuple[str, ...]
    width: int
    columns: pa.Schema
    """Columns of the catalogue; empty without."""


@dataclass(frozen=True)
class Near:
    """Rows that an engine has found."""

    rows_c: np.ndarray
    vectors_acd: list[np.ndarray]
    """Their embeddings under the requested attributes, float32 C×D each."""


class Store(ABC):
    """Table of a vector store. Every method raises StorageError if the engine is away, full, or refuses."""

    batch: int
    """Rows of one write."""
    efforts: tuple[int | None, ...]
    """Efforts to choose from, in rising order."""

    @abstractmethod
    def rows(self) -> int | None:
        """Return the number of rows that the table has; None without a table. Raises InputError for another width."""

    @abstractmethod
    def create(self) -> None:
        """Create the table, empty."""

    @abstractmethod
    def add(self, start: int, images: Sequence[str], cells: pa.Table, block_rnd: np.ndarray) -> None:
        """Write consecutive rows from `start`: names, cells of the columns, and embeddings.

        Rows are written in order, and a write counts only when it is complete, so that a stopped one can be continued.
        """

    @abstractmethod
    def finish(self, progress: Progress) -> None:
        """Build the engine's index, once all rows are written."""

    @abstractmethod
    def near(
        self,
        number: int,
        query_d: np.ndarray,
        limit: int,
        effort: int | None,
        condition: Condition | None,
        numbers: Sequence[int],
    ) -> Near:
        """Return up to `limit` rows near a query under the attribute `number`, with their vectors under `numbers`.

        Args:
            number: index of the attribute.
            query_d: embedding of the query.
            limit: number of rows.
            effort: one of `efforts`; None for an exact search.
            condition: condition on the columns. Raises InputError for one that the engine cannot express.
            numbers: indices of the attributes whose vectors are returned.
        """

    @abstractmethod
    def vectors(self, number: int, rows_c: np.ndarray) -> np.ndarray:
        """Return the embeddings of rows under an attribute, float32 C×D; those that are not there are left out."""

    @abstractmethod
    def drop(self, table: str) -> None:
        """Remove a table of the same address, if it is there."""

    @abstractmethod
    def close(self) -> None:
        """End the connection."""


CAUSES = re.compile(
    r"No space left on device|database or disk is full|File too large|Connection refused|dns error|timed out"
    r"|NoSuchBucket|InvalidAccessKeyId|SignatureDoesNotMatch|(?<=status code: )\d{3} [A-Z][A-Za-z ]+"
)
"""Pattern of the informative part of a long error."""


@contextmanager
def answered(uri: str) -> Iterator[None]:
    """Raise StorageError with one line for whatever an engine raises."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # engines raise nearly any exception
        found = CAUSES.search(str(error))
        raise StorageError(f"{uri}: {found[0] if found else reason(error)[:200]}") from error


def plain(cells: pa.Table) -> list[dict[str, Any]]:
    """Return for each line column -> cell, without empty cells; dates and times are texts."""
    for name in [field.name for field in cells.schema if pa.types.is_temporal(field.type)]:
        texts = [None if one is None else one.isoformat() for one in cells[name].to_pylist()]
        cells = cells.set_column(cells.column_names.index(name), name, pa.array(texts, pa.string()))
    return [{name: cell for name, cell in line.items() if cell is not None} for line in cells.to_pylist()]
