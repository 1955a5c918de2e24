"""Confusion section of the report: the values of the first candidates, for the queries of each value.

Shape suffixes: Q queries and C candidates of one attribute, k first candidates, V values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.dataset import Dataset
from data_prep.tables import Attribute
from pipeline.evaluation.evaluate import Evaluation
from pipeline.reports.model.neighbours import neighbours
from pipeline.reports.model.pairs import of_attributes

NEIGHBOURS = 10
"""Number of first candidates that are counted; all, if there are fewer."""
MATRIX_VALUES = 16
"""Largest number of values that are shown as a matrix; with more, the largest confusions are listed."""
LISTED = 12
LISTED_BESIDE_A_MATRIX = 3


@dataclass(frozen=True)
class Mistake:
    """One value confused with another."""

    asked: str
    found: str
    share: float
    """Fraction of the found value among the first candidates of the asked value's queries."""
    expected: float
    """Fraction of the found value among all candidates, which a random ranking would show."""
    queries: int


@dataclass(frozen=True)
class ConfusionRow:
    """A row of the matrix: the queries of one value."""

    asked: str
    queries: int
    cells: list[tuple[float, bool]]
    """Fraction of each found value, and whether it is the asked value."""


@dataclass(frozen=True)
class Confusion:
    """Confusions of one attribute."""

    attribute: str
    count: int
    """Number of queries of the attribute."""
    k: int
    found: list[str]
    """Values of the columns; empty without a matrix."""
    rows: list[ConfusionRow]
    expected: list[float]
    """Fraction of each column's value among all candidates."""
    mistakes: list[Mistake]
    """Largest confusions, counted in candidates, first."""
    values: int
    """Number of values that have queries."""


def confusions(evaluation: Evaluation, dataset: Dataset) -> list[Confusion]:
    """Return a matrix or a list for every attribute with queries and candidates, in the order of the dataset."""
    found = []
    for attribute, queries, candidates in of_attributes(evaluation, dataset):
        if len(candidates):
            embeddings, values = evaluation.embeddings, evaluation.pairs["value"].to_numpy(np.int64)
            _, indices = neighbours(embeddings[queries], embeddings[candidates], NEIGHBOURS)
            of_candidates = values[candidates]
            found.append(_confusion(attribute, values[queries], of_candidates, of_candidates[indices.numpy()]))
    return found


def shares(query_values: np.ndarray, neighbour_values_qk: np.ndarray, n_values: int) -> np.ndarray:
    """Return the fraction of the k neighbours of value v's queries that have value w, as float64 V×V [v, w].

    A row sums to 1; it is NaN for a value without queries.
    """
    k = neighbour_values_qk.shape[1]
    cells = np.repeat(query_values, k) * n_values + neighbour_values_qk.ravel()
    counts_vw = np.bincount(cells, minlength=n_values**2).reshape(n_values, n_values)
    with np.errstate(invalid="ignore"):
        return counts_vw / counts_vw.sum(axis=1, keepdims=True)


def _confusion(
    attribute: Attribute, asked_q: np.ndarray, candidates_c: np.ndarray, neighbours_qk: np.ndarray
) -> Confusion:
    n = len(attribute.values)
    shares_vw = shares(asked_q, neighbours_qk, n)
    queries_v, expected_w = np.bincount(asked_q, minlength=n), np.bincount(candidates_c, minlength=n)
    expected_w = expected_w / expected_w.sum()
    asked = np.flatnonzero(queries_v)
    found = np.flatnonzero((queries_v > 0) | (expected_w > 0)) if n <= MATRIX_VALUES else asked[:0]
    mistakes = list(_mistakes(attribute.values, shares_vw, queries_v, expected_w))
    return Confusion(
        attribute=attribute.name,
        count=len(asked_q),
        k=neighbours_qk.shape[1],
        found=[attribute.values[w] for w in found],
        rows=[
            ConfusionRow(
                attribute.values[v], int(queries_v[v]), [(float(shares_vw[v, w]), bool(v == w)) for w in found]
            )
            for v in (asked if len(found) else found)
        ],
        expected=expected_w[found].tolist(),
        mistakes=mistakes[: LISTED_BESIDE_A_MATRIX if len(found) else LISTED],
        values=len(asked),
    )


def _mistakes(
    values: tuple[str, ...], shares_vw: np.ndarray, queries_v: np.ndarray, expected_w: np.ndarray
) -> Iterator[Mistake]:
    """Yield the confusions that occur, ordered by the number of first candidates they account for, largest first."""
    filled_vw = np.nan_to_num(shares_vw) * queries_v[:, None]
    np.fill_diagonal(filled_vw, 0)
    for index in np.argsort(-filled_vw, axis=None, kind="stable"):
        v, w = divmod(int(index), len(values))
        if not filled_vw[v, w]:
            return
        yield Mistake(values[v], values[w], float(shares_vw[v, w]), float(expected_w[w]), int(queries_v[v]))
