"""A map of the embeddings of every attribute in two dimensions: whether pictures of one value lie together.

t-SNE (van der Maaten & Hinton 2008) after PCA keeps neighbours together; distances between far groups, their sizes
and the axes mean nothing. The metric is computed from the embeddings themselves, never from this.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from data_prep.dataset import Dataset
from pipeline.evaluation.evaluate import Evaluation
from pipeline.reports import charts as figures
from pipeline.reports.model.pairs import of_attributes

POINTS = 300
"""At most, evenly spaced among an attribute's queries and candidates."""
FEW = 20
"""Fewer points are shown by PCA alone: there are no neighbourhoods to keep."""
DIMENSIONS = 50
"""That PCA leaves for t-SNE."""
PERPLEXITY = 30.0
SEED = 0
OTHERS = "other values"


def embedding_maps(evaluation: Evaluation, dataset: Dataset) -> list[figures.Chart]:
    """A scatter for every attribute with queries, in the dataset's order."""
    values = evaluation.pairs["value"].to_numpy(np.int64)
    charts = []
    for attribute, queries, candidates in of_attributes(evaluation, dataset):
        rows = np.sort(np.concatenate([queries, candidates]))
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), POINTS)).round().astype(int)]
        names = [attribute.values[value] for value in values[rows]]
        places = flattened(evaluation.embeddings[rows].numpy())
        charts.append(figures.scatter(attribute.name.replace("_", " "), places, grouped(names)))
    return charts


def flattened(embeddings_kd: np.ndarray) -> np.ndarray:
    """K×2. The same embeddings always give the same places."""
    k, d = embeddings_kd.shape
    if k < 3:
        return np.zeros((k, 2))
    with np.errstate(invalid="ignore", divide="ignore"):  # all points may be one
        reduced = PCA(2 if k < FEW else min(DIMENSIONS, k, d), random_state=SEED).fit_transform(embeddings_kd)
    if k < FEW:
        return reduced
    return TSNE(perplexity=min(PERPLEXITY, (k - 1) / 3), init="pca", random_state=SEED).fit_transform(reduced)


def grouped(names: list[str]) -> list[str]:
    """The names of the commonest values; OTHERS for what a legend has no room for."""
    commonest = [name for name, _ in Counter(names).most_common()]
    if len(commonest) <= len(figures.MARKERS):
        return names
    kept = set(commonest[: len(figures.MARKERS) - 1])
    return [name if name in kept else OTHERS for name in names]
