"""Reading a prepared dataset: its description, its tables, its triplets and its packed images."""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch
from PIL import Image
from pydantic import ValidationError

from data_prep.errors import InputError
from data_prep.pictures import to_square
from data_prep.tables import DESCRIPTION, PACKED, REGIONS_FILE, SCHEMA_VERSION, SPLITS, DatasetInfo
from data_prep.triplets import Triplets

READ_AT_ONCE = 1_000


class Dataset:
    """A prepared dataset at `path`. Raises InputError if there is none, or one of another version."""

    def __init__(self, path: Path):
        self.path = path
        file = path / DESCRIPTION
        if not file.is_file():
            raise InputError(f"{path}: not a prepared dataset (no {DESCRIPTION}); make one with `agman prep`")
        try:
            self.info = DatasetInfo.model_validate_json(file.read_bytes())
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{file}: damaged or of another version ({where}: {first['msg']})") from error
        if self.info.schema_version != SCHEMA_VERSION:
            raise InputError(
                f"{file}: schema version {self.info.schema_version}, this agman reads {SCHEMA_VERSION}; "
                "run `agman prep` again"
            )
        self._check_files()

    def _check_files(self) -> None:
        """Every file that must be there is, and has a Parquet file's end: a lost or torn one shows at once."""
        used = [split for split in SPLITS if self.info.images[split]]
        wanted = [Path("images.parquet"), Path("labels.parquet"), Path("retrieval.parquet")]
        wanted += [Path("packed", f"split={split}", "part-00000.parquet") for split in used]
        wanted += [
            Path("triplets", f"split={split}", f"epoch={epoch}", "part-00000.parquet")
            for split in used
            for epoch in range(self.info.triplet_epochs if split == "train" else 1)
        ]
        packed = [file.relative_to(self.path) for file in (self.path / "packed").rglob("*.parquet")]
        for file in dict.fromkeys(wanted + packed):
            try:
                pq.read_metadata(self.path / file)
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{self.path / file}: missing or damaged; run `agman prep` again") from error

    @cached_property
    def labels(self) -> pd.DataFrame:
        return self._table("labels.parquet").to_pandas()

    @cached_property
    def images(self) -> pd.DataFrame:
        return self._table("images.parquet").to_pandas()

    @cached_property
    def regions(self) -> pd.DataFrame | None:
        """Where each attribute is, as fractions of the picture; None for photographs."""
        file = self.path / REGIONS_FILE
        return pq.read_table(file).to_pandas() if file.is_file() else None

    def _table(self, name: str, **options: Any) -> pa.Table:
        try:
            return pq.read_table(self.path / name, **options)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.path / name}: missing or damaged; run `agman prep` again") from error

    def value_of(self) -> ValueOf:
        """Look up the values of (image, attribute) pairs."""
        return ValueOf(self.labels, len(self.info.attributes))

    def retrieval(self, split: str) -> pd.DataFrame:
        """Queries and candidates of `split`: role, image_id, attribute, value."""
        table = self._table("retrieval.parquet", filters=[("split", "=", split)])
        if not table.num_rows:
            raise InputError(f"{self.path}: the dataset has no queries and candidates for split {split!r}")
        return table.to_pandas()

    def triplets(self, split: str, epoch: int = 0) -> Triplets:
        """The triplets of `split`; training goes round the prepared epochs."""
        prepared = self.info.triplet_epochs if split == "train" else 1
        folder = self.path / "triplets" / f"split={split}" / f"epoch={epoch % prepared}"
        if not self.info.images[split]:
            raise InputError(f"{self.path}: the dataset has no images in split {split!r}")
        table = pads.dataset(folder, format="parquet").to_table()
        return Triplets(*(table[name].to_numpy() for name in ("anchor", "positive", "negative", "attribute")))


class ValueOf:
    """Values of (image id, attribute) pairs by array; of several values of one pair, the lowest."""

    def __init__(self, labels: pd.DataFrame, n_attributes: int):
        self.n_attributes = n_attributes
        ordered = labels.sort_values(["image_id", "attribute", "value"])
        self._keys = self._key(ordered["image_id"].to_numpy(), ordered["attribute"].to_numpy(np.int64))
        self._values = ordered["value"].to_numpy(np.int64)

    def __call__(self, image_ids: np.ndarray, attributes: np.ndarray) -> np.ndarray:
        """int64, of the broadcast shape of the two. Every pair must be labelled."""
        keys = self._key(image_ids, attributes)
        places = np.searchsorted(self._keys, keys)
        if (self._keys[places.clip(max=len(self._keys) - 1)] != keys).any():
            raise KeyError("an image has no label for the attribute of its triplet")
        return self._values[places]

    def _key(self, image_ids: np.ndarray, attributes: np.ndarray) -> np.ndarray:
        return image_ids * self.n_attributes + attributes


class ImageStore:
    """The packed JPEG bytes of chosen images in memory, decoded on demand.

    A thousand rows are read at a time and only the wanted images are kept, so that each worker holds its own
    share. Decoding runs in threads.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        image_size: int,
        wanted: Iterable[int] | None = None,
        threads: int = 1,
    ):
        packed = dataset.info.image_size
        if image_size > packed:
            raise InputError(
                f"image_size={image_size}, but {dataset.path} holds images of {packed} px; "
                f"use image_size={packed} or prepare it again with --image-size {image_size}"
            )
        self.image_size = image_size
        self._pool = ThreadPoolExecutor(threads)
        keep = None if wanted is None else pa.array(np.unique(np.fromiter(wanted, np.int64)))
        pieces = []
        for part in sorted((dataset.path / "packed" / f"split={split}").glob("*.parquet")):
            for group in pq.ParquetFile(part).iter_batches(READ_AT_ONCE, columns=["image_id", "jpeg"]):
                pieces.append(group if keep is None else group.filter(pc.is_in(group["image_id"], keep)))
        schema = pa.schema([PACKED.field("image_id"), PACKED.field("jpeg")])
        table = pa.Table.from_batches([piece for piece in pieces if piece.num_rows], schema)
        self.image_ids = table["image_id"].to_numpy()
        self._jpeg = table["jpeg"]
        self._order = np.argsort(self.image_ids)
        self._sorted = self.image_ids[self._order]

    def __len__(self) -> int:
        return len(self.image_ids)

    def read(self, image_ids: np.ndarray) -> torch.Tensor:
        """Decode images: U ids -> uint8 U×3×S×S, centre-cropped to the square of S = image_size."""
        if not len(image_ids):
            return torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8)
        if (missing := ~np.isin(image_ids, self._sorted)).any():
            raise KeyError(f"image {image_ids[missing][0]} was not loaded")
        places = np.searchsorted(self._sorted, image_ids)
        rows = self._order[places]
        return torch.stack(list(self._pool.map(self._decode, rows.tolist())))

    def _decode(self, row: int) -> torch.Tensor:
        with Image.open(io.BytesIO(self._jpeg[row].as_buffer())) as image:
            return to_square(image.convert("RGB"), self.image_size)
