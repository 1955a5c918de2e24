"""The two losses and their weights (paper, section 3.5, equations 7-9).

Shape suffixes: B triplets, I images (3B of them), N attributes, D embedding width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agman.numerics import at_least_float32


def cosine(x_bd: Tensor, y_bd: Tensor) -> Tensor:
    """D(I, I') of equation 8 for embeddings of unit length: their dot product, B."""
    return (x_bd * y_bd).sum(-1)


def triplet_ranking(similarity_positive_b: Tensor, similarity_negative_b: Tensor, margin: float = 0.2) -> Tensor:
    """Equation 8, max(0, m - D(I, I⁺) + D(I, I⁻)), averaged over the triplets."""
    return F.relu(margin - similarity_positive_b + similarity_negative_b).mean()


def attribute_type_bce(logits_in: Tensor, attributes_i: Tensor) -> Tensor:
    """Equation 7 with w_a = 1: binary cross-entropy of every image's logits against its attribute *type*.

    The target is the one-hot of the type a triplet was drawn for (which attribute, not its value), for its
    anchor, positive and negative alike; averaged over elements and images.
    """
    target_in = F.one_hot(attributes_i.long(), logits_in.shape[1]).to(logits_in.dtype)
    return F.binary_cross_entropy_with_logits(logits_in, target_in)


class ValueProxies(nn.Module):
    """Normalised softmax over one learned proxy for each attribute value; not in the paper, off by default.

        L_proxy = -log softmax_v(s·cos(f(I, a), p_v)) at I's own value, v over the values of a, s = 16

    A triplet loss alone stays at chance for very long when the backbone starts from random weights: the
    embeddings share one large direction, and two images tell little about the rest. Proxies average over all
    images of a value (Movshovitz-Attias et al., ICCV 2017; this form: Zhai & Wu, BMVC 2019).
    """

    SCALE = 16.0
    first: Tensor
    """Row of each attribute's first proxy."""
    attribute_of: Tensor
    """Each proxy's attribute."""

    def __init__(self, n_values: Sequence[int], embedding_dim: int):
        """n_values: how many values each attribute has."""
        super().__init__()
        if not n_values or min(n_values) < 1:
            raise ValueError(f"every attribute needs at least one value, not {list(n_values)}")
        self.proxies = nn.Parameter(torch.randn(sum(n_values), embedding_dim))
        self.register_buffer("first", torch.tensor([sum(n_values[:a]) for a in range(len(n_values))]))
        self.register_buffer("attribute_of", torch.repeat_interleave(torch.tensor(n_values)))

    def forward(self, embedding_id: Tensor, attributes_i: Tensor, values_i: Tensor) -> Tensor:
        """The loss, averaged over I images; values are numbered from 0 within their attribute."""
        logits_iv = self.SCALE * embedding_id @ F.normalize(self.proxies, dim=-1).T
        of_others_iv = self.attribute_of != attributes_i[:, None]
        logits_iv = at_least_float32(logits_iv).masked_fill(of_others_iv, float("-inf"))
        return F.cross_entropy(logits_iv, self.first[attributes_i] + values_i)


class LossWeights(nn.Module):
    """Equation 9: L = w0·L_class + w1·L_triplet.

    mode "fixed":   the two weights given.
    mode "learned": exp(-s)·L + s for either loss, s learned from 0.

    The learned form is Kendall, Gal & Cipolla's (CVPR 2018), without their factor 1/2. The published code's
    0.5·exp(+s)·L + s has no lower bound, and its s never reaches an optimizer.

    Without branch 1 there is one loss, and learned weights have nothing to weigh: it comes back as it is.
    """

    def __init__(self, mode: str = "fixed", w_triplet: float = 1.0, w_class: float = 1.0):
        super().__init__()
        if mode not in ("fixed", "learned"):
            raise ValueError(f"loss weights must be 'fixed' or 'learned', not {mode!r}")
        if min(w_triplet, w_class) < 0:
            raise ValueError(f"loss weights must not be negative: w_triplet {w_triplet}, w_class {w_class}")
        self.mode = mode
        self.w_triplet = w_triplet
        self.w_class = w_class
        if mode == "learned":
            self.s_triplet = nn.Parameter(torch.zeros(()))
            self.s_class = nn.Parameter(torch.zeros(()))

    def forward(self, loss_triplet: Tensor, loss_class: Tensor | None) -> Tensor:
        if self.mode == "fixed":
            weighted = self.w_triplet * loss_triplet
            return weighted if loss_class is None else weighted + self.w_class * loss_class
        if loss_class is None:
            return loss_triplet
        return self._learned(self.s_triplet, loss_triplet) + self._learned(self.s_class, loss_class)

    @staticmethod
    def _learned(s: Tensor, loss: Tensor) -> Tensor:
        return torch.exp(-s) * loss + s
