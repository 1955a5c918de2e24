"""`agman search`: finds pictures of a gallery: those most similar to a picture, those with given values, or both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.errors import InputError
from data_prep.pictures import read_file
from pipeline.common.console import say
from pipeline.retrieval.gallery import Attributes, Gallery, weights_of

if TYPE_CHECKING:  # torch is imported where a model is loaded: a refusal needs none
    from agman.embedder import Embedder
    from pipeline.retrieval.values import ValueTerm


@dataclass(frozen=True)
class ValueScore:
    """Score of a picture for one value."""

    attribute: str
    value: str
    excluded: bool
    score: float
    """Probability of the value; 1 minus its probability if it is excluded."""

    @property
    def name(self) -> str:
        """Name to show, e.g. `not kids=true`."""
        return f"{'not ' if self.excluded else ''}{self.attribute}={self.value}"


@dataclass(frozen=True)
class Hit:
    """Picture of the gallery that a search has found."""

    row: int
    image: str
    """Name of its file, relative to the source."""
    score: float
    """Sum of the cosines, each multiplied by its weight, and of the product of the values' scores."""
    cosines: list[float]
    """Cosine under each of the given attributes."""
    labels: dict[str, str]
    """Attribute -> value, for a prepared dataset."""
    values: list[ValueScore]
    """Score of each value that was asked for."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Cells of the gallery's columns; dates are texts."""


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
    from agman.embedder import Embedder
    from pipeline.registry.loading import load

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
    without: int | None = None,
    terms: Sequence[ValueTerm] = (),
    where: str | None = None,
) -> list[Hit]:
    """Return the `top` best rows for a picture file and values, best first, leaving out row `without`.

    Only rows that satisfy the condition `where` are searched. Raises PictureError for a file that is no picture, and
    InputError for unknown attributes and for an invalid condition.
    """
    from agman.embedder import MAX_QUERY_PIXELS

    gallery.numbers(attributes)  # first, because it is cheap
    (query,) = embedder.embed([embedder.read(picture, MAX_QUERY_PIXELS)])
    return ranked(gallery, query, attributes, top, approximate, without, terms, where)


def ranked(
    gallery: Gallery,
    query: np.ndarray | None,
    attributes: Attributes,
    top: int,
    approximate: bool,
    without: int | None = None,
    terms: Sequence[ValueTerm] = (),
    where: str | None = None,
) -> list[Hit]:
    """Return the `top` best rows for a picture and values, leaving out row `without`.

    Only rows that satisfy the condition `where` are searched. `query` has the picture's embeddings under all
    attributes, N×D; it is None, and `attributes` empty, for a search by values alone.
    """
    wanted = top + (without is not None)
    if terms:
        from pipeline.retrieval.values import best_rows

        numbers = gallery.numbers(attributes) if attributes else []
        picture_ad = query[numbers] if query is not None else np.empty((0, gallery.info.width), np.float32)
        weights = weights_of(attributes)
        scores, rows = best_rows(gallery, terms, picture_ad, numbers, weights, wanted, approximate, where)
    else:
        assert query is not None, "a search has a picture or values"
        (scores,), (rows,) = gallery.search(query[None], attributes, wanted, approximate, where)
    others = np.flatnonzero(rows != (-1 if without is None else without))[:top]
    scores, rows = scores[others], rows[others]
    cosines = gallery.cosines(query, attributes, rows).T if query is not None else np.empty((len(rows), 0))
    of_terms = [(term, term.scores(gallery.matrix(term.number)[rows]).tolist()) for term in terms]
    return [
        Hit(
            row,
            known.path,
            score,
            each,
            known.labels,
            [ValueScore(term.attribute, term.value, term.excluded, found[i]) for term, found in of_terms],
            cells,
        )
        for i, (row, score, each, known, cells) in enumerate(
            zip(
                rows.tolist(),
                scores.tolist(),
                cosines.tolist(),
                gallery.describe(rows.tolist()),
                gallery.cells(rows),
                strict=True,
            )
        )
    ]


def parse_attributes(given: Sequence[str]) -> dict[str, float]:
    """Return name -> weight for `NAME` or `NAME=WEIGHT`. Raises InputError for a bad weight or a repeated name."""
    weights: dict[str, float] = {}
    for one in given:
        name, equals, weight = one.partition("=")
        if name in weights:
            raise InputError(f"attribute {name!r} is given twice")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            raise InputError(f"attribute {one}: the weight must be a number, as in {name}=2") from None
    return weights


def read_query(path: Path) -> bytes:
    """Read the picture file of a query. Raises InputError if it cannot be read."""
    try:
        return read_file(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"--query {path}: cannot be read ({why})") from error


def run_search(
    gallery: Gallery,
    query: Path | None,
    attributes: dict[str, float],
    *,
    values: Sequence[str] = (),
    excluded: Sequence[str] = (),
    where: str | None = None,
    top: int,
    approximate: bool,
    model: str | None,
) -> list[Hit]:
    """Search a gallery for a picture file, which is left out itself, for values given as ATTRIBUTE=VALUE, or both.

    Only pictures that satisfy the condition `where` are searched.

    Raises InputError for invalid arguments.
    """
    if where is not None:
        gallery.check_where(where)  # before a model is loaded
    if query is None and attributes:
        raise InputError("--attribute needs --query IMAGE; --value finds pictures by a value's name")
    if query is None and not values and not excluded:
        raise InputError("nothing to search for; give --query IMAGE with --attribute NAME, or --value ATTRIBUTE=VALUE")
    picture = b""
    if query is not None:
        gallery.numbers(attributes)
        weights_of(attributes)
        picture = read_query(query)
    terms: list[ValueTerm] = []
    if values or excluded:
        from pipeline.retrieval.values import value_terms

        terms = value_terms(gallery, values, excluded)
    if query is None:
        return ranked(gallery, None, {}, top, approximate, terms=terms, where=where)
    from agman.embedder import PictureError

    embedder = embedder_of(gallery, model)
    try:
        return search(gallery, embedder, picture, attributes, top, approximate, gallery.row_of(query), terms, where)
    except PictureError as error:
        raise InputError(f"--query {query}: {error}") from error
