"""Naming values from embeddings: prototypes, nearest neighbours and a linear classifier, side by side.

`AGMAN_MODEL=MODEL AGMAN_DATA=OUT agman bench tag`: a trained model and the dataset that it was trained on. All three
learn from the embeddings of the training split, are calibrated on the validation split and judged on the test split.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from agman.tagging import (
    UNSEEN,
    fit_temperature,
    neighbour_scores,
    probabilities,
    prototype_scores,
    prototypes,
    threshold_for,
)
from benchmarks.common import write_table
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline.evaluation.tagging import PRECISION, LabelledSplit, embed_labels, judge
from pipeline.registry.loading import load

COUNTS = (5, 20, 50)
"""Numbers of neighbours that are tried."""
Scores = Callable[[Tensor], Tensor]
"""Function from embeddings Q×D to scores Q×V."""


def linear(embeddings_kd: Tensor, values_k: Tensor, n_values: int) -> Scores:
    """Return the scores of a logistic regression on the embeddings."""
    classifier = LogisticRegression(C=10.0, max_iter=2_000).fit(embeddings_kd.numpy(), values_k.numpy())

    def scores(embeddings_qd: Tensor) -> Tensor:
        found = torch.full((len(embeddings_qd), n_values), UNSEEN, dtype=torch.float64)
        found[:, classifier.classes_] = torch.from_numpy(classifier.predict_log_proba(embeddings_qd.numpy())).double()
        return found

    return scores


def ways(embeddings_kd: Tensor, values_k: Tensor, n_values: int) -> dict[str, Scores]:
    """Return every way of naming an attribute's values, learned from labelled pictures."""
    found = prototypes(embeddings_kd, values_k, n_values)
    near = {f"{count} neighbours": partial(_near, embeddings_kd, values_k, n_values, count) for count in COUNTS}
    return {
        "prototypes": partial(prototype_scores, prototypes_vd=found),
        **near,
        "linear classifier": linear(embeddings_kd, values_k, n_values),
    }


def _near(embeddings_kd: Tensor, values_k: Tensor, n_values: int, count: int, embeddings_qd: Tensor) -> Tensor:
    return neighbour_scores(embeddings_qd, embeddings_kd, values_k, n_values, count)


def judged(scores: Scores, valid: LabelledSplit, test: LabelledSplit, attribute: int) -> list[float]:
    """Return accuracy, macro F1, calibration error, and precision and coverage on test at PRECISION on validation."""
    temperature = fit_temperature(scores(valid.embeddings(attribute)), valid.truth(attribute))
    confidence, guess = probabilities(scores(valid.embeddings(attribute)), temperature).max(1)
    right = valid.truth(attribute).gather(1, guess[:, None])[:, 0]
    least = threshold_for(PRECISION, confidence, right).confidence
    found = judge(probabilities(scores(test.embeddings(attribute)), temperature), test.truth(attribute), least)
    return [found.accuracy, found.macro_f1, found.calibration_error, found.precision, found.coverage]


def main() -> None:
    """Embed the labels of all splits; write the table."""
    if not (model := os.environ.get("AGMAN_MODEL")) or not (data := os.environ.get("AGMAN_DATA")):
        raise InputError("AGMAN_MODEL and AGMAN_DATA are not set: a model, and the dataset that it was trained on")
    network, description = load(model)
    dataset = Dataset(data)
    train, valid, test = (embed_labels(network, description, dataset, split) for split in ("train", "valid", "test"))
    rows: list[list[str]] = []
    all_of: dict[str, list[list[float]]] = {}
    for number, attribute in enumerate(dataset.info.attributes):
        embeddings, values = train.embeddings_of_labels(number), train.values(number)
        for name, (scores) in ways(embeddings, values, len(attribute.values)).items():
            figures = judged(scores, valid, test, number)
            all_of.setdefault(name, []).append(figures)
            often = float(test.truth(number).double().mean(0).max())
            rows.append([attribute.name, name, *(f"{100 * figure:.1f}" for figure in figures), f"{100 * often:.1f}"])
    for name, found in all_of.items():
        rows.append(["mean", name, *(f"{100 * figure:.1f}" for figure in np.mean(found, axis=0)), ""])
    header = ["attribute", "way", "accuracy", "macro F1", "calibration error", "precision", "coverage", "most frequent"]
    notes = (
        f"{dataset.info.name}: {len(train.image_ids):,} training, {len(valid.image_ids):,} validation and "
        f"{len(test.image_ids):,} test pictures; {model}. In per cent. Precision and coverage on test, with "
        f"the threshold that gives {PRECISION:.0%} on validation. “Most frequent”: accuracy of always naming that."
    )
    write_table("tag", header, rows, notes)


if __name__ == "__main__":
    main()
