"""`agman search`: finds the pictures of a gallery that are most similar to a picture under given attributes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import InputError
from data_prep.pictures import read_file
from pipeline.common.console import say
from pipeline.inference.embedder import MAX_QUERY_PIXELS, Embedder, PictureError
from pipeline.registry.loading import load
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

    An alias, which galleries of earlier versions name, may have moved on: then the version with the gallery's weights
    is loaded. Raises InputError if there is no model, or if its attributes, picture size or weights are not the
    gallery's.
    """
    address = model or gallery.info.model
    if gallery.info.checkpoint and not model:
        with suppress(InputError):
            if embedder := _with_same_weights(gallery, gallery.info.checkpoint, device):
                return embedder
    if "@" not in address or not address.startswith("models:/"):
        embedder = _with_same_weights(gallery, address, device)
    else:
        embedder = _of_alias(gallery, address, device)
    if not embedder:
        raise InputError(
            f"{gallery.folder}: embedded by {gallery.info.model}, with other weights than {model or 'it'} has now; "
            "give the same model with --model, or run `agman embed` again"
        )
    return embedder


def _of_alias(gallery: Gallery, alias: str, device: str | None) -> Embedder | None:
    """Load the version that made the gallery, which may no longer be the one that the alias means; None if gone."""
    from pipeline.registry.versions import pinned, versions_of

    versions = versions_of(alias)
    try:
        current = pinned(alias)
    except InputError:
        if not versions:
            raise
        current = ""  # the alias is gone
    for version in sorted(versions, key=lambda one: one != current):
        with suppress(InputError):  # a version of other attributes
            if embedder := _with_same_weights(gallery, version, device):
                if version != current:
                    say(f"note: {alias} is another version now; the gallery's is {version}, which is used")
                return embedder
    return None


def _with_same_weights(gallery: Gallery, model: str, device: str | None) -> Embedder | None:
    """Load a model; return None if it is not the one that embedded the gallery. Raises InputError."""
    info = gallery.info
    embedder = Embedder(*load(model, list(info.attributes)), device=device, precision=info.precision)
    same = (embedder.digest, embedder.side) == (info.model_digest, info.image_size)
    return embedder if same else None


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
