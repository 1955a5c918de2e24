"""The positives and negatives of every pair (image, attribute) among all pairs of a batch.

Shape suffixes: K pairs (image, attribute), V values of a pair.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Masks of every anchor (rows) and every other pair of the batch (columns). Many are neither."""

    positive_kk: Tensor
    """Bool: under the anchor's attribute, with a value of it in common, and not the anchor itself."""
    negative_kk: Tensor
    """Bool: under the anchor's attribute, with no value of it in common."""


def pairs_among(attributes_k: Tensor, values_kv: Tensor) -> Pairs:
    """Return the positives and negatives of a batch in which an image occurs at most once under an attribute.

    values_kv holds the image's values under the attribute, at least one, padded with -1 to V.
    """
    values = int(values_kv.max()) + 1
    has_value_kv = torch.zeros(len(values_kv), values + 1, device=values_kv.device)
    has_value_kv.scatter_(1, torch.where(values_kv < 0, values, values_kv), 1.0)  # the last column takes the padding
    has_value_kv = has_value_kv[:, :values]
    in_common_kk = has_value_kv @ has_value_kv.T > 0
    same_attribute_kk = attributes_k[:, None] == attributes_k
    positive_kk = (same_attribute_kk & in_common_kk).fill_diagonal_(False)
    return Pairs(positive_kk, same_attribute_kk & ~in_common_kk)
