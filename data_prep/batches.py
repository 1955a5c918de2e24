"""The plan of an epoch: batches, each worker's micro-batches and every image's flip, computed without reading images.

Only the last cut depends on the number of workers: the global batches of an epoch and their micro-batches are the same
on 1 or 100 workers, and each worker computes some of the micro-batches of every batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from data_prep.errors import InputError
from data_prep.triplets import Triplets


def cut(total: int, pieces: int) -> np.ndarray:
    """Return the bounds of `pieces` consecutive slices of `total` things, equal up to one: shape pieces+1."""
    return np.linspace(0, total, pieces + 1).round().astype(np.int64)


def batches_per_epoch(size: int, batch_size: int, micro_batches: int = 1, unit: str = "triplets") -> int:
    """Return the number of batches that an epoch of `size` triplets, or other units, is divided into.

    Batches are equal up to one unit and hold at most `batch_size`: no small last batch, none dropped.
    Raises InputError if a micro-batch would get none.
    """
    count = -(-size // batch_size)
    if size // count < micro_batches:
        raise InputError(
            f"batches of {size // count} {unit} cannot be cut into {micro_batches} micro-batches; raise "
            "batch_size, or lower micro_batches or --workers"
        )
    return count


def rows_of_worker(triplets: int, batch_size: int, *, rank: int, workers: int, micro_batches: int) -> np.ndarray:
    """Return which of an epoch's triplets worker `rank` computes, ascending."""
    bounds = cut(triplets, batches_per_epoch(triplets, batch_size, micro_batches))
    first, last = cut(micro_batches, workers)[rank : rank + 2].tolist()
    begin, size = bounds[:-1], np.diff(bounds)
    cuts = {int(one): cut(int(one), micro_batches)[[first, last]] for one in np.unique(size)}
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
    micro_batches: int | None = None,
    start: int = 0,
) -> Iterator[dict[str, Any]]:
    """Yield worker `rank`'s micro-batches of every global batch of `epoch`, from batch number `start`.

    Every triplet is used once. A batch is cut into `micro_batches` (by default one for each worker), equal up to one
    triplet. Each item has the fields of a batch except its images (B triplets over U distinct images):

        image_ids             U int64, numpy: each image to be decoded once
        index                 3×B int64: anchors, positives and negatives as rows of `image_ids`
        flip                  3×B bool: whether this occurrence of the image is mirrored
        attributes            B int64
        global_size           triplets in the global batch
        bounds                bounds of this worker's micro-batches among its triplets
        global_micro_batches  micro-batches of the global batch
        seeds                 seed of each of this worker's micro-batches, for random numbers inside the model
    """
    micro_batches = micro_batches or workers
    ids = np.stack([triplets.anchor, triplets.positive, triplets.negative])
    bounds = cut(len(triplets), batches_per_epoch(len(triplets), batch_size, micro_batches))
    first, last = cut(micro_batches, workers)[rank : rank + 2].tolist()
    for number, (begin, end) in enumerate(itertools.pairwise(bounds.tolist())):
        if number < start:
            continue
        # Drawn for the complete global batch and then cut, so that it is the same on any number of workers.
        flip = np.random.default_rng([seed, epoch, number]).random((3, end - begin)) < 0.5
        own = cut(end - begin, micro_batches)[first : last + 1]
        mine = slice(*own[[0, -1]].tolist())
        image_ids, index = np.unique(ids[:, begin:end][:, mine], return_inverse=True)
        yield {
            "image_ids": image_ids,
            "index": torch.from_numpy(index.reshape(3, -1)),
            "flip": torch.from_numpy(flip[:, mine]),
            "attributes": torch.from_numpy(triplets.attribute[begin:end][mine].astype(np.int64)),
            "global_size": end - begin,
            "bounds": tuple((own - own[0]).tolist()),
            "global_micro_batches": micro_batches,
            "seeds": tuple(seed_of(seed, epoch, number, one) for one in range(first, last)),
        }


def seed_of(*numbers: int) -> int:
    """Return a seed made of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
