"""What a training step minimises: model, losses and loss weights as one module, so that DDP sees them all."""

from typing import NamedTuple

from torch import Tensor, nn

from agman.base import RetrievalModel
from agman.losses import LossWeights, ValueProxies, attribute_type_bce, cosine, triplet_ranking


class Losses(NamedTuple):
    """Scalars of one batch of triplets; the losses are means over it."""

    loss: Tensor
    loss_triplet: Tensor
    loss_class: Tensor
    """0 without branch 1."""
    loss_proxy: Tensor
    """0 without proxies."""
    correct: Tensor
    """Number of triplets with cos(I, I⁺) > cos(I, I⁻); a tie is wrong."""


class TripletObjective(nn.Module):
    """Equations 7-9 for a batch of triplets in one pass, so that batch norm sees all 3B images together.

    (The published code runs anchors, negatives and positives through the model one after the other.)
    Every parameter that requires a gradient gets one at every step. `proxies`, where given, add their loss
    times `proxy_weight`.
    """

    def __init__(
        self,
        model: RetrievalModel,
        margin: float = 0.2,
        loss_weights: LossWeights | None = None,
        proxies: ValueProxies | None = None,
        proxy_weight: float = 1.0,
    ):
        super().__init__()
        self.model = model
        self.margin = margin
        self.loss_weights = loss_weights or LossWeights()
        if not model.classify:
            self.loss_weights.requires_grad_(False)  # one loss: learned weights stay out of it
        self.proxies = proxies
        self.proxy_weight = proxy_weight

    def forward(self, images: Tensor, attributes: Tensor, values: Tensor | None = None) -> Losses:
        """images 3B×3×H×W: B anchors, then their positives, then their negatives; attributes B; values 3B.

        The values are those under the triplet's attribute, and only proxies need them.
        """
        if len(images) != 3 * len(attributes):
            raise ValueError(f"{len(attributes)} triplets need {3 * len(attributes)} images, not {len(images)}")
        attributes_i = attributes.repeat(3)
        embedding_id, logits_in = self.model(images, attributes_i)
        anchor_bd, positive_bd, negative_bd = embedding_id.chunk(3)
        similarity_positive_b = cosine(anchor_bd, positive_bd)
        similarity_negative_b = cosine(anchor_bd, negative_bd)

        loss_triplet = triplet_ranking(similarity_positive_b, similarity_negative_b, self.margin)
        loss_class = None if logits_in is None else attribute_type_bce(logits_in, attributes_i)
        loss = self.loss_weights(loss_triplet, loss_class)
        loss_proxy = loss_triplet.new_zeros(())
        if self.proxies is not None:
            if values is None:
                raise ValueError("proxies need the values of the images")
            loss_proxy = self.proxies(embedding_id, attributes_i, values)
            loss = loss + self.proxy_weight * loss_proxy
        return Losses(
            loss=loss,
            loss_triplet=loss_triplet,
            loss_class=loss_triplet.new_zeros(()) if loss_class is None else loss_class,
            loss_proxy=loss_proxy,
            correct=(similarity_positive_b > similarity_negative_b).sum(),
        )
