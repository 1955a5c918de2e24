"""Maps of the embeddings of every attribute in two dimensions, which show whether images of one value are close.

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
from pipeline.reports import charts
from pipeline.reports.model.pairs import of_attributes

POINTS = 300
"""Maximum number of points, evenly spaced among an attribute's queries and candidates."""
FEW = 20
"""Number of points below which PCA alone is used: there are no neighbourhoods to preserve."""
DIMENSIONS = 50
"""Dimensions that PCA leaves for t-SNE."""
PERPLEXITY = 30.0
SEED = 0
OTHERS = "other values"


def embedding_maps(evaluation: Evaluation, dataset: Dataset) -> list[charts.Chart]:
    """Draw a scatter chart for every attribute with queries, in the order of the dataset."""
    values = evaluation.pairs["value"].to_numpy(np.int64)
    maps = []
    for attribute, queries, candidates in of_attributes(evaluation, dataset):
        rows = np.sort(np.concatenate([queries, candidates]))
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), POINTS)).round().astype(int)]
        names = [attribute.values[value] for value in values[rows]]
        points = flattened(evaluation.embeddings[rows].numpy())
        maps.append(charts.scatter(attribute.name.replace("_", " "), points, grouped(names)))
    return maps


def flattened(embeddings_kd: np.ndarray) -> np.ndarray:
    """Reduce embeddings K×D to points K×2; equal embeddings give equal points."""
    k, d = embeddings_kd.shape
    if k < 3:
        return np.zeros((k, 2))
    with np.errstate(invalid="ignore", divide="ignore"):  # all points may be equal
        reduced = PCA(2 if k < FEW else min(DIMENSIONS, k, d), random_state=SEED).fit_transform(embeddings_kd)
    if k < FEW:
        return reduced
    return TSNE(perplexity=min(PERPLEXITY, (k - 1) / 3), init="pca", random_state=SEED).fit_transform(reduced)


def grouped(names: list[str]) -> list[str]:
    """Return the names, with OTHERS in place of the rarer ones if there are more than MARKERS."""
    commonest = [name for name, _ in Counter(names).most_common()]
    if len(commonest) <= len(charts.MARKERS):
        return names
    kept = set(commonest[: len(charts.MARKERS) - 1])
    return [name if name in kept else OTHERS for name in names]
