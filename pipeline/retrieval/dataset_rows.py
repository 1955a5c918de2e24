"""File names and labels of a prepared dataset's images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.errors import StorageError
from data_prep.storage import Storage
from data_prep.tables import DESCRIPTION, DatasetInfo


class Described(NamedTuple):
    """An image of a prepared dataset."""

    path: str
    """Its file, relative to the folder that was prepared."""
    labels: dict[str, str]
    """Attribute -> value; several values are separated by commas."""


class DatasetRows:
    """The tables of a prepared dataset. Raises OSError, ValueError or ArrowException if they cannot be read."""

    def __init__(self, root: Storage):
        self._info = DatasetInfo.model_validate_json((root / DESCRIPTION).read_bytes())
        # pq.read_table would import pandas.
        with (root / "images.parquet").open() as file:
            self._images = pq.ParquetFile(file).read(columns=["image_id", "path"])
        with (root / "labels.parquet").open() as file:
            self._labels = pq.ParquetFile(file).read(columns=["image_id", "attribute", "value"])

    def describe(self, image_ids: Sequence[int]) -> dict[int, Described]:
        """Return what is known of these images."""
        wanted = pa.array(image_ids, pa.int64())
        values: defaultdict[int, dict[str, list[str]]] = defaultdict(dict)
        for label in self._labels.filter(pc.is_in(self._labels["image_id"], wanted)).to_pylist():
            attribute = self._info.attributes[label["attribute"]]
            values[label["image_id"]].setdefault(attribute.name, []).append(attribute.values[label["value"]])
        return {
            image: Described(path, {name: ", ".join(each) for name, each in values[image].items()})
            for image, path in self.paths(image_ids).items()
        }

    def paths(self, image_ids: Sequence[int]) -> dict[int, str]:
        """Return the files of these images, relative to the folder that was prepared."""
        found = self._images.filter(pc.is_in(self._images["image_id"], pa.array(image_ids, pa.int64())))
        return dict(zip(found["image_id"].to_pylist(), found["path"].to_pylist(), strict=True))

    def image_of(self, path: Path) -> int | None:
        """Return the image whose file is `path`: the one whose relative path, folders included, is its end."""
        ends = ["/".join(path.parts[start:]) for start in range(1, len(path.parts) - 1)]
        found = self._images.filter(pc.is_in(self._images["path"], pa.array(ends, pa.string())))
        return found["image_id"][0].as_py() if len(found) else None

    def image_named(self, path: str) -> int | None:
        """Return the image whose file, relative to the folder that was prepared, is `path`."""
        place = self._images["path"].index(path).as_py()
        return None if place < 0 else self._images["image_id"][place].as_py()


def shown_names(kind: str, root: Storage, names: Sequence[str]) -> list[str]:
    """Return the names of pictures as users know them: for image ids, their files, if the dataset can be read."""
    if kind == "dataset":
        with suppress(OSError, ValueError, StorageError, pa.ArrowException):  # then ids are names enough
            paths = DatasetRows(root).paths([*map(int, names)])
            return [paths.get(int(name), name) for name in names]
    return [*names]
