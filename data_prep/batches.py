"""Which triplets make which batch, on which worker, flipped how: decided from numbers alone.

Nothing here depends on the number of workers but the cut at the end: the global batches of an epoch and the parts
that each is computed in are the same on 1 or 100 workers, and each worker takes some of the parts of every batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.errors import InputError
from data_prep.triplets import Triplets


@dataclass(frozen=True)
class BatchPlan:
    """One worker's share (B triplets over U distinct images) of one global batch."""

    image_ids: np.ndarray
    """U distinct images, each to be decoded once."""
    index: np.ndarray
    """3×B into image_ids: anchors, positives, negatives."""
    flip: np.ndarray
    """3×B: whether this occurrence of the image is mirrored."""
    attributes: np.ndarray
    """B attribute indices."""
    global_size: int
    """Triplets in the global batch."""
    bounds: tuple[int, ...]
    """Where this worker's parts begin and end among its triplets."""
    global_parts: int
    """Parts of the global batch."""
    seeds: tuple[int, ...]
    """Of each of this worker's parts, for whatever a model draws while it is trained."""


def cut(total: int, parts: int) -> np.ndarray:
    """Bounds of `parts` consecutive slices of `total` things, equal up to one: shape parts+1."""
    return np.linspace(0, total, parts + 1).round().astype(np.int64)


def batches_per_epoch(triplets: int, batch_size: int, parts: int = 1) -> int:
    """Batches that an epoch is dealt into. Raises InputError where a part would get no triplet.

    Batches are equal up to one triplet and hold at most `batch_size`: no small last batch, none dropped.
    """
    count = -(-triplets // batch_size)
    if triplets // count < parts:
        raise InputError(
            f"batches of {triplets // count} triplets cannot be cut into {parts} parts; raise batch_size, or lower "
            "parts or --workers"
        )
    return count


def share_of_epoch(triplets: int, batch_size: int, *, rank: int, workers: int, parts: int) -> np.ndarray:
    """Which of an epoch's triplets are worker `rank`'s, ascending."""
    bounds = cut(triplets, batches_per_epoch(triplets, batch_size, parts))
    first, last = cut(parts, workers)[rank : rank + 2].tolist()
    begin, size = bounds[:-1], np.diff(bounds)
    cuts = {int(one): cut(int(one), parts)[[first, last]] for one in np.unique(size)}
    own = np.stack([cuts[int(one)] for one in size])
    return np.concatenate([np.arange(*rows) for rows in (begin[:, None] + own).tolist()])


def plan_epoch(
    triplets: Triplets,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    workers: int = 1,
    parts: int | None = None,
    start: int = 0,
) -> Iterator[BatchPlan]:
    """Yield the share of worker `rank` in every global batch of `epoch` from number `start`.

    Every triplet is used once. A batch is computed in `parts` (default: one for each worker), equal up to one triplet.
    """
    parts = parts or workers
    ids = np.stack([triplets.anchor, triplets.positive, triplets.negative])
    bounds = cut(len(triplets), batches_per_epoch(len(triplets), batch_size, parts))
    first, last = cut(parts, workers)[rank : rank + 2].tolist()
    for number, (begin, end) in enumerate(itertools.pairwise(bounds.tolist())):
        if number < start:
            continue
        # Drawn for the whole global batch and then cut, so that it is the same on any number of workers.
        flip = np.random.default_rng([seed, epoch, number]).random((3, end - begin)) < 0.5
        of_parts = cut(end - begin, parts)[first : last + 1]
        mine = slice(*of_parts[[0, -1]].tolist())
        image_ids, index = np.unique(ids[:, begin:end][:, mine], return_inverse=True)
        yield BatchPlan(
            image_ids=image_ids,
            index=index.reshape(3, -1),
            flip=flip[:, mine],
            attributes=triplets.attribute[begin:end][mine].astype(np.int64),
            global_size=end - begin,
            bounds=tuple((of_parts - of_parts[0]).tolist()),
            global_parts=parts,
            seeds=tuple(_seed(seed, epoch, number, part) for part in range(first, last)),
        )


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
