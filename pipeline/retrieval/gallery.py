"""A gallery: the embeddings of a collection of pictures under every attribute, to be searched.

A folder that `agman embed` makes:

    gallery.json                     of what, by which model (`GalleryInfo`)
    embeddings/part-*.parquet        image, file, row (see images.parquet), and a column of vectors for each attribute
    images.parquet                   image string, file string, row int64: what each row is (`image_sources.IMAGES`)
    vectors/attribute-00.npy         the same embeddings as float32 R×D, one file an attribute, to be mapped into memory
    index/                           an approximate index, if one was built (`agman index`)
    rejects.parquet                  image, file, row, detail string: pictures that cannot be read, and why

Shape suffixes: Q queries, A asked attributes, D embedding width, R rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from data_prep.errors import InputError
from data_prep.pictures import open_picture, read_file
from data_prep.progress import Progress, silent
from data_prep.storage import Storage
from pipeline.common.hints import nearest
from pipeline.retrieval.exact import NORM_ERROR, exact_scores, nearest_rows
from pipeline.retrieval.faiss_index import ApproximateIndex, build_index, open_index
from pipeline.retrieval.image_sources import IMAGES, Kind, read_cells

SCHEMA_VERSION = 1
DESCRIPTION = "gallery.json"
IMAGES_FILE = "images.parquet"
VECTORS = "vectors"
EMBEDDINGS = "embeddings"


class GalleryInfo(BaseModel):
    """What `gallery.json` holds."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    schema_version: int = SCHEMA_VERSION
    model: str
    """As it may be shown: without credentials."""
    model_digest: str
    """sha256 over the model's weights: another model of the same name shows."""
    attributes: tuple[str, ...]
    width: int
    """D, of one embedding."""
    image_size: int
    """Side in pixels of what the model saw."""
    precision: str = "fp32"
    """In which the model computed; the embeddings are float32."""
    images: int
    """Rows."""
    rejects: dict[str, int] = {}
    """Pictures that have no row, per reason."""
    source: Kind = "folder"
    root: str
    """Where the pictures came from: an absolute path, or a URI without credentials."""
    column: str | None = None
    """Of the Parquet files that hold the pictures."""
    fingerprint: str = ""
    """sha256 over all that decided the embeddings: pictures' names, weights, precision."""


class Names(Sequence[str]):
    """The rows' names, held as Arrow holds them: a million take megabytes, not a hundred."""

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
    """An opened gallery; `open` makes one. Its matrices stay in their files, and are read as they are needed."""

    def __init__(self, folder: Path, info: GalleryInfo, images: pa.Table, vectors: list[np.ndarray]):
        self.folder = folder
        self.info = info
        self.images: Sequence[str] = Names(images["image"])
        """Name of every row: its path relative to the source (POSIX), or the image id of a prepared dataset."""
        self._places = images
        self._vectors = vectors

    @classmethod
    def open(cls, place: str | Path) -> Gallery:
        """Raises InputError for what is no gallery, a damaged one, or one without an image."""
        folder = Path(place)
        info = _described(folder)
        if not info.images:
            raise InputError(f"{folder}: the gallery is empty")
        try:
            images = pq.read_table(folder / IMAGES_FILE, schema=IMAGES)
            vectors = [_mapped(folder / vectors_file(number)) for number in range(len(info.attributes))]
        except (OSError, ValueError, EOFError, pa.ArrowException) as error:
            raise InputError(f"{folder}: damaged ({_first_line(error)}); run `agman embed` again") from error
        shape = (info.images, info.width)
        if len(images) != info.images or any(one.shape != shape or one.dtype != np.float32 for one in vectors):
            raise InputError(f"{folder}: damaged (a file is not of {shape[0]:,} rows); run `agman embed` again")
        return cls(folder, info, images, vectors)

    def __len__(self) -> int:
        return self.info.images

    def search(
        self, queries: np.ndarray, attributes: Sequence[str], top: int = 10, approximate: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows most similar to each query: scores float32 Q×K and rows int64 Q×K, K = min(top, R), best first.

        `queries` are Q×A×D embeddings of unit length under the asked attributes, in their order. A score is the sum
        of the A cosines; equal ones are in the order of the rows. Exact, and the same on every machine; `approximate`
        looks at some rows only. Raises InputError for an unknown attribute, one asked twice, or a missing index,
        ValueError for queries of another shape or length.
        """
        numbers = self.numbers(attributes)
        queries = self._checked(queries, len(attributes))
        if top < 1:
            raise ValueError(f"top must be at least 1, not {top}")
        if approximate:
            return self.index.search(queries, numbers, top)
        return nearest_rows([self._vectors[number] for number in numbers], queries, top)

    @cached_property
    def index(self) -> ApproximateIndex:
        """The approximate index. Raises InputError if there is none, or it is damaged."""
        index = open_index(self.folder, self._vectors)
        if index is None:
            raise InputError(f"{self.folder}: has no approximate index; `agman index {self.folder}` builds one")
        return index

    def build_index(self, progress: Progress = silent) -> ApproximateIndex:
        """Build the approximate index anew; what it measured of itself is its `measured`."""
        self.__dict__.pop("index", None)
        return build_index(self.folder, self._vectors, progress)

    def cosines(self, query: np.ndarray, attributes: Sequence[str], rows: np.ndarray) -> np.ndarray:
        """float32 A×K: of one query, A×D, with each of K rows, under each attribute by itself."""
        vectors, rows = [self._vectors[number] for number in self.numbers(attributes)], np.asarray(rows, np.int64)
        (query,) = self._checked(query[None], len(attributes))
        return np.stack([exact_scores([one], query[number : number + 1], rows) for number, one in enumerate(vectors)])

    def embeddings(self, row: int) -> np.ndarray:
        """float32 N×D: a row's embeddings under every attribute."""
        return np.stack([matrix[row] for matrix in self._vectors])

    def picture(self, row: int) -> bytes | None:
        """The picture file of a row as its source has it now; None if it is no longer there.

        Never anything outside the source, wherever names or links in it lead, and nothing but a picture.
        """
        place = {name: self._places[name][int(row)].as_py() for name in IMAGES.names}
        try:
            data = (
                self._in_folder(place["file"])
                if place["row"] is None
                else self._in_parquet(place["file"], place["row"])
            )
            with open_picture(data):
                return data
        except Exception:  # decoders raise nearly anything, and so do remote places
            return None

    def _in_folder(self, name: str) -> bytes:
        return read_file(inside(Path(self.info.root), name))

    def _in_parquet(self, file: str, row: int) -> bytes:
        root = Storage(self.info.root)
        if root.local:
            inside(root.local, file)
        (data,) = read_cells(root, file, [row], str(self.info.column))
        return data or b""

    def numbers(self, attributes: Sequence[str]) -> list[int]:
        """The attributes' places. Raises InputError for none, an unknown one, or one that is asked twice."""
        known = self.info.attributes
        if not attributes:
            raise InputError(f"no attribute asked; known: {', '.join(known)}")
        for place, name in enumerate(attributes):
            if name not in known:
                raise InputError(f"unknown attribute {name!r}; {nearest(name, known)}")
            if name in attributes[:place]:
                raise InputError(f"attribute {name!r} is asked twice")
        return [known.index(name) for name in attributes]

    def _checked(self, queries: np.ndarray, asked: int) -> np.ndarray:
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 3 or queries.shape[1:] != (asked, self.info.width):
            raise ValueError(f"queries must be Q×{asked}×{self.info.width}, not {queries.shape}")
        if not of_unit_length(queries).all():
            raise ValueError("queries must be of unit length")
        return queries


def of_unit_length(embeddings: np.ndarray) -> np.ndarray:
    """bool …: whether each embedding (the last axis) is; one with NaN is not."""
    return np.abs(np.linalg.norm(embeddings.astype(np.float64), axis=-1) - 1) <= NORM_ERROR


def vectors_file(number: int) -> str:
    """Where the matrix of an attribute is, below the gallery."""
    return f"{VECTORS}/attribute-{number:02d}.npy"


def write_gallery(folder: Path, info: GalleryInfo, images: pa.Table, blocks: Iterable[np.ndarray]) -> None:
    """Write what search needs into a folder that is there; the description comes last.

    `images` has the columns of IMAGES, one row a picture; `blocks` are the pictures' embeddings in the same order, some
    pictures ×N×D at a time, N being all attributes.
    """
    (folder / VECTORS).mkdir(exist_ok=True)
    shape = (info.images, info.width)
    files = [folder / vectors_file(number) for number in range(len(info.attributes))]
    vectors = [np.lib.format.open_memmap(file, "w+", np.float32, shape) for file in files]
    start = 0
    for block in blocks:
        for number, matrix in enumerate(vectors):
            matrix[start : start + len(block)] = block[:, number]
        start += len(block)
    if start != info.images or len(images) != info.images:
        raise ValueError(f"{info.images} images described, {len(images)} named, {start} embedded")
    for matrix in vectors:
        matrix.flush()
    pq.write_table(images.cast(IMAGES), folder / IMAGES_FILE)
    (folder / DESCRIPTION).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")


def inside(root: Path, name: str) -> Path:
    """The file `name` below `root`, its links followed. Raises ValueError if they, or the name, lead out of it."""
    root = root.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"{name}: leads out of the folder")
    return path


def _described(folder: Path) -> GalleryInfo:
    file = folder / DESCRIPTION
    try:
        info = GalleryInfo.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: not a gallery (no {DESCRIPTION}); make one with `agman embed`") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    except ValidationError as error:
        first: Any = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise InputError(f"{file}: damaged or of another version ({at}: {first['msg']})") from error
    if info.schema_version != SCHEMA_VERSION:
        raise InputError(
            f"{file}: schema version {info.schema_version}, this agman reads {SCHEMA_VERSION}; run `agman embed` again"
        )
    return info


def _mapped(file: Path) -> np.ndarray:
    return np.load(file, mmap_mode="r").view(np.ndarray)  # slices of a memmap are slow to make


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
