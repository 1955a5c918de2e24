"""Batches of labelled images, in which the values of one attribute are drawn evenly.

Every batch has an attribute in turn: P of its values are drawn, then K images of each. Without K, an epoch is every
image once, in random order. All images of the batch are used under every attribute they have a label for. Batches
follow from seed, epoch and number, so they are the same on any number of workers, and a stopped training continues at
any batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data_prep.batches import batches_per_epoch, cut, seed_of

if TYPE_CHECKING:
    import pandas as pd

LEAST_VALUES = 2
"""Values of one attribute in a batch: with fewer, nothing is to be told apart."""


def undrawable(labels: pd.DataFrame) -> list[int]:
    """Return the attributes of which fewer than two values have two images or more, from a table of labels."""
    attribute, value = (labels[name].to_numpy() for name in ("attribute", "value"))
    images = {one: np.bincount(value[attribute == one]) for one in np.unique(attribute).tolist()}
    return [one for one, counts in images.items() if (counts >= 2).sum() < LEAST_VALUES]


class BalancedSampler:
    """A sampler of batches from a table of labels: columns image_id, attribute, value.

    An image may have several values of an attribute. A value with a single image is never drawn for itself; its image
    can be in a batch for another of its labels, or to fill it. No attribute must be `undrawable`.
    """

    def __init__(self, labels: pd.DataFrame):
        # Hundreds of millions of labels: in their own small types, and one attribute after the other.
        columns = [labels[name].to_numpy() for name in ("image_id", "attribute", "value")]
        if not _ordered(*columns):
            order = np.lexsort(columns[::-1])
            columns = [one[order] for one in columns]
        image, self._attribute, self._value = columns
        first = np.flatnonzero(np.diff(image, prepend=image[:1] - 1))
        self.image_ids = image[first].astype(np.int64)
        """Ids of the images, ascending."""
        self._rows_from = np.append(first, len(image))
        """Start of each image's rows among the labels."""
        row = np.repeat(np.arange(len(first), dtype=np.int32), np.diff(self._rows_from))
        self._members: dict[int, list[np.ndarray]] = {}
        """Attribute -> for each of its values that can be drawn, its images as rows of `image_ids`."""
        for attribute in np.unique(self._attribute).tolist():
            own = self._attribute == attribute
            values, images = self._value[own], row[own]
            by_value = np.argsort(values, kind="stable")
            start = np.flatnonzero(np.diff(values[by_value]))
            groups = np.split(images[by_value], start + 1)
            self._members[attribute] = [one for one in groups if len(one) >= 2]

    def plan_epoch(
        self,
        *,
        batch_size: int,
        images_per_value: int | None,
        seed: int,
        epoch: int,
        rank: int = 0,
        workers: int = 1,
        micro_batches: int | None = None,
        start: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Yield worker `rank`'s part of every global batch of `epoch`, from batch number `start`.

        An epoch has as many images as the table, in batches that are equal up to one image. A batch is cut into
        `micro_batches` (by default one for each worker), equal up to one image. Each item has the fields of a
        `agman.LabelBatch` except its images, and `image_ids`, U int64: this worker's images.
        """
        micro_batches = micro_batches or workers
        sizes = np.diff(
            cut(len(self.image_ids), batches_per_epoch(len(self.image_ids), batch_size, micro_batches, "images"))
        )
        in_order = np.random.default_rng([seed, epoch]).permutation(len(self.image_ids))
        bounds = np.append(0, np.cumsum(sizes))
        first, last = cut(micro_batches, workers)[rank : rank + 2].tolist()
        for number in range(start, len(sizes)):
            rng = np.random.default_rng([seed, epoch, number])
            if images_per_value is None:
                images = in_order[bounds[number] : bounds[number + 1]]
            else:
                images = self._draw(rng, int(sizes[number]), images_per_value, turn=epoch * len(sizes) + number)
            flip = rng.random(len(images)) < 0.5
            own = cut(len(images), micro_batches)[first : last + 1]
            mine = slice(*own[[0, -1]].tolist())
            yield {
                "image_ids": self.image_ids[images[mine]],
                "flip": torch.from_numpy(flip[mine]),
                "begin": mine.start,
                "global_size": len(images),
                **self._labels_of(images),
                "bounds": tuple((own - own[0]).tolist()),
                "global_micro_batches": micro_batches,
                "seeds": tuple(seed_of(seed, epoch, number, one) for one in range(first, last)),
            }

    def _draw(self, rng: np.random.Generator, size: int, images_per_value: int, turn: int) -> np.ndarray:
        """Return the images of a batch as rows of `image_ids`, in random order."""
        attributes = list(self._members)
        members = self._members[attributes[turn % len(attributes)]]
        chosen = rng.permutation(len(members))[: max(LEAST_VALUES, size // images_per_value)]
        drawn = []
        for value, quota in zip(chosen, np.diff(cut(size, len(chosen))).tolist(), strict=True):
            drawn.append(rng.choice(members[value], min(quota, len(members[value])), replace=False))
        images = np.unique(np.concatenate(drawn))  # an image with two of the values was drawn twice, perhaps
        missing = size - len(images)
        if missing:  # rare values have too few images: fill up with any others
            rank = rng.choice(len(self.image_ids) - len(images), missing, replace=False)
            # Of the images before the rank-th other one, so many are in the batch.
            before = np.searchsorted(images - np.arange(len(images)), rank, side="right")
            images = np.concatenate([images, rank + before])
        return rng.permutation(images)

    def _labels_of(self, images: np.ndarray) -> dict[str, torch.Tensor]:
        """Return image_index, attributes and values of the pairs of these images."""
        count = self._rows_from[images + 1] - self._rows_from[images]
        begin = np.cumsum(count) - count
        rows = np.repeat(self._rows_from[images] - begin, count) + np.arange(count.sum())
        image_index, attribute = np.repeat(np.arange(len(images)), count), self._attribute[rows]
        new = np.append(True, (np.diff(image_index) != 0) | (np.diff(attribute) != 0))
        pair = np.cumsum(new) - 1
        nth = np.arange(len(rows)) - np.flatnonzero(new)[pair]
        values = np.full((pair[-1] + 1, nth.max() + 1), -1)
        values[pair, nth] = self._value[rows]
        return {
            "image_index": torch.from_numpy(image_index[new]),
            "attributes": torch.from_numpy(attribute[new].astype(np.int64)),
            "values": torch.from_numpy(values),
        }


def _ordered(image: np.ndarray, attribute: np.ndarray, value: np.ndarray) -> bool:
    """Return whether labels are ordered by image, attribute and value."""
    before, after = slice(None, -1), slice(1, None)
    ahead, level = image[after] > image[before], image[after] == image[before]
    ahead |= level & (attribute[after] > attribute[before])
    level &= attribute[after] == attribute[before]
    ahead |= level & (value[after] >= value[before])
    return bool(ahead.all())
