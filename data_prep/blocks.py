"""Work on hundreds of millions of labels, a part at a time.

NumPy turns the whole of an index into int64 before it uses it, which takes 8 bytes a label for a moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

BLOCK = 2_000_000
"""Labels of a block: below this number everything is one block."""


def blocks_of(numbers: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the positions of the numbers in blocks of about BLOCK; all positions of one number are in one block.

    `numbers` has N integers of 0 and more. Those of a block are greater than those of the block before, and positions
    ascend within a block. Every block is a scan of all numbers: time grows with N²/BLOCK.
    """
    counts = bincount(numbers, int(numbers.max(initial=0)) + 1)
    ends = np.cumsum(counts)
    edges = np.unique(np.searchsorted(ends, np.arange(0, len(numbers), BLOCK)))
    for first, end in pairwise([*edges.tolist(), len(counts)]):
        yield np.flatnonzero((numbers >= first) & (numbers < end))


def take(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return `values[index]`."""
    found = np.empty(len(index), values.dtype)
    for part in slices(len(index)):
        found[part] = values[index[part]]
    return found


def bincount(numbers: np.ndarray, n: int) -> np.ndarray:
    """Return how often each of 0 to n-1 is among the numbers."""
    counts = np.zeros(n, np.int64)
    for part in slices(len(numbers)):
        counts += np.bincount(numbers[part], minlength=n)
    return counts


def slices(size: int) -> Iterator[slice]:
    """Yield the slices that divide `size` labels into blocks."""
    for start in range(0, size, BLOCK):
        yield slice(start, start + BLOCK)
