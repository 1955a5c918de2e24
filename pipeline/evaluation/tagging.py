"""Embeddings of a split's labelled pictures, from which values are named (agman.tagging)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import agman
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError
from data_prep.progress import Progress, silent


@dataclass(frozen=True)
class LabelledSplit:
    """Embeddings of a split's pictures, each under the attributes of which it has a label."""

    n_values: list[int]
    """Number of values of every attribute."""
    labels: pd.DataFrame
    """image_id, attribute, value: a row for each label."""
    row: np.ndarray
    """Row of every label's embedding."""
    embedded: Tensor
    """Embeddings P×D of the distinct (image, attribute) pairs."""

    @property
    def image_ids(self) -> np.ndarray:
        """Ids of the pictures."""
        return self.labels["image_id"].unique()

    def values(self, attribute: int) -> Tensor:
        """Return the value of every label of an attribute, K int64."""
        return torch.from_numpy(self.labels["value"].to_numpy(np.int64)[self._own(attribute)])

    def embeddings_of_labels(self, attribute: int) -> Tensor:
        """Return the embedding of every label's picture, K×D: of a picture with two values twice."""
        return self.embedded[self.row[self._own(attribute)]]

    def embeddings(self, attribute: int) -> Tensor:
        """Return the embedding of every picture with a label, Q×D."""
        return self.embedded[np.unique(self.row[self._own(attribute)])]

    def truth(self, attribute: int) -> Tensor:
        """Return which values every picture has, bool Q×V, in the order of `embeddings`."""
        _, picture = np.unique(self.row[self._own(attribute)], return_inverse=True)
        truth = torch.zeros(picture.max(initial=-1) + 1, self.n_values[attribute], dtype=torch.bool)
        truth[torch.from_numpy(picture), self.values(attribute)] = True
        return truth

    def _own(self, attribute: int) -> np.ndarray:
        return np.flatnonzero(self.labels["attribute"].to_numpy() == attribute)


def embed_labels(
    model: agman.RetrievalModel,
    config: dict[str, Any],
    dataset: Dataset,
    split: str,
    *,
    precision: str = "fp32",
    threads: int = os.cpu_count() or 1,
    progress: Progress = silent,
) -> LabelledSplit:
    """Embed the pictures of a split under every attribute of which they have a label.

    Raises InputError if the split has no labels. Arguments as for `pipeline.evaluation.evaluate.evaluate`.
    """
    labels = dataset.labels[dataset.labels["split"] == split].drop(columns="split").reset_index(drop=True)
    if labels.empty:
        raise InputError(f"{dataset.path}: no labels in split {split!r}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    model = model.to(device).eval()
    pairs = labels[["image_id", "attribute"]].drop_duplicates(ignore_index=True)
    row = labels.merge(pairs.reset_index(), on=["image_id", "attribute"], how="left")["index"].to_numpy()
    images = ImageStore(
        dataset,
        split,
        config["image_size"],
        threads=threads,
        fit=config.get("fit", "crop"),
        interpolation=model.pixels.interpolation,
    )
    advance = progress("images embedded", pairs["image_id"].nunique())
    ids, attributes = (pairs[name].to_numpy() for name in ("image_id", "attribute"))
    embedded = agman.embed_dataset(
        model, ids, attributes, images.read, device=device, precision=precision, advance=advance
    )
    n_values = [len(attribute.values) for attribute in dataset.info.attributes]
    return LabelledSplit(n_values, labels, row, embedded.cpu())
