"""`agman audit`: labels that look wrong, from the embeddings that a model gives their pictures.

Shape suffixes: K labels of one attribute, V values, D embedding width, R pictures that others are compared with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import agman
from agman.confident import confident_joint, confident_values, estimated_joint, normalised_margin
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.near_duplicates import clusters
from data_prep.progress import Progress, silent
from data_prep.tables import SPLITS
from pipeline.common.hints import nearest
from pipeline.evaluation.tagging import embed_labels

NEAR_DUPLICATE, CONTRADICTED, ALONE = KINDS = "near_duplicate", "contradicted", "alone"
"""A near-duplicate has another label; another value is more probable; the picture is like no other."""
FINDINGS = pa.schema(
    [
        ("image", pa.string()),
        ("split", pa.string()),
        ("attribute", pa.string()),
        ("label", pa.string()),
        ("suggestion", pa.string()),
        ("score", pa.float64()),
        ("kind", pa.string()),
        ("other", pa.string()),
        ("examples", pa.list_(pa.string())),
    ]
)
"""A row for each label that looks wrong, in the order in which to look at them: by kind, then by falling score.

`score` is (1 - normalised margin) / 2, from 0 (surely right) to 1 (surely wrong); for ALONE the mean distance
(1 - cosine) of the nearest pictures. `other` is the near-duplicate. `examples` are the nearest pictures with the
suggested value, or with the label where no other value is suggested."""
FOLDS = 5
PENALTY = 1.0
"""C of the logistic regression: the inverse strength of its penalty."""
LEARNED = 20_000
"""Most labels that a fold's classifier learns from."""
COMPARED = 50_000
"""Most pictures of an attribute that the others are compared with."""
NEIGHBOURS, EXAMPLES = 10, 3
UNLIKE = 0.01
"""Share of an attribute's pictures that are reported as ALONE."""
MIXED = 0.1
"""Mean share of two values' labels that have the other confident value, from which on they are not told apart."""
BLOCK = 2_048
"""Labels that are compared at a time."""


@dataclass(frozen=True)
class MixedUp:
    """Two values of an attribute that the model does not tell apart."""

    attribute: str
    values: tuple[str, str]
    labels: tuple[int, int]
    """Labels of each value."""
    taken: tuple[int, int]
    """Number of them whose confident value is the other one."""

    @property
    def share(self) -> float:
        """Mean over both values of the share of labels taken for the other one."""
        return float(np.mean([taken / max(1, labels) for taken, labels in zip(self.taken, self.labels, strict=True)]))


@dataclass(frozen=True)
class AuditedAttribute:
    """What was found under one attribute."""

    name: str
    labels: int
    unjudged: int
    """Labels of values that are too rare to be learned without their own pictures."""
    contradicted: int
    wrong: float
    """Estimated number of wrong labels."""
    mixed_up: tuple[MixedUp, ...]
    """Pairs of values, the worst first."""


@dataclass(frozen=True)
class Audit:
    """Findings on the labels of a dataset."""

    dataset: Dataset
    findings: pa.Table
    """Table of the schema FINDINGS."""
    attributes: tuple[AuditedAttribute, ...]
    unlabelled: tuple[str, ...]
    """Attributes with labels of fewer than two values, which cannot contradict each other."""

    def count(self, kind: str) -> int:
        """Return the number of findings of a kind."""
        return self.findings["kind"].to_pylist().count(kind)


def audit(
    model: agman.RetrievalModel,
    config: dict[str, Any],
    dataset: Dataset,
    attributes: Sequence[str] = (),
    *,
    threads: int = os.cpu_count() or 1,
    progress: Progress = silent,
) -> Audit:
    """Find labels that look wrong, in all splits. The same model and dataset give the same findings.

    Raises InputError if one of `attributes` is unknown or has no two values with labelled pictures; by default all that
    have are audited.

    Args:
        model: model, as `pipeline.registry.loading.load` returns it.
        config: its description.
        dataset: dataset with the attributes of the model.
        attributes: names of the attributes to audit.
        threads: threads that read pictures, and that torch computes with.
        progress: callback for progress bars.
    """
    chosen, unlabelled = _chosen(dataset, attributes)
    embedded = _embedded(model, config, dataset, threads, progress)
    judged = []
    advance = progress("labels judged", sum(len(embedded[number][0]) for number in chosen))
    for number in chosen:
        labels, embeddings_kd = embedded.pop(number)
        judged.append(_judge(dataset, number, labels, embeddings_kd))
        advance(len(labels))
    findings = pd.concat([rows for rows, _ in judged], ignore_index=True)
    order = findings["kind"].map({kind: place for place, kind in enumerate(KINDS)})
    findings = findings.iloc[np.lexsort((-findings["score"], order))]
    table = pa.Table.from_pandas(findings, schema=FINDINGS, preserve_index=False)
    return Audit(dataset, table, tuple(one for _, one in judged), unlabelled)


def _chosen(dataset: Dataset, names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return the numbers of the attributes to audit, and the names of those that cannot be. Raises InputError."""
    known, labels = dataset.info.attribute_names, dataset.labels
    different = labels.groupby("attribute")["value"].nunique()
    possible = [number for number in range(len(known)) if different.get(number, 0) > 1]
    for name in names:
        if name not in known:
            raise InputError(f"--attribute {name}: unknown; {nearest(name, known)}")
        if known.index(name) not in possible:
            raise InputError(
                f"--attribute {name}: {dataset.path} has labelled pictures of {different.get(known.index(name), 0)} of "
                "its values; two are needed to contradict each other"
            )
    if not possible:
        raise InputError(f"{dataset.path}: no attribute has labelled pictures of two values; there is nothing to audit")
    left_out = tuple(name for number, name in enumerate(known) if number not in possible)
    return [number for number in possible if not names or known[number] in names], () if names else left_out


def _embedded(
    model: agman.RetrievalModel, config: dict[str, Any], dataset: Dataset, threads: int, progress: Progress
) -> dict[int, tuple[pd.DataFrame, Tensor]]:
    """Return attribute -> its labels (image_id, value, split), and the embeddings of their pictures, K×D."""
    of_splits = {
        split: embed_labels(model, config, dataset, split, threads=threads, progress=progress)
        for split in SPLITS
        if (dataset.labels["split"] == split).any()
    }
    found = {}
    for number in range(len(dataset.info.attributes)):
        labels = [one.labels[one.labels["attribute"] == number].assign(split=name) for name, one in of_splits.items()]
        embeddings = torch.cat([one.embeddings_of_labels(number) for one in of_splits.values()])
        found[number] = (pd.concat(labels, ignore_index=True)[["image_id", "value", "split"]], embeddings)
    return found


def _judge(
    dataset: Dataset, number: int, labels: pd.DataFrame, embeddings_kd: Tensor
) -> tuple[pd.DataFrame, AuditedAttribute]:
    """Return the findings under one attribute, with the columns of FINDINGS."""
    attribute = dataset.info.attributes[number]
    values_k, image_k = labels["value"].to_numpy(np.int64), labels["image_id"].to_numpy()
    probabilities_kv, judged_k = out_of_sample(
        embeddings_kd.numpy(), values_k, len(attribute.values), _undivided(dataset, image_k)
    )
    probabilities_kv = _without_own(probabilities_kv, values_k, image_k)
    truth_k = torch.from_numpy(values_k)
    margin_k = normalised_margin(probabilities_kv, truth_k).masked_fill(~judged_k, 0)
    best_k = probabilities_kv.scatter(1, truth_k[:, None], -1.0).argmax(1).numpy()
    score_k, contradicted_k = (1 - margin_k.numpy()) / 2, (margin_k < 0).numpy()
    suggested_k = np.where(contradicted_k, best_k, -1)
    kind_k = np.where(contradicted_k, CONTRADICTED, "").astype(object)
    other_k = np.full(len(labels), None, object)
    for row, value, other in _near_duplicates(dataset, number, image_k, values_k, score_k):
        kind_k[row], suggested_k[row], other_k[row] = NEAR_DUPLICATE, value, other
    distance_k, examples = _neighbours(
        embeddings_kd, values_k, image_k, np.where(suggested_k < 0, values_k, suggested_k)
    )
    alone = np.argsort(-distance_k, kind="stable")[: round(UNLIKE * len(labels))]
    alone = alone[kind_k[alone] == ""]
    kind_k[alone], score_k[alone] = ALONE, distance_k[alone]
    found = np.flatnonzero(kind_k != "")
    path = dataset.images.drop_duplicates("image_id").set_index("image_id")["path"]
    names = np.array([*attribute.values, None], object)  # -1: no value is suggested
    findings = pd.DataFrame(
        {
            "image": path.loc[image_k[found]].to_numpy(),
            "split": labels["split"].to_numpy()[found],
            "attribute": attribute.name,
            "label": names[values_k[found]],
            "suggestion": names[suggested_k[found]],
            "score": score_k[found],
            "kind": kind_k[found],
            "other": other_k[found],
            "examples": [path.loc[image_k[row[row >= 0]]].tolist() for row in examples[found]],
        }
    )
    sure = judged_k.nonzero()[:, 0]
    confident = confident_values(probabilities_kv[sure], truth_k[sure])
    joint = estimated_joint(confident, truth_k[sure], len(attribute.values))
    return findings, AuditedAttribute(
        attribute.name,
        labels=len(labels),
        unjudged=int((~judged_k).sum()),
        contradicted=int((kind_k == CONTRADICTED).sum()),
        wrong=float(joint.sum() - joint.diagonal().sum()),
        mixed_up=_mixed_up(attribute.name, attribute.values, confident, truth_k[sure]),
    )


def out_of_sample(
    embeddings_kd: np.ndarray, values_k: np.ndarray, n_values: int, group_k: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Return the probabilities of every label's values, K×V float64, from a classifier that has not seen its group.

    They come from logistic regressions on the embeddings, cross-validated with FOLDS folds. Also returns which labels
    are judged, K bool: a label is not if the classifier has not seen its value.
    """
    fold_k = np.random.default_rng(0).permutation(int(group_k.max()) + 1)[group_k] % FOLDS
    probabilities_kv, judged_k = np.zeros((len(values_k), n_values)), np.zeros(len(values_k), bool)
    for fold in range(FOLDS):
        own = np.flatnonzero(fold_k == fold)
        others = np.random.default_rng(fold).permutation(np.flatnonzero(fold_k != fold))[:LEARNED]
        if not len(own) or len(np.unique(values_k[others])) < 2:
            continue
        classifier = LogisticRegression(C=PENALTY, max_iter=1_000).fit(embeddings_kd[others], values_k[others])
        probabilities_kv[np.ix_(own, classifier.classes_)] = classifier.predict_proba(embeddings_kd[own])
        judged_k[own] = np.isin(values_k[own], classifier.classes_)
    return torch.from_numpy(probabilities_kv), torch.from_numpy(judged_k)


def _undivided(dataset: Dataset, image_k: np.ndarray) -> np.ndarray:
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


def _without_own(probabilities_kv: Tensor, values_k: np.ndarray, image_k: np.ndarray) -> Tensor:
    """Take from each label the probabilities of the other values that its picture has, and divide them anew."""
    twice = np.flatnonzero(pd.Series(image_k).duplicated(keep=False))
    if not len(twice):
        return probabilities_kv
    left_kv = probabilities_kv.clone()
    for _, rows in pd.Series(twice).groupby(image_k[twice]):
        for row in rows:
            left_kv[row, [value for value in values_k[rows] if value != values_k[row]]] = 0
    return left_kv / left_kv.sum(1, keepdim=True).clamp_min(1e-12)


def _near_duplicates(
    dataset: Dataset, number: int, image_k: np.ndarray, values_k: np.ndarray, score_k: np.ndarray
) -> Iterator[tuple[int, int, str]]:
    """Yield for each pair with different labels the row of the worse label, the other one's value, and its picture."""
    pairs = dataset.near_duplicates
    if pairs is None or pairs.empty:
        return
    path = dataset.images.drop_duplicates("image_id").set_index("image_id")["path"]
    rows_of: dict[str, list[int]] = {}
    paired = {*pairs["path"], *pairs["other_path"]}
    for row, name in enumerate(path.loc[image_k]):
        if name in paired:
            rows_of.setdefault(name, []).append(row)
    for one, two in zip(pairs["path"], pairs["other_path"], strict=True):
        rows, others = rows_of.get(one, []), rows_of.get(two, [])
        here = [row for row in rows if values_k[row] not in values_k[others]]
        there = [row for row in others if values_k[row] not in values_k[rows]]
        if here and there:
            either = [(row, there[0], two) for row in here] + [(row, here[0], one) for row in there]
            row, other, name = max(either, key=lambda found: score_k[found[0]])
            yield row, int(values_k[other]), name


def _neighbours(
    embeddings_kd: Tensor, values_k: np.ndarray, image_k: np.ndarray, wanted_k: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compare every picture with the others.

    Returns the mean distance of the NEIGHBOURS nearest ones, K, and the rows of the EXAMPLES nearest ones with the
    `wanted` value, K×EXAMPLES, padded with -1.
    """
    some = np.sort(np.random.default_rng(0).permutation(len(values_k))[:COMPARED])
    others_rd, value_r, image_r = embeddings_kd[some], torch.from_numpy(values_k[some]), image_k[some]
    distance_k, examples = np.zeros(len(values_k)), np.full((len(values_k), EXAMPLES), -1)
    for start in range(0, len(values_k), BLOCK):
        own = slice(start, start + BLOCK)
        cosines = embeddings_kd[own] @ others_rd.T
        cosines.masked_fill_(torch.from_numpy(image_k[own, None] == image_r), -torch.inf)
        near = cosines.topk(min(NEIGHBOURS, len(some)), dim=1)[0]
        known = near.isfinite()
        distance_k[own] = (1 - (near.masked_fill(~known, 0).sum(1) / known.sum(1).clamp_min(1))).numpy()
        cosines.masked_fill_(value_r != torch.from_numpy(wanted_k[own, None]), -torch.inf)
        best, row = cosines.topk(min(EXAMPLES, len(some)), dim=1)
        examples[own, : best.shape[1]] = np.where(best.isfinite(), some[row], -1)
    return distance_k, examples


def _mixed_up(name: str, values: tuple[str, ...], confident: Tensor, truth: Tensor) -> tuple[MixedUp, ...]:
    joint = confident_joint(confident, truth, len(values))
    counts = torch.bincount(truth, minlength=len(values)).tolist()
    pairs = [
        MixedUp(name, (values[i], values[j]), (counts[i], counts[j]), (int(joint[i, j]), int(joint[j, i])))
        for i in range(len(values))
        for j in range(i)
    ]
    return tuple(sorted((pair for pair in pairs if pair.share >= MIXED), key=lambda pair: -pair.share))
