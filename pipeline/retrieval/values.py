"""Search by values: the pictures of a gallery to which the model gives them, by the names of the values.

The score of a value is its calibrated probability P(v) (`agman.tagging`), that of an excluded one 1 − P(v). Scores of
several values are multiplied, as those of independent events; the product, in [0, 1], is added to the cosines of a
picture. docs/search.md has the measured alternatives.

Shape suffixes: R rows, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agman.tagger import Namer, Tagger
from data_prep.errors import InputError
from data_prep.hints import nearest
from pipeline.retrieval.exact import best_of, exact_scores
from pipeline.retrieval.gallery import Gallery

CHUNK = 16_384
"""Rows that are scored together."""


@dataclass(frozen=True)
class ValueTerm:
    """A value that is wanted or excluded."""

    attribute: str
    number: int
    """Index of the attribute among the gallery's."""
    value: str
    excluded: bool
    namer: Namer

    @property
    def prototype(self) -> np.ndarray:
        """The value's prototype, float32 D."""
        return self.namer.prototypes_vd[self.namer.values.index(self.value)].numpy()

    def scores(self, embeddings_rd: np.ndarray) -> np.ndarray:
        """Return the score of every row from its embedding under the attribute, float64 R."""
        found = self.namer.probabilities(torch.from_numpy(embeddings_rd))[
            :, self.namer.values.index(self.value)
        ].numpy()
        return 1 - found if self.excluded else found


def tagger_of(gallery: Gallery) -> Tagger:
    """Return the gallery's prototypes. Raises InputError if it has none, or if they are damaged."""
    tagger = gallery.tagger
    if tagger is None:
        raise InputError(
            f"{gallery.folder}: has no prototypes, by which values are found; the same `agman embed` adds them if its "
            "model has some, else train the model again"
        )
    return tagger


def value_terms(gallery: Gallery, wanted: Sequence[str], excluded: Sequence[str]) -> list[ValueTerm]:
    """Return the terms of values given as ATTRIBUTE=VALUE.

    Raises InputError for a value that is unknown, not calibrated or repeated, and for two wanted values of one
    attribute.
    """
    if not wanted and not excluded:
        return []
    tagger = tagger_of(gallery)
    terms: list[ValueTerm] = []
    for one, out in [(one, False) for one in wanted] + [(one, True) for one in excluded]:
        attribute, equals, value = one.partition("=")
        (number,) = gallery.numbers([attribute])
        namer = tagger.namers.get(attribute)
        if namer is None:
            raise InputError(f"value {one}: no labelled training picture under {attribute}, so no value is known")
        if namer.temperature is None:
            raise InputError(f"value {one}: the validation split had no labels of {attribute} to calibrate values with")
        if not equals or value not in namer.known:
            raise InputError(f"value {one}: unknown; give ATTRIBUTE=VALUE; {nearest(value, namer.known)}")
        for term in terms:
            if (term.attribute, term.value) == (attribute, value):
                raise InputError(f"value {one}: is given twice")
            if term.attribute == attribute and not (term.excluded or out):
                raise InputError(
                    f"value {one}: {attribute}={term.value} is wanted too; search for one value of an attribute"
                )
        terms.append(ValueTerm(attribute, number, value, out, namer))
    return terms


def best_rows(
    gallery: Gallery,
    terms: Sequence[ValueTerm],
    picture_ad: np.ndarray,
    numbers: Sequence[int],
    weights: Sequence[float],
    top: int,
    approximate: bool = False,
    where: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (float32) and rows of the best matches, best first; equal scores are ordered by row.

    Every row is scored, or, if `approximate`, those that the index finds near the picture and the wanted values.
    Raises InputError if `approximate` and there is no index, or nothing that is wanted.

    Args:
        gallery: gallery.
        terms: values, at least one.
        picture_ad: embeddings of a picture under the attributes `numbers`; none for a search by values alone.
        numbers: indices of these attributes.
        weights: weight of each of them.
        top: number of rows.
        approximate: use the approximate index.
        where: condition on the columns that rows in the result satisfy.
    """
    if not approximate:
        rows = np.arange(len(gallery)) if where is None else gallery.rows_where(where)
    else:
        near = [(number, vector) for number, vector in zip(numbers, picture_ad, strict=True)]
        near += [(one.number, one.prototype) for one in terms if not one.excluded]
        if not near:
            raise InputError("an approximate search needs a picture or a value that is wanted")
        rows = gallery.candidates(near, top, where)
    scores, best = np.empty(0, np.float32), np.empty(0, np.int64)
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        found = score_rows(gallery, terms, picture_ad, numbers, weights, some)
        scores, best = best_of(np.concatenate([scores, found]), np.concatenate([best, some]), top)
    return scores, best


def score_rows(
    gallery: Gallery,
    terms: Sequence[ValueTerm],
    picture_ad: np.ndarray,
    numbers: Sequence[int],
    weights: Sequence[float],
    rows: np.ndarray,
) -> np.ndarray:
    """Return the score of each of `rows`, float32. Arguments as for `best_rows`."""
    total = np.zeros(len(rows))
    if len(numbers):
        matrices = [gallery.matrix(number) for number in numbers]
        total += exact_scores(matrices, picture_ad, rows, np.asarray(weights, np.float64))
    product = np.ones(len(rows))
    for term in terms:
        product *= term.scores(gallery.matrix(term.number)[rows])
    return (total + product).astype(np.float32)
