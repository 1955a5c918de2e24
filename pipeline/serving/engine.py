"""What the service computes, without HTTP: embeddings, hits, attention over pictures."""

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
from pipeline.reports.charts import heat_over
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.search import ranked

MOST_HITS = 100
"""That one request may ask for."""


class Engine:
    """A gallery and its model. Every method may be called from several threads at once."""

    def __init__(self, gallery: Gallery, embedder: Embedder):
        self.gallery, self.embedder = gallery, embedder

    @property
    def facts(self) -> dict[str, Any]:
        """What the page and the health check say."""
        info = self.gallery.info
        return {
            "model": info.model,
            "pictures": info.images,
            "attributes": list(info.attributes),
            "width": info.width,
            "device": self.embedder.device,
        }

    def read(self, data: bytes) -> np.ndarray:
        """A client's picture as the model sees it. Raises PictureError."""
        return self.embedder.read(data, MAX_QUERY_PIXELS)

    def numbers(self, attributes: Sequence[str]) -> list[int]:
        """Places of the asked attributes. Raises InputError."""
        return self.gallery.numbers(attributes)

    def hits(self, embeddings_nd: np.ndarray, attributes: Sequence[str], top: int, approximate: bool) -> list[dict]:
        """The best rows for one picture's embeddings under all attributes. Raises InputError."""
        if not 1 <= top <= MOST_HITS:
            raise InputError(f"top must be 1 to {MOST_HITS}, not {top}")
        query = embeddings_nd[self.numbers(attributes)]
        of = self.gallery.info.fingerprint[:8]  # browsers keep pictures by their address
        return [
            asdict(hit)
            | {"cosines": dict(zip(attributes, hit.cosines, strict=True)), "picture": f"pictures/{hit.row}?of={of}"}
            for hit in ranked(self.gallery, query, attributes, top, approximate)
        ]

    def embeddings_of(self, row: int) -> np.ndarray:
        """N×D of a picture of the gallery. Raises InputError if there is no such row."""
        self.check(row)
        return self.gallery.embeddings(row)

    def picture(self, row: int) -> tuple[bytes, str]:
        """A picture of the gallery and its media type. Raises InputError if there is none any more."""
        self.check(row)
        data = self.gallery.picture(row)
        if data is None:
            raise InputError(f"picture {row} is no longer where it was embedded from")
        with Image.open(io.BytesIO(data)) as image:
            return data, Image.MIME.get(image.format or "", "application/octet-stream")

    def heats(self, square: np.ndarray, attributes: Sequence[str]) -> list[bytes]:
        """JPEGs: the attention for each attribute over a picture (S×S×3). Raises InputError for an unknown one."""
        cells = torch.from_numpy(self.embedder.attention(square, attributes))
        fitted = F.interpolate(cells[:, None], size=square.shape[:2], mode="bilinear")[:, 0]
        return [_jpeg(heat_over(square, one)) for one in fitted.numpy()]

    def check(self, row: int) -> None:
        """Raises InputError if the gallery has no such row."""
        if not 0 <= row < len(self.gallery):
            raise InputError(f"no picture {row}: the gallery has {len(self.gallery):,}")


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=85)
    return file.getvalue()
