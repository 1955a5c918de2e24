"""Losses over all pairs of a batch; not in the paper. Of balanced batches only (see `agman.label_objective`).

Shape suffixes: K pairs (image, attribute), D embedding width, P positive pairs of pairs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from agman.losses.pairs import Pairs
from agman.losses.triplet import cosines

PAIR_LOSSES = ("supervised_contrastive", "multi_similarity", "semi_hard_triplet")


def pair_loss(name: str, temperature: float = 0.1, margin: float = 0.2) -> Callable[[Tensor, Pairs], Tensor]:
    """Return a function of embeddings K×D of unit length and their pairs, whose result is a scalar.

    "supervised_contrastive"  for every anchor with a positive, the mean over its positives p of
                              -log e^{cos(a, p)/τ} / Σ_{other} e^{cos(a, other)/τ}, others being the anchor's
                              positives and negatives (Khosla et al., NeurIPS 2020, L_out of equation 2)
    "multi_similarity"        Wang et al., CVPR 2019, equation 15 without its mining, with the published α = 2,
                              β = 50, λ = 0.5
    "semi_hard_triplet"       see `semi_hard_triplet`

    The first two are those of pytorch-metric-learning. Raises ValueError for another name.
    """
    if name not in PAIR_LOSSES:
        raise ValueError(f"the pair loss must be one of {', '.join(PAIR_LOSSES)}, not {name!r}")
    if name == "semi_hard_triplet":
        return lambda embedding_kd, pairs: semi_hard_triplet(embedding_kd, pairs, margin)
    from pytorch_metric_learning import losses  # takes two seconds to import

    chosen = losses.SupConLoss(temperature) if name == "supervised_contrastive" else losses.MultiSimilarityLoss()

    def loss(embedding_kd: Tensor, pairs: Pairs) -> Tensor:
        # Index lists rather than labels, as an image can have several values, and pairs of two attributes do not count.
        indices = (*pairs.positive_kk.nonzero(as_tuple=True), *pairs.negative_kk.nonzero(as_tuple=True))
        found: Tensor = chosen(embedding_kd, indices_tuple=indices)
        return found

    return loss


def semi_hard_triplet(embedding_kd: Tensor, pairs: Pairs, margin: float = 0.2) -> Tensor:
    """Return the mean of equation 8's loss over all positive pairs (a, p), each with its semi-hard negative.

    That is the negative of a that is most similar to a among those less similar than p, by less than the margin
    (Schroff et al., CVPR 2015). Pairs without one do not count; without any, the loss is 0. pytorch-metric-learning's
    miner lists all K³ triplets and knows no image with several values; sorting costs K² log K.
    """
    similarity_kk = cosines(embedding_kd, embedding_kd)
    ascending_kk = similarity_kk.masked_fill(~pairs.negative_kk, float("-inf")).sort(dim=1).values
    anchor_p, other_p = pairs.positive_kk.nonzero(as_tuple=True)
    positive_kk = similarity_kk.detach().contiguous()
    below_kk = torch.searchsorted(ascending_kk.detach(), positive_kk) - 1  # the nearest negative below each similarity
    below_p = below_kk[anchor_p, other_p]
    positive_p = similarity_kk[anchor_p, other_p]
    negative_p = ascending_kk[anchor_p, below_p.clamp(min=0)]
    counts_p = (below_p >= 0) & (negative_p > positive_p - margin)
    loss_p = F.relu(margin - positive_p[counts_p] + negative_p[counts_p])
    return loss_p.sum() / counts_p.sum().clamp(min=1)
