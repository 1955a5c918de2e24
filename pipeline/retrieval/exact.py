"""Exact search: the rows whose scores are the highest, over matrices that may be larger than memory.

A score is the sum, over the asked attributes, of the cosines of query and row (AG-MAN's similarity under several
attributes). It is defined here as the sum of float64 products, rounded to float32 once; equal scores are ordered by
row. Neither the matrix library's order of summation nor the number of threads can show in a result.

The scan itself is in float32, a chunk of rows at a time, and only rough: a row goes on to the exact computation if
its rough score is within the largest rounding error of the worst score still wanted. For two vectors of width D and
unit length a float32 dot product is off by at most γ = D·u / (1 − D·u), u = 2⁻²⁴, in whatever order it is summed
(Higham, Accuracy and Stability of Numerical Algorithms, §3.1), so that no row of the answer is ever passed over.

Shape suffixes: Q queries, A asked attributes, D embedding width, R rows, C rows of a chunk, K wanted rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHUNK = 16_384
"""Rows scanned at a time: 32 MiB of 512 floats."""
QUERIES = 64
"""Queries that go over the matrices together."""
NORM_ERROR = 1e-3
"""How far from 1 the length of an embedding may be."""
EXACT_BLOCK = 4_096
"""Rows computed in float64 at a time."""


def nearest_rows(matrices_rd: Sequence[np.ndarray], queries_qad: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The `top` best rows for each query: scores float32 Q×K and rows int64 Q×K, K = min(top, R).

    `matrices_rd`: for each of the A attributes the rows' embeddings, float32, of unit length.
    """
    wanted = min(top, len(matrices_rd[0]))
    scores = np.empty((len(queries_qad), wanted), np.float32)
    rows = np.empty((len(queries_qad), wanted), np.int64)
    for start in range(0, len(queries_qad), QUERIES):
        block = slice(start, start + QUERIES)
        for place, best in enumerate(_scan(matrices_rd, queries_qad[block], wanted), start):
            scores[place], rows[place] = best.scores, best.rows
    return scores, rows


def exact_scores(matrices_rd: Sequence[np.ndarray], query_ad: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32, one for each of `rows`: the sum over the attributes of its cosines with the query."""
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), EXACT_BLOCK):
        some = rows[start : start + EXACT_BLOCK]
        # Products of float32 are exact in float64; each row is summed by itself, in one order.
        cosines = [
            (matrix[some].astype(np.float64) * query).sum(axis=1)
            for matrix, query in zip(matrices_rd, query_ad.astype(np.float64), strict=True)
        ]
        scores[start : start + EXACT_BLOCK] = np.sum(cosines, axis=0)
    return scores


def best_of(scores: np.ndarray, rows: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """The `wanted` highest scores and their rows, best first; equal ones in the order of the rows."""
    order = np.lexsort((rows, -scores))[:wanted]
    return scores[order], rows[order]


class _Best:
    """The best rows of one query so far."""

    def __init__(self, wanted: int):
        self.wanted = wanted
        self.scores = np.empty(0, np.float32)
        self.rows = np.empty(0, np.int64)

    @property
    def worst(self) -> float:
        """The score that a row must reach to be of any interest."""
        return float(self.scores[-1]) if len(self.scores) == self.wanted else -np.inf

    def add(self, scores: np.ndarray, rows: np.ndarray) -> None:
        self.scores, self.rows = best_of(
            np.concatenate([self.scores, scores]), np.concatenate([self.rows, rows]), self.wanted
        )


def _scan(matrices_rd: Sequence[np.ndarray], queries_qad: np.ndarray, wanted: int) -> list[_Best]:
    error = rounding_error(queries_qad)
    best = [_Best(wanted) for _ in queries_qad]
    for start in range(0, len(matrices_rd[0]), CHUNK):
        chunks = [matrix[start : start + CHUNK] for matrix in matrices_rd]
        for query, (rough, found) in enumerate(zip(_rough(chunks, queries_qad), best, strict=True)):
            places = _promising(rough, found.worst, wanted, error)
            if len(places):
                found.add(exact_scores(chunks, queries_qad[query], places), start + places)
    return best


def _rough(chunks_cd: Sequence[np.ndarray], queries_qad: np.ndarray) -> np.ndarray:
    """float32 Q×C."""
    total = queries_qad[:, 0] @ chunks_cd[0].T
    for number, chunk in enumerate(chunks_cd[1:], start=1):
        total += queries_qad[:, number] @ chunk.T
    return total


def _promising(rough: np.ndarray, worst: float, wanted: int, error: float) -> np.ndarray:
    """Places in a chunk whose exact score may be among the best."""
    places = np.flatnonzero(rough >= worst - error)
    if len(places) > 4 * wanted:  # the first chunk, or a chunk of better rows: not worse than its own best either
        among = rough[places]
        least = np.partition(among, len(among) - wanted)[len(among) - wanted]
        places = places[among >= least - 2 * error]
    return places


def rounding_error(queries_qad: np.ndarray) -> float:
    """The most that a rough score, and the rounding of an exact one to float32, can be off."""
    _, asked, width = queries_qad.shape
    unit = 2.0**-24
    terms = width + asked  # of the products' sum, and of the sum over the attributes
    dot = terms * unit / (1 - terms * unit)
    return asked * (1 + NORM_ERROR) ** 2 * (dot + 2 * unit)
