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
        # Hundreds of millions of labels: one attribute after the other, into arrays of the final size.
        image, attribute, value = (labels[name].to_numpy() for name in ("image_id", "attribute", "value"))
        images = int(image.max(initial=0)) + 1
        self._members = np.empty(len(labels), np.int32 if images <= 2**31 else np.int64)
        """Images group by group; a group is one value of one attribute."""
        self._pool = np.empty_like(self._members)
        """Distinct images attribute by attribute: where negatives come from."""
        # For every member: how many images before it in its pool are *not* in its group, plus a stride that keeps the
        # groups apart. The position of a rank among these numbers is the number of members before that rank's
        # non-member. So one binary search finds a negative, whatever other values its image has.
        self._gaps, self._stride = np.empty(len(labels), np.int64), images + 1
        self.skipped: list[tuple[int, int, int]] = []
        """Triples (attribute, value, images), one for every value that cannot be an anchor's."""
        usable = [np.empty((6, 0), np.int64)]
        members = pooled = groups = 0
        for one in np.unique(attribute).tolist():
            own = attribute == one
            pool, labelled, values, start, size = _groups(image[own], value[own])
            group, others = np.repeat(np.arange(len(values)), size), len(pool) - size
            gaps = np.searchsorted(pool, labelled) - (np.arange(len(labelled)) - start[group])
            into = slice(members, members + len(labelled))
            self._members[into], self._gaps[into] = labelled, gaps + (groups + group) * self._stride
            self._pool[pooled : pooled + len(pool)] = pool
            of = np.full(len(values), one)
            columns = np.stack(
                [groups + np.arange(len(values)), of, members + start, size, np.full_like(of, pooled), others]
            )
            drawable = (size >= 2) & (others > 0)
            usable.append(columns[:, drawable])
            self.skipped += zip(*(part[~drawable].tolist() for part in (of, values, size)), strict=True)
            members, pooled, groups = into.stop, pooled + len(pool), groups + len(values)
        self._gaps = self._gaps[:members]
        self._group, of_group, self._start, self._size, self._pool_start, self._others = np.concatenate(usable, axis=1)
        self._group_attribute = of_group.astype(np.int16)
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
            self._members[start + anchor].astype(np.int64),
            self._members[start + positive].astype(np.int64),
            self._pool[self._pool_start[group] + rank + before].astype(np.int64),
            self._group_attribute[group],
        )


def can_draw(image: np.ndarray, attribute: np.ndarray, value: np.ndarray, among: np.ndarray) -> bool:
    """Return whether any triplet can be drawn from those of the L labels that are `among` (L bool)."""
    for one in range(int(attribute.max(initial=-1)) + 1):
        own = among & (attribute == one)
        pool, *_, size = _groups(image[own], value[own])
        if ((size >= 2) & (size < len(pool))).any():
            return True
    return False


def _groups(image: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the images of one attribute's labels in two orders: by themselves (distinct), and grouped by value.

    The others are the values, and the start and size of each one's group.
    """
    images = int(image.max(initial=0)) + 1
    # A label as one number, in the order of value and image; one that is given twice counts once.
    labelled = _distinct(value.astype(np.int64) * images + image)
    values, start, size = _runs(labelled // images)
    labelled %= images
    return _distinct(image), labelled, values, start, size


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """Return the distinct numbers, sorted. np.unique hashes integers, which takes ten times as long here."""
    ordered = np.sort(numbers)
    return ordered[np.diff(ordered, prepend=-1) != 0]


def _runs(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct numbers of a sorted array, and the start and length of each one's run."""
    start = np.flatnonzero(np.diff(ordered, prepend=-1))
    return ordered[start], start, np.diff(start, append=len(ordered))
