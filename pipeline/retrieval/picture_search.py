"""`pipeline.Gallery`: a gallery that is searched by a picture, for Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image
from torch import Tensor

from agman.trained import TrainedModel
from data_prep.errors import InputError
from pipeline.retrieval.gallery import Attributes, Gallery, weights_of
from pipeline.retrieval.search import Hit, embedder_of, ranked

Pictured = str | PathLike[str] | bytes | Image.Image | Tensor
Asked = str | int | Sequence[str | int] | Mapping[str, float] | Mapping[int, float] | Mapping[str | int, float]
"""An attribute or several, by name or number, or attribute -> weight."""


class PictureGallery(Gallery):
    """A gallery, with the model that embedded it."""

    @cached_property
    def model(self) -> TrainedModel:
        """The model that embedded the gallery, loaded once. Raises InputError if it is gone or has other weights."""
        return TrainedModel(embedder_of(self), self.tagger)

    @overload
    def search(
        self,
        query: np.ndarray,
        attributes: Attributes,
        top: int = 10,
        approximate: bool = False,
        where: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def search(
        self, query: Pictured, attributes: Asked, top: int = 10, approximate: bool = False, where: str | None = None
    ) -> list[Hit]: ...
    def search(
        self,
        query: np.ndarray | Pictured,
        attributes: Asked,
        top: int = 10,
        approximate: bool = False,
        where: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray] | list[Hit]:
        """Return the `top` best rows for a picture, best first; without the picture itself, if it is the gallery's.

        An array is not a picture here, but embeddings, for which the result is that of `Gallery.search`. Raises
        InputError for a picture that cannot be read, unknown attributes, weights that are not positive, or a model
        that is gone.

        Args:
            query: file's path or content, Pillow image, or tensor.
            attributes: an attribute, several, or attribute -> weight; by name or by number.
            top: number of rows in the result.
            approximate: use the approximate index.
            where: condition on the gallery's columns; only rows that satisfy it are searched.
        """
        weights = self._weights(attributes)
        if isinstance(query, np.ndarray):
            return super().search(query, weights, top, approximate, where)
        self.numbers(weights), weights_of(weights)  # before the model is loaded
        itself = self.row_of(Path(query)) if isinstance(query, str | PathLike) else None
        return ranked(self, self.model.embed(query), weights, top, approximate, itself, where=where)

    def _weights(self, attributes: Asked) -> dict[str, float]:
        """Return name -> weight. Raises InputError for an attribute that is given twice or a number without one."""
        several = isinstance(attributes, Iterable) and not isinstance(attributes, str)  # numpy's integers are no int
        given: Any = attributes if several else [attributes]
        weighted = given.items() if isinstance(given, Mapping) else [(one, 1.0) for one in given]
        known = self.info.attributes
        weights: dict[str, float] = {}
        for one, weight in weighted:
            if not isinstance(one, str) and not 0 <= one < len(known):
                raise InputError(f"no attribute {one}: they are numbered 0 to {len(known) - 1}")
            name = one if isinstance(one, str) else known[one]
            if name in weights:
                raise InputError(f"attribute {name!r} is given twice")
            weights[name] = weight
        return weights
