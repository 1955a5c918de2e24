"""The objective of a training step: model, losses and loss weights as one module, so that DDP sees them all.

Shape suffixes: B triplets, I = 3B images (anchors, positives, negatives), D embedding width, V values of an image.
"""

from typing import NamedTuple

from torch import Tensor, nn

from agman.base import RetrievalModel
from agman.losses import (
    MININGS,
    LossWeights,
    ValueProxies,
    attribute_type_bce,
    cosine,
    info_nce,
    mine,
    pairs_of_anchors,
    triplet_ranking,
)


class Losses(NamedTuple):
    """Scalars of one batch of triplets; the losses are means over it."""

    loss: Tensor
    loss_triplet: Tensor
    """Loss of the mined triplets, if triplets are mined."""
    loss_class: Tensor
    """0 without branch 1."""
    loss_proxy: Tensor
    """0 without proxies."""
    loss_info_nce: Tensor
    """0 if its weight is 0."""
    correct: Tensor
    """Number of given triplets (not mined ones) with cos(I, I⁺) > cos(I, I⁻); a tie is wrong."""


class TripletObjective(nn.Module):
    """Equations 7-9 for a batch of triplets in one pass, so that batch norm sees all 3B images together.

    (The published code runs anchors, negatives and positives through the model one after the other.)
    Every parameter that requires a gradient gets one at every step.

    Not in the paper, and off by default: `proxies` add their loss times `proxy_weight`; InfoNCE is added times
    `info_nce_weight`; `mining` replaces the triplets' positives and negatives by other images in the triplet loss.
    The last two choose among the images of one micro-batch. Raises ValueError for an unknown mining, a negative
    weight or a temperature that is not above 0.
    """

    def __init__(
        self,
        model: RetrievalModel,
        margin: float = 0.2,
        loss_weights: LossWeights | None = None,
        proxies: ValueProxies | None = None,
        proxy_weight: float = 1.0,
        mining: str = "none",
        info_nce_weight: float = 0.0,
        info_nce_temperature: float = 0.1,
    ):
        super().__init__()
        if mining not in MININGS:
            raise ValueError(f"mining must be one of {', '.join(MININGS)}, not {mining!r}")
        if info_nce_weight < 0 or info_nce_temperature <= 0:
            raise ValueError(
                f"InfoNCE's weight must not be negative and its temperature above 0: "
                f"weight {info_nce_weight}, temperature {info_nce_temperature}"
            )
        self.model = model
        self.margin = margin
        self.loss_weights = loss_weights or LossWeights()
        if not model.classify:
            self.loss_weights.requires_grad_(False)  # one loss: learned weights stay out of it
        self.proxies = proxies
        self.proxy_weight = proxy_weight
        self.mining = mining
        self.info_nce_weight = info_nce_weight
        self.info_nce_temperature = info_nce_temperature

    def forward(
        self, images: Tensor, attributes: Tensor, values: Tensor | None = None, image_index: Tensor | None = None
    ) -> Losses:
        """Return the losses of B triplets.

        images 3B×3×H×W: B anchors, then their positives, then their negatives; attributes B.
        values 3B×V: the images' values under their triplet's attribute, ascending, -1 where there are fewer than V.
        image_index 3B: equal numbers for occurrences of the same image.

        Raises ValueError for numbers that do not fit, and without what is needed: proxies need `values`; mining and
        InfoNCE need `values` and `image_index`.
        """
        if len(images) != 3 * len(attributes):
            raise ValueError(f"{len(attributes)} triplets need {3 * len(attributes)} images, not {len(images)}")
        attributes_i = attributes.repeat(3)
        output = self.model(images, attributes_i)
        anchor_bd, positive_bd, negative_bd = output.embedding.chunk(3)
        similarity_positive_b = cosine(anchor_bd, positive_bd)
        similarity_negative_b = cosine(anchor_bd, negative_bd)
        correct = (similarity_positive_b > similarity_negative_b).sum()

        loss_proxy = loss_info_nce = zero = similarity_positive_b.new_zeros(())
        if self.proxies is not None:
            loss_proxy = self.proxies(output.embedding, attributes_i, _known(values))
        if self.mining != "none" or self.info_nce_weight:
            pairs = pairs_of_anchors(attributes_i, _known(values), _known(image_index))
            if self.mining != "none":
                positive_b, negative_b = mine(self.mining, output.embedding, pairs, self.margin)
                similarity_positive_b = cosine(anchor_bd, output.embedding[positive_b])
                similarity_negative_b = cosine(anchor_bd, output.embedding[negative_b])
            if self.info_nce_weight:
                loss_info_nce = info_nce(output.embedding, pairs.negative_bi, self.info_nce_temperature)

        loss_triplet = triplet_ranking(similarity_positive_b, similarity_negative_b, self.margin)
        loss_class = None if output.logits is None else attribute_type_bce(output.logits, attributes_i)
        loss = self.loss_weights(loss_triplet, loss_class)
        loss = loss + self.proxy_weight * loss_proxy + self.info_nce_weight * loss_info_nce
        return Losses(
            loss, loss_triplet, zero if loss_class is None else loss_class, loss_proxy, loss_info_nce, correct
        )


def _known(numbers: Tensor | None) -> Tensor:
    if numbers is None:
        raise ValueError("proxies need the values of the images; mining and InfoNCE need them and the image index")
    return numbers
