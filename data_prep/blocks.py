"""Work on hundreds of millions of labels, a part at a time.

NumPy turns the whole of an index into int64 before it uses it, which takes 8 bytes a label for a moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

BLOCK = 2_000_000
"""Labels of a block: below this number everything is one block."""


def blocks_of(number: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the positions of the numbers in blocks of about BLOCK; all positions of one number are in one block.

    `number` has N non-negative integers. The blocks' numbers ascend, and positions ascend within a block.
    """
    count = len(number) // BLOCK + 1
    edges = np.linspace(0, int(number.max(initial=0)) + 1, count + 1).astype(np.int64)
    for first, end in pairwise(edges.tolist()):
        yield np.flatnonzero((number >= first) & (number < end))


def taken(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return `values[index]`."""
    found = np.empty(len(index), values.dtype)
    for part in parts(len(index)):
        found[part] = values[index[part]]
    return found


def counted_numbers(numbers: np.ndarray, n: int) -> np.ndarray:
    """Return how often each of 0 to n-1 is among the numbers."""
    counts = np.zeros(n, np.int64)
    for part in parts(len(numbers)):
        counts += np.bincount(numbers[part], minlength=n)
    return counts


def parts(size: int) -> Iterator[slice]:
    """Yield the slices that divide `size` labels into blocks."""
    for start in range(0, size, BLOCK):
        yield slice(start, start + BLOCK)
