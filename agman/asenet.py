"""ASENet: attribute-specific embedding network (Ma et al., AAAI 2020), the first public version.

Shape suffixes: B images, A attributes of each, N attributes known, D embedding width, C channels,
J width of the joint space, S positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agman.attention import sum_over_positions
from agman.backbone import Backbone
from agman.base import RetrievalModel
from agman.numerics import at_least_float32, unit
from agman.weights import Weights

JOINT = 512


class ASENet(RetrievalModel):
    """Attribute-aware spatial attention over the backbone's map x, then attribute-aware channel attention.

        map       = softmax_positions(tanh(v·(tanh(W_x x) * tanh(W_a a)) + b))        ASA, a one-hot
        x_s       = Σ_positions map·x
        gate      = σ(W_4 ReLU(W_3 [x_s, ReLU(W_2 a)]))                               ACA
        embedding = unit(W (gate * x_s))

    The outer tanh keeps a score within ±1, so no position counts more than e² times another: the second
    version (`ASENetV2`) dropped it.

    The arguments are those of `AGMAN`; the published width is 1024.
    """

    def __init__(
        self,
        n_attributes: int,
        embedding_dim: int = 1024,
        backbone: str = "resnet50",
        weights: Weights = None,
        stride: int = 16,
    ):
        super().__init__(n_attributes, embedding_dim, name="asenet", backbone=backbone)
        self.backbone = Backbone(backbone, weights, stride)
        channels = self.backbone.channels
        self.image = nn.Conv2d(channels, JOINT, 1)
        self.attribute = nn.Linear(n_attributes, JOINT, bias=False)
        self.score = nn.Linear(JOINT, 1)
        self.channel_attribute = nn.Linear(n_attributes, channels, bias=False)
        self.fc1 = nn.Linear(2 * channels, JOINT)
        self.fc2 = nn.Linear(JOINT, channels)
        self.project = nn.Linear(channels, embedding_dim)

    def maps(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the ASA map, B×A×S.

        The score's weights are multiplied with the attribute, v·(i * t) = (v * t)·i, so that i is computed once.
        """
        image_bjs = torch.tanh(self.image(x_bchw)).flatten(2)
        # A one-hot times a linear layer is one column of its weights.
        query_nj = torch.tanh(self.attribute.weight.T) * self.score.weight.flatten()
        score_bas = query_nj[attributes_ba] @ image_bjs + self.score.bias
        return torch.tanh(at_least_float32(score_bas)).softmax(-1)

    def embed(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the embeddings, B×A×D, unit length."""
        x_bac = sum_over_positions(self.maps(x_bchw, attributes_ba), x_bchw)
        attribute_bac = F.relu(self.channel_attribute.weight.T)[attributes_ba]
        hidden_baj = F.relu(self.fc1(torch.cat((x_bac, attribute_bac), dim=-1)))
        return unit(self.project(x_bac * torch.sigmoid(self.fc2(hidden_baj))))
