"""Mining: other positives and negatives for a batch's triplets, from the batch itself; not in the paper.

The batch is one micro-batch of the global batch, so the result depends on the number of micro-batches.

Shape suffixes: B triplets, I = 3B images (anchors, positives, negatives), D embedding width.
"""

import torch
from torch import Tensor

from agman.losses.pairs import Pairs
from agman.losses.triplet import cosines

MININGS = ("none", "semi_hard", "hard")


@torch.no_grad()
def mine(mining: str, embedding_id: Tensor, pairs: Pairs, margin: float = 0.2) -> tuple[Tensor, Tensor]:
    """Return every anchor's positive and negative, as rows of `embedding_id`, B each; without a gradient.

    mining "none":      the triplet's own.
    mining "semi_hard": its own positive; the negative that is most similar to the anchor among those less similar
                        than the positive by less than the margin (Schroff et al., FaceNet, CVPR 2015).
    mining "hard":      the least similar positive and the most similar negative (Hermans et al., "In defense of the
                        triplet loss for person re-identification", 2017: batch hard).

    If no image of the batch fits, the triplet's own stays. Of equals, the first in the batch is taken. A triplet's own
    negative that has another of its anchor's several values is no candidate, as no such image is mined either. Raises
    ValueError if `mining` is unknown.
    """
    own_b = torch.arange(len(pairs.negative_bi), device=embedding_id.device)
    positive_b, negative_b = own_b + len(own_b), own_b + 2 * len(own_b)
    if mining == "none":
        return positive_b, negative_b
    similarity_bi = cosines(embedding_id[: len(own_b)], embedding_id)
    if mining == "semi_hard":
        fits_bi = pairs.negative_bi & _semi_hard(similarity_bi, positive_b, margin)
        return positive_b, _most(similarity_bi, fits_bi, negative_b)
    if mining == "hard":
        return (
            _most(-similarity_bi, pairs.positive_bi, positive_b),
            _most(similarity_bi, pairs.negative_bi, negative_b),
        )
    raise ValueError(f"mining must be one of {', '.join(MININGS)}, not {mining!r}")


def _semi_hard(similarity_bi: Tensor, positive_b: Tensor, margin: float) -> Tensor:
    """Return whether s(a, p) - margin < s(a, n) < s(a, p), B×I."""
    positive_b1 = similarity_bi.gather(1, positive_b[:, None])
    return (similarity_bi < positive_b1) & (similarity_bi > positive_b1 - margin)


def _most(score_bi: Tensor, allowed_bi: Tensor, otherwise_b: Tensor) -> Tensor:
    """Return every row's allowed column of highest score, the first of equals; `otherwise` if none is allowed."""
    highest_b = score_bi.masked_fill(~allowed_bi, float("-inf")).argmax(1)
    return torch.where(allowed_bi.any(1), highest_b, otherwise_b)
