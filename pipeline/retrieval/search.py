"""`agman search`: the pictures of a gallery that are most like one picture under the asked attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import InputError
from data_prep.pictures import read_file
from pipeline.inference.embedder import MAX_QUERY_PIXELS, Embedder, PictureError
from pipeline.registry.models import load
from pipeline.retrieval.gallery import Gallery


@dataclass(frozen=True)
class Hit:
    """One picture of the gallery."""

    row: int
    image: str
    score: float
    """The sum of the cosines."""
    cosines: list[float]
    """Under each asked attribute."""


def embedder_of(gallery: Gallery, model: str | None = None, device: str | None = None) -> Embedder:
    """The model that embedded `gallery`, from where it was then or, if it has moved, from `model`.

    Raises InputError if it is not there, or is another one: attributes, picture size and weights must be the gallery's.
    """
    info = gallery.info
    network, description = load(model or info.model, list(info.attributes))
    embedder = Embedder(network, description, device=device, precision=info.precision)
    if (embedder.digest, embedder.side) != (info.model_digest, info.image_size):
        raise InputError(
            f"{gallery.folder}: embedded by {info.model}, and by other weights than {model or 'it'} now has; "
            "give the same model by --model, or run `agman embed` again"
        )
    return embedder


def search(
    gallery: Gallery,
    embedder: Embedder,
    picture: bytes,
    attributes: Sequence[str],
    top: int = 10,
    approximate: bool = False,
) -> list[Hit]:
    """The `top` best rows for a picture file, best first. Raises PictureError, and InputError for attributes."""
    numbers = gallery.numbers(attributes)  # first: it costs nothing
    square = embedder.read(picture, MAX_QUERY_PIXELS)
    query = embedder.embed([square])[0][numbers]
    return ranked(gallery, query, attributes, top, approximate)


def ranked(gallery: Gallery, query: np.ndarray, attributes: Sequence[str], top: int, approximate: bool) -> list[Hit]:
    """The same for the picture's embeddings under the attributes, A×D."""
    (scores,), (rows,) = gallery.search(query[None], attributes, top, approximate)
    cosines = gallery.cosines(query, attributes, rows).T
    return [
        Hit(row, gallery.images[row], score, each)
        for row, score, each in zip(rows.tolist(), scores.tolist(), cosines.tolist(), strict=True)
    ]


def read_query(path: Path) -> bytes:
    """A query's picture file. Raises InputError."""
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(f"--query {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"--query {path}: cannot be read ({error})") from error


def run_search(
    place: Path, query: Path, attributes: Sequence[str], *, top: int, approximate: bool, model: str | None
) -> list[Hit]:
    """The command. Raises InputError."""
    gallery = Gallery.open(place)
    gallery.numbers(attributes)
    picture = read_query(query)
    embedder = embedder_of(gallery, model)
    try:
        return search(gallery, embedder, picture, attributes, top, approximate)
    except PictureError as error:
        raise InputError(f"--query {query}: {error}") from error
