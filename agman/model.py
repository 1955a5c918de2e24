"""AG-MAN: attribute-guided multi-level attention network (Xiao & Yamasaki).

Shape suffixes:
    B images    A attributes asked of every image    N attributes known
    D embedding width    C channels    H, W height and width of the images or of the feature map
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agman.attention import MultiLevelAttention
from agman.backbone import Levels, MultiLevelBackbone
from agman.base import RetrievalModel
from agman.mask import MaskedEmbedding
from agman.numerics import at_least_float32, unit
from agman.weights import Weights

PARTS = ("multi_level", "asa", "sa", "aca", "mask")
"""Components that a model can be built without, besides branch 1."""


class AGMAN(RetrievalModel):
    """One embedding of an image for each attribute; the cosine of two is the similarity under that attribute.

        mid, fused = backbone(image)                                       section 3.2
        logits     = Linear(mean over positions of layer4(fused))           branch 1
        x          = conv1x1(w·[mid, fused])                               branch 2
        embedding  = unit(mask(ACA(Σ_positions SA(ASA(x, a)), a), a))      equations 1-6, section 3.4

    With 8 attributes and the other defaults it has the published code's 26,420,909 parameters.

    Args:
        n_attributes: number of attributes; they are counted from 0.
        embedding_dim: D, at least n_attributes.
        backbone: a ResNet as in the paper, or another network, see `Backbone`.
        weights: weights of the backbone: a tag such as "IMAGENET1K_V1", a file, "auto" or None, see `agman.weights`.
        stride: of the map mid: 16 as published, or 32, where low and mid are one stage deeper (layer3 and layer4 of a
            ResNet), and branch 1 has the average of fused.
        classify: whether there is branch 1. Without it, nothing behind mid exists (the paper's Zappos50k setting).
        sa_kernel: SA's kernel; 7 is the published code's, 1 the paper's.
        without: one of PARTS, for an ablation. That component and its parameters are removed:
            multi_level    only mid is used: x = conv1x1(w·mid), branch 1 sees layer4(mid)
            asa            the map is 1/S at every position, for every attribute; w1 is removed too
            sa             no gate: ASA alone weighs the positions
            aca            no gate: the sum over positions goes to the mask unchanged
            mask           no mask: only ASA and ACA tell attributes apart
    """

    backbone: MultiLevelBackbone

    def __init__(
        self,
        n_attributes: int,
        embedding_dim: int = 512,
        backbone: str = "resnet50",
        weights: Weights = None,
        stride: int = 16,
        classify: bool = True,
        sa_kernel: int = 7,
        without: str | None = None,
    ):
        if without is not None and without not in PARTS:
            raise ValueError(f"without must be one of {', '.join(PARTS)}, not {without!r}")
        super().__init__(
            n_attributes, embedding_dim, name="agman", backbone=backbone, classify=classify, sa_kernel=sa_kernel
        )
        if without is not None:
            self._config["without"] = without
        self.classify = classify
        mask = None
        if without != "mask":
            mask = MaskedEmbedding(n_attributes, embedding_dim)  # refuses a width below n_attributes
        levels = 1 if without == "multi_level" else 2
        self.backbone = MultiLevelBackbone(backbone, weights, stride, top=classify, fuse=levels == 2)
        self.classifier = nn.Linear(self.backbone.top_channels, n_attributes) if classify else None
        self.w = nn.Parameter(torch.ones(()))
        self.reduce = nn.Conv2d(levels * self.backbone.channels, embedding_dim, 1)
        self.multi_level = MultiLevelAttention(n_attributes, embedding_dim, sa_kernel, without)
        self.mask = mask

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return x of branch 2, B×D×H×W, and branch 1's logits, B×N, of B×3×H×W images."""
        levels = self.backbone(images)
        logits_bn = None
        if self.classifier is not None:
            logits_bn = at_least_float32(self.classifier(self.backbone.top(levels.fused_bchw)))
        return self._branch2(levels), logits_bn

    def features(self, images: Tensor) -> Tensor:
        """Return x of branch 2, B×D×H×W."""
        return self._branch2(self.backbone(images))

    def embed(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the embeddings, B×A×D, unit length."""
        x_bad = self.multi_level(x_bchw, attributes_ba)
        return unit(x_bad if self.mask is None else self.mask(x_bad, attributes_ba))

    def maps(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the ASA maps (equation 3, before w1), B×A×S."""
        return self.multi_level.map(x_bchw, attributes_ba)

    def _branch2(self, levels: Levels) -> Tensor:
        """Return x, B×D×H×W. The published code multiplies the input by w; multiplying the weights is the same."""
        x_bchw = torch.cat(levels, dim=1) if self.backbone.low is not None else levels.mid_bchw
        return F.conv2d(x_bchw, self.w * self.reduce.weight, self.reduce.bias)
