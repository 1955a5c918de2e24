"""Confident learning: which labels do out-of-sample probabilities contradict, and which values are mixed up?

Shape suffixes: K labels, V values of one attribute. Label k has the value y_k and the probabilities p_kv, from a
classifier that has not seen its picture.

    threshold           t_v = the mean of p_kv over the labels with y_k = v
    confident value     c_k = the most probable among the values v with p_kv ≥ t_v; NONE if there is none
    confident joint     C_ij = the number of labels with y_k = i and c_k = j
    estimated joint     Ĉ_ij = n_i C_ij / Σ_j C_ij, where n_i labels have the value i
    doubt               d_k = q_k / (q_k + p_k,y_k), where q_k = max over v ≠ y_k of p_kv

Northcutt, Jiang & Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021: equations 2, 1 and
3. They divide Ĉ by the number of labels, and rank labels by the margin p_k,y_k - q_k; the doubt depends on the ratio of
the two instead, which found more wrong labels (docs/audit.md).
"""

import torch
from torch import Tensor

NONE = -1
"""Confident value of a label for which no value is probable enough."""


def value_thresholds(probabilities_kv: Tensor, labels_k: Tensor) -> Tensor:
    """Return the threshold of every value, V float64; infinity for a value that no label has."""
    n_values = probabilities_kv.shape[1]
    own_k = probabilities_kv.double().gather(1, labels_k[:, None])[:, 0]
    sums_v = torch.zeros(n_values, dtype=torch.float64).index_add_(0, labels_k, own_k)
    counts_v = torch.bincount(labels_k, minlength=n_values)
    return (sums_v / counts_v).masked_fill(counts_v == 0, torch.inf)


def confident_values(probabilities_kv: Tensor, labels_k: Tensor) -> Tensor:
    """Return the confident value of every label, K int64; NONE where no value reaches its threshold."""
    reached_kv = probabilities_kv >= value_thresholds(probabilities_kv, labels_k)
    value_k = probabilities_kv.masked_fill(~reached_kv, -1).argmax(1)
    return value_k.masked_fill(~reached_kv.any(1), NONE)


def confident_joint(confident_k: Tensor, labels_k: Tensor, n_values: int) -> Tensor:
    """Return the number of labels of every value (rows) with every confident value (columns), V×V int64."""
    known_k = confident_k != NONE
    cells_k = labels_k[known_k] * n_values + confident_k[known_k]
    return torch.bincount(cells_k, minlength=n_values**2).reshape(n_values, n_values)


def estimated_joint(confident_k: Tensor, labels_k: Tensor, n_values: int) -> Tensor:
    """Return the estimated number of labels of every value (rows) whose true value is another (columns), V×V float64.

    A value none of whose labels has a confident value is taken to be right.
    """
    joint_vv = confident_joint(confident_k, labels_k, n_values).double()
    unknown_v = joint_vv.sum(1) == 0
    joint_vv[unknown_v, unknown_v.nonzero()[:, 0]] = 1
    counts_v = torch.bincount(labels_k, minlength=n_values)
    return joint_vv / joint_vv.sum(1, keepdim=True) * counts_v[:, None]


def doubts(probabilities_kv: Tensor, labels_k: Tensor) -> Tensor:
    """Return the doubt about every label, K: from 0, surely right, over 0.5, undecided, to 1, surely wrong."""
    own_k = probabilities_kv.gather(1, labels_k[:, None])[:, 0]
    other_k = probabilities_kv.scatter(1, labels_k[:, None], -1.0).amax(1)
    return other_k / (other_k + own_k).clamp_min(1e-12)
