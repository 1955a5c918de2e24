"""Computations of the service, without HTTP: embeddings, hits, attention over pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from agman.embedder import MAX_QUERY_PIXELS, Embedder
from agman.tagger import Namer
from data_prep.errors import InputError, StorageError
from pipeline.retrieval.gallery import Gallery, weights_of
from pipeline.retrieval.search import parse_attributes, ranked
from pipeline.retrieval.values import ValueTerm, value_terms

MOST_HITS = 100
"""Largest number of hits in one answer."""


@dataclass(frozen=True)
class SearchRequest:
    """A valid request for pictures."""

    weights: dict[str, float]
    """Attribute of the picture -> weight of its cosine."""
    terms: list[ValueTerm]
    top: int
    where: str | None
    """Condition on the gallery's columns."""


class Engine:
    """A gallery and its model. All methods are safe to call from several threads at once."""

    def __init__(self, gallery: Gallery, embedder: Embedder):
        self.gallery, self.embedder = gallery, embedder

    @property
    def facts(self) -> dict[str, Any]:
        """Facts for the page and the health check."""
        info = self.gallery.info
        return {
            "model": info.model,
            "pictures": info.images,
            "state": self.gallery.version,
            "attributes": list(info.attributes),
            "queries": info.queries,
            "values": self.values,
            "columns": self.gallery.column_kinds,
            "width": info.width,
            "device": self.embedder.device,
        }

    @property
    def values(self) -> dict[str, list[str]]:
        """Attribute -> values that can be searched for."""
        return {name: one.known for name, one in self._namers.items() if one.temperature is not None}

    def read(self, data: bytes) -> np.ndarray:
        """Return a client's picture as the model receives it. Raises PictureError if it cannot be read."""
        return self.embedder.read(data, MAX_QUERY_PIXELS)

    def asked(
        self,
        attributes: Sequence[str],
        values: Sequence[str],
        excluded: Sequence[str],
        where: str | None,
        top: int,
        has_picture: bool,
    ) -> SearchRequest:
        """Return what a client asks for. Raises InputError if it is invalid: before a picture is embedded.

        `attributes` are NAME or NAME=WEIGHT, values ATTRIBUTE=VALUE.
        """
        with self._without_folder():
            weights, terms = parse_attributes(attributes), value_terms(self.gallery, values, excluded)
            if where is not None:
                self.gallery.check_where(where)
        if weights or has_picture:
            self.gallery.numbers(weights)
            weights_of(weights)
        if weights and not has_picture:
            raise InputError("attributes are those of a picture, and there is none; values find pictures by name")
        if not weights and not terms:
            raise InputError("nothing to search for; send a picture with attributes, or values")
        if not 1 <= top <= MOST_HITS:
            raise InputError(f"top must be 1 to {MOST_HITS}, not {top}")
        return SearchRequest(weights, terms, top, where)

    def hits(
        self, embeddings_nd: np.ndarray | None, asked: SearchRequest, approximate: bool, without: int | None = None
    ) -> list[dict]:
        """Return the best rows for a picture's embeddings under all attributes, N×D, and values, without one row."""
        query = (embeddings_nd, asked.weights, asked.top, approximate, without, asked.terms, asked.where)
        with self._without_folder():
            found = ranked(self.gallery, *query)
        return [
            asdict(hit)
            | {"cosines": dict(zip(asked.weights, hit.cosines, strict=True)), "tags": tags}
            | self._address(hit.row)
            for hit, tags in zip(found, self.tags([hit.row for hit in found]), strict=True)
        ]

    @contextmanager
    def _without_folder(self) -> Iterator[None]:
        """Keep the gallery's folder out of what clients are told."""
        try:
            yield
        except StorageError:
            raise
        except InputError as error:
            raise InputError(str(error).replace(str(self.gallery.folder), "GALLERY")) from error

    def some(self, seed: int, count: int) -> list[dict]:
        """Return `count` rows drawn by a seed, to begin a search with; all in their order if there are no more."""
        rows = np.arange(len(self.gallery))
        if count < len(rows):
            rows = np.random.default_rng(seed).choice(len(rows), count, replace=False)
        return self.shown(rows.tolist())

    def named(self, image: str) -> list[dict]:
        """Return the row of the picture that hits name `image`. Raises InputError if there is none."""
        row = self.gallery.row_named(image)
        if row is None:
            raise InputError(f"the gallery has no picture {image!r}")
        return self.shown([row])

    def shown(self, rows: Sequence[int]) -> list[dict]:
        """Return what is known of rows, as in hits."""
        known = zip(rows, self.gallery.describe(rows), self.gallery.cells(rows), self.tags(rows), strict=True)
        return [
            {"row": row, "image": one.path, "labels": one.labels, "columns": cells, "tags": tags} | self._address(row)
            for row, one, cells, tags in known
        ]

    def _address(self, row: int) -> dict[str, str]:
        version = self.gallery.version  # browsers cache pictures by their address
        return {"of": version, "picture": f"pictures/{row}?of={version}"}

    def tags(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return for each row attribute -> the most probable value and its probability, null if not calibrated."""
        tags: list[dict[str, Any]] = [{} for _ in rows]
        for attribute, namer in self._namers.items():
            (number,) = self.gallery.numbers([attribute])
            named = namer.best(torch.from_numpy(self.gallery.matrix(number)[rows]))
            for of_row, (value, probability) in zip(tags, named, strict=True):
                of_row[attribute] = {"value": value, "probability": probability}
        return tags

    @property
    def _namers(self) -> dict[str, Namer]:
        return self.gallery.tagger.namers if self.gallery.tagger else {}

    def embeddings_of(self, row: int) -> np.ndarray:
        """Return the embeddings of a row, N×D. Raises InputError if there is no such row."""
        self.check(row)
        return self.gallery.embeddings(row)

    def picture(self, row: int) -> tuple[bytes, str]:
        """Return the picture of a row and its media type. Raises InputError if it is gone."""
        self.check(row)
        data = self.gallery.picture(row)
        if data is None:
            raise InputError(f"picture {row} is no longer in its source")
        with Image.open(io.BytesIO(data)) as image:
            return data, Image.MIME.get(image.format or "", "application/octet-stream")

    def heats(self, square: np.ndarray, attributes: Sequence[str]) -> list[bytes]:
        """Return a JPEG for each attribute: its attention over the picture `square`, uint8 S×S×3.

        Raises InputError for an unknown attribute.
        """
        from pipeline.reports.charts import heat_over  # matplotlib: a replica starts in less time without it

        cells = torch.from_numpy(self.embedder.attention(square, attributes))
        fitted = F.interpolate(cells[:, None], size=square.shape[:2], mode="bilinear")[:, 0]
        return [_jpeg(heat_over(square, one)) for one in fitted.numpy()]

    def check(self, row: int) -> None:
        """Raise InputError if the gallery has no such row."""
        if not 0 <= row < len(self.gallery):
            raise InputError(f"no picture {row}: the gallery has {len(self.gallery):,}")


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=85)
    return file.getvalue()
