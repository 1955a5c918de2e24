"""The registered model's code (MLflow models-from-code): pictures and attributes in, embeddings out.

MLflow runs this file when it loads the model; weights come from the safetensors file beside it.
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
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.pyfunc import PythonModel

import agman
from data_prep.errors import InputError
from data_prep.pictures import MAX_BYTES
from pipeline.inference.embedder import BATCH, Embedder, PictureError


class RetrievalModel(PythonModel):
    """Embeds pictures under attributes.

    Rows in: `image`, a picture file's bytes or base64 of them; `attribute`, one name or a list of names; without any
    (no such column, null, an empty list) all of the model's. Rows out, one for each: `attributes`, the names, and
    `embeddings`, of unit length, one for each name.
    """

    def load_context(self, context: Any) -> None:
        self.embedder = Embedder(*agman.load_model(Path(context.artifacts["model"])))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """Raises MlflowException, which the scoring server answers as 400, for no picture and unknown attributes."""
        try:
            return self._answers(model_input)
        except InputError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None

    def _answers(self, rows: pd.DataFrame) -> pd.DataFrame:
        asked = rows["attribute"] if "attribute" in rows else [None] * len(rows)
        numbers = [self._numbers(row, value) for row, value in enumerate(asked)]  # first, for it costs nothing
        pictures = [_bytes(row, value) for row, value in enumerate(rows["image"])]
        first: dict[bytes, int] = {}
        for row, data in enumerate(pictures):
            first.setdefault(data, row)
        place = {data: number for number, data in enumerate(first)}
        embedded = np.concatenate([*self._embedded(first)] or [self.embedder.embed([])])
        found = [embedded[place[data], of_row] for data, of_row in zip(pictures, numbers, strict=True)]
        names = [[self.embedder.attributes[number] for number in of_row] for of_row in numbers]
        return pd.DataFrame({"attributes": names, "embeddings": [one.astype(np.float64).tolist() for one in found]})

    def _embedded(self, first: dict[bytes, int]) -> Iterator[np.ndarray]:
        """Every distinct picture once through the backbone, BATCH of them at a time; with each its first row."""
        pictures = list(first.items())
        for start in range(0, len(pictures), BATCH):
            yield self.embedder.embed([self._read(row, data) for data, row in pictures[start : start + BATCH]])

    def _read(self, row: int, data: bytes) -> np.ndarray:
        try:
            return self.embedder.read(data)
        except PictureError as error:
            raise PictureError(f"row {row}: {error}") from error

    def _numbers(self, row: int, value: Any) -> list[int]:
        """Places of the attributes that a row asks for. Raises InputError for what is none."""
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
    """A picture file's. Raises PictureError for neither bytes nor base64, and for more than MAX_BYTES."""
    if not isinstance(value, str | bytes | bytearray | memoryview):
        raise PictureError(f"row {row}: image must be a picture file's bytes or base64 of them, not {value!r:.40}")
    size = len(value) * 3 // 4 if isinstance(value, str) else memoryview(value).nbytes
    if size > MAX_BYTES:
        raise PictureError(f"row {row}: the picture is too large ({size:,} bytes; at most {MAX_BYTES:,})")
    if not isinstance(value, str):
        return bytes(value)
    try:
        return base64.b64decode("".join(value.split()), validate=True)  # line breaks are what `base64 FILE` writes
    except (binascii.Error, ValueError) as error:
        raise PictureError(f"row {row}: image is text, but not base64 ({error})") from error


mlflow.models.set_model(RetrievalModel())
