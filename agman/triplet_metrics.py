"""Triplet relation prediction as pure functions of embeddings: accuracy and loss, of every condition and over all.

Shape suffixes: B triplets (of one attribute, which CSN calls a condition), K triplets of all attributes, P pairs of
image and attribute, D embedding width.

    accuracy = fraction of the triplets with cos(I, I⁺) > cos(I, I⁻); a tie is wrong, guessing gives 0.5
    loss     = mean of max(0, m - cos(I, I⁺) + cos(I, I⁻)), the paper's equation 8 with margin m

Over all: the mean over all triplets, not over the conditions. Cosines are summed without rounding and compared as
float32, as in `metrics.py`, so that equal embeddings do tie.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from agman.numerics import on_grid

CHUNK = 4096
"""Triplets whose embeddings are gathered at a time: in float64, 3 × 16 MiB of 512 dimensions."""


@dataclass(frozen=True, slots=True)
class TripletScores:
    """Scores of the triplets of one attribute; on the CPU."""

    similar: Tensor
    """B, float32: cosine of anchor and positive."""
    different: Tensor
    """B, float32: cosine of anchor and negative."""
    loss: Tensor
    """B, float64, at least 0."""

    @property
    def correct(self) -> Tensor:
        """Whether each positive is the more similar one, B bool."""
        return self.similar > self.different


def score_triplets(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.2) -> TripletScores:
    """Score B triplets from their embeddings, each B×D of unit length.

    Raises ValueError if shapes are wrong, there are no triplets, or embeddings are not finite.
    """
    if anchor.ndim != 2 or not anchor.shape == positive.shape == negative.shape or not len(anchor):
        shapes = ", ".join(str(tuple(embeddings.shape)) for embeddings in (anchor, positive, negative))
        raise ValueError(f"anchors, positives and negatives must be B×D with B >= 1, not {shapes}")
    anchor_bd = on_grid("anchors", anchor)
    similar_b = (anchor_bd * on_grid("positives", positive)).sum(-1)
    different_b = (anchor_bd * on_grid("negatives", negative)).sum(-1)
    loss_b = F.relu(margin - similar_b + different_b)
    return TripletScores(similar_b.float().cpu(), different_b.float().cpu(), loss_b.cpu())


def score_conditions(
    embeddings: Tensor, index: Tensor, attributes: Tensor, names: Sequence[str], margin: float = 0.2
) -> dict[str, TripletScores]:
    """Score K triplets of several attributes: attribute name -> its triplets' scores, in their order.

    embeddings P×D of P pairs (image, attribute); index 3×K: rows anchor, positive, negative, entries are rows of
    `embeddings`; attributes K, numbers of `names`. CHUNK triplets' embeddings are gathered at a time. Attributes
    without a triplet are left out. Raises ValueError as `score_triplets` does.
    """
    chunks = []
    for few in index.split(CHUNK, dim=1):
        anchor, positive, negative = embeddings[few]
        chunks.append(score_triplets(anchor, positive, negative, margin))
    every = joined(chunks)
    chosen = {name: attributes == number for number, name in enumerate(names)}
    return {name: _picked(every, k) for name, k in chosen.items() if k.any()}


def _picked(scores: TripletScores, k: Tensor) -> TripletScores:
    return TripletScores(scores.similar[k], scores.different[k], scores.loss[k])


def joined(scores: Iterable[TripletScores]) -> TripletScores:
    """Concatenate the scores of several groups of triplets. Raises ValueError if there are none."""
    scores = list(scores)
    if not scores:
        raise ValueError("no triplets: nothing to score")
    return TripletScores(
        *(torch.cat([getattr(one, name) for one in scores]) for name in ("similar", "different", "loss"))
    )


def summarise_triplets(scores: Mapping[str, TripletScores]) -> dict[str, float]:
    """Return one number per metric, from every attribute's triplets. Raises ValueError if there are none.

    triplet_accuracy, triplet_loss    over all triplets
    triplet_accuracy/<attribute>, triplet_loss/<attribute>    over one attribute's
    triplets    number of triplets
    """
    every = joined(scores.values())
    summary = {"triplets": float(len(every.correct))}
    for end, one in {"": every, **{f"/{name}": one for name, one in scores.items()}}.items():
        summary[f"triplet_accuracy{end}"] = float(one.correct.double().mean())
        summary[f"triplet_loss{end}"] = float(one.loss.mean())
    return summary
