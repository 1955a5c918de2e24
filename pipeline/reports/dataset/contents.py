"""Contents of a prepared dataset, counted from its tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from data_prep.annotation import CHOSEN, REASONS
from data_prep.corrections import CHANGE, DROP, KEEP
from data_prep.dataset import Dataset
from data_prep.tables import SPLITS, DatasetInfo
from data_prep.triplets import TripletSampler
from data_prep.words import counted

EXAMPLES = 5
"""Number of rejects shown for each reason."""
PerSplit = dict[str, np.ndarray]
"""Split -> counts of the values (or attributes), int64."""


@dataclass(frozen=True)
class ValueCounts:
    """Number of images with each value of one attribute."""

    attribute: str
    values: tuple[str, ...]
    images: PerSplit
    anchors: PerSplit
    """Number of images that can be anchors; 0 for a value that fewer than two or all images of the attribute have."""

    def seen(self, split: str) -> int:
        """Return the number of values with an image in `split`."""
        return int((self.images[split] > 0).sum())

    def too_rare(self, split: str) -> int:
        """Return the number of values with an image in `split`, but none that can be an anchor."""
        return int(((self.images[split] > 0) & (self.anchors[split] == 0)).sum())

    def half(self, split: str) -> int:
        """Return how many of the most frequent values have together half of the labels of `split`."""
        falling = np.sort(self.images[split])[::-1]
        return int(np.searchsorted(falling.cumsum(), falling.sum() / 2)) + 1


@dataclass(frozen=True)
class Example:
    """One rejected annotation row."""

    source: str
    line: int
    detail: str


@dataclass(frozen=True)
class Rejected:
    """All rows that were rejected for one reason."""

    reason: str
    count: int
    meaning: str
    harmless: bool
    """Whether the row is intact, but not part of the published split."""
    examples: list[Example]


@dataclass(frozen=True)
class Contents:
    """Counts of one dataset."""

    info: DatasetInfo
    labels: dict[str, int]
    """Split -> number of labels."""
    values: list[ValueCounts]
    """Counts of the attributes that have labels."""
    triplets: PerSplit
    """Split -> number of triplets of each attribute in the first epoch; only splits with triplets."""
    rejected: list[Rejected]
    near_duplicates: str | None
    """Number of pairs of near-duplicates, and of those across splits, in words; None if they were not looked for."""

    @cached_property
    def rejects(self) -> int:
        """Number of all rejects."""
        return sum(self.info.rejects.values())

    @property
    def lost(self) -> list[str]:
        """Damaged labels, queries and candidates of each split, such as `valid: 4 of 60 queries lost`."""
        left = {"labels": self.labels, "queries": self.info.queries, "candidates": self.info.candidates}
        left["triplets"] = self.given
        return [
            f"{split}: {lost:,} of {left[what][split] + lost:,} {what} lost"
            for split, of_split in self.info.lost.items()
            for what, lost in of_split.items()
        ]

    @property
    def corrections(self) -> str:
        """Number of applied corrections of labels of each action, in words; empty for none."""
        words = {KEEP: "kept", CHANGE: "changed", DROP: "dropped"}
        return ", ".join(f"{count:,} {words[action]}" for action, count in self.info.corrections.items())

    @property
    def given(self) -> dict[str, int]:
        """Split -> number of triplets that the dataset brings."""
        return {split: int(self.triplets[split].sum()) if split in self.triplets else 0 for split in SPLITS}

    @property
    def accounting(self) -> str:
        """Equation between the rows that were read and what became of them."""
        labels, given = sum(self.labels.values()), self.info.given_triplets
        parts = [counted(labels, "label")] * (labels > 0 or not given)
        parts += [counted(given, "triplet")] * (given > 0)
        parts += [f"{counted(self.info.repeats, 'repeat')} of those labels"] * (self.info.repeats > 0)
        parts.append(counted(self.rejects, "reject"))
        return f"{counted(self.info.rows_in, 'annotation row')} = {' + '.join(parts)}"


def contents(dataset: Dataset) -> Contents:
    """Count the contents of `dataset`; reads its tables, not its images."""
    of_split = dataset.labels["split"]
    labels = {split: dataset.labels[of_split == split] for split in SPLITS}
    labels = {split: rows for split, rows in labels.items() if len(rows)}
    images = {split: _counted(rows, dataset.info) for split, rows in labels.items()}
    anchors = {split: _without_rare(images[split], rows) for split, rows in labels.items()}
    return Contents(
        info=dataset.info,
        labels={split: len(labels.get(split, ())) for split in SPLITS},
        values=[
            ValueCounts(
                attribute.name,
                attribute.values,
                {split: images[split][number] for split in labels},
                {split: anchors[split][number] for split in labels},
            )
            for number, attribute in enumerate(dataset.info.attributes)
            if any(images[split][number].any() for split in labels)
        ],
        triplets={
            split: np.bincount(dataset.triplets(split).attribute, minlength=len(dataset.info.attributes))
            for split in SPLITS
            if dataset.info.images[split]
        },
        rejected=_rejected(dataset),
        near_duplicates=_near_duplicates(dataset),
    )


def _near_duplicates(dataset: Dataset) -> str | None:
    pairs = dataset.near_duplicates
    if pairs is None:
        return None
    used = pairs[(pairs["split"] != "") & (pairs["other_split"] != "")]
    across = int((used["split"] != used["other_split"]).sum())
    unlike = sum(map(bool, label_differences(dataset, pairs)))
    parts = [counted(len(pairs), "pair"), f"{across:,} across splits"]
    parts += [f"{unlike:,} with different labels"] * (unlike > 0)
    parts += [f"{len(pairs) - len(used):,} with a picture that is left out"] * (len(used) < len(pairs))
    harm = "; they make scores of test and valid too good"
    advice = ": --near-duplicates drop leaves one of each out" if _can_be_dropped(dataset.info) else ""
    return ", ".join(parts) + (harm + advice) * (across > 0)


def _can_be_dropped(info: DatasetInfo) -> bool:
    """Return whether another preparation can leave near-duplicates out: a published split stays as it is."""
    return info.layout == "table" or info.split_origin.startswith("made")


def label_differences(dataset: Dataset, pairs: pd.DataFrame) -> list[str]:
    """Return for each pair of pictures the attributes under which their labels differ, with both; empty for none."""
    path_of = dataset.images.set_index("image_id")["path"]
    path_of = path_of[path_of.isin([*pairs["path"], *pairs["other_path"]])]
    labels = dataset.labels[dataset.labels["image_id"].isin(path_of.index)]
    found: dict[str, dict[int, set[str]]] = {}
    for image_id, number, value in labels[["image_id", "attribute", "value"]].to_numpy().tolist():
        name = dataset.info.attributes[number].values[value]
        found.setdefault(path_of[image_id], {}).setdefault(number, set()).add(name)
    differences = []
    for path, other in zip(pairs["path"], pairs["other_path"], strict=True):
        one, two = found.get(path, {}), found.get(other, {})
        words = [
            f"{dataset.info.attributes[number].name}: {_listed(one[number])} / {_listed(two[number])}"
            for number in sorted(one.keys() & two.keys())
            if one[number] != two[number]
        ]
        differences.append("; ".join(words))
    return differences


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _counted(labels: pd.DataFrame, info: DatasetInfo) -> list[np.ndarray]:
    """Return the number of images of each value, for every attribute."""
    attribute, value = labels["attribute"].to_numpy(), labels["value"].to_numpy()
    return [
        np.bincount(value[attribute == number], minlength=len(described.values))
        for number, described in enumerate(info.attributes)
    ]


def _without_rare(images: list[np.ndarray], labels: pd.DataFrame) -> list[np.ndarray]:
    """Return the counts with 0 for the values of which the triplet sampler draws no anchors."""
    anchors = [counts.copy() for counts in images]
    for attribute, value, _ in TripletSampler(labels).skipped:
        anchors[attribute][value] = 0
    return anchors


def _rejected(dataset: Dataset) -> list[Rejected]:
    if not dataset.info.rejects:
        return []
    shown = dataset.rejects.groupby("reason", sort=False).head(EXAMPLES)
    examples: dict[str, list[Example]] = {reason: [] for reason in dataset.info.rejects}
    for reason, *example in shown[["reason", "source", "line", "detail"]].to_numpy().tolist():
        examples[reason].append(Example(*example))
    return [
        Rejected(reason, count, REASONS[reason], reason in CHOSEN, examples[reason])
        for reason, count in dataset.info.rejects.items()
    ]
