"""`agman search`: finds the pictures of a gallery that are most similar to a picture under given attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import InputError
from data_prep.pictures import read_file
from pipeline.inference.embedder import MAX_QUERY_PIXELS, Embedder, PictureError
from pipeline.registry.models import load
from pipeline.retrieval.gallery import Attributes, Gallery


@dataclass(frozen=True)
class Hit:
    """Picture of the gallery that a search has found."""

    row: int
    image: str
    score: float
    """Sum of the cosines."""
    cosines: list[float]
    """Cosine under each of the given attributes."""


def embedder_of(gallery: Gallery, model: str | None = None, device: str | None = None) -> Embedder:
    """Load the model that embedded `gallery`, from its address in the gallery or from `model` if it has moved.

    Raises InputError if there is no model, or if its attributes, picture size or weights are not the gallery's.
    """
    info = gallery.info
    network, description = load(model or info.model, list(info.attributes))
    embedder = Embedder(network, description, device=device, precision=info.precision)
    if (embedder.digest, embedder.side) != (info.model_digest, info.image_size):
        raise InputError(
            f"{gallery.folder}: embedded by {info.model}, with other weights than {model or 'it'} has now; "
            "give the same model with --model, or run `agman embed` again"
        )
    return embedder


def search(
    gallery: Gallery,
    embedder: Embedder,
    picture: bytes,
    attributes: Attributes,
    top: int = 10,
    approximate: bool = False,
) -> list[Hit]:
    """Return the `top` best rows for a picture file, best first.

    Raises PictureError for a file that is no picture, and InputError for unknown attributes.
    """
    gallery.numbers(attributes)  # first, because it is cheap
    (query,) = embedder.embed([embedder.read(picture, MAX_QUERY_PIXELS)])
    return ranked(gallery, query, attributes, top, approximate)


def ranked(gallery: Gallery, query: np.ndarray, attributes: Attributes, top: int, approximate: bool) -> list[Hit]:
    """Return the `top` best rows for a picture's embeddings under all attributes, N×D."""
    (scores,), (rows,) = gallery.search(query[None], attributes, top, approximate)
    cosines = gallery.cosines(query, attributes, rows).T
    return [
        Hit(row, gallery.images[row], score, each)
        for row, score, each in zip(rows.tolist(), scores.tolist(), cosines.tolist(), strict=True)
    ]


def read_query(path: Path) -> bytes:
    """Read the picture file of a query. Raises InputError if it cannot be read."""
    try:
        return read_file(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"--query {path}: cannot be read ({why})") from error


def run_search(
    path: Path, query: Path, attributes: Sequence[str], *, top: int, approximate: bool, model: str | None
) -> list[Hit]:
    """Search the gallery at `path` for the picture file `query`. Raises InputError for invalid arguments."""
    gallery = Gallery.open(path)
    gallery.numbers(attributes)
    picture = read_query(query)
    embedder = embedder_of(gallery, model)
    try:
        return search(gallery, embedder, picture, attributes, top, approximate)
    except PictureError as error:
        raise InputError(f"--query {query}: {error}") from error
