"""A gallery in Qdrant: a server, or a folder in the client's local mode.

A collection has a named vector for each attribute; the id of a point is its row. Payload: `image`, and `columns` with
the cells of the catalogue that are not empty, dates as texts. Local mode computes every product in Python: it is for
trying and for tests.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from qdrant_client import QdrantClient
from qdrant_client import models as qd

from data_prep.errors import InputError, StorageError
from data_prep.progress import Progress
from pipeline.retrieval.stores import Layout, Near, Store, answered, plain, split_uri
from pipeline.retrieval.where import (
    Absent,
    Column,
    Comparison,
    Condition,
    Literal,
    Not,
    Several,
    Truth,
    moment,
    type_of,
)

BATCH_BYTES = 8 << 20
"""Bytes of a request, of which a server takes 32 MiB."""
NUMBER_BYTES = 21
"""Bytes of a number in JSON, at most."""
EFFORTS = (64, 128, 256, 512, 1024)
"""Candidates that a search of the server's graph keeps (`hnsw_ef`)."""
INVERSE = {"=": "!=", "!=": "=", "<>": "=", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
SWAPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
RANGE = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
BUSY = (qd.CollectionStatus.YELLOW, qd.CollectionStatus.GREY)
"""States of a collection whose index is being built, or waits for the server to begin."""
EXACT_WHOLE = 2**53
"""Qdrant compares numbers as float64, in which larger whole numbers are not exact."""


class QdrantStore(Store):
    """Collection of Qdrant."""

    def __init__(self, uri: str, table: str, layout: Layout):
        """Connect to a server by its URL, with the key in QDRANT_API_KEY if there is one, or open a folder."""
        self._name, self._layout = table, layout
        self.batch = max(1, BATCH_BYTES // (NUMBER_BYTES * layout.width * len(layout.attributes)))
        self._server = "://" in uri
        parts, shown = split_uri(uri)
        self._shown = shown if self._server else uri
        if self._server and (parts.scheme not in ("http", "https") or "@" in parts.netloc or parts.query):
            raise InputError(f"{self._shown}: give http://HOST:PORT or a folder; a key belongs in QDRANT_API_KEY")
        for name in layout.columns.names:
            if '"' in name:
                raise InputError(f"--to qdrant: the column {name!r} has a quote in its name; rename it")
        self.efforts = (*EFFORTS, None) if self._server else (None,)
        with answered(self._shown):
            if self._server:
                self._client = QdrantClient(
                    url=uri, api_key=os.environ.get("QDRANT_API_KEY"), timeout=60, check_compatibility=False
                )
            else:
                self._client = _local(str(Path(uri).resolve()))

    def rows(self) -> int | None:
        """See `Store`."""
        with answered(self._shown):
            if not self._client.collection_exists(self._name):
                return None
            known = self._client.get_collection(self._name).config.params.vectors
            widths = {name: one.size for name, one in known.items()} if isinstance(known, dict) else {}
            if widths != dict.fromkeys(self._layout.attributes, self._layout.width):
                raise InputError(
                    f"{self._shown}: collection {self._name} has not a vector of width {self._layout.width} for each "
                    "attribute; it is not this gallery's"
                )
            return self._client.count(self._name, exact=True).count

    def create(self) -> None:
        """See `Store`."""
        vector = qd.VectorParams(size=self._layout.width, distance=qd.Distance.DOT)
        with answered(self._shown):
            self._client.create_collection(self._name, vectors_config=dict.fromkeys(self._layout.attributes, vector))

    def add(self, start: int, images: Sequence[str], cells: pa.Table, block_rnd: np.ndarray) -> None:
        """See `Store`."""
        columns = plain(cells) if cells.column_names else [{} for _ in images]
        vectors = {name: block_rnd[:, number].tolist() for number, name in enumerate(self._layout.attributes)}
        payloads = [{"image": image, "columns": line} for image, line in zip(images, columns, strict=True)]
        batch = qd.Batch(ids=[*range(start, start + len(images))], vectors=vectors, payloads=payloads)
        with answered(self._shown):
            self._client.upsert(self._name, points=batch, wait=True)

    def finish(self, progress: Progress) -> None:
        """See `Store`."""
        if not self._server:  # local mode has no indexes
            return
        with answered(self._shown):
            for field in self._layout.columns:  # here, because a stopped writing does not create the collection again
                self._client.create_payload_index(self._name, _key(field.name), _payload_type(field.type))
            total = self._client.count(self._name, exact=True).count * len(self._layout.attributes)
            advance, indexed = progress("vectors indexed", total), 0
            while (info := self._client.get_collection(self._name)).status in BUSY:
                now = info.indexed_vectors_count or 0
                advance(max(0, now - indexed))
                indexed = max(now, indexed)
                time.sleep(1)
            if info.status == qd.CollectionStatus.RED:
                raise StorageError(f"{self._shown}: the server could not build the index of {self._name}; see its log")

    def near(
        self,
        number: int,
        query_d: np.ndarray,
        limit: int,
        effort: int | None,
        condition: Condition | None,
        numbers: Sequence[int],
    ) -> Near:
        """See `Store`."""
        names = [self._layout.attributes[one] for one in numbers]
        asked = None  # local mode is always exact
        if self._server:
            asked = qd.SearchParams(exact=True) if effort is None else qd.SearchParams(hnsw_ef=max(effort, limit))
        with answered(self._shown):
            points = self._client.query_points(
                self._name,
                query=query_d.tolist(),
                using=self._layout.attributes[number],
                query_filter=None if condition is None else filter_of(condition, self._layout.columns),
                search_params=asked,
                limit=limit,
                with_payload=False,
                with_vectors=names or False,
            ).points
        rows = np.array([point.id for point in points], np.int64)
        vectors = [np.array([_vector(point, name) for point in points], np.float32) for name in names]
        return Near(rows, [one.reshape(-1, self._layout.width) for one in vectors])

    def vectors(self, number: int, rows_c: np.ndarray) -> np.ndarray:
        """See `Store`."""
        name = self._layout.attributes[number]
        with answered(self._shown):
            points = self._client.retrieve(self._name, rows_c.tolist(), with_payload=False, with_vectors=[name])
        found = {point.id: _vector(point, name) for point in points}
        there = [found[row] for row in rows_c.tolist() if row in found]
        return np.array(there, np.float32).reshape(-1, self._layout.width)

    def drop(self, table: str) -> None:
        """See `Store`."""
        with answered(self._shown):
            self._client.delete_collection(table)

    def close(self) -> None:
        """See `Store`."""
        if self._server:
            self._client.close()


@cache
def _local(folder: str) -> QdrantClient:
    """Return this process's client of a folder, which a second one could not open."""
    client = QdrantClient(path=folder, force_disable_check_same_thread=True)
    atexit.register(client.close)
    return client


def _vector(point: qd.ScoredPoint | qd.Record, name: str) -> object:
    assert isinstance(point.vector, dict), "vectors are named"
    return point.vector[name]


def _key(name: str) -> str:
    """Return the path of a column in the payload."""
    return f'columns."{name}"'


def _payload_type(kind: pa.DataType) -> qd.PayloadSchemaType:
    if pa.types.is_boolean(kind):
        return qd.PayloadSchemaType.BOOL
    if pa.types.is_temporal(kind):
        return qd.PayloadSchemaType.DATETIME
    if pa.types.is_integer(kind):
        return qd.PayloadSchemaType.INTEGER
    return qd.PayloadSchemaType.FLOAT if pa.types.is_floating(kind) else qd.PayloadSchemaType.KEYWORD


def filter_of(condition: Condition, columns: pa.Schema, holds: bool = True) -> qd.Filter:
    """Return the points for which a condition holds, or those for which its opposite holds.

    Qdrant's `must_not` takes points without a value too, of which neither holds: a negation goes down to comparisons.
    Raises InputError for a condition that Qdrant cannot express.
    """
    match condition:
        case Comparison(sign, first, second):
            return _comparison(sign if holds else INVERSE[sign], first, second, columns)
        case Absent(Column(name)):
            return _present(name) if not holds else qd.Filter(must=[_empty(name)])
        case Truth(Column(name)):
            return qd.Filter(must=[qd.FieldCondition(key=_key(name), match=qd.MatchValue(value=holds))])
        case Not(inner):
            return filter_of(inner, columns, not holds)
        case Several(every, parts):
            filters: list[Any] = [filter_of(one, columns, holds) for one in parts]  # of every kind of condition
            return qd.Filter(must=filters) if every == holds else qd.Filter(should=filters)
    raise _inexpressible("values without a column")


def _comparison(sign: str, first: object, second: object, columns: pa.Schema) -> qd.Filter:
    if isinstance(first, Literal):
        first, second, sign = second, first, SWAPPED.get(sign, sign)
    if not (isinstance(first, Column) and isinstance(second, Literal)):
        raise _inexpressible("two columns")
    kind, value = type_of(first, columns), second.value
    if sign in ("!=", "<>"):
        equal = _comparison("=", first, second, columns)
        return qd.Filter(must=[_present(first.name)], must_not=[equal])
    key = _key(first.name)
    bounds = ("gte", "lte") if sign == "=" else (RANGE[sign],)
    if pa.types.is_temporal(kind):
        return qd.Filter(
            must=[qd.FieldCondition(key=key, range=qd.DatetimeRange(**dict.fromkeys(bounds, moment(str(value)))))]
        )
    if isinstance(value, (str, bool)):
        if sign != "=":
            raise _inexpressible("the order of texts")
        return qd.Filter(must=[qd.FieldCondition(key=key, match=qd.MatchValue(value=value))])
    if abs(value) > EXACT_WHOLE:
        raise _inexpressible(f"numbers beyond {EXACT_WHOLE:,}")
    return qd.Filter(must=[qd.FieldCondition(key=key, range=qd.Range(**dict.fromkeys(bounds, float(value))))])


def _empty(name: str) -> qd.IsEmptyCondition:
    return qd.IsEmptyCondition(is_empty=qd.PayloadField(key=_key(name)))


def _present(name: str) -> qd.Filter:
    return qd.Filter(must_not=[_empty(name)])


def _inexpressible(what: str) -> InputError:
    return InputError(f"where: Qdrant cannot compare {what}; search without --approximate")
