"""A gallery in LanceDB: embedded, in a folder or in a bucket.

Columns of the table: agman_row int64, agman_image string, vector_ATTRIBUTE for each attribute, and the columns of the
catalogue under their own names. From LEAST rows on, every vector column has an index of inverted lists with 8 bits a
number (IVF_SQ); smaller tables are searched exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lancedb.index import BTree, IvfSq

from data_prep.errors import InputError
from data_prep.progress import Progress
from pipeline.retrieval.stores import Layout, Near, Store, answered, split_uri
from pipeline.retrieval.where import (
    Absent,
    Column,
    Comparison,
    Condition,
    Not,
    Operand,
    Several,
    Truth,
    moment,
    type_of,
)

ROW, IMAGE = "agman_row", "agman_image"
LEAST = 10_000
"""Rows from which on an index is faster than the scan."""
BATCH_BYTES = 64 << 20
"""Bytes of vectors in one write; each write is a version of the table until all are merged."""
FORBIDDEN = '.`"'
"""Characters that LanceDB does not take in a column's name, or cannot find again."""


class LanceStore(Store):
    """Table of LanceDB."""

    def __init__(self, uri: str, table: str, layout: Layout):
        """Connect to a database: a path, or a URI such as `s3://bucket/folder?region=…`."""
        self._name, self._layout = table, layout
        self.batch = max(1, BATCH_BYTES // (4 * layout.width * len(layout.attributes)))
        self.efforts = (None,)
        self._shown, options = _storage(uri)
        self._vectors = [f"vector_{name}" for name in layout.attributes]
        self._check_names()
        with answered(self._shown):
            self._database: Any = lancedb.connect(self._shown, storage_options=options)
        self._table: lancedb.table.Table | None = None

    def _check_names(self) -> None:
        taken = {ROW, IMAGE, *self._vectors}
        for name in [*self._layout.attributes, *self._layout.columns.names]:
            if any(one in name for one in FORBIDDEN):
                raise InputError(f'--to lancedb: {name!r} cannot be a column of LanceDB; rename it: no . ` or "')
        for name in taken.intersection(self._layout.columns.names):
            raise InputError(f"--to lancedb: the column {name!r} has a name that agman needs; rename it")

    @property
    def _opened(self) -> lancedb.table.Table:
        if self._table is None:
            self._table = self._database.open_table(self._name)
        return self._table

    def _exists(self) -> bool:
        try:
            return self._opened is not None  # an empty table is false
        except ValueError as error:
            if "was not found" in str(error):
                return False
            raise

    def rows(self) -> int | None:
        """See `Store`."""
        with answered(self._shown):
            if not self._exists():
                return None
            for name in self._vectors:
                found = self._opened.schema.field(name).type if name in self._opened.schema.names else None
                if found != pa.list_(pa.float32(), self._layout.width):
                    raise InputError(
                        f"{self._shown}: table {self._name} has no vectors of width {self._layout.width} in {name}; "
                        "it is not this gallery's"
                    )
            count = self._opened.count_rows()
            self.efforts = _efforts(count)
            return count

    def create(self) -> None:
        """See `Store`."""
        vector = pa.list_(pa.float32(), self._layout.width)
        own = [pa.field(ROW, pa.int64()), pa.field(IMAGE, pa.string())]
        schema = pa.schema([*own, *(pa.field(name, vector) for name in self._vectors), *self._layout.columns])
        with answered(self._shown):
            self._table = self._database.create_table(self._name, schema=schema)

    def add(self, start: int, images: Sequence[str], cells: pa.Table, block_rnd: np.ndarray) -> None:
        """See `Store`."""
        table = pa.table({ROW: np.arange(start, start + len(images)), IMAGE: images})
        for number, name in enumerate(self._vectors):
            numbers = pa.array(np.ascontiguousarray(block_rnd[:, number]).ravel())
            table = table.append_column(name, pa.FixedSizeListArray.from_arrays(numbers, self._layout.width))
        for name in cells.column_names:
            table = table.append_column(name, cells[name])
        with answered(self._shown):
            self._opened.add(table)

    def finish(self, progress: Progress) -> None:
        """See `Store`."""
        with answered(self._shown):
            self._opened.optimize(cleanup_older_than=timedelta(milliseconds=1))  # nobody reads it yet
            self._opened.create_index(ROW, config=BTree())
            count = self._opened.count_rows()
            self.efforts = _efforts(count)
            if count < LEAST:
                return
            advance = progress("vectors indexed", count * len(self._vectors))
            for name in self._vectors:
                self._opened.create_index(name, config=IvfSq(distance_type="dot", num_partitions=_lists(count)))
                advance(count)

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
        names = [self._vectors[one] for one in numbers]
        with answered(self._shown):
            asked: Any = self._opened.search(query_d, vector_column_name=self._vectors[number], query_type="vector")
            asked = asked.distance_type("dot").limit(limit).select([ROW, *names, "_distance"])
            asked = asked.bypass_vector_index() if effort is None else asked.nprobes(effort)
            if condition is not None:
                asked = asked.where(sql(condition, self._layout.columns), prefilter=True)
            found = asked.to_arrow()
        return Near(found[ROW].to_numpy(), [self._matrix(found[name]) for name in names])

    def vectors(self, number: int, rows_c: np.ndarray) -> np.ndarray:
        """See `Store`."""
        name = self._vectors[number]
        with answered(self._shown):
            asked: Any = self._opened.search().where(f"{ROW} in ({', '.join(map(str, rows_c))})")
            found = asked.select([ROW, name]).limit(len(rows_c)).to_arrow()
        place = pc.index_in(pa.array(rows_c), found[ROW].combine_chunks()).drop_null()
        return self._matrix(found[name].take(place))

    def _matrix(self, cells: pa.ChunkedArray) -> np.ndarray:
        return cells.combine_chunks().flatten().to_numpy().reshape(-1, self._layout.width)

    def drop(self, table: str) -> None:
        """See `Store`."""
        with answered(self._shown):
            self._database.drop_table(table, ignore_missing=True)

    def close(self) -> None:
        """See `Store`."""
        self._table = None


def _lists(rows: int) -> int:
    return round(math.sqrt(rows))


def _efforts(rows: int) -> tuple[int | None, ...]:
    """Return the numbers of lists to visit: powers of two, then none for an exact search."""
    if rows < LEAST:
        return (None,)
    return (*(1 << power for power in range(_lists(rows).bit_length())), None)


def _storage(uri: str) -> tuple[str, dict[str, str]]:
    """Return a database's URI without its options, and the options as LanceDB takes them.

    The keys are those of the environment. Raises InputError for credentials in the URI, and for unknown options.
    """
    if "://" not in uri:
        return uri, {}
    parts, shown = split_uri(uri)
    if "@" in parts.netloc:
        raise InputError(f"{shown}: credentials belong in the environment (AWS_ACCESS_KEY_ID …), not in the URI")
    given = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    scheme, options = given.pop("scheme", "https"), {}
    if "region" in given:
        options["region"] = given.pop("region")
    if "endpoint_override" in given:
        options |= {"endpoint": f"{scheme}://{given.pop('endpoint_override')}", "allow_http": str(scheme == "http")}
    if given:
        raise InputError(
            f"{shown}: unknown options {', '.join(sorted(given))}; known: endpoint_override, region, scheme"
        )
    return shown, options


def sql(condition: Condition, columns: pa.Schema) -> str:
    """Return a condition on columns of this schema in LanceDB's SQL."""
    match condition:
        case Comparison(sign, first, second):
            return f"{_operand(first, second, columns)} {sign} {_operand(second, first, columns)}"
        case Absent(operand):
            return f"{_operand(operand, operand, columns)} is null"
        case Truth(operand):
            return _operand(operand, operand, columns)
        case Not(inner):
            return f"not ({sql(inner, columns)})"
        case Several(every, parts):
            return (" and " if every else " or ").join(f"({sql(one, columns)})" for one in parts)


def _operand(one: Operand, other: Operand, columns: pa.Schema) -> str:
    """Return an operand in the type in which it is compared with another."""
    kind, wanted = type_of(one, columns), type_of(other, columns)
    if isinstance(one, Column):
        name = f"`{one.name}`"
        return f"cast({name} as double)" if pa.types.is_integer(kind) and pa.types.is_floating(wanted) else name
    if isinstance(one.value, bool):
        return str(one.value).lower()
    if isinstance(one.value, str):
        if pa.types.is_temporal(wanted):
            return f"timestamp '{moment(one.value).isoformat(' ')}'"
        return "'" + one.value.replace("'", "''") + "'"
    return repr(float(one.value)) if pa.types.is_floating(wanted) else repr(one.value)
