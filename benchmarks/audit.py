"""Which score finds labels that are wrong on purpose?

`AGMAN_DATA=OUT agman bench audit` writes wrong-labels.csv, which changes 5 % of the training labels to another value of
their attribute, drawn by lot. Prepare the dataset again with `--corrections wrong-labels.csv`, train on it, and run
`AGMAN_DATA=OUT AGMAN_WRONG=WRONG AGMAN_MODEL=MODEL agman bench audit`: of the training labels that look most wrong to a
score, as many as were changed, how many are changed ones?
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from agman.base import RetrievalModel
from agman.confident import doubts
from agman.pooled import PooledFeatures
from agman.tagging import UNSEEN, fit_temperature, probabilities, prototype_scores, prototypes
from benchmarks.common import timed, write_table
from data_prep.corrections import CHANGE, COLUMNS
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline.common.console import progress_bar
from pipeline.evaluation.audit import embed_all
from pipeline.evaluation.out_of_sample import FOLDS, PENALTY, fold_of, undivided
from pipeline.registry.loading import load

SHARE = 0.05
"""Share of the training labels that are changed."""
UNTRAINED = "tf_efficientnet_lite0"
"""Backbone whose pooled features are tried beside the model's embeddings."""
FILE = Path("wrong-labels.csv")
Way = Callable[[np.ndarray, np.ndarray, int, np.ndarray], Tensor]
"""Function from embeddings K×D, values K, their number V and groups K to out-of-sample probabilities K×V."""


def write_wrong_labels(dataset: Dataset) -> None:
    """Write the corrections that change labels of `dataset` by lot."""
    generator = np.random.default_rng(0)
    train = dataset.labels[dataset.labels["split"] == "train"]
    rows = train.iloc[np.sort(generator.choice(len(train), round(SHARE * len(train)), replace=False))]
    attributes = [dataset.info.attributes[number] for number in rows["attribute"]]
    sizes = np.array([len(one.values) for one in attributes])
    others = (rows["value"].to_numpy() + generator.integers(1, sizes)) % sizes
    paths = dataset.images.set_index("image_id")["path"].loc[rows["image_id"]]
    with FILE.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(COLUMNS)
        for path, one, value, other in zip(paths, attributes, rows["value"], others, strict=True):
            label = (path, one.name, one.values[value], CHANGE, one.values[other])
            writer.writerow([dataset.info.name, dataset.info.labels_digest, *label])
    print(
        f"{FILE}: {len(rows):,} of {len(train):,} training labels; prepare the dataset again with --corrections {FILE}"
    )


def neighbours(count: int) -> Way:
    """Return the vote of the nearest pictures of other groups, weighted by exp(cosine / 0.07)."""

    def way(embeddings_kd: np.ndarray, values_k: np.ndarray, n_values: int, group_k: np.ndarray) -> Tensor:
        vectors, groups = torch.from_numpy(embeddings_kd), torch.from_numpy(group_k)
        cosines = (vectors @ vectors.T).masked_fill_(groups[:, None] == groups, -1)
        near, rows = cosines.topk(count, dim=1)
        votes = torch.full((len(values_k), n_values), 1e-3, dtype=torch.float64)
        votes.scatter_add_(1, torch.from_numpy(values_k)[rows], ((near - near[:, :1]) / 0.07).exp().double())
        return votes / votes.sum(1, keepdim=True)

    return way


def cross_validated(scores: Callable[[np.ndarray, np.ndarray, int, np.ndarray], Tensor]) -> Way:
    """Return the probabilities of a classifier for the pictures of each fold, learned from the other folds."""

    def way(embeddings_kd: np.ndarray, values_k: np.ndarray, n_values: int, group_k: np.ndarray) -> Tensor:
        fold_k, found = fold_of(group_k), torch.full((len(values_k), n_values), UNSEEN, dtype=torch.float64)
        for fold in range(FOLDS):
            own = fold_k == fold
            found[own] = scores(embeddings_kd[~own], values_k[~own], n_values, embeddings_kd[own])
        truth = torch.nn.functional.one_hot(torch.from_numpy(values_k), n_values).bool()
        return probabilities(found, fit_temperature(found, truth))

    return way


def by_prototypes(embeddings_kd: np.ndarray, values_k: np.ndarray, n_values: int, asked_qd: np.ndarray) -> Tensor:
    """Return the cosines of the asked embeddings with the values' prototypes, Q×V."""
    found = prototypes(torch.from_numpy(embeddings_kd), torch.from_numpy(values_k), n_values)
    return prototype_scores(torch.from_numpy(asked_qd), found)


def linear(penalty: float) -> Callable[[np.ndarray, np.ndarray, int, np.ndarray], Tensor]:
    """Return the log probabilities of a logistic regression with this inverse strength of its penalty."""

    def scores(embeddings_kd: np.ndarray, values_k: np.ndarray, n_values: int, asked_qd: np.ndarray) -> Tensor:
        classifier = LogisticRegression(C=penalty, max_iter=1_000).fit(embeddings_kd, values_k)
        found = torch.full((len(asked_qd), n_values), UNSEEN, dtype=torch.float64)
        found[:, classifier.classes_] = torch.from_numpy(classifier.predict_log_proba(asked_qd)).double()
        return found

    return scores


DEFAULT = f"logistic regression, C = {PENALTY:g}"
"""Way of `agman audit`."""
WAYS: dict[str, Way] = {
    "10 neighbours": neighbours(10),
    "20 neighbours": neighbours(20),
    "50 neighbours": neighbours(50),
    "prototypes": cross_validated(by_prototypes),
    DEFAULT: cross_validated(linear(PENALTY)),
    "logistic regression, C = 10": cross_validated(linear(10)),
}


def rank(probabilities_kv: Tensor, values_k: np.ndarray) -> dict[str, np.ndarray]:
    """Return every score of the labels, K: the lowest is the worst."""
    truth = torch.from_numpy(values_k)
    own = probabilities_kv.gather(1, truth[:, None])[:, 0]
    other = probabilities_kv.scatter(1, truth[:, None], -1.0).amax(1)
    found = {"probability": own, "margin": own - other, "ratio": -doubts(probabilities_kv, truth)}
    return {name: score.numpy() for name, score in found.items()}


def first_hits(score: np.ndarray, changed: np.ndarray) -> float:
    """Return the share of changed labels among the SHARE of labels with the lowest scores."""
    return float(changed[np.argsort(score, kind="stable")[: round(SHARE * len(score))]].mean())


def sources(model: str, attributes: list[str]) -> list[tuple[str, RetrievalModel, dict[str, Any], list[str]]]:
    """Return what embeds the pictures: its name, the network, its description, and the ways that are tried on it."""
    network, description = load(model, attributes)
    pooled = PooledFeatures(len(attributes), UNTRAINED, "auto").eval()
    return [
        ("", network, description, list(WAYS)),
        (f"{UNTRAINED} without training, ", pooled, description, [DEFAULT, "50 neighbours"]),
    ]


Found = dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]]
"""Way and score -> for each attribute the scores of the training labels, and which of them were changed."""


def measure(right: Dataset, wrong: Dataset, model: str) -> None:
    """Write the table of all ways."""
    given = set(right.labels[["image_id", "attribute", "value"]].itertuples(index=False, name=None))
    found, seconds = Found(), dict[str, float]()
    for source, network, description, tried in sources(model, wrong.info.attribute_names):
        embedded = embed_all(network, description, wrong, os.cpu_count() or 1, progress_bar)
        advance = progress_bar("ways tried", len(tried) * len(embedded))
        for one in embedded:
            pairs = zip(one.image_k.tolist(), one.value_k.tolist(), strict=True)
            changed = np.array([(image_id, one.number, value) not in given for image_id, value in pairs])
            train, group_k = one.split_k == "train", undivided(wrong, one.image_k)
            for way in tried:
                job = partial(WAYS[way], one.embeddings_kd.numpy(), one.value_k, len(one.attribute.values), group_k)
                took, probabilities_kv = timed(job)
                seconds[source + way] = seconds.get(source + way, 0.0) + took
                for by, score in rank(probabilities_kv, one.value_k).items():
                    found.setdefault((source + way, by), []).append((score[train], changed[train]))
                advance(1)
    changes = np.concatenate([part for _, part in next(iter(found.values()))])
    notes = (
        f"{wrong.info.name}: {changes.sum():,} of {len(changes):,} training labels were changed to another value of "
        f"their attribute; {model} was trained on them. In per cent: changed labels among the {SHARE:.0%} of the "
        "training labels (of all attributes, and of each) that look most wrong. All are out of sample: folds, and "
        "neighbours, do not divide groups. Margin and ratio: of the label's probability and the largest other one. "
        "“Without training”: the pooled features of the backbone with ImageNet's weights. Seconds beside other work."
    )
    header = ["way", "score", "all", *wrong.info.attribute_names, "s"]
    write_table("audit", header, rows_of(found, seconds), notes)


def rows_of(found: Found, seconds: dict[str, float]) -> list[list[str]]:
    """Return a row for each way and score, the best first."""
    rows = []
    for (name, by), parts in found.items():
        scores, changes = (np.concatenate(column) for column in zip(*parts, strict=True))
        figures = [first_hits(scores, changes), *(first_hits(*part) for part in parts)]
        rows.append([name, by, *(f"{100 * figure:.1f}" for figure in figures), f"{seconds[name]:.0f}"])
    return sorted(rows, key=lambda row: -float(row[2]))


def main() -> None:
    """Write the wrong labels, or measure how they are found."""
    if not (data := os.environ.get("AGMAN_DATA")):
        raise InputError("AGMAN_DATA is not set: a prepared dataset")
    if not (model := os.environ.get("AGMAN_MODEL")) or not (wrong := os.environ.get("AGMAN_WRONG")):
        return write_wrong_labels(Dataset(data))
    return measure(Dataset(data), Dataset(wrong), model)


if __name__ == "__main__":
    main()
