"""Probabilities of values from classifiers that have not seen the pictures: logistic regressions, cross-validated.

Shape suffixes: K labels of one attribute, V values, D embedding width.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from data_prep.dataset import Dataset
from data_prep.near_duplicates import clusters
from data_prep.progress import Advance

FOLDS = 5
PENALTY = 1.0
"""C of the logistic regression: the inverse strength of its penalty."""
LEARNED = 20_000
"""Most labels that a fold's classifier learns from."""


def out_of_sample(
    embeddings_kd: np.ndarray,
    values_k: np.ndarray,
    n_values: int,
    group_k: np.ndarray,
    advance: Advance = lambda labels: None,
) -> tuple[Tensor, Tensor]:
    """Return the probabilities of every label's values, K×V float64, from a classifier that has not seen its group.

    They come from logistic regressions on the embeddings, cross-validated with FOLDS folds. Also returns which labels
    are judged, K bool: a label is not if the classifier has not seen its value. `advance` is called with the number of
    labels of each fold.
    """
    fold_k = fold_of(group_k)
    probabilities_kv, judged_k = np.zeros((len(values_k), n_values)), np.zeros(len(values_k), bool)
    for fold in range(FOLDS):
        own = np.flatnonzero(fold_k == fold)
        others = np.random.default_rng(fold).permutation(np.flatnonzero(fold_k != fold))[:LEARNED]
        advance(len(own))
        if not len(own) or len(np.unique(values_k[others])) < 2:
            continue
        classifier = LogisticRegression(C=PENALTY, max_iter=1_000).fit(embeddings_kd[others], values_k[others])
        probabilities_kv[np.ix_(own, classifier.classes_)] = classifier.predict_proba(embeddings_kd[own])
        judged_k[own] = np.isin(values_k[own], classifier.classes_)
    return torch.from_numpy(probabilities_kv), torch.from_numpy(judged_k)


def fold_of(group_k: np.ndarray) -> np.ndarray:
    """Return the fold of every label, K, which its group shares: numbers of groups from 0."""
    return np.random.default_rng(0).permutation(int(group_k.max()) + 1)[group_k] % FOLDS


def undivided(dataset: Dataset, image_k: np.ndarray) -> np.ndarray:
    """Return the number of what is not divided between folds, K: pictures of one group, and near-duplicates."""
    images = dataset.images.drop_duplicates("image_id").set_index("image_id").loc[np.unique(image_k)]
    alone = np.array([f"picture {image_id}" for image_id in images.index], object)
    number = pd.factorize(np.where(images["group"].isna(), alone, images["group"]))[0]
    if (pairs := dataset.near_duplicates) is not None:
        of_path = pd.Series(number, images["path"])
        known = pairs[pairs["path"].isin(of_path.index) & pairs["other_path"].isin(of_path.index)]
        edges = np.stack([of_path.loc[known[name]].to_numpy() for name in ("path", "other_path")], axis=1)
        number = clusters(len(number), edges)[number]
    return number[np.searchsorted(images.index, image_k)]
