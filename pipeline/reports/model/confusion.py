"""Which values are taken for which: whose pictures stand among the first candidates of a value's queries.

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
"""First candidates that are counted, or all of fewer."""
MATRIX_VALUES = 16
"""An attribute of more values has its largest confusions listed, not a matrix."""
LISTED = 12
LISTED_BESIDE_A_MATRIX = 3


@dataclass(frozen=True)
class Mistake:
    """One value taken for another."""

    asked: str
    found: str
    share: float
    """Of the first candidates of the asked value's queries."""
    expected: float
    """Share of the found value among all candidates: what a random ranking would show."""
    queries: int


@dataclass(frozen=True)
class Row:
    """The queries of one value."""

    asked: str
    queries: int
    cells: list[tuple[float, bool]]
    """For every found value its share, and whether it is the asked one."""


@dataclass(frozen=True)
class Confusion:
    """One attribute's confusions."""

    attribute: str
    k: int
    found: list[str]
    """Values of the matrix's columns; empty without a matrix."""
    rows: list[Row]
    expected: list[float]
    """Of the columns: share among all candidates."""
    mistakes: list[Mistake]
    """Those that fill the most places, first."""
    values: int
    """How many values queries ask for."""


def confusions(evaluation: Evaluation, dataset: Dataset) -> list[Confusion]:
    """A matrix or a list for every attribute with queries and candidates, in the dataset's order."""
    found = []
    for attribute, queries, candidates in of_attributes(evaluation, dataset):
        if len(candidates):
            embeddings, values = evaluation.embeddings, evaluation.pairs["value"].to_numpy(np.int64)
            _, places = neighbours(embeddings[queries], embeddings[candidates], NEIGHBOURS)
            of_candidates = values[candidates]
            found.append(_confusion(attribute, values[queries], of_candidates, of_candidates[places.numpy()]))
    return found


def shares(query_values: np.ndarray, neighbour_values_qk: np.ndarray, n_values: int) -> np.ndarray:
    """V×V float64: of the k neighbours of the queries of value v, row v, the share with value w, column w.

    A row sums to 1; it is NaN for a value that no query has.
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
        k=neighbours_qk.shape[1],
        found=[attribute.values[w] for w in found],
        rows=[
            Row(attribute.values[v], int(queries_v[v]), [(float(shares_vw[v, w]), bool(v == w)) for w in found])
            for v in (asked if len(found) else found)
        ],
        expected=expected_w[found].tolist(),
        mistakes=mistakes[: LISTED_BESIDE_A_MATRIX if len(found) else LISTED],
        values=len(asked),
    )


def _mistakes(
    values: tuple[str, ...], shares_vw: np.ndarray, queries_v: np.ndarray, expected_w: np.ndarray
) -> Iterator[Mistake]:
    """By the places that they fill among all first candidates, the most first; those that fill none are left out."""
    filled_vw = np.nan_to_num(shares_vw) * queries_v[:, None]
    np.fill_diagonal(filled_vw, 0)
    for place in np.argsort(-filled_vw, axis=None, kind="stable"):
        v, w = divmod(int(place), len(values))
        if not filled_vw[v, w]:
            return
        yield Mistake(values[v], values[w], float(shares_vw[v, w]), float(expected_w[w]), int(queries_v[v]))
