"""Confident learning against plain loops over the paper's definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from agman.confident import (
    NONE,
    confident_joint,
    confident_values,
    doubts,
    estimated_joint,
    value_thresholds,
)

VALUES = 5


def drawn(seed: int, labels: int = 61) -> tuple[Tensor, Tensor]:
    """Probabilities of 5 values that favour the labels; no label has the last value."""
    generator = torch.Generator().manual_seed(seed)
    labels_k = torch.randint(VALUES - 1, (labels,), generator=generator)
    scores_kv = torch.randn(labels, VALUES, generator=generator, dtype=torch.float64)
    scores_kv[torch.arange(labels), labels_k] += 1.5
    return scores_kv.softmax(1), labels_k


@pytest.mark.parametrize("seed", range(3))
def test_everything_agrees_with_plain_loops(seed: int) -> None:
    probabilities_kv, labels_k = drawn(seed)
    p, y = probabilities_kv.tolist(), labels_k.tolist()
    thresholds = []
    for value in range(VALUES):
        own = [row[value] for row, label in zip(p, y, strict=True) if label == value]
        thresholds.append(math.fsum(own) / len(own) if own else math.inf)
    assert value_thresholds(probabilities_kv, labels_k).tolist() == pytest.approx(thresholds)
    confident = []
    for row in p:
        reached = [value for value in range(VALUES) if row[value] >= thresholds[value]]
        confident.append(max(reached, key=row.__getitem__) if reached else NONE)
    found = confident_values(probabilities_kv, labels_k)
    assert found.tolist() == confident and NONE in confident
    pairs = list(zip(y, confident, strict=True))
    joint = [[pairs.count((i, j)) for j in range(VALUES)] for i in range(VALUES)]
    assert confident_joint(found, labels_k, VALUES).tolist() == joint
    estimated = estimated_joint(found, labels_k, VALUES)
    for i, row in enumerate(joint):
        count = y.count(i)
        wanted = [count * cell / sum(row) for cell in row] if sum(row) else [count * (i == j) for j in range(VALUES)]
        assert estimated[i].tolist() == pytest.approx(wanted)
    assert float(estimated.sum()) == pytest.approx(len(y))
    others = [max(row[:label] + row[label + 1 :]) for row, label in zip(p, y, strict=True)]
    wanted = [other / (other + row[label]) for row, label, other in zip(p, y, others, strict=True)]
    assert doubts(probabilities_kv, labels_k).tolist() == pytest.approx(wanted)


def test_a_threshold_makes_up_for_a_value_that_is_always_improbable() -> None:
    probabilities_kv = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.7, 0.3], [0.6, 0.4], [0.6, 0.4]])
    labels_k = torch.tensor([0, 0, 1, 1, 0])
    # t = (0.8, 0.35): the last picture, labelled 0, is as probably of value 1 as pictures of value 1 are.
    assert confident_values(probabilities_kv, labels_k).tolist() == [0, 0, NONE, 1, 1]
    assert estimated_joint(confident_values(probabilities_kv, labels_k), labels_k, 2).tolist() == [[2, 1], [0, 2]]


def test_a_value_without_a_confident_label_is_taken_to_be_right() -> None:
    labels_k = torch.tensor([0, 0, 1])
    assert estimated_joint(torch.tensor([NONE, NONE, 1]), labels_k, 2).tolist() == [[2, 0], [0, 1]]
