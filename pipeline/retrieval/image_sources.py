"""Where a gallery's pictures come from: a folder of picture files, Parquet files, or a prepared dataset."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from data_prep.errors import InputError
from data_prep.pictures import FORMATS
from data_prep.storage import Storage
from data_prep.tables import DESCRIPTION as DATASET

IMAGES = pa.schema([("image", pa.string()), ("file", pa.string()), ("row", pa.int64())])
"""What a picture is called, and where it is: `file` below the root and, in a Parquet file, its `row` (else null)."""
COLUMNS = ("image", "jpeg", "picture", "bytes")
"""Names under which a Parquet file's pictures are looked for."""
IDS = ("image_id", "id", "path", "file_name", "filename", "name")
"""The same for what they are called; without any they are numbered by file and row."""
PARQUET = ".parquet"

Kind = Literal["folder", "parquet", "dataset"]


@dataclass(frozen=True)
class Source:
    """Pictures in an order that depends on nothing but their names."""

    kind: Kind
    root: Storage
    column: str | None
    """Of the Parquet files that hold the pictures."""
    pictures: pa.Table
    """Columns of IMAGES."""
    fingerprint: str
    """sha256 over the files' names and sizes, and picture files' times: another content shows."""


def find_source(place: str | Path) -> Source:
    """The pictures at `place`: a folder (searched through), a Parquet file or a folder of them, or a prepared dataset.

    Raises InputError where there are none, or where a Parquet file has no column of pictures.
    """
    root = Storage(place)
    if root.local and not root.local.exists():
        raise InputError(f"--images {root}: not there")
    if (root / DATASET).exists():
        packed = [name for name in root.files() if name.startswith("packed/") and name.endswith(PARQUET)]
        return _of_parquet("dataset", root, packed, place)
    if str(root).endswith(PARQUET):
        if root.local:
            return _of_parquet("parquet", Storage(root.local.parent), [root.local.name], place)
        raise InputError(f"--images {root}: give the folder that the Parquet files are in")
    files = [name for name in root.files() if name.endswith(PARQUET)]
    # Tables beside picture files, such as a dataset's annotations, hide no pictures.
    if files and not (root.local and _picture_files(root.local) and not any(_has_pictures(root / f) for f in files)):
        return _of_parquet("parquet", root, files, place)
    if not root.local:
        raise InputError(f"--images {root}: no {PARQUET} file there; a folder of picture files must be a local one")
    return _of_folder(root.local)


def _picture_files(root: Path) -> list[Path]:
    found, endings = [], _endings()
    for folder, below, files in os.walk(root):
        below.sort()
        found += [Path(folder, name) for name in sorted(files) if Path(name).suffix.lower() in endings]
    return found


def _endings() -> set[str]:
    return {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}


def _of_folder(root: Path) -> Source:
    names, total = [], hashlib.sha256()
    for path in _picture_files(root):
        names.append(path.relative_to(root).as_posix())
        status = path.lstat()
        total.update(f"{names[-1]}\0{status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    unreadable = [name for name in names if not name.isprintable()]
    if unreadable:
        raise InputError(f"--images {root}: {unreadable[0]!r} has unprintable characters in its name; rename it")
    if not names:
        raise InputError(f"--images {root}: no picture there (looked for {', '.join(sorted(_endings()))})")
    table = pa.table({"image": names, "file": names, "row": pa.nulls(len(names), pa.int64())}, schema=IMAGES)
    return Source("folder", Storage(root), None, table, total.hexdigest())


def _of_parquet(kind: Kind, root: Storage, files: list[str], asked: str | Path) -> Source:
    tables, total = [], hashlib.sha256()
    column: str | None = None
    for name in files:
        with (root / name).open() as opened:
            try:
                parquet = pq.ParquetFile(opened)
            except pa.ArrowInvalid as error:
                raise InputError(f"{root / name}: not a Parquet file ({error})") from error
            schema = parquet.schema_arrow
            before, column = column, _picture_column(schema)
            if column and before not in (None, column):
                raise InputError(
                    f"{root / name}: its pictures are in {column!r}, those of the files before in {before!r}"
                )
            if column is None:
                raise InputError(
                    f"{root / name}: no column of pictures' bytes (looked for {', '.join(COLUMNS)}; it has "
                    f"{', '.join(schema.names)})"
                )
            total.update(f"{name}\0{(root / name).size()} {column}\n".encode())
            called = next((one for one in IDS if one in schema.names), None)
            rows = pa.array(range(parquet.metadata.num_rows), pa.int64())
            if called:
                names = parquet.read(columns=[called])[called].cast(pa.string()).combine_chunks()
            else:
                names = pc.binary_join_element_wise(pa.scalar(name), rows.cast(pa.string()), "#")
            tables.append(pa.table([names, pa.repeat(name, len(rows)), rows], schema=IMAGES))
    pictures = pa.concat_tables(tables) if tables else IMAGES.empty_table()
    if not len(pictures):
        raise InputError(f"--images {Storage(asked)}: no picture there")
    return Source(kind, root, column, pictures.combine_chunks(), total.hexdigest())


def _has_pictures(file: Storage) -> bool:
    with file.open() as opened:
        try:
            return _picture_column(pq.read_schema(opened)) is not None
        except pa.ArrowInvalid:
            return False


def _picture_column(schema: pa.Schema) -> str | None:
    return next((one for one in COLUMNS if one in schema.names and _holds_bytes(schema.field(one).type)), None)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # Hugging Face's image feature
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def read_cells(root: Storage, file: str, rows: list[int], column: str) -> list[bytes | None]:
    """The pictures in these rows of a Parquet file below `root`, read a row group at a time.

    Raises ValueError for a file that is not below, OSError, ArrowException, and IndexError if there is no such row.
    """
    if ".." in file.split("/"):
        raise ValueError(f"{file}: leads out of the folder")
    found: dict[int, bytes | None] = {}
    with (root / file).open() as opened:
        parquet, first = pq.ParquetFile(opened), 0
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            inside = [row for row in rows if first <= row < first + count]
            if inside:
                cells = _bytes_of(parquet.read_row_group(group, columns=[column])[column])
                found |= {row: cells[row - first].as_py() for row in inside}
            first += count
    if missing := set(rows) - set(found):
        raise IndexError(f"{file}: has no row {min(missing)}")
    return [found[row] for row in rows]


def _bytes_of(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.struct_field(cells, "bytes") if pa.types.is_struct(cells.type) else cells
