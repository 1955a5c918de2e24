"""The objectives of a training step: model, losses and loss weights as one module, so that DDP sees them all.

Shape suffixes: B triplets, I = 3B images (anchors, positives, negatives), G images, K pairs (image, attribute),
D embedding width, N attributes, V values of a pair.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from agman.base import Output, RetrievalModel
from agman.losses import (
    LossWeights,
    Pairs,
    ValueProxies,
    attribute_type_bce,
    cosine,
    cosines,
    labelled_types_bce,
    pair_loss,
    pairs_among,
    triplet_ranking,
)
from agman.numerics import at_least_float32


class Losses(NamedTuple):
    """Scalars of one batch."""

    loss: Tensor
    """Weighted sum of the losses."""
    terms: dict[str, Tensor]
    """Losses before weighting, by name: "loss_class" and "loss_proxy" (0 without them), and "loss_triplet" or
    "loss_pairs"; and the accuracy: "triplet_accuracy" or "nearest_accuracy"."""


class Objective(nn.Module):
    """A model with the losses that it is trained by.

    loss_weights: weights of the metric loss (triplets or pairs) and of the classification.
    proxies: their loss, times `proxy_weight`, is added. Not in the paper.
    """

    def __init__(
        self,
        model: RetrievalModel,
        loss_weights: LossWeights | None = None,
        proxies: ValueProxies | None = None,
        proxy_weight: float = 1.0,
    ):
        super().__init__()
        self.model = model
        self.loss_weights = loss_weights or LossWeights()
        if not model.classify:
            self.loss_weights.requires_grad_(False)  # one loss: learned weights stay out of it
        self.proxies = proxies
        self.proxy_weight = proxy_weight

    def _losses(
        self,
        name: str,
        metric_loss: Tensor,
        loss_class: Tensor | None,
        loss_proxy: Tensor | None,
        accuracy: tuple[str, Tensor],
    ) -> Losses:
        loss = self.loss_weights(metric_loss, loss_class)
        if loss_proxy is not None:
            loss = loss + self.proxy_weight * loss_proxy
        zero = metric_loss.new_zeros(())
        terms = {
            name: metric_loss,
            "loss_class": zero if loss_class is None else loss_class,
            "loss_proxy": zero if loss_proxy is None else loss_proxy,
            accuracy[0]: accuracy[1],
        }
        return Losses(loss, {term: value.detach() for term, value in terms.items()})


class TripletObjective(Objective):
    """Equations 7-9 for a batch of triplets in one pass, so that batch norm sees all 3B images together.

    (The published code runs anchors, negatives and positives through the model one after the other.)
    Every parameter that requires a gradient gets one at every step.
    """

    def __init__(
        self,
        model: RetrievalModel,
        margin: float = 0.2,
        loss_weights: LossWeights | None = None,
        proxies: ValueProxies | None = None,
        proxy_weight: float = 1.0,
    ):
        super().__init__(model, loss_weights, proxies, proxy_weight)
        self.margin = margin

    def forward(self, images: Tensor, attributes: Tensor, values: Tensor | None = None) -> Losses:
        """Return the losses of B triplets; "triplet_accuracy" is the fraction with cos(I, I⁺) > cos(I, I⁻).

        images 3B×3×H×W: B anchors, then their positives, then their negatives; attributes B.
        values 3B×V: the images' values under their triplet's attribute, ascending, -1 where there are fewer than V.

        Raises ValueError for numbers that do not fit, and for proxies without `values`.
        """
        if len(images) != 3 * len(attributes):
            raise ValueError(f"{len(attributes)} triplets need {3 * len(attributes)} images, not {len(images)}")
        attributes_i = attributes.repeat(3)
        output = self.model(images, attributes_i)
        anchor_bd, positive_bd, negative_bd = output.embedding.chunk(3)
        positive_b = cosine(anchor_bd, positive_bd)
        negative_b = cosine(anchor_bd, negative_bd)
        loss_proxy = None
        if self.proxies is not None:
            if values is None:
                raise ValueError("proxies need the values of the images")
            loss_proxy = self.proxies(output.embedding, attributes_i, values)
        return self._losses(
            "loss_triplet",
            triplet_ranking(positive_b, negative_b, self.margin),
            None if output.logits is None else attribute_type_bce(output.logits, attributes_i),
            loss_proxy,
            ("triplet_accuracy", (positive_b > negative_b).double().mean()),
        )


class LabelObjective(Objective):
    """Losses over all pairs of a batch in which every image is embedded under every attribute it has a label for.

    Not in the paper, whose batches are triplets. `embed` runs the model, on some of the global batch's images at a
    time; `losses` compares all of them. Between the two, `Stepper` collects the embeddings of all processes.

    pairs: name of the loss over all pairs, one of PAIR_LOSSES; see there for `temperature` and `margin`.
    """

    def __init__(
        self,
        model: RetrievalModel,
        pairs: str = "supervised_contrastive",
        temperature: float = 0.1,
        margin: float = 0.2,
        loss_weights: LossWeights | None = None,
        proxies: ValueProxies | None = None,
        proxy_weight: float = 1.0,
    ):
        super().__init__(model, loss_weights, proxies, proxy_weight)
        self.pair_loss = pair_loss(pairs, temperature, margin)

    def embed(self, images: Tensor, image_index: Tensor, attributes: Tensor) -> Output:
        """Return the embeddings of pairs, in at least float32, and the images' logits."""
        output = self.model.forward_pairs(images, image_index, attributes)
        return Output(at_least_float32(output.embedding), output.logits)

    def losses(
        self, embedding_kd: Tensor, logits_gn: Tensor | None, image_index: Tensor, attributes: Tensor, values: Tensor
    ) -> Losses:
        """Return the losses of a global batch of G images and K pairs.

        image_index K: row of each pair's image, ascending; attributes K; values K×V, ascending, padded with -1.
        "nearest_accuracy" is the fraction of pairs whose nearest other image under their attribute has a value in
        common with it, among those that have a positive and a negative in the batch.
        """
        pairs = pairs_among(attributes, values)
        loss_class = None
        if logits_gn is not None:
            labelled_gn = torch.zeros_like(logits_gn, dtype=torch.bool)
            labelled_gn[image_index, attributes] = True
            loss_class = labelled_types_bce(logits_gn, labelled_gn)
        return self._losses(
            "loss_pairs",
            self.pair_loss(embedding_kd, pairs),
            loss_class,
            None if self.proxies is None else self.proxies(embedding_kd, attributes, values),
            ("nearest_accuracy", nearest_accuracy(embedding_kd, pairs)),
        )

    def forward(self, surrogate: Tensor) -> Tensor:
        """Return the argument. DistributedDataParallel prepares its reduction of gradients in this call."""
        return surrogate


@torch.no_grad()
def nearest_accuracy(embedding_kd: Tensor, pairs: Pairs) -> Tensor:
    """Return the share of anchors whose nearest neighbour is a positive; of those that have both kinds, else 0."""
    others_kk = pairs.positive_kk | pairs.negative_kk
    nearest_k = cosines(embedding_kd, embedding_kd).masked_fill(~others_kk, float("-inf")).argmax(1)
    right_k = pairs.positive_kk.gather(1, nearest_k[:, None])[:, 0]
    both_k = pairs.positive_kk.any(1) & pairs.negative_kk.any(1)
    return (right_k & both_k).sum() / both_k.sum().clamp(min=1)
