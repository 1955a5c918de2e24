"""Code of the registered model (MLflow models-from-code): images and attributes in, embeddings out.

MLflow runs this file when it loads the model; the weights are in the safetensors file beside it. A copy of this file
is stored with every version, so the names that it imports must stay.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.pyfunc import PythonModel

import agman
from agman.embedder import BATCH, Embedder, PictureError
from agman.tagger import read_tagger
from data_prep.errors import InputError
from data_prep.pictures import MAX_BYTES


class EmbeddingModel(PythonModel):
    """A model that embeds images under attributes.

    Columns of the input: `image`, an image file's bytes or their base64; `attribute`, one name or a list of names. If
    a row has no attribute (no such column, null, an empty list), it means all attributes of the model. The output has
    one row for each input row: `attributes`, the names, and for each name an embedding of unit length in `embeddings`,
    the most probable value in `values` (None without prototypes of the attribute) and its probability in
    `probabilities` (None if nothing calibrated it).
    """

    def load_context(self, context: Any) -> None:
        """Load the weights and the prototypes."""
        folder = Path(context.artifacts["model"])
        self.embedder = Embedder(*agman.load_model(folder))
        tagger = read_tagger(folder, self.embedder.digest)
        self.namers = tagger.namers if tagger else {}

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """Embed every row.

        Raises MlflowException for a bad image or an unknown attribute; the scoring server answers it with status 400.
        """
        try:
            return self._embed_rows(model_input)
        except InputError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None

    def _embed_rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        asked = rows["attribute"] if "attribute" in rows else [None] * len(rows)
        numbers = [self._indices(row, value) for row, value in enumerate(asked)]  # before the costly work
        images = [_bytes(row, value) for row, value in enumerate(rows["image"])]
        first_row: dict[bytes, int] = {}
        for row, data in enumerate(images):
            first_row.setdefault(data, row)
        index = {data: number for number, data in enumerate(first_row)}
        embedded = np.concatenate([*self._embedded(first_row)] or [self.embedder.embed([])])
        found = [embedded[index[data], of_row] for data, of_row in zip(images, numbers, strict=True)]
        names = [[self.embedder.attributes[number] for number in of_row] for of_row in numbers]
        named = [[self._named(*one) for one in zip(*row, strict=True)] for row in zip(names, found, strict=True)]
        return pd.DataFrame(
            {
                "attributes": names,
                "embeddings": [one.astype(np.float64).tolist() for one in found],
                "values": [[value for value, _ in of_row] for of_row in named],
                "probabilities": [[probability for _, probability in of_row] for of_row in named],
            }
        )

    def _named(self, attribute: str, embedding_d: np.ndarray) -> tuple[str | None, float | None]:
        """Return the most probable value of an attribute and its probability."""
        if attribute not in self.namers:
            return None, None
        (best,) = self.namers[attribute].best(torch.from_numpy(embedding_d[None]))
        return best

    def _embedded(self, first_row: dict[bytes, int]) -> Iterator[np.ndarray]:
        """Embed every distinct image once, BATCH images at a time."""
        images = list(first_row.items())
        for start in range(0, len(images), BATCH):
            yield self.embedder.embed([self._read(row, data) for data, row in images[start : start + BATCH]])

    def _read(self, row: int, data: bytes) -> np.ndarray:
        try:
            return self.embedder.read(data)
        except PictureError as error:
            raise PictureError(f"row {row}: {error}") from error

    def _indices(self, row: int, value: Any) -> list[int]:
        """Return the indices of the attributes that a row names. Raises InputError for an unknown one."""
        if not isinstance(value, Sequence | np.ndarray):
            value = [] if pd.isna(value) else [value]
        names = [value] if isinstance(value, str) and value else list(value)
        for name in names:
            if not isinstance(name, str):
                raise InputError(f"row {row}: attribute must be a name or a list of names, not {name!r:.40}")
        try:
            return [self.embedder.number(name) for name in names or self.embedder.attributes]
        except InputError as error:
            raise InputError(f"row {row}: {error}") from error


def _bytes(row: int, value: Any) -> bytes:
    """Return an image file's bytes. Raises PictureError if the value is neither bytes nor base64, or too large."""
    if not isinstance(value, str | bytes | bytearray | memoryview):
        raise PictureError(f"row {row}: image must be a picture file's bytes or base64 of them, not {value!r:.40}")
    size = len(value) * 3 // 4 if isinstance(value, str) else memoryview(value).nbytes
    if size > MAX_BYTES:
        raise PictureError(f"row {row}: the picture is too large ({size:,} bytes; at most {MAX_BYTES:,})")
    if not isinstance(value, str):
        return bytes(value)
    try:
        return base64.b64decode("".join(value.split()), validate=True)  # `base64 FILE` writes line breaks
    except (binascii.Error, ValueError) as error:
        raise PictureError(f"row {row}: image is text, but not base64 ({error})") from error


mlflow.models.set_model(EmbeddingModel())
