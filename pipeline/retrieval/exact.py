"""Exact search for the rows with the highest scores, over matrices that may be larger than memory.

The score of a row is the sum, over the requested attributes, of weight × cosine of query and row (AG-MAN's similarity
under several attributes; its weights are 1). It is computed in float64 and rounded to float32 once; equal scores are
ordered by row. A result therefore depends neither on the matrix library's order of summation nor on the number of
threads. Vectors of unit length in float32 can give a product a little above 1, so cosines are clipped to [-1, 1].

The scan computes approximate scores in float32, one chunk of rows at a time. A row is scored exactly if its approximate
score is within the largest possible rounding error of the lowest score in the result so far. For two vectors of
width D and unit length, the error of a float32 dot product is at most γ = D·u / (1 − D·u), u = 2⁻²⁴, for every order of
summation (Higham, Accuracy and Stability of Numerical Algorithms, §3.1), so no row of the result is missed.

Shape suffixes: Q queries, A requested attributes, D embedding width, R rows, C rows of a chunk, K rows of the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHUNK = 16_384
"""Rows of a chunk; 32 MiB at 512 floats a row."""
QUERIES = 64
"""Queries in one scan of the matrices."""
NORM_ERROR = 1e-3
"""Largest difference between the length of an embedding and 1."""
EXACT_BLOCK = 4_096
"""Rows scored in float64 at a time."""


def nearest_rows(
    matrices_rd: Sequence[np.ndarray],
    queries_qad: np.ndarray,
    top: int,
    weights_a: Sequence[float] | None = None,
    among: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (float32, Q×K) and rows (int64, Q×K) of the best matches of each query; K = min(top, R).

    Args:
        matrices_rd: embeddings of the rows under each of the A attributes, float32, of unit length.
        queries_qad: embeddings of the queries, float32, of unit length.
        top: number of rows in the result.
        weights_a: positive weight of each attribute; all 1 by default.
        among: rows that may be in the result, in order; all R by default.
    """
    weights = np.ones(len(matrices_rd)) if weights_a is None else np.asarray(weights_a, np.float64)
    wanted = min(top, len(matrices_rd[0] if among is None else among))
    scores = np.empty((len(queries_qad), wanted), np.float32)
    rows = np.empty((len(queries_qad), wanted), np.int64)
    for start in range(0, len(queries_qad), QUERIES):
        block = slice(start, start + QUERIES)
        for query, best in enumerate(_scan(matrices_rd, queries_qad[block], wanted, weights, among), start):
            scores[query], rows[query] = best.scores, best.rows
    return scores, rows


def exact_scores(
    matrices_rd: Sequence[np.ndarray], query_ad: np.ndarray, rows: np.ndarray, weights_a: np.ndarray
) -> np.ndarray:
    """Return for each of `rows` the weighted sum over the attributes of its cosines with the query, float32."""
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), EXACT_BLOCK):
        some = rows[start : start + EXACT_BLOCK]
        # Products of float32 are exact in float64; every row is summed separately, in a fixed order.
        weighted = [
            weight * (matrix[some].astype(np.float64) * query).sum(axis=1).clip(-1, 1)
            for matrix, query, weight in zip(matrices_rd, query_ad.astype(np.float64), weights_a, strict=True)
        ]
        scores[start : start + EXACT_BLOCK] = np.sum(weighted, axis=0)
    return scores


def best_of(scores: np.ndarray, rows: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `wanted` highest scores and their rows, best first; equal scores are ordered by row."""
    order = np.lexsort((rows, -scores))[:wanted]
    return scores[order], rows[order]


class _Best:
    """Best rows of one query so far."""

    def __init__(self, wanted: int):
        self.wanted = wanted
        self.scores = np.empty(0, np.float32)
        self.rows = np.empty(0, np.int64)

    @property
    def worst(self) -> float:
        """Score that a row must reach to enter the result."""
        return float(self.scores[-1]) if len(self.scores) == self.wanted else -np.inf

    def add(self, scores: np.ndarray, rows: np.ndarray) -> None:
        self.scores, self.rows = best_of(
            np.concatenate([self.scores, scores]), np.concatenate([self.rows, rows]), self.wanted
        )


def _scan(
    matrices_rd: Sequence[np.ndarray],
    queries_qad: np.ndarray,
    wanted: int,
    weights_a: np.ndarray,
    among: np.ndarray | None,
) -> list[_Best]:
    error = rounding_error(queries_qad.shape[2], weights_a)
    best = [_Best(wanted) for _ in queries_qad]
    weighted_qad = (queries_qad * weights_a[:, None]).astype(np.float32)
    for start in range(0, len(matrices_rd[0] if among is None else among), CHUNK):
        some = slice(start, start + CHUNK) if among is None else among[start : start + CHUNK]
        chunks = [matrix[some] for matrix in matrices_rd]
        for query, (rough, found) in enumerate(zip(_rough(chunks, weighted_qad), best, strict=True)):
            candidates = _candidates(rough, found.worst, wanted, error)
            if len(candidates):
                scores = exact_scores(chunks, queries_qad[query], candidates, weights_a)
                found.add(scores, start + candidates if among is None else among[start + candidates])
    return best


def _rough(chunks_cd: Sequence[np.ndarray], queries_qad: np.ndarray) -> np.ndarray:
    """Return approximate scores, float32 Q×C."""
    total = queries_qad[:, 0] @ chunks_cd[0].T
    for number, chunk in enumerate(chunks_cd[1:], start=1):
        total += queries_qad[:, number] @ chunk.T
    return total


def _candidates(rough: np.ndarray, worst: float, wanted: int, error: float) -> np.ndarray:
    """Return the indices in a chunk whose exact score may be among the best."""
    candidates = np.flatnonzero(rough >= worst - error)
    if len(candidates) > 4 * wanted:  # the first chunk, or one with many better rows: compare with its own best rows
        among = rough[candidates]
        least = np.partition(among, len(among) - wanted)[len(among) - wanted]
        candidates = candidates[among >= least - 2 * error]
    return candidates


def rounding_error(width: int, weights_a: np.ndarray) -> float:
    """Return the largest error of an approximate score plus the rounding of an exact score to float32."""
    unit = 2.0**-24
    terms = width + len(weights_a) + 1  # in the sum of products, in the sum over the attributes, and the weighting
    dot = terms * unit / (1 - terms * unit)
    return float(weights_a.sum()) * (1 + NORM_ERROR) ** 2 * (dot + 2 * unit)
