"""Given triplets: the clearest, a typical and the worst one of each attribute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.dataset import Dataset
from data_prep.triplets import Triplets
from pipeline.evaluation.evaluate import Evaluation
from pipeline.reports.model.pictures import Pictures

SIDE = 128
"""Side of an image in pixels."""


@dataclass(frozen=True)
class Side:
    """The positive or the negative of a triplet."""

    picture: str
    image_id: int
    similarity: float
    """Cosine to the anchor."""


@dataclass(frozen=True)
class ShownTriplet:
    """One triplet with the similarities that the model gives it."""

    title: str
    anchor: str
    image_id: int
    positive: Side
    negative: Side

    @property
    def right(self) -> bool:
        """Whether the positive is more similar to the anchor than the negative."""
        return self.positive.similarity > self.negative.similarity


@dataclass(frozen=True)
class AttributeTriplets:
    """Triplets of one attribute."""

    attribute: str
    accuracy: float
    triplets: list[ShownTriplet]


def shown_triplets(evaluation: Evaluation, dataset: Dataset) -> list[AttributeTriplets]:
    """Choose triplets for every attribute that has some, in the order of the dataset."""
    every = dataset.triplets(evaluation.split)
    numbers = {name: number for number, name in enumerate(dataset.info.attribute_names)}
    chosen = {}
    for name, scores in evaluation.triplets.items():
        of_attribute = np.flatnonzero(every.attribute == numbers[name])
        chosen[name] = _chosen((scores.similar - scores.different).numpy()), of_attribute
    rows = np.concatenate([of_attribute[list(indices.values())] for indices, of_attribute in chosen.values()])
    ids = np.concatenate([every.anchor[rows], every.positive[rows], every.negative[rows]])
    pictures = Pictures(dataset, evaluation.split, ids)
    return [
        AttributeTriplets(
            attribute=name,
            accuracy=float(evaluation.triplets[name].correct.double().mean()),
            triplets=[
                _shown(title, evaluation, name, index, every, of_attribute[index], pictures)
                for title, index in indices.items()
            ],
        )
        for name, (indices, of_attribute) in chosen.items()
    ]


def _chosen(leads: np.ndarray) -> dict[str, int]:
    """Return title -> index of the largest, the median and the smallest lead; equal ones keep their order."""
    ordered = np.argsort(-leads, kind="stable")
    titles = {len(ordered) // 2: "typical", len(ordered) - 1: "worst", 0: "clearest"}
    return {titles[index]: int(ordered[index]) for index in sorted(titles)}


def _shown(
    title: str, evaluation: Evaluation, name: str, index: int, every: Triplets, row: int, pictures: Pictures
) -> ShownTriplet:
    scores = evaluation.triplets[name]
    anchor, positive, negative = int(every.anchor[row]), int(every.positive[row]), int(every.negative[row])
    return ShownTriplet(
        title=title,
        anchor=pictures.uri(anchor, SIDE),
        image_id=anchor,
        positive=Side(pictures.uri(positive, SIDE), positive, float(scores.similar[index])),
        negative=Side(pictures.uri(negative, SIDE), negative, float(scores.different[index])),
    )
