"""A loss on learned proxies of the values; not in the paper.

Shape suffixes: I images, D embedding width, V values of all attributes, K values of one image at most.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agman.losses.triplet import cosines


class ValueProxies(nn.Module):
    """Normalised softmax over one learned proxy for each attribute value; not in the paper, off by default.

        L_proxy = -log softmax_v(s·cos(f(I, a), p_v)) at I's own value, v over the values of a, s = 16

    If an image has several values, the lowest is learned and the others are left out of its softmax.

    With a backbone of random weights, a triplet loss alone stays at chance for very long: the embeddings share one
    large direction, and two images tell little about the rest. Proxies average over all images of a value
    (Movshovitz-Attias et al., ICCV 2017; this form: Zhai & Wu, BMVC 2019).
    """

    SCALE = 16.0
    first: Tensor
    """Row of each attribute's first proxy, N."""
    attribute_of: Tensor
    """Attribute of each proxy, V."""

    def __init__(self, n_values: Sequence[int], embedding_dim: int):
        """Draw the proxies; n_values holds the number of values of each attribute."""
        super().__init__()
        if not n_values or min(n_values) < 1:
            raise ValueError(f"every attribute needs at least one value, not {list(n_values)}")
        self.proxies = nn.Parameter(torch.randn(sum(n_values), embedding_dim))
        self.register_buffer("first", torch.tensor([sum(n_values[:a]) for a in range(len(n_values))]))
        self.register_buffer("attribute_of", torch.repeat_interleave(torch.tensor(n_values)))

    def forward(self, embedding_id: Tensor, attributes_i: Tensor, values_ik: Tensor) -> Tensor:
        """Return the loss, averaged over I images.

        values_ik holds each image's values of its attribute, counted from 0, ascending, padded with -1 to K.
        """
        logits_iv = self.SCALE * cosines(embedding_id, F.normalize(self.proxies, dim=-1))
        row_ik = self.first[attributes_i][:, None] + values_ik
        left_out_iv = self.attribute_of != attributes_i[:, None]
        for row_i, value_i in zip(row_ik.T[1:], values_ik.T[1:], strict=True):  # K is 1 for most datasets
            of_proxy_iv = torch.arange(len(self.attribute_of), device=row_i.device) == row_i[:, None]
            left_out_iv = left_out_iv | (of_proxy_iv & (value_i >= 0)[:, None])
        return F.cross_entropy(logits_iv.masked_fill(left_out_iv, float("-inf")), row_ik[:, 0])
