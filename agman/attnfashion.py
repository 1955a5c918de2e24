"""AttnFashion (Wan, Yan, Yan & Zhang, J. Exp. Theor. Artif. Intell. 2022): an interpretation.

There is no public code, and the article's equations were not available. Sources of the interpretation:

- its title: "Learning attribute-guided fashion similarity with spatial and channel attention";
- AG-MAN's section 2.2: "Wan et al. proposed two attribute-aware attention modules as well", which "utilize a
  specific attribute as the extra input in addition to a given image".

Hence: attribute-guided spatial attention, then attribute-guided channel attention. Their forms are ours: scaled dot
products of a query (the attribute) with keys (the positions), and a squeeze and excitation (Hu et al., CVPR 2018)
whose squeezed vector is multiplied by the attribute. Results of this model say little about the published one.

Shape suffixes: B images, A attributes of each, N attributes known, D embedding width, C channels,
J width of the joint space, S positions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agman.attention import sum_over_positions
from agman.backbone import Backbone
from agman.base import RetrievalModel
from agman.numerics import at_least_float32, unit
from agman.weights import Weights

JOINT = 512


class AttnFashion(RetrievalModel):
    """Spatial, then channel attention over the backbone's map x, both guided by the attribute's embedding e_a.

        map       = softmax_positions((W_q e_a)·BN(W_k x) / √512)
        x_s       = Σ_positions map·x
        gate      = σ(W_2 ReLU(W_1 x_s * W_a e_a))
        embedding = unit(W (gate * x_s))

    The arguments are those of `AGMAN`; the width of 1024 is ASENet's.
    """

    def __init__(
        self,
        n_attributes: int,
        embedding_dim: int = 1024,
        backbone: str = "resnet50",
        weights: Weights = None,
        stride: int = 16,
    ):
        super().__init__(n_attributes, embedding_dim, name="attnfashion", backbone=backbone)
        self.backbone = Backbone(backbone, weights, stride)
        channels = self.backbone.channels
        self.embedding = nn.Embedding(n_attributes, JOINT)
        self.query = nn.Linear(JOINT, JOINT)
        # Batch norm would remove a bias of the keys, and the softmax removes batch norm's: its gradient is rounding
        # errors, which Adam would blow up into steps of full size.
        self.key = nn.Conv2d(channels, JOINT, 1, bias=False)
        self.norm = nn.BatchNorm2d(JOINT)
        self.norm.bias.requires_grad_(False)
        self.squeeze = nn.Linear(channels, JOINT)
        self.guide = nn.Linear(JOINT, JOINT)
        self.excite = nn.Linear(JOINT, channels)
        self.project = nn.Linear(channels, embedding_dim)

    def maps(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the spatial attention, B×A×S."""
        key_bjs = self.norm(self.key(x_bchw)).flatten(2)
        query_baj = self.query(self.embedding.weight)[attributes_ba]
        return at_least_float32(query_baj @ key_bjs / math.sqrt(JOINT)).softmax(-1)

    def embed(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the embeddings, B×A×D, unit length."""
        x_bac = sum_over_positions(self.maps(x_bchw, attributes_ba), x_bchw)
        guide_baj = self.guide(self.embedding.weight)[attributes_ba]
        gate_bac = torch.sigmoid(self.excite(F.relu(self.squeeze(x_bac) * guide_baj)))
        return unit(self.project(gate_bac * x_bac))
