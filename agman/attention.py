"""Branch 2's multi-level attention: ASA, SA and ACA (paper, section 3.3, equations 1-6).

Shape suffixes:
    B images    A attributes asked of every image    N attributes known    D embedding width
    H, W the feature map's height and width          S = H·W its positions

ASA and SA multiply each position of the feature map x by one number, so the attended map s·x (B×A×D×H×W) is never
built. With s = w1·map:

    mean_c(s·x) = s · mean_c(x)        max_c(s·x) = s · max_c(x) for s >= 0, s · min_c(x) for s < 0
    Σ_positions s·gate·x = (s·gate) @ xᵀ,  one A×S by S×D product per image

So an image's features are computed once, and each further attribute costs small products only.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agman.numerics import at_least_float32


def sum_over_positions(weight_bas: Tensor, x_bchw: Tensor) -> Tensor:
    """Return Σ_positions weight·x, B×A×C: one A×S by S×C product for each image."""
    return weight_bas.to(x_bchw.dtype) @ x_bchw.flatten(2).transpose(1, 2)


def even_map(x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
    """Return the map of a model without spatial attention, B×A×S: 1/S everywhere."""
    positions = x_bchw.shape[2] * x_bchw.shape[3]
    return at_least_float32(x_bchw).new_full((*attributes_ba.shape, positions), 1 / positions)


class AttributeSpatialAttention(nn.Module):
    """ASA, equations 1-3: where in the image the attribute is.

        p(I) = tanh(BN(x))                          (1), x = Conv_c'(I), see below
        p(a) = σ(W_a a) * W_a a                     (2), W_a = Linear ∘ Embedding
        map  = softmax_positions(p(I)·p(a) / √D)    (3), times w1 to be the weight of each position

    Departures, as in the published code: the convolution of equation 1 also turns the backbone's channels into D;
    equation 3 weighs its output x rather than I; the product is divided by √D; W1, "a learned weight matrix", is a
    scalar.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.project = nn.Linear(width, width)
        self.w1 = nn.Parameter(torch.ones(()))

    def forward(self, x_bdhw: Tensor, embedding_nd: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the map B×A×S; every row sums to 1."""
        image_bds = torch.tanh(self.norm(x_bdhw)).flatten(2)  # (1)
        attribute_bad = F.silu(self.project(embedding_nd))[attributes_ba]  # (2): silu(v) = σ(v)·v
        score_bas = attribute_bad @ image_bds / math.sqrt(x_bdhw.shape[1])
        return at_least_float32(score_bas).softmax(-1)  # (3)


class SpatialAttention(nn.Module):
    """SA, equation 4: σ(Conv([Avg(I_s), Max(I_s)])), one gate per position.

    The default kernel is the published code's 7×7 (CBAM's); the paper's is 1×1.
    """

    def __init__(self, kernel: int = 7):
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"sa_kernel must be odd and positive, not {kernel}")
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, mean_bahw: Tensor, max_bahw: Tensor) -> Tensor:
        """Return the gates, B×A×S in (0, 1)."""
        pooled = torch.stack((mean_bahw, max_bahw), dim=2)
        return torch.sigmoid(self.conv(pooled.flatten(0, 1))).view(*mean_bahw.shape[:2], -1)


class AttributeChannelAttention(nn.Module):
    """ACA, equations 5 and 6: which channels matter for the attribute.

        q(a) = σ(W_a' a) * W_a' a                                   (5), W_a' = Linear' ∘ Embedding
        I_c  = I_s' * w2·σ(W_c2 ReLU(W_c1 [I_s', q(a)]))            (6)

    W2 is a scalar, and the L2 normalisation at the end of the model cancels it. Its gradient is zero but for rounding,
    which Adam would blow up into steps of full size: it is frozen, and kept so that published weights fit.
    """

    def __init__(self, width: int):
        super().__init__()
        self.project = nn.Linear(width, width)
        self.fc1 = nn.Linear(2 * width, width)
        self.fc2 = nn.Linear(width, width)
        self.w2 = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x_bad: Tensor, embedding_nd: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return I_c, B×A×D."""
        attribute_bad = F.silu(self.project(embedding_nd))[attributes_ba]  # (5)
        hidden_bad = F.relu(self.fc1(torch.cat((x_bad, attribute_bad), dim=-1)))
        return x_bad * (self.w2 * torch.sigmoid(self.fc2(hidden_bad)))  # (6)


class MultiLevelAttention(nn.Module):
    """ASA, then SA, then the sum over positions, then ACA. ASA and ACA share one attribute embedding.

    `without` removes one of them and its parameters; any other value removes none:

        "asa"    every position weighs 1/S, whatever the attribute; w1 is removed too
        "sa"     the gate of every position is 1
        "aca"    the sum over positions is the result
    """

    def __init__(self, n_attributes: int, width: int, sa_kernel: int = 7, without: str | None = None):
        super().__init__()
        self.embedding = nn.Embedding(n_attributes, width)
        self.asa = AttributeSpatialAttention(width) if without != "asa" else None
        self.sa = SpatialAttention(sa_kernel) if without != "sa" else None
        self.aca = AttributeChannelAttention(width) if without != "aca" else None

    def forward(self, x_bdhw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return every image's feature under each of its A attributes, B×A×D."""
        weight_bas = self.map(x_bdhw, attributes_ba)
        if self.asa is not None:
            weight_bas = self.asa.w1 * weight_bas
        if self.sa is not None:
            weight_bas = weight_bas * self.sa(*self._pooled_channels(x_bdhw, weight_bas))
        x_bad = sum_over_positions(weight_bas, x_bdhw)
        return x_bad if self.aca is None else self.aca(x_bad, self.embedding.weight, attributes_ba)

    def map(self, x_bdhw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the ASA map, B×A×S; without ASA, the even one."""
        if self.asa is None:
            return even_map(x_bdhw, attributes_ba)
        return self.asa(x_bdhw, self.embedding.weight, attributes_ba)

    def _pooled_channels(self, x_bdhw: Tensor, weight_bas: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and maximum over the channels of weight·x, each B×A×H×W, from those of x."""
        weight_bahw = weight_bas.unflatten(-1, x_bdhw.shape[2:])
        mean_b1hw = x_bdhw.mean(1, keepdim=True)
        min_b1hw, max_b1hw = torch.aminmax(x_bdhw, dim=1, keepdim=True)
        # The map is positive, so the sign of w1 decides whether the product's maximum is at x's maximum or minimum.
        peak_b1hw = max_b1hw if self.asa is None else torch.where(self.asa.w1 >= 0, max_b1hw, min_b1hw)
        return weight_bahw * mean_b1hw, weight_bahw * peak_b1hw
