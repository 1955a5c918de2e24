"""Sources of a gallery's pictures: a folder of picture files, Parquet files, or a prepared dataset."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISLNK
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.errors import InputError
from data_prep.pictures import HEIC, HEIC_MISSING, SUFFIXES
from data_prep.storage import Storage
from data_prep.tables import DESCRIPTION as DATASET

IMAGES = pa.schema([("image", pa.string()), ("file", pa.string()), ("row", pa.int64())])
"""Name of a picture, its file below the root, and its row in that file if it is a Parquet file (else null)."""
COLUMNS = ("image", "jpeg", "picture", "bytes")
"""Names of a Parquet file's column of pictures, in the order in which they are tried."""
IDS = ("image_id", "id", "path", "file_name", "filename", "name")
"""Names of the column with the pictures' names, likewise; without one, pictures are numbered by file and row."""
PARQUET = ".parquet"

Kind = Literal["folder", "parquet", "dataset"]


@dataclass(frozen=True)
class Source:
    """Pictures, in an order that depends only on their names."""

    kind: Kind
    root: Storage
    column: str | None
    """Column of the Parquet files that contains the pictures."""
    pictures: pa.Table
    """Table with the columns of IMAGES."""
    fingerprint: str
    """sha256 over the names and sizes of the files, and the modification times of picture files."""
    stamps: pa.StringArray
    """Size and modification time of each picture's file: "SIZE NANOSECONDS". A picture whose file has another stamp may
    be another one."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Files and linked folders of a folder that are not taken for pictures -> the reason."""


def find_source(path: str | Path) -> Source:
    """Find the pictures at `path`: a folder with subfolders, Parquet files, or a prepared dataset.

    Raises InputError if there are no pictures, or if a Parquet file has no column of pictures.
    """
    root = Storage(path)
    if root.local and not root.local.exists():
        raise InputError(f"--images {root}: does not exist")
    if root.local and root.local.is_file() and not str(root).endswith(PARQUET):
        raise InputError(f"--images {root}: is a file; give its folder, or a {PARQUET} file")
    if (root / DATASET).exists():
        packed = [name for name in root.files() if name.startswith("packed/") and name.endswith(PARQUET)]
        return _parquet_source("dataset", root, packed, path)
    if str(root).endswith(PARQUET):
        if root.local:
            return _parquet_source("parquet", Storage(root.local.parent), [root.local.name], path)
        raise InputError(f"--images {root}: give the folder that contains the Parquet files")
    files = [name for name in root.files() if name.endswith(PARQUET)]
    # Tables next to picture files, such as the annotations of a dataset, must not hide the pictures.
    if files and not (root.local and _picture_files(root.local)[0] and not any(_has_pictures(root / f) for f in files)):
        return _parquet_source("parquet", root, files, path)
    if not root.local:
        raise InputError(f"--images {root}: contains no {PARQUET} file; a folder of picture files must be local")
    return _folder_source(root.local)


def inside(root: Path, name: str) -> Path:
    """Return the path of file `name` below `root`, with links resolved.

    Raises ValueError if the name or a link leads out of `root`.
    """
    root = root.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"{name}: leads out of the folder")
    return path


def read_cells(root: Storage, file: str, rows: list[int], column: str) -> list[bytes | None]:
    """Read the pictures in these rows of a Parquet file below `root`, one row group at a time.

    Raises ValueError for a file outside `root`, IndexError for a missing row, and OSError or ArrowException if the file
    cannot be read.
    """
    if ".." in file.split("/"):
        raise ValueError(f"{file}: leads out of the folder")
    found: dict[int, bytes | None] = {}
    with (root / file).open() as opened:
        parquet, first = pq.ParquetFile(opened), 0
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            wanted = [row for row in rows if first <= row < first + count]
            if wanted:
                cells = parquet.read_row_group(group, columns=[column])[column]
                if pa.types.is_struct(cells.type):
                    cells = pc.struct_field(cells, "bytes")
                found |= {row: cells[row - first].as_py() for row in wanted}
            first += count
    if missing := set(rows) - set(found):
        raise IndexError(f"{file}: has no row {min(missing)}")
    return [found[row] for row in rows]


def _picture_files(root: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the files with a picture's ending, and the reason why each other one is skipped."""
    found, skipped = [], {}
    for folder, below, files in os.walk(root):
        below.sort()
        for name in below:
            if Path(folder, name).is_symlink():
                skipped[Path(folder, name).relative_to(root).as_posix()] = "a link to a folder, which is not followed"
        for path in (Path(folder, name) for name in sorted(files)):
            if path.suffix.lower() in SUFFIXES:
                found.append(path)
            else:
                skipped[path.relative_to(root).as_posix()] = _why_skipped(path.suffix.lower())
    return found, skipped


def _why_skipped(ending: str) -> str:
    if not ending:
        return "no file ending"
    if ending in HEIC:
        return HEIC_MISSING
    return f"{ending} is no picture's file ending"


def _folder_source(root: Path) -> Source:
    names, stamps, total = [], [], hashlib.sha256()
    files, skipped = _picture_files(root)
    for path in files:
        names.append(path.relative_to(root).as_posix())
        status = path.lstat()
        total.update(f"{names[-1]}\0{status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        if S_ISLNK(status.st_mode) and path.exists():
            status = path.stat()
        stamps.append(f"{status.st_size} {status.st_mtime_ns}")
    unprintable = [name for name in names if not name.isprintable()]
    if unprintable:
        raise InputError(f"--images {root}: {unprintable[0]!r} has unprintable characters in its name; rename it")
    if not names:
        raise InputError(f"--images {root}: contains no picture (searched for {', '.join(SUFFIXES)})")
    table = pa.table({"image": names, "file": names, "row": pa.nulls(len(names), pa.int64())}, schema=IMAGES)
    return Source("folder", Storage(root), None, table, total.hexdigest(), pa.array(stamps, pa.string()), skipped)


def _parquet_source(kind: Kind, root: Storage, files: list[str], given: str | Path) -> Source:
    tables, stamps, total = [IMAGES.empty_table()], [pa.array([], pa.string())], hashlib.sha256()
    column: str | None = None
    for name in files:
        with (root / name).open() as opened:
            try:
                parquet = pq.ParquetFile(opened)
            except pa.ArrowInvalid as error:
                raise InputError(f"{root / name}: not a Parquet file ({error})") from error
            schema = parquet.schema_arrow
            before, column = column, _picture_column(schema)
            if column is None:
                raise InputError(
                    f"{root / name}: no column with pictures (tried {', '.join(COLUMNS)}; it has "
                    f"{', '.join(schema.names)})"
                )
            if before not in (None, column):
                raise InputError(f"{root / name}: its pictures are in {column!r}, but earlier files have {before!r}")
            total.update(f"{name}\0{(root / name).size()} {column}\n".encode())
            rows = pa.array(range(parquet.metadata.num_rows), pa.int64())
            id_column = next((one for one in IDS if one in schema.names), None)
            if id_column:
                names = parquet.read(columns=[id_column])[id_column].cast(pa.string()).combine_chunks()
            else:
                names = pc.binary_join_element_wise(pa.scalar(name), rows.cast(pa.string()), "#")
            tables.append(pa.table([names, pa.repeat(name, len(rows)), rows], schema=IMAGES))
            stamps.append(pa.repeat((root / name).stamp(), len(rows)))
    pictures = pa.concat_tables(tables)
    if not len(pictures):
        raise InputError(f"--images {Storage(given)}: contains no picture")
    return Source(kind, root, column, pictures.combine_chunks(), total.hexdigest(), pa.concat_arrays(stamps))


def _has_pictures(file: Storage) -> bool:
    with file.open() as opened:
        try:
            return _picture_column(pq.read_schema(opened)) is not None
        except pa.ArrowInvalid:
            return False


def _picture_column(schema: pa.Schema) -> str | None:
    return next((one for one in COLUMNS if one in schema.names and _is_binary(schema.field(one).type)), None)


def _is_binary(kind: pa.DataType) -> bool:
    """Return whether cells of this type are bytes, or Hugging Face's image structs with a field `bytes`."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
