"""Reading a prepared dataset: description, tables, triplets and packed images."""

from __future__ import annotations

import io
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from pydantic import ValidationError

from data_prep.atomic import is_full
from data_prep.errors import InputError, StorageError
from data_prep.packing import begun
from data_prep.pictures import to_square
from data_prep.staging import staging_folder
from data_prep.storage import Storage
from data_prep.tables import (
    DESCRIPTION,
    NEAR_DUPLICATES_FILE,
    REGIONS_FILE,
    REVIEWED_FILE,
    SCHEMA_VERSION,
    SPLITS,
    DatasetInfo,
    read_labels,
)
from data_prep.triplets import Triplets

if TYPE_CHECKING:  # imported where they are used, so that a wrong folder is refused at once
    import pandas as pd
    import torch

OPENED_AT_ONCE = 16
"""Files whose ends are read at the same time; each takes one or two round trips to a remote store."""
BUFFER = 8 << 30
"""Bytes of images that an ImageStore copies to its temporary file."""
COPIED = -1
"""Number in place of a shard's for an image that was copied."""
KEPT_OPEN = 256
"""Shards that an ImageStore keeps open."""
START, PAGE_HEADER = 64, 4_096
"""First bytes of an image by which it is found in its shard, and bytes in which they are looked for."""


class Dataset:
    """A prepared dataset in a folder or at a URI. Raises InputError if there is none, or one of another version."""

    def __init__(self, where: str | Path | Storage):
        self.storage = Storage(where)
        local = where if isinstance(where, Path) else self.storage.local
        self.path: Path | Storage = local or self.storage
        """Path or store, without secrets when printed; `path / name` is a file of the dataset."""
        file = self.storage / DESCRIPTION
        try:
            self.info = DatasetInfo.model_validate_json(file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{self.path}: {self._why_none()}") from None
        except OSError as error:
            raise InputError(f"{self.path / DESCRIPTION}: cannot be read ({error.strerror or error})") from error
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"]))
            raise InputError(
                f"{self.path / DESCRIPTION}: damaged or of another version ({at}: {first['msg']})"
            ) from error
        if self.info.schema_version != SCHEMA_VERSION:
            raise InputError(
                f"{self.path / DESCRIPTION}: schema version {self.info.schema_version}, this agman reads "
                f"{SCHEMA_VERSION}; run `agman prep` again"
            )
        self._check_files()

    def _why_none(self) -> str:
        local = self.storage.local
        if begun(Storage(staging_folder(local.resolve())) if local else self.storage):
            return "its preparation was stopped half-way; the same `agman prep` again continues it"
        return f"not a prepared dataset (no {DESCRIPTION}); make one with `agman prep`"

    def _check_files(self) -> None:
        """Raise InputError if a file of the dataset is missing, or does not end as a Parquet file does."""
        used = [split for split in SPLITS if self.info.images[split]]
        wanted = ["images.parquet", "labels.parquet", "retrieval.parquet"]
        wanted += [
            f"triplets/split={split}/epoch={epoch}/part-00000.parquet"
            for split in used
            for epoch in range(self.info.triplet_epochs if split == "train" else 1)
        ]
        shards = {split: self.shards(split) or [f"packed/split={split}/part-00000.parquet"] for split in used}
        files = wanted + [name for names in shards.values() for name in names]
        with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
            rows = dict(zip(files, pool.map(self._rows, files), strict=True))
        for split, names in shards.items():
            if sum(rows[name] for name in names) != self.info.images[split]:
                raise InputError(f"{self.path}/packed/split={split}: images are missing; run `agman prep` again")

    def _rows(self, name: str) -> int:
        with self._file(name) as file:
            return int(pq.read_metadata(file).num_rows)

    def shards(self, split: str) -> list[str]:
        """Return the names of the files with the packed images."""
        folder = f"packed/split={split}"
        return [f"{folder}/{name}" for name in (self.storage / folder).files() if name.endswith(".parquet")]

    @cached_property
    def labels(self) -> pd.DataFrame:
        """Labels: image_id, attribute, value, split."""
        return self._table("labels.parquet").to_pandas()

    def labels_of(self, split: str) -> pd.DataFrame:
        """Return image_id, attribute and value of a split's labels. Read anew, so that nobody keeps those of others."""
        with self._file("labels.parquet") as file:
            return read_labels(file, split)

    @cached_property
    def images(self) -> pd.DataFrame:
        """Images: image_id, path, split, the width and height of the source in pixels, and group (may be None)."""
        images = self._table("images.parquet").to_pandas()
        return images if "group" in images else images.assign(group=None)

    @cached_property
    def regions(self) -> pd.DataFrame | None:
        """Region of each attribute, as fractions of the picture; None for photographs."""
        return self._table(REGIONS_FILE).to_pandas() if self.drawn else None

    @property
    def drawn(self) -> bool:
        """Whether a program drew the pictures, so that their regions are known."""
        return (self.storage / REGIONS_FILE).exists()

    @property
    def rejects(self) -> pd.DataFrame:
        """Annotation rows that did not become labels: source, line, reason, detail. Read anew on each access."""
        return self._table("rejects.parquet").to_pandas()

    @property
    def near_duplicates(self) -> pd.DataFrame | None:
        """Pairs of near-duplicates, with the columns of tables.NEAR_DUPLICATES; None if they were not looked for."""
        file = self.storage / NEAR_DUPLICATES_FILE
        return self._table(NEAR_DUPLICATES_FILE).to_pandas() if file.exists() else None

    @property
    def reviewed(self) -> pd.DataFrame | None:
        """Labels that a person has kept or given: image_id, attribute, value; None without corrections."""
        return self._table(REVIEWED_FILE).to_pandas() if (self.storage / REVIEWED_FILE).exists() else None

    def _table(self, name: str, **options: Any) -> pa.Table:
        with self._file(name) as file:
            return pq.read_table(file, **options)

    @contextmanager
    def _file(self, name: str) -> Iterator[pa.NativeFile]:
        """Open a file of the dataset. Raises InputError if that, or reading it in the block, fails."""
        with self.reading(name), (self.storage / name).open() as file:
            yield file

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Raise InputError if reading this file of the dataset fails in the block."""
        try:
            yield
        except StorageError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.path / name}: missing or damaged; run `agman prep` again") from error

    def require_image_size(self, size: int, model: str = "the model") -> None:
        """Raise InputError if the packed images are smaller than `model` takes them."""
        if size > self.info.image_size:
            raise InputError(
                f"{self.path}: holds images of {self.info.image_size} px, and {model} takes {size} px; prepare the "
                f"dataset again with --image-size {size}"
            )

    def values_of(self) -> ValuesOf:
        """Return the lookup of the values of (image, attribute) pairs."""
        return ValuesOf(self.labels, len(self.info.attributes))

    def retrieval(self, split: str) -> pd.DataFrame:
        """Return queries and candidates of `split`: role, image_id, attribute, value. Raises InputError if none."""
        table = self._table("retrieval.parquet", filters=[("split", "=", split)])
        if not table.num_rows:
            raise InputError(f"{self.path}: the dataset has no queries and candidates for split {split!r}")
        return table.to_pandas()

    def triplets(self, split: str, epoch: int = 0) -> Triplets:
        """Return the triplets of `split`. Training repeats the prepared epochs. Raises InputError if there are none."""
        prepared = self.info.triplet_epochs if split == "train" else 1
        if not self.info.images[split]:
            raise InputError(f"{self.path}: the dataset has no images in split {split!r}")
        folder = f"triplets/split={split}/epoch={epoch % prepared}"
        table = pa.concat_tables([self._table(f"{folder}/{name}") for name in (self.storage / folder).files()])
        return Triplets(*(table[name].to_numpy() for name in ("anchor", "positive", "negative", "attribute")))

    def packed(self, split: str) -> Iterator[pa.Table]:
        """Yield the packed images of `split` (image_id, jpeg), a row group at a time, in the order of the shards."""
        for group in self.row_groups(split):
            yield group.images

    def row_groups(self, split: str) -> Iterator[RowGroup]:
        """Yield the row groups of the packed images of `split`, in the order of the shards."""
        for name in self.shards(split):
            with self._file(name) as file:
                shard = pq.ParquetFile(file)
                for number in range(shard.num_row_groups):
                    images = shard.read_row_group(number, columns=["image_id", "jpeg"])
                    yield RowGroup(name, images, file, shard.metadata.row_group(number))


class RowGroup(NamedTuple):
    """Packed images that are together in a shard."""

    shard: str
    images: pa.Table
    """Columns image_id and jpeg."""
    file: pa.NativeFile
    """The shard, open while the row groups are gone through."""
    metadata: pq.RowGroupMetaData

    def places(self) -> np.ndarray:
        """Return where each image's bytes begin in the shard, int64. Raises InputError if they are not there as such.

        `agman prep` writes images without compression, one after the other with its length before it, and the headers
        of pages between some of them.
        """
        names = [self.metadata.column(number).path_in_schema for number in range(self.metadata.num_columns)]
        column = self.metadata.column(names.index("jpeg"))
        first, at, places = column.data_page_offset, 0, []
        data = self.file.read_at(column.total_compressed_size, first)
        for jpeg in self.images["jpeg"]:
            content = jpeg.as_buffer()
            size = len(content).to_bytes(4, "little")
            found = data.find(size + content[:START].to_pybytes(), at, at + PAGE_HEADER)
            if found < 0:
                raise InputError(f"{self.shard}: was not written by `agman prep`; run it again")
            at = found + len(size) + len(content)
            places.append(first + found + len(size))
        return np.array(places, np.int64)


class ValuesOf:
    """Lookup of all values of (image id, attribute) pairs. An image may have several values of an attribute."""

    def __init__(self, labels: pd.DataFrame, n_attributes: int):
        self.n_attributes = n_attributes
        ordered = labels.sort_values(["image_id", "attribute", "value"])
        self._keys = self._key(ordered["image_id"].to_numpy(), ordered["attribute"].to_numpy(np.int64))
        self._values = ordered["value"].to_numpy(np.int64)

    def __call__(self, image_ids: np.ndarray, attributes: np.ndarray) -> np.ndarray:
        """Return the values of each pair, ascending and padded with -1: int64, ...×V.

        "..." is the broadcast shape of the arguments; V is the largest number of values of a pair. Raises KeyError
        if a pair has no value.
        """
        keys = self._key(image_ids, attributes)
        first = np.searchsorted(self._keys, keys)
        count = np.searchsorted(self._keys, keys, side="right") - first
        if not count.all():
            raise KeyError("an image has no label for the attribute of its triplet")
        column = np.arange(count.max(initial=1))
        rows = np.minimum(first[..., None] + column, len(self._values) - 1)
        return np.where(column < count[..., None], self._values[rows], -1)

    def _key(self, image_ids: np.ndarray, attributes: np.ndarray) -> np.ndarray:
        return image_ids * self.n_attributes + attributes


class ImageStore:
    """JPEG bytes of chosen packed images, decoded on demand by `threads` threads.

    The shards are read once, in order, a row group at a time. The `wanted` images are copied to a temporary file, up to
    BUFFER bytes; those of further row groups are read from their shards, one by one, when they are needed. Memory grows
    by 24 bytes an image. The file in TMPDIR has no name, is cached by the operating system, and is deleted with this
    object. Raises InputError if TMPDIR is full, or if `image_size` is larger than the packed images. Pictures become
    square as `fit` says, by default as the dataset does; those that are packed larger are resized by `interpolation`,
    the network's own.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        image_size: int,
        wanted: Iterable[int] | None = None,
        threads: int = 1,
        fit: str | None = None,
        interpolation: str = "lanczos",
    ):
        dataset.require_image_size(image_size)
        self.interpolation = interpolation
        self.image_size = image_size
        self.fit = fit or dataset.info.fit
        self._dataset, self._shards = dataset, list[str]()
        self._opened = lru_cache(KEPT_OPEN)(lambda name: (dataset.storage / name).open())
        self._pool = ThreadPoolExecutor(threads)
        keep = None if wanted is None else pa.array(np.unique(np.fromiter(wanted, np.int64)))
        self._file = tempfile.TemporaryFile(prefix="agman-images-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        try:
            self._fill(dataset.row_groups(split), keep)
        except OSError as error:
            if not is_full(error):
                raise
            raise InputError(
                f"{tempfile.gettempdir()}: no space left for the images of {dataset.path}; set TMPDIR to a larger disk"
            ) from error

    def _fill(self, groups: Iterator[RowGroup], keep: pa.Array | None) -> None:
        nothing = np.empty(0, np.int64)
        ids, starts, sizes, shards = [nothing], [nothing], [nothing], [nothing]
        copied = 0
        for group in groups:
            own = np.ones(len(group.images), bool) if keep is None else _among(group.images["image_id"], keep)
            chosen = group.images.filter(own)
            if not len(chosen):
                continue
            size = pc.binary_length(chosen["jpeg"]).to_numpy().astype(np.int64)
            if copied + size.sum() <= BUFFER:
                self._copy(chosen["jpeg"])
                starts.append(copied + np.cumsum(size) - size)
                shards.append(np.full(len(size), COPIED))
                copied += int(size.sum())
            else:
                with self._dataset.reading(group.shard):
                    starts.append(group.places()[own])
                shards.append(np.full(len(size), len(self._shards)))
                self._shards.append(group.shard)
            ids.append(chosen["image_id"].to_numpy())
            sizes.append(size)
        self._file.flush()
        self.image_ids = np.concatenate(ids)
        """Ids of the images, ascending."""
        order = np.argsort(self.image_ids)
        self.image_ids = self.image_ids[order]
        self._start = np.concatenate(starts)[order]
        self._size, self._shard = (np.concatenate(one).astype(np.int32)[order] for one in (sizes, shards))

    def _copy(self, jpegs: pa.ChunkedArray) -> None:
        """Append images to the temporary file."""
        for chunk in jpegs.chunks:
            if len(chunk):
                offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
                self._file.write(memoryview(chunk.buffers()[2])[offsets[0] : offsets[-1]])

    def __len__(self) -> int:
        return len(self.image_ids)

    def read(self, image_ids: np.ndarray) -> torch.Tensor:
        """Decode images: U ids -> uint8 U×3×S×S (channels last in memory), S = image_size.

        An image that occurs several times is decoded once. Raises KeyError if an image was not wanted.
        """
        import torch

        distinct, index = np.unique(image_ids, return_inverse=True)
        rows = np.searchsorted(self.image_ids, distinct)
        missing = self.image_ids.take(rows, mode="clip") != distinct
        if missing.any():
            raise KeyError(f"image {distinct[missing][0]} was not loaded")
        squares = np.empty((len(distinct), self.image_size, self.image_size, 3), np.uint8)
        list(self._pool.map(self._decode, rows.tolist(), squares))
        in_order = squares if len(distinct) == len(index) and (np.diff(index) == 1).all() else squares[index]
        return torch.from_numpy(in_order).permute(0, 3, 1, 2)

    def _decode(self, row: int, square: np.ndarray) -> None:
        with Image.open(io.BytesIO(self._jpeg(row))) as image:
            rgb = image if image.mode == "RGB" else image.convert("RGB")
            square[:] = to_square(rgb, self.image_size, self.fit, self.interpolation)

    def _jpeg(self, row: int) -> bytes | memoryview:
        start, size, shard = int(self._start[row]), int(self._size[row]), int(self._shard[row])
        if shard == COPIED:
            jpeg = np.empty(size, np.uint8)
            os.preadv(self._file.fileno(), [jpeg.data], start)
            return jpeg.data
        name = self._shards[shard]
        with self._dataset.reading(name):
            return self._opened(name).read_at(size, start)


def _among(ids: pa.ChunkedArray, some: pa.Array) -> np.ndarray:
    return pc.is_in(ids, some).to_numpy()
