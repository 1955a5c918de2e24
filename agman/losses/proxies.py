"""Losses on learned proxies of the values; not in the paper.

Shape suffixes: I embeddings, D embedding width, P proxies of the values of all attributes, V values of one image.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agman.losses.triplet import cosines

PROXY_LOSSES = ("softmax", "anchor")


class ValueProxies(nn.Module):
    """One learned proxy for each value of each attribute, off by default. An embedding under a meets a's proxies only.

    loss "softmax":  -log softmax_p(s·cos(f(I, a), p)) at I's own value, s = 16 (Zhai & Wu, BMVC 2019). If an image has
                     several values, the lowest is learned and the others are left out of its softmax.
    loss "anchor":   Proxy Anchor (Kim et al., CVPR 2020, equation 4), α = 32, δ = 0.1: every proxy pulls the
                     embeddings that have its value and pushes the others. Our own, as pytorch-metric-learning's
                     compares every embedding with every proxy, those of other attributes too.

    With a backbone of random weights, a triplet loss alone stays at chance for very long: the embeddings share one
    large direction, and two images tell little about the rest. Proxies average over all images of a value
    (Movshovitz-Attias et al., ICCV 2017).

    Args:
        n_values: number of values of each attribute.
        embedding_dim: D.
        loss: one of PROXY_LOSSES.
        smoothing: share of the softmax's target that all values of the attribute divide among them (Szegedy et al.,
            CVPR 2016). Of the softmax only.
    """

    SCALE = 16.0
    ALPHA, DELTA = 32.0, 0.1
    first: Tensor
    """Row of each attribute's first proxy, N."""
    attribute_of: Tensor
    """Attribute of each proxy, P."""

    def __init__(self, n_values: Sequence[int], embedding_dim: int, loss: str = "softmax", smoothing: float = 0.0):
        super().__init__()
        if not n_values or min(n_values) < 1:
            raise ValueError(f"every attribute needs at least one value, not {list(n_values)}")
        if loss not in PROXY_LOSSES:
            raise ValueError(f"the proxy loss must be one of {', '.join(PROXY_LOSSES)}, not {loss!r}")
        self.loss, self.smoothing = loss, smoothing
        self.proxies = nn.Parameter(torch.randn(sum(n_values), embedding_dim))
        self.register_buffer("first", torch.tensor([sum(n_values[:a]) for a in range(len(n_values))]))
        self.register_buffer("attribute_of", torch.repeat_interleave(torch.tensor(n_values)))

    def forward(self, embedding_id: Tensor, attributes_i: Tensor, values_iv: Tensor) -> Tensor:
        """Return the loss of I embeddings under their attributes.

        values_iv holds each image's values of its attribute, counted from 0, ascending, padded with -1 to V.
        """
        cosine_ip = cosines(embedding_id, F.normalize(self.proxies, dim=-1))
        row_iv = self.first[attributes_i][:, None] + values_iv
        own_ip = torch.zeros(len(row_iv), len(self.proxies) + 1, dtype=torch.bool, device=row_iv.device)
        own_ip = own_ip.scatter_(1, torch.where(values_iv < 0, len(self.proxies), row_iv), True)[:, :-1]
        among_ip = self.attribute_of == attributes_i[:, None]
        if self.loss == "anchor":
            return self._anchor(cosine_ip, own_ip, among_ip)
        return self._softmax(cosine_ip, row_iv[:, 0], own_ip, among_ip)

    def _softmax(self, cosine_ip: Tensor, lowest_i: Tensor, own_ip: Tensor, among_ip: Tensor) -> Tensor:
        taking_part_ip = (among_ip & ~own_ip).scatter(1, lowest_i[:, None], True)
        logits_ip = (self.SCALE * cosine_ip).masked_fill(~taking_part_ip, float("-inf"))
        likely_ip = F.log_softmax(logits_ip, dim=1)
        loss_i = -likely_ip.gather(1, lowest_i[:, None])[:, 0]
        if not self.smoothing:
            return loss_i.mean()
        even_i = -likely_ip.masked_fill(~taking_part_ip, 0.0).sum(1) / taking_part_ip.sum(1)
        return ((1 - self.smoothing) * loss_i + self.smoothing * even_i).mean()

    def _anchor(self, cosine_ip: Tensor, own_ip: Tensor, among_ip: Tensor) -> Tensor:
        pull_p = _log_1_plus_sum(-self.ALPHA * (cosine_ip - self.DELTA), own_ip)
        push_p = _log_1_plus_sum(self.ALPHA * (cosine_ip + self.DELTA), among_ip & ~own_ip)
        return pull_p.sum() / own_ip.any(0).sum() + push_p.sum() / among_ip.any(0).sum()


def _log_1_plus_sum(exponent_ip: Tensor, counts_ip: Tensor) -> Tensor:
    """Return log(1 + Σ_i e^exponent) over the entries that count, P; 0 for a proxy without any."""
    exponent_ip = exponent_ip.masked_fill(~counts_ip, float("-inf"))
    return torch.cat((exponent_ip, exponent_ip.new_zeros(1, exponent_ip.shape[1]))).logsumexp(0)
