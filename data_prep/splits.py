"""Made splits: reproducible, every value spread evenly, groups undivided."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from data_prep.blocks import bincount, blocks_of, slices, take
from data_prep.errors import InputError
from data_prep.tables import SPLITS
from data_prep.words import counted

ROLES = ("query", "candidate")


@dataclass(frozen=True)
class SplitFractions:
    """Fractions of the images in a made split; the defaults are the protocol's, 8 : 1 : 1 and 1 : 4."""

    valid: float = 0.1
    """Fraction of all images."""
    test: float = 0.1
    """Fraction of all images."""
    query: float = 0.2
    """Fraction of the images of valid and of test; the others are candidates."""


def make_split(
    image: np.ndarray, label: np.ndarray, fractions: SplitFractions, seed: int, group: np.ndarray | None = None
) -> np.ndarray:
    """Return the index in SPLITS of every image.

    `image` and `label` are the L labels: the number of the image (0 to N-1), and that of its attribute and value, from
    0. `group`, N non-negative integers, are never divided. Raises InputError if a split would be
    empty.
    """
    rng = np.random.default_rng(seed)
    if group is None:
        return _in_turn(_order(image, label, rng), fractions)
    sizes = np.bincount(group)
    split = _by_group(image, label, np.unique(group, return_inverse=True)[1], fractions, rng)
    counts = np.bincount(split, minlength=len(SPLITS))
    wanted = (1.0, fractions.valid, fractions.test)
    empty = [name for name, count, fraction in zip(SPLITS, counts, wanted, strict=True) if fraction and not count]
    if empty:
        raise InputError(
            f"no split without dividing groups: none would be in {empty[0]} "
            f"({counted(int(np.count_nonzero(sizes)), 'group')}, the largest with {sizes.max():,} of "
            f"{counted(len(split), 'image')}); give --group another column or none, or let "
            "near-duplicates be divided with --near-duplicates keep"
        )
    return split


def make_roles(image: np.ndarray, label: np.ndarray, fractions: SplitFractions, seed: int | list[int]) -> np.ndarray:
    """Return for every image of one split whether it is a query; arguments as for `make_split`."""
    order = _order(image, label, np.random.default_rng(seed))
    query = np.zeros(len(order), bool)
    query[order] = _evenly(len(order), fractions.query)
    return query


def assign_splits(
    rows: pd.DataFrame, seed: int, fractions: SplitFractions, groups: pd.Series | None = None
) -> pd.DataFrame:
    """Return the labels of an annotation with split and role, both made. All labels of an image have the same ones.

    `groups` is the number of what is not divided between splits, by path. Raises InputError as `make_split` does.
    """
    image, paths = pd.factorize(rows["path"])
    group = None if groups is None else groups.loc[paths].to_numpy()
    split = make_split(image, _labels(rows), fractions, seed, group)
    return assign_roles(rows.assign(split=np.array(SPLITS, object)[split[image]]), seed, fractions)


def assign_roles(rows: pd.DataFrame, seed: int, fractions: SplitFractions) -> pd.DataFrame:
    """Return labels that have a split with the roles of validation and test; all labels of an image have the same."""
    role = np.full(len(rows), "", object)
    for number, split in enumerate(SPLITS[1:], start=1):
        own = np.flatnonzero(rows["split"] == split)
        of_split = rows.iloc[own]
        image = pd.factorize(of_split["path"])[0]
        query = make_roles(image, _labels(of_split), fractions, [seed, number])
        role[own] = np.where(query[image], *ROLES) if len(own) else ""
    return rows.assign(role=role).astype({"split": "str", "role": "str"})


def _labels(rows: pd.DataFrame) -> np.ndarray:
    return rows.groupby(["attribute", "value"]).ngroup().to_numpy(np.int64)


def _order(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the images, ordered by their rarest label and shuffled within equal ones.

    Consecutive images are alike, so that every value is spread evenly by taking every n-th image.
    """
    counts = bincount(label, int(label.max(initial=-1)) + 1)
    by_rarity = np.argsort(counts, kind="stable")
    rank = np.empty(len(counts), np.int32)
    rank[by_rarity] = np.arange(len(counts))
    rarest = np.full(int(image.max(initial=-1)) + 1, len(counts), np.int32)
    for part in slices(len(image)):
        np.minimum.at(rarest, image[part], rank[label[part]])
    order = rng.permutation(len(rarest))
    return order[np.argsort(rarest[order], kind="stable")]


def _evenly(n: int, fraction: float) -> np.ndarray:
    """Return a mask of n items that marks this fraction of them, evenly spaced."""
    return np.diff(np.floor(np.arange(n + 1) * fraction + 0.5 + 1e-9)) > 0


def _in_turn(order: np.ndarray, fractions: SplitFractions) -> np.ndarray:
    turn = np.zeros(len(order), np.int64)
    turn[_evenly(len(order), fractions.test)] = SPLITS.index("test")
    rest = np.flatnonzero(turn == 0)
    turn[rest[_evenly(len(rest), fractions.valid / (1 - fractions.test))]] = SPLITS.index("valid")
    split = np.empty(len(order), np.int64)
    split[order] = turn
    return split


def _by_group(
    image: np.ndarray, label: np.ndarray, group: np.ndarray, fractions: SplitFractions, rng: np.random.Generator
) -> np.ndarray:
    """Assign the largest group first, each to the split that lacks most of its labels (Sechidis et al. 2011)."""
    totals = bincount(label, int(label.max()) + 1)
    starts, labels, counts = _labels_by_group(take(group.astype(np.int32), image), label, len(totals))
    parts = (1 - fractions.valid - fractions.test, fractions.valid, fractions.test)
    lacking = np.repeat(np.array(parts)[:, None], len(totals), axis=1)
    sizes = np.bincount(group)
    shuffled = rng.permutation(len(sizes))
    chosen = np.zeros(len(sizes), np.int64)
    for one in shuffled[np.argsort(-sizes[shuffled], kind="stable")].tolist():
        distinct = slice(starts[one], starts[one + 1])
        own = labels[distinct]
        weight = counts[distinct] / totals[own]  # a rare label counts as much as a frequent one
        best = int(np.argmax(lacking[:, own] @ weight))
        chosen[one] = best
        lacking[best, own] -= weight
    return chosen[group]


def _labels_by_group(group: np.ndarray, label: np.ndarray, n_labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where each group's distinct labels start (G+1), and K distinct labels with their counts.

    Those of group g are at `starts[g]` to `starts[g + 1]`. `group` and `label` are those of the L labels.
    """
    n_distinct, labels, counts = np.zeros(int(group.max()) + 2, np.int64), [], []
    for own in blocks_of(group):
        keys, times = np.unique(group[own] * np.int64(n_labels) + label[own], return_counts=True)
        owner, of_group = np.divmod(keys, n_labels)
        n_distinct += np.bincount(owner + 1, minlength=len(n_distinct))
        labels.append(of_group.astype(np.min_scalar_type(n_labels)))
        counts.append(times.astype(np.min_scalar_type(times.max(initial=0))))
    return np.cumsum(n_distinct), np.concatenate(labels), np.concatenate(counts)
