"""Reading of a table in a form that is detected: delimited text such as CSV, JSON Lines, or Parquet.

Cells are read as text, and every column as codes into its distinct texts, because a column with millions of rows has
few of them. What is done with a text (trimming, cutting it up, looking it up) is then done once for each.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import charset_normalizer
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv as pacsv

from data_prep.annotation import Reject, bad_line
from data_prep.errors import InputError
from data_prep.hints import nearest
from data_prep.layouts.text_files import annotation_file
from data_prep.storage import Storage

SAMPLE = 1 << 20
"""Bytes from which encoding and delimiter are detected."""
SAMPLED_LINES = 200
BLOCK = 8 << 20
"""Bytes that are read at a time."""
ROWS = 50_000
"""Rows of JSON Lines or Parquet that are read at a time."""
LONGEST_RECORD = 100
"""Lines of one row; a quoted cell with more is a quote that is not closed."""
LONG_WORD = 16
"""Letters of a word that is rather an identifier, such as a hash."""
DELIMITERS = (",", ";", "\t", "|")
ENCODINGS = ("cp1252", "cp1251", "gb18030", "cp932", "big5", "cp949", "euc_jp")
"""Encodings that a table may have if it is neither UTF-8 nor UTF-16."""
INNER = "\x1f"
"""Separator of the values of a list in one cell, from Parquet and JSON Lines."""
CODED = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True)
class Column:
    """A column of N cells."""

    codes: np.ndarray
    """N int32: index of the cell's text; -1 for an empty cell."""
    texts: pa.StringArray
    """Distinct texts, in the order of their first appearance."""

    @classmethod
    def of(cls, cells: pa.Array | pa.ChunkedArray) -> Column:
        """Return the column of these cells."""
        if isinstance(cells, pa.ChunkedArray):
            cells = cells.unify_dictionaries() if pa.types.is_dictionary(cells.type) else cells
            cells = cells.combine_chunks()
        if not pa.types.is_dictionary(cells.type):
            cells = pc.dictionary_encode(cells)
        return cls(pc.fill_null(cells.indices, -1).to_numpy(zero_copy_only=False), cells.dictionary)


@dataclass(frozen=True)
class Records:
    """The columns of a table that were asked for."""

    columns: dict[str, Column]
    lines: np.ndarray
    """N int64: line (Parquet: row) of each record in the file, counted from 1."""
    rejects: list[Reject] = field(default_factory=list)
    """Lines that cannot be read."""

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True)
class TableFile:
    """A table on the disk, not yet read."""

    path: Path
    source: str
    """Name of the table in rejects and messages."""
    kind: str
    """csv, jsonl or parquet."""
    columns: tuple[str, ...]
    state: tuple[int, ...]
    """State of the file before anything was detected."""
    encoding: str = "utf-8"
    delimiter: str = ","

    @property
    def read_as(self) -> str:
        """Description of the form in which the table is read."""
        if self.kind != "csv":
            return {"jsonl": "JSON Lines", "parquet": "Parquet"}[self.kind]
        name = {",": "comma", ";": "semicolon", "\t": "tab", "|": "|"}[self.delimiter]
        return f"{self.encoding}, separated by {name}"

    def read(self, wanted: Sequence[str]) -> Records:
        """Read the columns `wanted`.

        Raises InputError if one is not there, or if the file has changed since its form was detected.
        """
        check_columns(wanted, self.columns, self.source)
        try:
            records = {"csv": _read_csv, "jsonl": _read_json, "parquet": _read_parquet}[self.kind](self, wanted)
        except (InputError, pa.ArrowException, UnicodeError, OSError) as error:
            self._refuse_change()  # the likelier cause
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.source}: cannot be read as {self.read_as} ({_first_line(error)})") from error
        pa.default_memory_pool().release_unused()  # the batches, as large as what is kept of them
        self._refuse_change()
        if not len(records) and not records.rejects:
            raise InputError(f"{self.source}: has no rows")
        return records

    def _refuse_change(self) -> None:
        if _state(self.path) != self.state:
            raise InputError(f"{self.source}: changed while it was read; run the command again when it is complete")


def check_columns(wanted: Sequence[str], columns: Sequence[str], source: str) -> None:
    """Raise InputError if a column is not in the table."""
    for name in wanted:
        if name not in columns:
            raise InputError(f"{source}: has no column {name!r}; {nearest(name, columns)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _state(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:  # it is gone
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def opened(where: str | Path) -> Iterator[TableFile]:
    """Detect the form of a table in a local file or at a URI. Raises InputError if there is no table."""
    storage = Storage(where)
    if storage.local:
        path = storage.local
        if not path.exists():
            raise InputError(f"{path}: no such file")
        yield _examined(annotation_file(path, Path(path.anchor)), str(where))
        return
    with tempfile.TemporaryDirectory(prefix="agman-") as folder:
        copy = Path(folder, "table")
        try:
            storage.download(copy)
        except FileNotFoundError as error:
            raise InputError(f"{storage}: no such file") from error
        yield _examined(copy, str(storage))


def _examined(path: Path, name: str) -> TableFile:
    source, state = name.rpartition("/")[2], _state(path)
    with path.open("rb") as file:
        start = file.read(SAMPLE)
    if start.startswith(b"PAR1"):
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{name}: damaged Parquet file ({_first_line(error)})") from error
        return TableFile(path, source, "parquet", _distinct(schema.names, name), state)
    encoding = _encoding(path, start)
    text = codecs.getincrementaldecoder(encoding)("replace").decode(start)
    if not text.strip():
        raise InputError(f"{name}: has no rows")
    if text.lstrip().startswith("["):
        raise InputError(f"{name}: is a JSON array; give JSON Lines, one object a line")
    if text.lstrip().startswith("{"):
        return TableFile(path, source, "jsonl", _keys(text), state, encoding)
    delimiter = _delimiter(text)
    if len(start) < SAMPLE and len(list(_some_records(text, delimiter))) < 2:
        raise InputError(f"{name}: has no rows")
    header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    columns = _distinct([cell.strip() for cell in header], name)
    return TableFile(path, source, "csv", columns, state, encoding, delimiter)


def _distinct(names: Sequence[str], name: str) -> tuple[str, ...]:
    twice = [column for column, count in Counter(names).items() if count > 1 and column]
    if twice:
        raise InputError(f"{name}: has {names.count(twice[0])} columns of the name {twice[0]!r}; rename one")
    return tuple(names)


def _encoding(path: Path, start: bytes) -> str:
    """Return the encoding: of the byte order mark, else UTF-8 if the file can be decoded so, else the likeliest one."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    pairs = np.frombuffer(start[: len(start) // 2 * 2], np.uint8).reshape(-1, 2)
    for column, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(pairs) and (pairs[:, column] == 0).mean() > 0.4:
            return name
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        bad = max(0, error.start - SAMPLE // 2)
        sample = start if not start.isascii() else error.object[bad : bad + SAMPLE]
        best = charset_normalizer.from_bytes(sample, cp_isolation=list(ENCODINGS)).best()
        return best.encoding if best else "cp1252"
    return "utf-8-sig" if start.startswith(codecs.BOM_UTF8) else "utf-8"


def _delimiter(text: str) -> str:
    """Return the delimiter that cuts most of the first lines into the header's number of cells, two or more."""
    best, chosen = (0.0, 0), ","
    for delimiter in DELIMITERS:
        lines = list(_some_records(text, delimiter))
        cells = len(lines[0])
        fitting = sum(len(line) == cells for line in lines) / len(lines)
        if cells > 1 and (fitting, cells) > best:
            best, chosen = (fitting, cells), delimiter
    return chosen


def _some_records(text: str, delimiter: str) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for number, line in enumerate(reader):
            if number and number == SAMPLED_LINES:
                return
            if line or not number:
                yield line
    except csv.Error:  # a quote that is not closed in the sample
        return


def _keys(text: str) -> tuple[str, ...]:
    keys: dict[str, None] = {}
    for line in text.splitlines()[: SAMPLED_LINES * 10]:
        try:
            keys |= dict.fromkeys(json.loads(line))
        except (ValueError, TypeError):
            continue  # it becomes a reject, or is cut off by the end of the sample
    return tuple(map(str, keys))


def _read_csv(table: TableFile, wanted: Sequence[str]) -> Records:
    # A nameless column has a name of its own, because Arrow needs one.
    names = [name or f"\0{number}" for number, name in enumerate(table.columns)]
    bad: list[tuple[int, str]] = []

    def skip(row: Any) -> str:
        bad.append((row.number, row.text))
        return "skip"

    reader = pacsv.open_csv(
        table.path,
        pacsv.ReadOptions(
            column_names=names,
            skip_rows_after_names=1,
            block_size=BLOCK,
            encoding=table.encoding.removesuffix("-sig"),  # Arrow skips the byte order mark of UTF-8
            use_threads=False,  # because only then the numbers of bad lines are known
        ),
        pacsv.ParseOptions(
            delimiter=table.delimiter, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=skip
        ),
        pacsv.ConvertOptions(
            column_types=dict.fromkeys(wanted, CODED), include_columns=list(wanted), strings_can_be_null=False
        ),
    )
    read = pa.Table.from_batches(list(reader), reader.schema)
    columns = {name: Column.of(read[name]) for name in wanted}
    # Records are numbered from the header, which is 1; the bad ones were left out.
    skipped = np.array([number for number, _ in bad], np.int64)
    records = np.setdiff1d(np.arange(2, 2 + len(read) + len(bad)), skipped, assume_unique=True)
    line_of, swallowing = _first_lines(table, len(read) + len(bad) + 1)
    whole = ~np.isin(records, list(swallowing))
    columns = {name: Column(column.codes[whole], column.texts) for name, column in columns.items()}
    bad += [(number, text) for number, text in swallowing.items() if number not in skipped]
    rejects = [
        bad_line(table.source, int(line_of[number - 1]) + below, line)
        for number, text in sorted(bad)
        for below, line in enumerate(text.splitlines())
        if line.strip()
    ]
    return Records(columns, line_of[records[whole] - 1], rejects)


def _first_lines(table: TableFile, records: int) -> tuple[np.ndarray, dict[int, str]]:
    """Return the line on which each record begins, counted from 1, and the records that swallowed others.

    A quoted cell may have several lines. A stray quote makes such a cell of what should be rows: of these records, the
    number and the text are returned. Raises InputError if a record has too many lines.
    """
    if not table.encoding.startswith("utf-16") and _lines(table.path) == records:
        return np.arange(1, records + 1), {}
    starts: list[int] = []
    swallowing: dict[int, str] = {}
    with table.path.open(encoding=table.encoding, errors="replace", newline="") as file:
        read: list[str] = []
        reader = csv.reader(_kept(file, read), delimiter=table.delimiter)
        line = 1
        try:
            for _ in reader:
                starts.append(line)
                if len(read) > LONGEST_RECORD:
                    raise csv.Error(f"it goes on for {len(read):,} lines")
                if len(read) > 1 and _swallows(read, table):
                    swallowing[len(starts)] = "".join(read)
                line += len(read)
                read.clear()
        except csv.Error as error:
            raise InputError(
                f"{table.source}: a quote is not closed in the row that begins on line {line:,}: {error}"
            ) from error
    if len(starts) != records:
        return np.arange(1, records + 1), {}
    return np.array(starts), swallowing


def _lines(path: Path) -> int:
    """Return the number of lines of a file, whose ends are those of Unix, Windows or old Macs."""
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        while read := file.read(BLOCK):
            lines += read.count(b"\n") + read.count(b"\r") - read.count(b"\r\n")
            lines -= last == b"\r" and read.startswith(b"\n")
            last = read[-1:]
    return lines + (last not in b"\r\n")


def _kept(lines: Iterable[str], kept: list[str]) -> Iterator[str]:
    for line in lines:
        kept.append(line)
        yield line


def _swallows(lines: list[str], table: TableFile) -> bool:
    """Return whether a record of several lines is as many rows with stray quotes.

    Text after a closing quote says so. Otherwise, every line has a row's number of cells, and those of one column look
    alike: such as paths, identifiers or numbers; lines of a description do not.
    """
    try:
        next(csv.reader(lines, delimiter=table.delimiter, strict=True))
    except csv.Error:
        return True
    cells = [line.replace('"', "").strip("\r\n").split(table.delimiter) for line in lines]
    if any(len(row) != len(table.columns) for row in cells):
        return False
    shapes = [{_shape(cell) for cell in column} for column in zip(*cells, strict=True)]
    return any(len(shape) == 1 and shape != {""} for shape in shapes)


def _shape(cell: str) -> str:
    """Return what identifiers of one kind have in common: digits, punctuation, the length of a long word; else ""."""
    word = cell.strip()
    if " " in word or (word.isalpha() and len(word) < LONG_WORD):
        return ""
    if word.isdigit():
        return "0"
    return str(len(word)) if word.isalnum() else re.sub(r"[^\W_]+", "x", word)


def _read_json(table: TableFile, wanted: Sequence[str]) -> Records:
    parts: dict[str, list[pa.Array]] = {name: [] for name in wanted}
    cells: dict[str, list[str | None]] = {name: [] for name in wanted}
    lines: list[int] = []
    rejects: list[Reject] = []

    def keep() -> None:
        for name in wanted:
            parts[name].append(pc.dictionary_encode(pa.array(cells[name], pa.string())))
            cells[name] = []

    with table.path.open(encoding=table.encoding, errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                rejects.append(bad_line(table.source, number, line))
                continue
            lines.append(number)
            for name in wanted:
                cells[name].append(_text(record.get(name)))
            if len(lines) % ROWS == 0:
                keep()
    keep()
    columns = {name: Column.of(pa.chunked_array(parts[name])) for name in wanted}
    return Records(columns, np.array(lines, np.int64), rejects)


def _text(value: Any) -> str | None:
    """Return the text of a JSON value; None for null."""
    if isinstance(value, list):
        return INNER.join(text for one in value if (text := _text(one)) is not None)
    if isinstance(value, str) or value is None:
        return value
    return json.dumps(value, ensure_ascii=False)


def _read_parquet(table: TableFile, wanted: Sequence[str]) -> Records:
    parts: dict[str, list[pa.Array]] = {name: [] for name in wanted}
    rows = 0
    with pq.ParquetFile(table.path) as file:
        for batch in file.iter_batches(ROWS, columns=list(wanted)):
            rows += len(batch)
            for name in wanted:
                parts[name].append(pc.dictionary_encode(_as_text(batch.column(name))))
    columns = {name: Column.of(pa.chunked_array(parts[name], CODED)) for name in wanted}
    return Records(columns, np.arange(1, rows + 1))


def _as_text(cells: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    if pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type):
        values = cells.flatten().cast(pa.string())
        # `flatten` leaves out what null lists hold, so the offsets are counted anew.
        lengths = pc.fill_null(pc.list_value_length(cells), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        joined = pc.binary_join(pa.ListArray.from_arrays(offsets, pc.fill_null(values, "")), INNER)
        return pc.if_else(pc.is_valid(cells), joined, None)
    return cells.cast(pa.string())
