"""Read, decode and embed the pictures of a source in batches, with the reason for every reject."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from agman.embedder import Embedder, PictureError
from data_prep.errors import StorageError
from data_prep.pictures import MAX_BYTES, read_file
from data_prep.storage import Storage
from pipeline.retrieval.image_sources import inside, read_cells

REJECTS = pa.schema([("image", pa.string()), ("file", pa.string()), ("row", pa.int64()), ("detail", pa.string())])
NO_DIRECTION = "the model gives a vector of length 0"


class PictureEmbedder:
    """A model, and the source whose pictures it embeds.

    Args:
        embedder: model.
        root: root of the source.
        column: column of the source's Parquet files; None for picture files.
        threads: number of pictures that are read at the same time.
    """

    def __init__(self, embedder: Embedder, root: Storage, column: str | None, threads: int):
        self.embedder, self.root, self.column = embedder, root, column
        self.pool = ThreadPoolExecutor(threads)

    def embed(self, pictures: pa.Table) -> tuple[np.ndarray, list[str | None]]:
        """Embed pictures under every attribute.

        Args:
            pictures: a few lines of `Source.pictures`.

        Returns:
            Embeddings of those that have some, U×N×D, and for each picture the reason why it has none, else None.

        Raises:
            StorageError: if a Parquet file cannot be read, or the model gives NaN or infinity.
        """
        squares = self.read(pictures)
        vectors = self.embedder.embed([one for one in squares if isinstance(one, np.ndarray)])
        if not np.isfinite(vectors).all():
            raise StorageError(
                f"the model gives NaN or infinity for some of the pictures from {pictures['image'][0]} on: its "
                "training diverged, or its weights are damaged"
            )
        directed = [bool(one.any(axis=1).all()) for one in vectors]
        of_vectors = iter(directed)
        details = [
            str(one) if isinstance(one, PictureError) else None if next(of_vectors) else NO_DIRECTION for one in squares
        ]
        return vectors[directed], details

    def read(self, pictures: pa.Table) -> list[np.ndarray | PictureError]:
        """Return each picture as the model receives it, or the reason why it cannot be read."""
        if self.column is None:
            return list(self.pool.map(self._read_file, pictures["file"].to_pylist()))
        data: list[bytes | None] = []
        for file in dict.fromkeys(pictures["file"].to_pylist()):  # a shard may begin in one file and end in the next
            rows = [one["row"] for one in pictures.to_pylist() if one["file"] == file]
            try:
                data += read_cells(self.root, file, rows, self.column)
            except (OSError, ValueError, IndexError, pa.ArrowException) as error:
                raise StorageError(f"{self.root / file}: cannot be read ({error}); is it being written?") from error
        return list(self.pool.map(self._read, data))

    def _read_file(self, name: str) -> np.ndarray | PictureError:
        assert self.root.local
        try:
            return self._read(read_file(inside(self.root.local, name)))
        except (OSError, ValueError) as error:
            return PictureError(f"cannot be read ({error.strerror if isinstance(error, OSError) else error})")

    def _read(self, data: bytes | None) -> np.ndarray | PictureError:
        if not data:
            return PictureError("the file is empty")
        if len(data) > MAX_BYTES:
            return PictureError(f"the file is too large ({len(data):,} bytes)")
        try:
            return self.embedder.read(data)
        except PictureError as error:
            return error
