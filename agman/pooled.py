"""The backbone's features alone: what every learned system has to beat.

Shape suffixes: B images, A attributes of each, C channels, S positions.
"""

from torch import Tensor

from agman.attention import even_map
from agman.backbone import Backbone
from agman.base import RetrievalModel
from agman.numerics import unit
from agman.weights import Weights


class PooledFeatures(RetrievalModel):
    """The average over positions of the backbone's last map, of unit length, the same under every attribute.

    Nothing is learned, so it is not among the models that can be trained. Its embedding is as wide as that map.

    Args:
        n_attributes, backbone, weights: those of `AGMAN`.
    """

    def __init__(self, n_attributes: int, backbone: str = "resnet50", weights: Weights = None):
        network = Backbone(backbone, weights, top=True)
        super().__init__(n_attributes, network.top_channels, name="pooled", backbone=backbone)
        self.backbone = network.requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Return the last map's average, B×C×1×1."""
        return self.backbone.top(self.backbone(images))[..., None, None]

    def embed(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the embeddings, B×A×C, unit length."""
        return unit(x_bchw.flatten(1))[:, None].expand(-1, attributes_ba.shape[1], -1)

    def maps(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return even maps, B×A×S: positions are only averaged."""
        return even_map(x_bchw, attributes_ba)
