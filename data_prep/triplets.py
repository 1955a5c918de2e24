"""Triplet sampling in the published distribution, vectorised.

Attribute uniform, then value uniform among those with two images or more, then anchor, positive
(another image of that value) and negative (an image of another value of the attribute) uniform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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

    def columns(self) -> dict[str, np.ndarray]:
        return {
            "anchor": self.anchor,
            "positive": self.positive,
            "negative": self.negative,
            "attribute": self.attribute,
        }


class TripletSampler:
    """Draws triplets from a table of labels.

    `labels` has the columns image_id, attribute, value. A value with fewer than two images cannot be
    an anchor's (it can still be a negative's); an attribute with a single value gives no triplet.
    Both are listed in `skipped`.
    """

    def __init__(self, labels: pd.DataFrame):
        ordered = labels.sort_values(["attribute", "value", "image_id"], kind="stable")
        # An image with two values of one attribute stands in both groups; it may be drawn for either.
        groups = ordered.groupby(["attribute", "value"], sort=True).size()
        self.image_ids = ordered["image_id"].to_numpy(np.int64)
        attribute = groups.index.get_level_values(0).to_numpy()
        size = groups.to_numpy()
        start = np.cumsum(size) - size
        span = pd.DataFrame({"attribute": attribute, "start": start, "stop": start + size})
        spans = span.groupby("attribute").agg(first=("start", "min"), last=("stop", "max"))
        first = spans["first"].loc[attribute].to_numpy()
        last = spans["last"].loc[attribute].to_numpy()

        usable = (size >= 2) & (last - first > size)
        self.skipped: list[tuple[int, int, int]] = [
            (int(a), int(v), int(n)) for (a, v), n, ok in zip(groups.index, size, usable, strict=True) if not ok
        ]
        """(attribute, value, images) of every value that cannot be an anchor's."""
        self._group_attribute = attribute[usable]
        self._start, self._size = start[usable], size[usable]
        self._first, self._last = first[usable], last[usable]
        # Groups are sorted by attribute, so those of one attribute lie side by side.
        self.attributes, self._groups_from, self._groups_of = np.unique(
            self._group_attribute, return_index=True, return_counts=True
        )

    def sample(self, n: int, seed: int | list[int]) -> Triplets:
        """Draw `n` triplets; none if no attribute can give one. The same seed gives the same triplets."""
        if not len(self.attributes):
            n = 0
        rng = np.random.default_rng(seed)
        chosen = rng.integers(0, max(len(self.attributes), 1), n)
        group = self._groups_from[chosen] + rng.integers(0, self._groups_of[chosen])
        start, size = self._start[group], self._size[group]
        first, last = self._first[group], self._last[group]

        anchor = rng.integers(0, size)
        positive = rng.integers(0, size - 1)
        positive += positive >= anchor  # skips the anchor itself
        negative = first + rng.integers(0, last - first - size)
        negative += np.where(negative >= start, size, 0)  # skips the anchor's whole value
        return Triplets(
            self.image_ids[start + anchor],
            self.image_ids[start + positive],
            self.image_ids[negative],
            self._group_attribute[group].astype(np.int16),
        )
