"""Computations of the service, without HTTP: embeddings, hits, attention over pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from data_prep.errors import InputError
from pipeline.inference.embedder import MAX_QUERY_PIXELS, Embedder
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.search import parse_attributes, ranked

MOST_HITS = 100
"""Largest number of hits in one answer."""


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
            "attributes": list(info.attributes),
            "queries": info.queries,
            "width": info.width,
            "device": self.embedder.device,
        }

    def read(self, data: bytes) -> np.ndarray:
        """Return a client's picture as the model receives it. Raises PictureError if it cannot be read."""
        return self.embedder.read(data, MAX_QUERY_PIXELS)

    def hits(
        self,
        embeddings_nd: np.ndarray,
        attributes: Sequence[str],
        top: int,
        approximate: bool,
        without: int | None = None,
    ) -> list[dict]:
        """Return the best rows for a picture's embeddings under all attributes, N×D, leaving out row `without`.

        `attributes` are NAME or NAME=WEIGHT. Raises InputError for invalid ones, or if `top` is out of range.
        """
        weights = parse_attributes(attributes)
        if not 1 <= top <= MOST_HITS:
            raise InputError(f"top must be 1 to {MOST_HITS}, not {top}")
        version = self.gallery.info.fingerprint[:8]  # browsers cache pictures by their address
        return [
            asdict(hit)
            | {
                "cosines": dict(zip(weights, hit.cosines, strict=True)),
                "picture": f"pictures/{hit.row}?of={version}",
            }
            for hit in ranked(self.gallery, embeddings_nd, weights, top, approximate, without)
        ]

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
