"""InfoNCE with all negatives of the batch; not in the paper, off by default.

Shape suffixes: B triplets, I = 3B images (anchors, positives, negatives), D embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from agman.losses.triplet import cosine, cosines
from agman.numerics import at_least_float32


def info_nce(embedding_id: Tensor, negative_bi: Tensor, temperature: float = 0.1) -> Tensor:
    """Return -log e^{cos(a, p)/τ} / (e^{cos(a, p)/τ} + Σ_n e^{cos(a, n)/τ}), averaged over the triplets' anchors a.

    p is the triplet's own positive. n goes over the images that `negative_bi` marks (see `pairs_of_anchors`): those of
    the batch that were embedded under the anchor's attribute and have no value in common with it. An image that is in
    the batch twice counts twice. The loss of an anchor without negatives is 0.

    van den Oord, Li & Vinyals, "Representation learning with contrastive predictive coding", 2018, equation 4, with
    cosine over τ for the score. Computed in at least float32.
    """
    anchor_bd, positive_bd, _ = embedding_id.chunk(3)
    positive_b1 = at_least_float32(cosine(anchor_bd, positive_bd))[:, None]
    negatives_bi = cosines(anchor_bd, embedding_id).masked_fill(~negative_bi, float("-inf"))
    logits = torch.cat((positive_b1, negatives_bi), dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
