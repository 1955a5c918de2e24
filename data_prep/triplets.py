"""Triplet sampling in the published distribution, vectorised.

Attribute uniform, then value uniform among those with two images or more, then anchor, positive
(another image of that value) and negative (an image of the attribute without that value) uniform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Triplets:
    """N triplets of image ids, each drawn for one attribute."""

    anchor: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    attribute: np.ndarray

    def __len__(self) -> int:
        return len(self.anchor)

    def __getitem__(self, rows: slice) -> Triplets:
        """Return the triplets of these rows."""
        return Triplets(*(column[rows] for column in self.columns().values()))

    def columns(self) -> dict[str, np.ndarray]:
        """Return the four columns by name: anchor, positive, negative, attribute."""
        return dict(vars(self))


class TripletSampler:
    """A sampler of triplets from a table of labels.

    `labels` has the columns image_id, attribute, value; an image may have several values of an attribute. A value
    cannot be an anchor's if fewer than two images have it, or all images of the attribute; those are listed in
    `skipped`. It can still be a negative's.
    """

    def __init__(self, labels: pd.DataFrame):
        image, attribute, value = (labels[name].to_numpy(np.int64) for name in ("image_id", "attribute", "value"))
        images, values = int(image.max(initial=0)) + 1, int(value.max(initial=0)) + 1
        # A label as one number, in the order of attribute, value, image; one that is given twice counts once.
        labelled = _distinct((attribute * values + value) * images + image)
        groups, start, size = _runs(labelled // images)
        pooled = _distinct(attribute * images + image)
        pools, pool_start, pool_size = _runs(pooled // images)
        self._members = labelled % images
        """Images group by group; a group is one value of one attribute."""
        self._pool = pooled % images
        """Distinct images attribute by attribute: where negatives come from."""
        pool = np.searchsorted(pools, groups // values)
        others = pool_size[pool] - size

        usable = (size >= 2) & (others > 0)
        self.skipped: list[tuple[int, int, int]] = [
            (int(group // values), int(group % values), int(n))
            for group, n in zip(groups[~usable], size[~usable], strict=True)
        ]
        """Triples (attribute, value, images), one for every value that cannot be an anchor's."""
        # For every member: how many images before it in its pool are *not* in its group, plus a stride that keeps the
        # groups apart. The position of a rank among these numbers is the number of members before that rank's
        # non-member. So one binary search finds a negative, whatever other values its image has.
        self._stride = len(pooled) + 1
        group = np.repeat(np.arange(len(groups)), size)
        position = np.searchsorted(pooled, pools[pool][group] * images + self._members) - pool_start[pool][group]
        self._gaps = position - (np.arange(len(labelled)) - start[group]) + group * self._stride

        self._group = np.flatnonzero(usable)
        self._group_attribute = (groups[usable] // values).astype(np.int16)
        self._start, self._size = start[usable], size[usable]
        self._pool_start, self._others = pool_start[pool][usable], others[usable]
        # Groups are sorted by attribute, so those of one attribute lie side by side.
        self.attributes, self._groups_from, self._groups_of = _runs(self._group_attribute)

    def sample(self, n: int, seed: int | list[int]) -> Triplets:
        """Draw `n` triplets, or none if no attribute has any. The same seed draws the same triplets."""
        if not len(self.attributes):
            n = 0
        rng = np.random.default_rng(seed)
        chosen = rng.integers(0, max(len(self.attributes), 1), n)
        group = self._groups_from[chosen] + rng.integers(0, self._groups_of[chosen])
        start, size = self._start[group], self._size[group]

        anchor = rng.integers(0, size)
        positive = rng.integers(0, size - 1)
        positive += positive >= anchor  # skips the anchor itself
        rank = rng.integers(0, self._others[group])
        before = np.searchsorted(self._gaps, rank + self._group[group] * self._stride, side="right") - start
        return Triplets(
            self._members[start + anchor],
            self._members[start + positive],
            self._pool[self._pool_start[group] + rank + before],
            self._group_attribute[group],
        )


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """Return the distinct numbers, sorted. np.unique hashes integers, which takes ten times as long here."""
    ordered = np.sort(numbers)
    return ordered[np.diff(ordered, prepend=-1) != 0]


def _runs(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct numbers of a sorted array, and the start and length of each one's run."""
    start = np.flatnonzero(np.diff(ordered, prepend=-1))
    return ordered[start], start, np.diff(start, append=len(ordered))
