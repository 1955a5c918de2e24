"""ASENet_V2: the second public version of ASEN (Ma et al., AAAI 2020), the row of the paper's tables.

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


class ASENetV2(RetrievalModel):
    """Attribute-aware spatial attention over the backbone's map x, then attribute-aware channel attention.

        map       = softmax_positions(tanh(BN(W_x x))·tanh(W_1 e_a) / √512)           ASA, e_a an embedding
        x_s       = Σ_positions map·x
        gate      = σ(W_4 ReLU(W_3 [x_s, ReLU(W_2 e_a)]))                             ACA
        embedding = unit(gate * x_s)

    Args:
        n_attributes, backbone, weights, stride: those of `AGMAN`.
        embedding_dim: D. If None, the map's width C (1024 for ResNet-50), which needs no last layer.
        project: whether there is a last linear layer C to D, as in early public code. Always if D is not C.
    """

    def __init__(
        self,
        n_attributes: int,
        embedding_dim: int | None = None,
        backbone: str = "resnet50",
        weights: Weights = None,
        stride: int = 16,
        project: bool = False,
    ):
        trunk = Backbone(backbone, weights, stride)
        embedding_dim = trunk.channels if embedding_dim is None else embedding_dim
        project = project or embedding_dim != trunk.channels
        super().__init__(n_attributes, embedding_dim, name="asenet_v2", backbone=backbone, project=project)
        self.backbone = trunk
        self.embedding = nn.Embedding(n_attributes, JOINT)
        self.image = nn.Conv2d(trunk.channels, JOINT, 1)
        assert self.image.bias is not None
        self.image.bias.requires_grad_(False)  # batch norm removes it; published weights have it
        self.norm = nn.BatchNorm2d(JOINT)
        self.attribute = nn.Linear(JOINT, JOINT)
        self.channel_attribute = nn.Linear(JOINT, JOINT)
        self.fc1 = nn.Linear(trunk.channels + JOINT, JOINT)
        self.fc2 = nn.Linear(JOINT, trunk.channels)
        self.project = nn.Linear(trunk.channels, embedding_dim) if project else nn.Identity()

    def maps(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the ASA map, B×A×S."""
        image_bjs = torch.tanh(self.norm(self.image(x_bchw))).flatten(2)
        attribute_baj = torch.tanh(self.attribute(self.embedding.weight))[attributes_ba]
        return at_least_float32(attribute_baj @ image_bjs / math.sqrt(JOINT)).softmax(-1)

    def embed(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the embeddings, B×A×D, unit length."""
        x_bac = sum_over_positions(self.maps(x_bchw, attributes_ba), x_bchw)
        attribute_baj = F.relu(self.channel_attribute(self.embedding.weight))[attributes_ba]
        hidden_baj = F.relu(self.fc1(torch.cat((x_bac, attribute_baj), dim=-1)))
        return unit(self.project(x_bac * torch.sigmoid(self.fc2(hidden_baj))))
