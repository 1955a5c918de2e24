"""CSN: conditional similarity networks (Veit, Belongie & Karaletsos, CVPR 2017).

Shape suffixes: B images, A attributes of each, N attributes known, D embedding width, C channels, S positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agman.attention import even_map
from agman.backbone import Backbone
from agman.base import RetrievalModel
from agman.mask import MaskedEmbedding
from agman.numerics import unit
from agman.weights import Weights

MASKS = {"learned": "random", "fixed": "fixed"}


class CSN(RetrievalModel):
    """One embedding of the image, and a mask for each attribute.

        embedding = unit(m_a * Linear(mean over positions of backbone(image)))

    `backbone="resnet18", embedding_dim=64` is the original, meant for 112 px (its pooling was fixed to that);
    ResNet-50 and a wider embedding are the variant that the ASEN authors compare with; the papers' tables have it.
    The original compares the masked vectors, not scaled to unit length, by Euclidean distance: `masked` and
    `csn_loss` are for that. There is no attention: every position counts the same, and the maps are even.

    Args:
        n_attributes, embedding_dim, backbone, weights, stride: those of `AGMAN`.
        mask: "learned" from N(0.9, 0.7), or "fixed" disjoint blocks.
    """

    def __init__(
        self,
        n_attributes: int,
        embedding_dim: int = 1024,
        backbone: str = "resnet50",
        weights: Weights = None,
        stride: int = 16,
        mask: str = "learned",
    ):
        if mask not in MASKS:
            raise ValueError(f"mask must be one of {', '.join(MASKS)}, not {mask!r}")
        super().__init__(n_attributes, embedding_dim, name="csn", backbone=backbone, mask=mask)
        self.mask = MaskedEmbedding(n_attributes, embedding_dim, MASKS[mask])
        self.backbone = Backbone(backbone, weights, stride)
        self.project = nn.Linear(self.backbone.channels, embedding_dim)

    def embed(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the embeddings, B×A×D, unit length."""
        return unit(self.mask(self._general(x_bchw)[:, None], attributes_ba))

    def maps(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return even maps, B×A×S: positions are only averaged."""
        return even_map(x_bchw, attributes_ba)

    def masked(self, images: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the original's masked vector of each image under its attribute, and the general one; both B×D."""
        self.check(images, attributes)
        general_bd = self._general(self.features(images))
        return self.mask(general_bd[:, None], attributes[:, None])[:, 0], general_bd

    def _general(self, x_bchw: Tensor) -> Tensor:
        return self.project(x_bchw.mean((2, 3)))


def csn_loss(
    model: CSN,
    images: Tensor,
    attributes: Tensor,
    margin: float = 0.2,
    embedding_weight: float = 5e-3,
    mask_weight: float = 5e-4,
) -> Tensor:
    """Return the original's loss of B triplets: images 3B×3×H×W (anchors, positives, negatives), attributes B.

        max(0, d(I, I⁺) - d(I, I⁻) + margin) + 5e-3·‖f‖₂/√B + 5e-4·‖m_a‖₁/B

    with d the Euclidean distance of masked vectors, f the general ones. The norms are taken over the batches of
    anchors, of positives and of negatives, and averaged.

    Raises ValueError if there are not three images for each attribute.
    """
    if len(images) != 3 * len(attributes):
        raise ValueError(f"{len(attributes)} triplets need {3 * len(attributes)} images, not {len(images)}")
    masked, general = model.masked(images, attributes.repeat(3))
    anchor_bd, positive_bd, negative_bd = masked.chunk(3)
    closer_b = F.pairwise_distance(anchor_bd, positive_bd)
    farther_b = F.pairwise_distance(anchor_bd, negative_bd)
    triplets = len(attributes)
    norm = torch.stack([role.norm() for role in general.chunk(3)]).mean() / triplets**0.5
    mask_norm = F.relu(model.mask.beta)[attributes].sum() / triplets
    return F.relu(margin + closer_b - farther_b).mean() + embedding_weight * norm + mask_weight * mask_norm
