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
from torch import Tensor

import agman
from agman.confident import confident_joint, confident_values, doubts, estimated_joint
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.hints import nearest
from data_prep.progress import Advance, Progress, silent
from data_prep.tables import SPLITS, Attribute
from pipeline.evaluation.out_of_sample import out_of_sample, undivided
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

`score` is the doubt of `agman.confident`, from 0 (surely right) to 1 (surely wrong); for ALONE the mean distance
(1 - cosine) of the nearest pictures. `other` is the near-duplicate. `examples` are the nearest pictures with the
suggested value, or with the label where no other value is suggested."""
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
    """Findings under one attribute."""

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
    embedded = [one for one in embed_all(model, config, dataset, threads, progress) if one.number in chosen]
    advance = progress("labels judged", sum(len(one.value_k) for one in embedded))
    judged = [_judge(dataset, one, advance) for one in embedded]
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


@dataclass(frozen=True)
class EmbeddedLabels:
    """K labels of one attribute, and the embeddings of their pictures."""

    attribute: Attribute
    number: int
    """Index of the attribute."""
    image_k: np.ndarray
    """Ids of the pictures."""
    path_k: np.ndarray
    """Their paths."""
    split_k: np.ndarray
    value_k: np.ndarray
    embeddings_kd: Tensor


def embed_all(
    model: agman.RetrievalModel, config: dict[str, Any], dataset: Dataset, threads: int, progress: Progress
) -> list[EmbeddedLabels]:
    """Embed the pictures of all splits under every attribute of which they have a label.

    Raises InputError if the embeddings are not finite.
    """
    of_splits = {
        split: embed_labels(model, config, dataset, split, threads=threads, progress=progress)
        for split in SPLITS
        if (dataset.labels["split"] == split).any()
    }
    path_of = dataset.images.drop_duplicates("image_id").set_index("image_id")["path"]
    found = []
    for number, attribute in enumerate(dataset.info.attributes):
        parts = [one.labels[one.labels["attribute"] == number].assign(split=name) for name, one in of_splits.items()]
        labels = pd.concat(parts)
        embeddings_kd = torch.cat([one.embeddings_of_labels(number) for one in of_splits.values()])
        if not torch.isfinite(embeddings_kd).all():
            raise InputError("the model gives NaN or infinity: its training diverged, or its weights are damaged")
        found.append(
            EmbeddedLabels(
                attribute,
                number,
                image_k=labels["image_id"].to_numpy(),
                path_k=path_of.loc[labels["image_id"]].to_numpy(object),
                split_k=labels["split"].to_numpy(object),
                value_k=labels["value"].to_numpy(np.int64),
                embeddings_kd=embeddings_kd,
            )
        )
    return found


def _judge(dataset: Dataset, labels: EmbeddedLabels, advance: Advance) -> tuple[pd.DataFrame, AuditedAttribute]:
    """Return the findings under one attribute, with the columns of FINDINGS."""
    n_values, truth_k = len(labels.attribute.values), torch.from_numpy(labels.value_k)
    groups_k = undivided(dataset, labels.image_k)
    embeddings_kd = labels.embeddings_kd.numpy()
    probabilities_kv, judged_k = out_of_sample(embeddings_kd, labels.value_k, n_values, groups_k, advance)
    probabilities_kv = _without_own(probabilities_kv, labels.value_k, labels.image_k)
    findings = _findings(dataset, labels, probabilities_kv, judged_k)
    sure_k = truth_k[judged_k]
    confident_k = confident_values(probabilities_kv[judged_k], sure_k)
    joint_vv = estimated_joint(confident_k, sure_k, n_values)
    return findings, AuditedAttribute(
        labels.attribute.name,
        labels=len(truth_k),
        unjudged=int((~judged_k).sum()),
        contradicted=int((findings["kind"] == CONTRADICTED).sum()),
        wrong=float(joint_vv.sum() - joint_vv.diagonal().sum()),
        mixed_up=_mixed_up(labels.attribute, confident_k, sure_k),
    )


def _findings(dataset: Dataset, labels: EmbeddedLabels, probabilities_kv: Tensor, judged_k: Tensor) -> pd.DataFrame:
    value_k, truth_k = labels.value_k, torch.from_numpy(labels.value_k)
    score_k = doubts(probabilities_kv, truth_k).masked_fill(~judged_k, 0.5).numpy()
    best_k = probabilities_kv.scatter(1, truth_k[:, None], -1.0).argmax(1).numpy()
    suggested_k = np.where(score_k > 0.5, best_k, -1)
    kind_k = np.where(score_k > 0.5, CONTRADICTED, "").astype(object)
    other_k = np.full(len(value_k), None, object)
    reviewed_k = _reviewed(dataset, labels)
    for row, value, other in _near_duplicates(dataset, labels, np.where(reviewed_k, -1, score_k)):
        kind_k[row], suggested_k[row], other_k[row] = NEAR_DUPLICATE, value, other
    wanted_k = np.where(suggested_k < 0, value_k, suggested_k)
    distance_k, examples_kn = _neighbours(labels.embeddings_kd, value_k, labels.image_k, wanted_k)
    alone = np.argsort(-distance_k, kind="stable")[: round(UNLIKE * len(value_k))]
    alone = alone[kind_k[alone] == ""]
    kind_k[alone], score_k[alone] = ALONE, distance_k[alone]
    found = np.flatnonzero((kind_k != "") & ~reviewed_k)
    names = np.array([*labels.attribute.values, None], object)  # -1: no value is suggested
    return pd.DataFrame(
        {
            "image": labels.path_k[found],
            "split": labels.split_k[found],
            "attribute": labels.attribute.name,
            "label": names[value_k[found]],
            "suggestion": names[suggested_k[found]],
            "score": score_k[found],
            "kind": kind_k[found],
            "other": other_k[found],
            "examples": [labels.path_k[row[row >= 0]].tolist() for row in examples_kn[found]],
        }
    )


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


def _reviewed(dataset: Dataset, labels: EmbeddedLabels) -> np.ndarray:
    """Return which labels a person has kept or given, K bool."""
    if (known := dataset.reviewed) is None:
        return np.zeros(len(labels.value_k), bool)
    own = known[known["attribute"] == labels.number]
    pairs = pd.MultiIndex.from_arrays([labels.image_k, labels.value_k])
    return pairs.isin(pd.MultiIndex.from_frame(own[["image_id", "value"]]))


def _near_duplicates(dataset: Dataset, labels: EmbeddedLabels, doubt_k: np.ndarray) -> Iterator[tuple[int, int, str]]:
    """Yield for each pair with different labels the row of the more doubtful one, the other's value and its picture."""
    pairs = dataset.near_duplicates
    if pairs is None:
        return
    value_k, rows_of = labels.value_k, dict[str, list[int]]()
    paired = {*pairs["path"], *pairs["other_path"]}
    for row, path in enumerate(labels.path_k):
        if path in paired:
            rows_of.setdefault(path, []).append(row)
    for one, two in zip(pairs["path"], pairs["other_path"], strict=True):
        rows, others = rows_of.get(one, []), rows_of.get(two, [])
        here = [row for row in rows if value_k[row] not in value_k[others]]
        there = [row for row in others if value_k[row] not in value_k[rows]]
        if here and there:
            either = [(row, there[0], two) for row in here] + [(row, here[0], one) for row in there]
            row, other, path = max(either, key=lambda found: doubt_k[found[0]])
            yield row, int(value_k[other]), path


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


def _mixed_up(attribute: Attribute, confident_k: Tensor, truth_k: Tensor) -> tuple[MixedUp, ...]:
    values = attribute.values
    joint = confident_joint(confident_k, truth_k, len(values)).tolist()
    counts = torch.bincount(truth_k, minlength=len(values)).tolist()
    pairs = [
        MixedUp(attribute.name, (values[i], values[j]), (counts[i], counts[j]), (joint[i][j], joint[j][i]))
        for i in range(len(values))
        for j in range(i)
        if joint[i][j] or joint[j][i]
    ]
    return tuple(sorted((pair for pair in pairs if pair.share >= MIXED), key=lambda pair: -pair.share))
