"""A gallery: embeddings of a collection of pictures under every attribute, to be searched.

A folder that `agman embed` writes:

    gallery.json                     source, model and counts (`GalleryInfo`)
    images.parquet                   image string, file string, row int64: for each row (`image_sources.IMAGES`)
    vectors/attribute-00.npy         embeddings, float32 R×D, one memory-mapped file for each attribute; they may be
                                     deleted once a vector store has them (`agman index --to`)
    store.json                       the vector store that has them, if one has (`store_index.py`)
    index/                           the approximate index, if one was built (`agman index`)
    tagger.safetensors               the model's prototypes, for searches by value, if it has some
    rejects.parquet                  image, file, row, detail string: unreadable pictures, and the reason
    skipped.parquet                  file, detail string: files that were not taken for pictures, and the reason
    columns.parquet                  columns of a catalogue's table, for each row, if one was given (`columns.py`)
    source.parquet                   image, file, row, stamp string: the source when it was embedded (`update.py`)

After an update, all files but `gallery.json` are in the folder of its state (`states.py`).

Shape suffixes: Q queries, A requested attributes, N all attributes, D embedding width, R rows, K rows of a result.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep import atomic
from data_prep.errors import InputError, StorageError
from data_prep.hints import nearest
from data_prep.pictures import open_picture, read_file
from data_prep.progress import Progress, silent
from data_prep.storage import Storage
from pipeline.common.lock import locked
from pipeline.retrieval.dataset_rows import DatasetRows, Described
from pipeline.retrieval.exact import NORM_ERROR, exact_scores, nearest_rows
from pipeline.retrieval.image_sources import IMAGES, Kind, inside, read_cells
from pipeline.retrieval.matrices import create_vectors, open_vectors, write_vectors
from pipeline.retrieval.states import COLUMNS_FILE, IMAGES_FILE, NAME, STORE_FILE, VECTORS, Hold
from pipeline.retrieval.stores import Layout

if TYPE_CHECKING:  # torch and FAISS are imported only where they are needed
    from agman.tagger import Tagger
    from pipeline.retrieval.faiss_index import ApproximateIndex
    from pipeline.retrieval.store_index import StoreIndex

SCHEMA_VERSION = 1
DESCRIPTION = "gallery.json"

Attributes = Sequence[str] | Mapping[str, float]
"""Names of requested attributes, or name -> weight."""


class GalleryInfo(BaseModel):
    """Content of `gallery.json`."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    schema_version: int = SCHEMA_VERSION
    model: str
    """Address of the model, without credentials."""
    model_digest: str
    """sha256 over the weights of the model; it tells models of the same name apart."""
    checkpoint: str | None = None
    """Folder in which the registry kept the model. A search looks there first: the registry takes seconds to answer."""
    attributes: tuple[str, ...]
    queries: dict[str, int] = {}
    """Attribute -> number of validation queries that the model was judged by; empty if unknown."""
    width: int
    """Embedding width D."""
    image_size: int
    """Side, in pixels, of the pictures that the model received."""
    precision: str = "fp32"
    """Precision in which the model computed; the embeddings are float32."""
    images: int
    """Number of rows."""
    rejects: dict[str, int] = {}
    """Number of pictures without a row, for each reason."""
    skipped: dict[str, int] = {}
    """Number of files that were not taken for pictures, for each reason."""
    source: Kind = "folder"
    root: str
    """Source of the pictures: an absolute path, or a URI without credentials."""
    column: str | None = None
    """Column of the Parquet files that contains the pictures."""
    fingerprint: str = ""
    """sha256 over everything that determines the embeddings: pictures' names, weights, precision."""
    state: str = Field(default="", pattern=f"^{NAME}$")
    """Folder of the gallery's files below it; empty if they are beside this description."""


LEAST_WEIGHT = 0.001
"""Smallest weight; its inverse is the largest. Scores are float32, which hold no sum of weights that lie far apart."""


class Names(Sequence[str]):
    """Names of the rows, kept as an Arrow column: a million names take megabytes instead of a hundred."""

    def __init__(self, column: pa.ChunkedArray):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return self._column.take(pa.array(range(*row.indices(len(self))), pa.int64())).to_pylist()
        return self._column[int(row)].as_py()


class Gallery:
    """An opened gallery (see `open`). Its matrices stay in their files and are read when they are needed."""

    def __init__(self, folder: Path, info: GalleryInfo, images: pa.Table, vectors: list[np.ndarray], hold: Hold):
        self.folder = folder
        self.info = info
        self.files = folder / info.state
        """Folder of the files of the state that was opened. They stay while this object exists."""
        self.images: Sequence[str] = Names(images["image"])
        """Name of every row: its path relative to the source (POSIX), or the image id of a prepared dataset."""
        self.table = images
        """A line for each row, with the columns of IMAGES."""
        self.stored = not vectors
        """Whether the embeddings are in the vector store alone, because the matrices were deleted."""
        self._vectors = vectors or self._stored_matrices()
        self._hold = hold

    def _stored_matrices(self) -> list[Any]:
        from pipeline.retrieval.store_index import StoredMatrix

        shape = (self.info.images, self.info.width)
        return [StoredMatrix(lambda: self.store, number, shape) for number in range(len(self.info.attributes))]

    @classmethod
    def open(cls, path: str | Path) -> Gallery:
        """Open the gallery at `path`.

        Raises InputError if there is no gallery, or if it is damaged or empty.
        """
        folder = Path(path)
        while True:
            info = read_info(folder)
            try:
                return cls._opened(folder, info)
            except InputError:
                if read_info(folder).state == info.state:
                    raise
                # An update has replaced the state in between.

    @classmethod
    def _opened(cls, folder: Path, info: GalleryInfo) -> Gallery:
        if not info.images:
            raise InputError(f"{folder}: the gallery is empty")
        state = folder / info.state
        try:
            hold = Hold(state)
            with pq.ParquetFile(state / IMAGES_FILE) as file:  # pq.read_table would import pandas
                images = file.read(columns=IMAGES.names).cast(IMAGES)
            stored = not (state / VECTORS).exists() and (folder / STORE_FILE).exists()
            vectors = [] if stored else open_vectors(state, len(info.attributes))
        except (OSError, ValueError, EOFError, pa.ArrowException) as error:
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{folder}: damaged ({first_line}); run `agman embed` again") from error
        shape = (info.images, info.width)
        if len(images) != info.images or any(one.shape != shape or one.dtype != np.float32 for one in vectors):
            raise InputError(f"{folder}: damaged (a file has not {shape[0]:,} rows); run `agman embed` again")
        return cls(folder, info, images, vectors, hold)

    def __len__(self) -> int:
        return self.info.images

    @property
    def version(self) -> str:
        """Name of the opened state, of letters that an address may have: row numbers mean rows of this state."""
        return f"{self.info.fingerprint[:8]}{self.info.state.removeprefix('state')}"

    def search(
        self,
        queries: np.ndarray,
        attributes: Attributes,
        top: int = 10,
        approximate: bool = False,
        where: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (float32, Q×K) and rows (int64, Q×K) of the best matches of each query; K = min(top, R).

        A score is the sum of the A cosines, each multiplied by its weight; equal scores are ordered by row. The result
        is exact and the same on every machine, unless `approximate` restricts the search to the candidates of the
        approximate index. Raises InputError for an unknown attribute, an attribute given twice, a weight that is not
        positive, a query without a direction, a missing index or an invalid condition; ValueError for queries of
        another shape or length.

        Args:
            queries: embeddings under all N attributes of the gallery, as `Embedder.embed` returns them: Q×N×D.
            attributes: names of the A requested attributes, or name -> weight.
            top: number of rows in the result.
            approximate: use the approximate index.
            where: condition on the columns (`where.py`); R counts only the rows that satisfy it.
        """
        numbers, weights = self.numbers(attributes), weights_of(attributes)
        queries = self._picked(queries, numbers)
        if top < 1:
            raise ValueError(f"top must be at least 1, not {top}")
        if approximate and self.store:
            return self.store.search(queries, numbers, top, weights, where)
        rows = None if where is None else self.rows_where(where)
        if approximate:
            return self.index.search(queries, numbers, top, weights, rows)
        return nearest_rows([self._vectors[number] for number in numbers], queries, top, weights, rows)

    @cached_property
    def columns(self) -> pa.Table | None:
        """Columns of the catalogue's table, a line for each row; None without. Raises InputError if damaged."""
        file = self.files / COLUMNS_FILE
        if not file.exists():
            return None
        try:
            with pq.ParquetFile(file) as opened:
                table = opened.read()
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{file}: damaged ({str(error).splitlines()[0]}); run `agman embed` again") from error
        if len(table) != len(self):
            raise InputError(f"{file}: damaged (it has not {len(self):,} rows); run `agman embed` again")
        return table

    @property
    def column_kinds(self) -> dict[str, str]:
        """Column -> kind of its cells, in words; empty without columns."""
        if self.columns is None:
            return {}
        from pipeline.retrieval.where import kind_of

        return {field.name: kind_of(field.type) for field in self.columns.schema}

    def cells(self, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Return for each of `rows` column -> cell; dates and times are texts. Without columns, the result is empty."""
        if self.columns is None:
            return [{} for _ in rows]
        table = self.columns.take(pa.array(rows, pa.int64()))
        times = [field.name for field in table.schema if pa.types.is_temporal(field.type)]
        for name in times:
            table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.string()))
        return table.to_pylist()

    def rows_where(self, condition: str) -> np.ndarray:
        """Return the rows, in order, that satisfy a condition on the columns (`where.py`): int64.

        Raises InputError for an invalid condition, and for a gallery without columns.
        """
        from pipeline.retrieval.where import matching

        return matching(self._known_columns(), condition)

    def check_where(self, condition: str) -> None:
        """Raise InputError if a condition is invalid, without looking at the rows."""
        from pipeline.retrieval.where import checked

        checked(self._known_columns().schema, condition)

    def _known_columns(self) -> pa.Table:
        if self.columns is None:
            raise InputError(
                f"{self.folder}: has no columns; `agman embed --into {self.folder} --columns TABLE` adds them"
            )
        return self.columns

    @cached_property
    def index(self) -> ApproximateIndex:
        """The approximate index. Raises InputError if there is none or if it is damaged."""
        from pipeline.retrieval.faiss_index import open_index

        index = open_index(self.files, self._vectors)
        if index is None:
            raise InputError(f"{self.folder}: has no approximate index; `agman index {self.folder}` builds one")
        return index

    @cached_property
    def layout(self) -> Layout:
        """Attributes, width and columns of the rows."""
        columns = pa.schema([]) if self.columns is None else self.columns.schema
        return Layout(self.info.attributes, self.info.width, columns)

    @cached_property
    def store(self) -> StoreIndex | None:
        """The vector store that has the gallery (`agman index --to`), for approximate searches; None without.

        Raises InputError if it does not have this version of the gallery; StorageError if it is away.
        """
        from pipeline.retrieval.store_index import open_index

        return open_index(self.folder, self.layout, len(self), self.version)

    def candidates(self, near: Sequence[tuple[int, np.ndarray]], top: int, where: str | None) -> np.ndarray:
        """Return the rows that satisfy `where` near any of the vectors, each (index of an attribute, D), sorted.

        Raises InputError as `search`.
        """
        if self.store:
            return self.store.candidates(near, top, where)
        return self.index.candidates(near, top, None if where is None else self.rows_where(where))

    def build_index(self, progress: Progress = silent) -> ApproximateIndex:
        """Build the approximate index, replacing an older one. Searches no longer use a vector store.

        Raises InputError if another process writes the gallery or has updated it, or if the index cannot be written.
        """
        from pipeline.retrieval.faiss_index import build_index

        if self.stored:
            raise InputError(f"{self.folder}: its vectors are in a vector store alone, whose index is used")
        with locked(self.folder, "another gallery"):
            for name in ("index", "store"):
                self.__dict__.pop(name, None)
            if read_info(self.folder).state != self.info.state:
                raise InputError(f"{self.folder}: has been updated since it was opened; open it again")
            built = build_index(self.files, self._vectors, progress)
            (self.folder / STORE_FILE).unlink(missing_ok=True)
            return built

    def cosines(self, query: np.ndarray, attributes: Attributes, rows: np.ndarray) -> np.ndarray:
        """Return the cosines of one query (N×D) with each of K rows under each attribute, float32 A×K."""
        numbers, rows = self.numbers(attributes), np.asarray(rows, np.int64)
        (query,) = self._picked(query[None], numbers)
        one = np.ones(1)
        return np.stack([exact_scores([self._vectors[n]], query[i : i + 1], rows, one) for i, n in enumerate(numbers)])

    def matrix(self, number: int) -> np.ndarray:
        """Return the embeddings of all rows under the attribute of this number, float32 R×D."""
        return self._vectors[number]

    @cached_property
    def tagger(self) -> Tagger | None:
        """Prototypes of the gallery's model, which name values; None without. Raises InputError if damaged."""
        from agman.checkpoint import CheckpointError
        from agman.tagger import read_tagger

        try:
            return read_tagger(self.files, self.info.model_digest)
        except CheckpointError as error:
            raise InputError(str(error)) from error

    def embeddings(self, row: int) -> np.ndarray:
        """Return the embeddings of a row under every attribute, float32 N×D."""
        return np.stack([matrix[row] for matrix in self._vectors])

    def names(self, start: int, stop: int) -> list[str]:
        """Return the names of consecutive rows; for image ids, their files, if the prepared dataset is still there."""
        images = [*self.images[start:stop]]
        known = self._dataset.paths([*map(int, images)]) if self._dataset else {}
        return [known.get(int(image), image) for image in images] if known else images

    def block(self, start: int, stop: int) -> np.ndarray:
        """Return the embeddings of consecutive rows under every attribute, float32 R×N×D."""
        return np.stack([matrix[start:stop] for matrix in self._vectors], axis=1)

    def picture(self, row: int) -> bytes | None:
        """Return the picture file of a row as its source contains it now; None if it is gone.

        Names or links that lead out of the source, and files that are not pictures, give None too.
        """
        _, file, cell = (self.table[name][int(row)].as_py() for name in IMAGES.names)
        root = Storage(self.info.root)
        try:
            path = inside(root.local, file) if root.local else None
            if cell is not None:
                data = read_cells(root, file, [cell], str(self.info.column))[0] or b""
            else:
                assert path, "picture files are in local folders"
                data = read_file(path)
            with open_picture(data):
                return data
        except Exception:  # decoders and remote storages raise nearly any exception
            return None

    def describe(self, rows: Sequence[int]) -> list[Described]:
        """Return the file's name and the labels of these rows, as far as they are known.

        The labels, and the names for image ids, are read from the prepared dataset, if the pictures are one and it is
        still there.
        """
        plain = [Described(self.images[row], {}) for row in rows]
        if not self._dataset:
            return plain
        known = self._dataset.describe([int(one.path) for one in plain])
        return [known.get(int(one.path), one) for one in plain]

    def path(self, row: int) -> str:
        """Return the absolute path or the URI of a row's file; `#ROW` follows if it is one of a Parquet file's."""
        _, file, cell = (self.table[name][int(row)].as_py() for name in IMAGES.names)
        return f"{Storage(self.info.root) / file}{'' if cell is None else f'#{cell}'}"

    def row_of(self, path: Path) -> int | None:
        """Return the row of a picture file, or None if it is not one of the gallery's."""
        path, image = path.resolve(), None
        if self._dataset:
            found = self._dataset.image_of(path)
            image = None if found is None else str(found)
        elif self.info.source == "folder" and path.is_relative_to(root := Path(self.info.root).resolve()):
            image = path.relative_to(root).as_posix()
        row = -1 if image is None else self.table["image"].index(image).as_py()
        return None if row < 0 else row

    def row_named(self, name: str) -> int | None:
        """Return the row of a picture by the name that `describe` gives, or None if the gallery has no such picture."""
        image = self._dataset.image_named(name) if self._dataset else None
        row = self.table["image"].index(name if image is None else str(image)).as_py()
        return None if row < 0 else row

    @cached_property
    def _dataset(self) -> DatasetRows | None:
        """Tables of the prepared dataset that the pictures are from."""
        if self.info.source != "dataset":
            return None
        try:
            return DatasetRows(Storage(self.info.root))
        except (OSError, ValueError, StorageError, pa.ArrowException):
            return None

    def numbers(self, attributes: Iterable[str]) -> list[int]:
        """Return the indices of the attributes.

        Raises InputError for no attribute, an unknown one, or one given twice.
        """
        known, names = self.info.attributes, list(attributes)
        if not names:
            raise InputError(f"no attribute given; known: {', '.join(known)}")
        for i, name in enumerate(names):
            if name not in known:
                raise InputError(f"unknown attribute {name!r}; {nearest(name, known)}")
            if name in names[:i]:
                raise InputError(f"attribute {name!r} is given twice")
        return [known.index(name) for name in names]

    def _picked(self, queries: np.ndarray, numbers: list[int]) -> np.ndarray:
        """Return the queries' embeddings under the attributes with these numbers, float32 Q×A×D."""
        shape = (len(self.info.attributes), self.info.width)
        if queries.ndim != 3 or queries.shape[1:] != shape:
            raise ValueError(
                f"queries must be Q×{shape[0]}×{shape[1]}, embeddings under all attributes of the gallery as "
                f"Embedder.embed returns them, not {'×'.join(map(str, queries.shape))}"
            )
        queries = np.ascontiguousarray(queries[:, numbers], np.float32)
        lengths = np.linalg.norm(queries.astype(np.float64), axis=-1)
        if (lengths == 0).any():
            name = self.info.attributes[numbers[int(np.argwhere(lengths == 0)[0, 1])]]
            raise InputError(f"the model gives a vector of length 0 under {name}, which is similar to nothing")
        if not (np.abs(lengths - 1) <= NORM_ERROR).all():  # false for NaN
            raise ValueError("queries must be of unit length")
        return queries


def weights_of(attributes: Attributes) -> list[float]:
    """Return the weight of each attribute, 1 where none is given. Raises InputError unless all are positive."""
    weights = list(attributes.values()) if isinstance(attributes, Mapping) else [1.0] * len(attributes)
    for name, weight in zip(attributes, weights, strict=True):
        if not LEAST_WEIGHT <= weight <= 1 / LEAST_WEIGHT:
            bounds = f"{LEAST_WEIGHT:g} to {1 / LEAST_WEIGHT:,.0f}"
            raise InputError(f"attribute {name}={weight:g}: a weight must be a positive number, {bounds}")
    return weights


def write_gallery(folder: Path, info: GalleryInfo, images: pa.Table, blocks: Iterable[np.ndarray]) -> None:
    """Write the files that a search needs into an existing folder, the description last. Arguments as `write_rows`."""
    write_rows(folder, info, images, blocks)
    describe(folder, info)


def write_rows(state: Path, info: GalleryInfo, images: pa.Table, blocks: Iterable[np.ndarray]) -> None:
    """Write names and matrices of a gallery's rows.

    Args:
        state: an existing folder.
        info: description of the gallery.
        images: one line for each row, with the columns of IMAGES.
        blocks: embeddings of consecutive rows under all attributes, in the order of `images`; each rows×N×D.
    """
    create_vectors(state, len(info.attributes), info.images, info.width)
    rows = 0
    for block in blocks:
        write_vectors(state, rows, block)
        rows += len(block)
    if rows != info.images:
        raise ValueError(f"{info.images} images described, {rows} embedded")
    write_names(state, info, images)


def write_names(state: Path, info: GalleryInfo, images: pa.Table) -> None:
    """Write the names of a gallery's rows, one line for each, with the columns of IMAGES."""
    if len(images) != info.images:
        raise ValueError(f"{info.images} images described, {len(images)} named")
    pq.write_table(images.cast(IMAGES), state / IMAGES_FILE)


def describe(folder: Path, info: GalleryInfo) -> None:
    """Write the description of a gallery, which names its state, in one step."""
    with atomic.file(folder / DESCRIPTION) as staging, staging.open("w", encoding="utf-8") as file:
        file.write(info.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_info(folder: Path) -> GalleryInfo:
    """Read the description of the gallery in `folder`. Raises InputError if there is none, or if it is damaged."""
    file = folder / DESCRIPTION
    try:
        info = GalleryInfo.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: not a gallery (no {DESCRIPTION}); make one with `agman embed`") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    except ValidationError as error:
        first: Any = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{file}: damaged or of another version ({field}: {first['msg']})") from error
    if info.schema_version != SCHEMA_VERSION:
        raise InputError(
            f"{file}: schema version {info.schema_version}, this agman reads {SCHEMA_VERSION}; run `agman embed` again"
        )
    return info
