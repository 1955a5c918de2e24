"""All pairs of rows that are alike under every one of several attributes; the groups that they form.

The similarity of a pair is the least of its cosines under the A attributes. Every pair is looked at: R²/2 pairs × A × D
multiplications, a block of BLOCK × BLOCK pairs at a time, so that memory does not grow with R. The scan computes
cosines in float32. A pair is computed again in float64 if its similarity is within the largest possible rounding error
of the limit or above it (`pipeline.retrieval.exact`), so the result depends neither on blocks nor on threads. Cosines
are rounded to DIGITS digits, those that float32 embeddings have: equal embeddings have a cosine of 1.

Shape suffixes: R rows, A attributes, D embedding width, K pairs.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.progress import Progress, silent
from pipeline.retrieval.exact import EXACT_BLOCK, rounding_error

BLOCK = 2_048
"""Rows on either side of a block of pairs: two matrices of 16 MiB."""
DIGITS = 6
LIMIT_DIGITS = 4
"""Digits of a limit that is raised for too many pairs."""


@dataclass(frozen=True)
class AlikePairs:
    """Pairs of rows, most similar first; equal ones are ordered by row."""

    rows: np.ndarray
    """int64 K×2, the lower row first."""
    cosines: np.ndarray
    """float64 K×A."""
    least: float
    """Similarity from which on these are all pairs: the given limit, or a higher one if there were too many."""

    @property
    def similarity(self) -> np.ndarray:
        """Least cosine of each pair, float64 K."""
        return self.cosines.min(axis=1)


def alike_pairs(
    matrices_rd: Sequence[np.ndarray],
    least: float,
    most: int,
    differing_r: Sequence[np.ndarray] = (),
    progress: Progress = silent,
) -> AlikePairs:
    """Return the pairs whose similarity is at least `least`; if they are more than `most`, raise the limit.

    Args:
        matrices_rd: embeddings of the rows under each of the A attributes, float32, of unit length.
        least: lowest similarity.
        most: maximum number of pairs.
        differing_r: numbers for the rows; the two rows of a pair must have different ones in each of these arrays.
        progress: callback for a progress bar.
    """
    rows = len(matrices_rd[0])
    found = _Found(least, most, len(matrices_rd))
    error = rounding_error(matrices_rd[0].shape[1], np.ones(1)) + 10.0**-DIGITS
    starts = range(0, rows, BLOCK)
    advance = progress("rows compared", rows)
    for start in starts:
        for other in starts[start // BLOCK :]:
            rough = _least_cosines(matrices_rd, slice(start, start + BLOCK), slice(other, other + BLOCK))
            first, second = np.nonzero(rough >= found.least - error)
            near = rough[first, second]
            first, second = first + start, second + other
            keep = first < second
            for numbers in differing_r:
                keep &= numbers[first] != numbers[second]
            first, second, near = first[keep], second[keep], near[keep]
            for some in _parts(len(near)):
                possible = near[some] >= found.least - error  # the limit may have risen
                found.add(matrices_rd, np.stack([first[some][possible], second[some][possible]], axis=1))
        advance(min(BLOCK, rows - start))
    return found.sorted()


def _least_cosines(matrices_rd: Sequence[np.ndarray], rows: slice, others: slice) -> np.ndarray:
    """Return the least cosine of every pair of a block, float32."""
    least = matrices_rd[0][rows] @ matrices_rd[0][others].T
    cosines = np.empty_like(least)
    for matrix in matrices_rd[1:]:
        np.matmul(matrix[rows], matrix[others].T, out=cosines)
        np.minimum(least, cosines, out=least)
    return least


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + EXACT_BLOCK) for start in range(0, count, EXACT_BLOCK))


def next_limit(similarity: float, above: bool = False) -> float:
    """Return the lowest limit of LIMIT_DIGITS digits that is at least `similarity`, or `above` it."""
    steps = round(float(similarity) * 10**LIMIT_DIGITS, DIGITS - LIMIT_DIGITS)  # without the error of the product
    return (math.floor(steps) + 1 if above else math.ceil(steps)) / 10**LIMIT_DIGITS


class _Found:
    """Pairs so far, at most `most` after every addition."""

    def __init__(self, least: float, most: int, attributes: int):
        self.least, self.most = least, most
        self._rows = [np.empty((0, 2), np.int64)]
        self._cosines = [np.empty((0, attributes))]
        self._count = 0

    def add(self, matrices_rd: Sequence[np.ndarray], rows_k2: np.ndarray) -> None:
        """Compute the cosines of pairs, and keep those that reach the limit."""
        first, second = rows_k2.T
        # Products of float32 are exact in float64; every row is summed separately, in a fixed order.
        cosines = [(m[first].astype(np.float64) * m[second]).sum(axis=1).clip(-1, 1) for m in matrices_rd]
        cosines_ka = np.stack(cosines, axis=1).round(DIGITS)
        reached = cosines_ka.min(axis=1) >= self.least
        self._rows.append(rows_k2[reached])
        self._cosines.append(cosines_ka[reached])
        self._count += int(reached.sum())
        if self._count > self.most:
            self._raise_limit()

    def _raise_limit(self) -> None:
        rows, cosines = np.concatenate(self._rows), np.concatenate(self._cosines)
        similarity = cosines.min(axis=1)
        too_many = np.partition(similarity, len(similarity) - self.most - 1)[len(similarity) - self.most - 1]
        self.least = next_limit(too_many, above=True)
        keep = similarity >= self.least
        self._rows, self._cosines, self._count = [rows[keep]], [cosines[keep]], int(keep.sum())

    def sorted(self) -> AlikePairs:
        rows, cosines = np.concatenate(self._rows), np.concatenate(self._cosines)
        order = np.lexsort((rows[:, 1], rows[:, 0], -cosines.min(axis=1)))
        return AlikePairs(rows[order], cosines[order], float(self.least))


def grouped(rows_k2: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return the group of each pair (int64 K), and each group's first picture.

    The picture with the most partners and its partners are a group, to which all pairs between them belong; the
    same is done with the other pairs until none is left. So every pair is in one group, every picture of a group is
    alike to its first one, and no chain of pairs connects unlike pictures; a picture may be in several groups. Groups
    are ordered by their first pair.
    """
    partners: defaultdict[int, dict[int, int]] = defaultdict(dict)  # row -> its partners without a group -> the pair
    for pair, (first, second) in enumerate(rows_k2.tolist()):
        partners[first][second] = partners[second][first] = pair
    waiting = [(-len(others), row) for row, others in partners.items()]
    heapq.heapify(waiting)
    group_k, centres = np.full(len(rows_k2), -1, np.int64), list[int]()
    while waiting:
        count, centre = heapq.heappop(waiting)
        if -count != len(partners[centre]):  # some of its pairs have got a group since
            heapq.heappush(waiting, (-len(partners[centre]), centre))
            continue
        members = {centre, *partners[centre]}
        if len(members) == 1:
            continue
        for member in members:
            for other in members & partners[member].keys():
                group_k[partners[member].pop(other)] = len(centres)
        centres.append(centre)
    groups, firsts = np.unique(group_k, return_index=True)
    order = groups[np.argsort(firsts)]
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    return number[group_k], [centres[group] for group in order]
