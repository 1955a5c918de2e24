"""Columns of a catalogue's table, such as price, brand and stock, joined to a gallery by the pictures' names.

Every column but the one with the names travels along: whole numbers, numbers, true and false, dates, times, or text.
The kind is the first in this order that all cells of the column have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.errors import InputError
from data_prep.layouts import table_file
from data_prep.layouts.table_file import INNER, Column, Records

KINDS = (pa.int64(), pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("us"))
CODE = re.compile(r"[-+]?0[\dx]", re.IGNORECASE)
"""Start of a text that is no number, such as the article numbers 00123 and 0x12."""


@dataclass(frozen=True)
class Catalogue:
    """A table whose rows describe pictures."""

    source: str
    records: Records

    def joined(self, names: pa.Array) -> tuple[pa.Table, int]:
        """Return the columns for pictures of these names, and the number of pictures that the table has.

        Cells of the others are null. The column with the names is the one with most of them. Raises InputError if none
        has any, if there is no other column, or if the table has several rows for one of the pictures.
        """
        among = {name: _rows_of(column, names) for name, column in self.records.columns.items()}
        found = {name: int((rows >= 0).sum()) for name, rows in among.items()}
        key = max(found, key=lambda name: found[name])
        if not found[key]:
            raise InputError(
                f"--columns {self.source}: no column has the pictures' names, such as {names[0].as_py()!r}; its "
                f"columns are {', '.join(found)}"
            )
        self._check_unique(key, names)
        rows = pa.array(among[key], mask=among[key] < 0)
        others = {name: typed(column).take(rows) for name, column in self.records.columns.items() if name != key}
        if not others:
            raise InputError(f"--columns {self.source}: has no column beside {key!r}, which has the pictures' names")
        return pa.table(others), found[key]

    def _check_unique(self, key: str, names: pa.Array) -> None:
        column = self.records.columns[key]
        known = pc.is_in(column.texts, names).to_numpy(zero_copy_only=False)
        counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.texts))
        for code in np.flatnonzero(known & (counts > 1))[:1]:
            first, second = self.records.lines[column.codes == code][:2]
            raise InputError(
                f"--columns {self.source}: lines {first:,} and {second:,} are both for {column.texts[code].as_py()!r}; "
                "leave one of them"
            )


def read_catalogue(path: str | Path) -> Catalogue:
    """Read a table: CSV and other delimited text, JSON Lines, or Parquet. Raises InputError if it cannot be read."""
    with table_file.opened(path) as table:
        records = table.read([name for name in table.columns if name])
    if records.rejects:
        first = records.rejects[0]
        raise InputError(f"--columns {path}: line {first.line:,} cannot be read: {first.detail}")
    return Catalogue(table.source, records)


def typed(column: Column) -> pa.Array:
    """Return the cells of a column in the kind that all of them have; empty ones are null."""
    texts = pc.utf8_trim_whitespace(pc.replace_substring(column.texts, INNER, ", "))
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    rows = pa.array(column.codes, mask=column.codes < 0)
    if not any(CODE.match(text) for text in texts.drop_null().to_pylist()):
        for kind in KINDS:
            try:
                cells = texts.cast(kind)
            except pa.ArrowInvalid:
                continue
            if pa.types.is_floating(kind):  # JSON has neither NaN nor infinity
                cells = pc.if_else(pc.is_finite(cells), cells, None)
            return cells.take(rows)
    return texts.take(rows)


def _rows_of(column: Column, names: pa.Array) -> np.ndarray:
    """Return for each name the first row of the column that has it, or -1."""
    code = pc.fill_null(pc.index_in(names, column.texts), -1).to_numpy(zero_copy_only=False)
    first = np.full(len(column.texts) + 1, -1, np.int64)
    rows = np.flatnonzero(column.codes >= 0)[::-1]
    first[column.codes[rows]] = rows
    return first[code]
