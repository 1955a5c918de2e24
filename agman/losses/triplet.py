"""Similarity and the triplet ranking loss (paper, equation 8).

Shape suffixes: B triplets, I images, D embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from agman.numerics import at_least_float32


def cosine(x_bd: Tensor, y_bd: Tensor) -> Tensor:
    """Return D(I, I') of equation 8 for embeddings of unit length: their dot product, B."""
    return (x_bd * y_bd).sum(-1)


def cosines(x_bd: Tensor, y_id: Tensor) -> Tensor:
    """Return D of every x with every y, B×I, in at least float32: autocast would round this product to bfloat16."""
    with torch.autocast(x_bd.device.type, enabled=False):
        return at_least_float32(x_bd) @ at_least_float32(y_id).T


def triplet_ranking(similarity_positive_b: Tensor, similarity_negative_b: Tensor, margin: float = 0.2) -> Tensor:
    """Return equation 8, max(0, m - D(I, I⁺) + D(I, I⁻)), averaged over the triplets."""
    return F.relu(margin - similarity_positive_b + similarity_negative_b).mean()
