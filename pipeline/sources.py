"""Where a gallery's pictures come from: a folder of picture files, Parquet files, or a prepared dataset."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.storage import Storage


def read_cell(root: Storage, file: str, row: int, column: str) -> bytes:
    """The picture in one row of a Parquet file below `root`. Raises nearly anything if it is not there."""
    if ".." in file.split("/"):
        raise ValueError(f"{file}: leads out of the folder")
    with (root / file).open() as opened:
        parquet = pq.ParquetFile(opened)
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if row < rows:
                return pictures_of(parquet.read_row_group(group, columns=[column]), column)[row].as_py()
            row -= rows
    raise IndexError(f"{file}: has no such row")


def pictures_of(table: pa.Table, column: str) -> pa.ChunkedArray:
    """The pictures' bytes. A column of Hugging Face's image feature is a struct of `bytes` and `path`."""
    cells = table[column]
    return pc.struct_field(cells, "bytes") if pa.types.is_struct(cells.type) else cells
