"""Naming values: prototypes from a dataset's labelled pictures (`agman.tagging`), and scores of what they name."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import agman
from agman.metrics import average_precision, chance_average_precision
from agman.state import weights_digest
from agman.tagger import Namer, Tagger
from agman.tagging import calibration_error, fit_temperature, macro_f1, probabilities, prototype_scores, prototypes
from agman.tagging import thresholds as all_thresholds
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError
from data_prep.progress import Progress, silent

A_VALUE, FEWEST, LABELS = 100, 10, 10_000
"""Most training pictures of a value. With more than LABELS / A_VALUE values, LABELS are divided evenly among them, with
at least FEWEST for each (docs/tagging.md has what 20 do)."""
CALIBRATION = 1_000
"""Most validation pictures of an attribute."""
METRICS = (
    "accuracy",
    "chance",
    "macro_f1",
    "calibration_error",
    "precision",
    "coverage",
    "value_map",
    "value_chance",
)
"""Fields of NamingScores that are metrics, `tag_accuracy` and so on."""
PRECISION = 0.95
"""Precision on validation for which coverage is reported."""


@dataclass(frozen=True)
class LabelledSplit:
    """Embeddings of a split's pictures, each under the attributes of which it has a label."""

    dataset: Dataset
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
        truth = torch.zeros(
            picture.max(initial=-1) + 1, len(self.dataset.info.attributes[attribute].values), dtype=torch.bool
        )
        truth[torch.from_numpy(picture), self.values(attribute)] = True
        return truth

    def _own(self, attribute: int) -> np.ndarray:
        return np.flatnonzero(self.labels["attribute"].to_numpy() == attribute)


@dataclass(frozen=True)
class NamingScores:
    """Scores of the values that were named under one attribute; NaN where there is nothing to measure."""

    pictures: int
    accuracy: float
    """Share of the pictures whose most probable value is one of theirs."""
    chance: float
    """Accuracy of always naming the most frequent value."""
    macro_f1: float
    calibration_error: float
    precision: float
    """Share of the answers that are right, from the confidence on that gave PRECISION on validation."""
    coverage: float
    """Share of the pictures that get such an answer."""
    value_map: float
    """Mean over the values that occur of the AP of all pictures, ranked by the probability of the value."""
    value_chance: float
    """Value MAP of a random ranking."""


def judge(probabilities_qv: Tensor, truth_qv: Tensor, least: float) -> NamingScores:
    """Score named values. Raises ValueError without a picture.

    Args:
        probabilities_qv: probabilities of the values.
        truth_qv: which values the pictures have.
        least: confidence from which an answer is given.
    """
    confidence, guess = probabilities_qv.max(1)
    right = truth_qv.gather(1, guess[:, None])[:, 0]
    answered = confidence >= least
    found_vq, expected_v = value_searches(probabilities_qv, truth_qv)
    return NamingScores(
        pictures=len(guess),
        accuracy=float(right.double().mean()),
        chance=float(truth_qv.double().mean(0).max()),
        macro_f1=macro_f1(guess, truth_qv),
        calibration_error=calibration_error(confidence, right),
        precision=float(right[answered].double().mean()),
        coverage=float(answered.double().mean()),
        value_map=float(average_precision(found_vq).mean()),
        value_chance=float(expected_v.mean()),
    )


def value_searches(probabilities_qv: Tensor, truth_qv: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hits of the search for every value that occurs, V×Q in rank order, and its AP by chance, V."""
    occurring = truth_qv.any(0)
    ranks_vq = probabilities_qv[:, occurring].T.argsort(dim=1, descending=True, stable=True)
    hits_vq = truth_qv[:, occurring].T.gather(1, ranks_vq)
    return hits_vq, chance_average_precision(hits_vq.sum(1), hits_vq.shape[1])


def score_names(tagger: Tagger, dataset: Dataset, labelled: LabelledSplit) -> dict[str, NamingScores]:
    """Score the values that a tagger names, under the attributes that have labels and the dataset's own values."""
    found = {}
    for number, attribute in enumerate(dataset.info.attributes):
        namer, embeddings = tagger.namers.get(attribute.name), labelled.embeddings(number)
        if namer is None or namer.values != attribute.values or not len(embeddings):
            continue
        threshold = namer.threshold(PRECISION)
        least = threshold.confidence if threshold else math.inf
        scores = judge(namer.probabilities(embeddings), labelled.truth(number), least)
        if namer.temperature is None:
            scores = replace(scores, calibration_error=math.nan, precision=math.nan, coverage=math.nan)
        found[attribute.name] = scores
    return found


def naming_metrics(scores: Mapping[str, NamingScores]) -> dict[str, float]:
    """Return the metrics `tag_accuracy/<attribute>` and so on, and their means over the attributes."""
    metrics: dict[str, float] = {}
    for key in METRICS:
        known = {name: getattr(one, key) for name, one in scores.items() if not math.isnan(getattr(one, key))}
        metrics |= {f"tag_{key}/{name}": value for name, value in known.items()}
        if known:
            metrics[f"tag_{key}"] = fmean(known.values())
    return metrics


def make_tagger(
    model: agman.RetrievalModel, config: dict[str, Any], dataset: Dataset, **options: Any
) -> tuple[Tagger, dict[str, NamingScores]]:
    """Make the prototypes of a model from the training split, calibrate them on the validation split, and score them.

    The validation scores are optimistic, because temperature and thresholds are from there; there are none without a
    validation split. Of many labels only some are used, the same ones every time. Raises InputError if the training
    split has no labels, or the embeddings are not finite.

    Args:
        model: model, as `pipeline.registry.loading.load` returns it.
        config: its description.
        dataset: dataset with the attributes of the model.
        options: as for `embed_labels`.
    """
    n_values = sum(len(attribute.values) for attribute in dataset.info.attributes)
    a_value = min(A_VALUE, max(FEWEST, LABELS // n_values))
    train = embed_labels(model, config, dataset, "train", most={"value": a_value}, **options)
    valid = None
    if (dataset.labels["split"] == "valid").any():
        valid = embed_labels(model, config, dataset, "valid", most={"attribute": CALIBRATION}, **options)
    if not all(bool(torch.isfinite(one.embedded).all()) for one in (train, valid) if one):
        raise InputError("the model gives NaN or infinity: its training diverged, or its weights are damaged")
    namers = {}
    for number, attribute in enumerate(dataset.info.attributes):
        values_k = train.values(number)
        if not len(values_k):
            continue
        counts = torch.bincount(values_k, minlength=len(attribute.values))
        prototypes_vd = prototypes(train.embeddings_of_labels(number), values_k, len(attribute.values))
        namer = Namer(attribute.values, tuple(counts.tolist()), prototypes_vd)
        if valid and len(embeddings := valid.embeddings(number)):
            namer = _calibrated(namer, embeddings, valid.truth(number))
        namers[attribute.name] = namer
    digest = weights_digest(model.config, model.state_dict())
    tagger = Tagger(namers, digest, dataset.info.name, dataset.info.digest)
    return tagger, score_names(tagger, dataset, valid) if valid else {}


def _calibrated(namer: Namer, embeddings_qd: Tensor, truth_qv: Tensor) -> Namer:
    """Fit the temperature, and find the thresholds."""
    scores_qv = prototype_scores(embeddings_qd, namer.prototypes_vd)
    temperature = fit_temperature(scores_qv, truth_qv)
    confidence, guess = probabilities(scores_qv, temperature).max(1)
    right = truth_qv.gather(1, guess[:, None])[:, 0]
    steps = all_thresholds(confidence, right)
    return replace(namer, temperature=temperature, pictures=len(guess), thresholds=steps)


def _some(labels: pd.DataFrame, of: str, most: int) -> pd.DataFrame:
    """Return the labels of at most `most` pictures of every value or attribute.

    Pictures are taken in one random order, always the same, so that one taken for two attributes is embedded once.
    """
    ids = np.unique(labels["image_id"])
    place = np.random.default_rng(0).permutation(len(ids))[np.searchsorted(ids, labels["image_id"])]
    groups = [labels["attribute"], labels["value"]] if of == "value" else [labels["attribute"]]
    rank = pd.Series(place, index=labels.index).groupby(groups).rank(method="dense")
    return labels[rank <= most].reset_index(drop=True)


def embed_labels(
    model: agman.RetrievalModel,
    config: dict[str, Any],
    dataset: Dataset,
    split: str,
    *,
    most: Mapping[str, int] | None = None,
    precision: str = "fp32",
    threads: int = os.cpu_count() or 1,
    progress: Progress = silent,
) -> LabelledSplit:
    """Embed the pictures of a split under every attribute of which they have a label.

    Raises InputError if the split has no labels. `most` limits the pictures of every "value" or "attribute"; the other
    arguments are as for `pipeline.evaluation.evaluate.evaluate`.
    """
    labels = dataset.labels_of(split)
    if labels.empty:
        raise InputError(f"{dataset.path}: no labels in split {split!r}")
    for of, number in (most or {}).items():
        labels = _some(labels, of, number)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    model = model.to(device).eval()
    pairs = labels[["image_id", "attribute"]].drop_duplicates(ignore_index=True)
    row = labels.merge(pairs.reset_index(), on=["image_id", "attribute"], how="left")["index"].to_numpy()
    images = ImageStore(
        dataset,
        split,
        config["image_size"],
        pairs["image_id"],
        threads=threads,
        fit=config.get("fit", "crop"),
        interpolation=model.pixels.interpolation,
    )
    advance = progress(f"{split} images embedded", pairs["image_id"].nunique())
    ids, attributes = (pairs[name].to_numpy() for name in ("image_id", "attribute"))
    embedded = agman.embed_dataset(
        model, ids, attributes, images.read, device=device, precision=precision, advance=advance
    )
    return LabelledSplit(dataset, labels, row, embedded.cpu())
