"""AG-MAN: attribute-guided multi-level attention network (Xiao & Yamasaki).

Shape suffixes:
    B images    A attributes asked of every image    N attributes known
    D embedding width    C channels    H, W height and width of the images or of the feature map
"""

from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agman.attention import MultiLevelAttention
from agman.backbone import MultiLevelResNet
from agman.base import Output, RetrievalModel, check_images
from agman.mask import MaskedEmbedding
from agman.numerics import at_least_float32, unit


class AGMAN(RetrievalModel):
    """One embedding of an image for each attribute; the cosine of two is the similarity under that attribute.

        mid, fused = backbone(image)                                       section 3.2
        logits     = Linear(layer4(fused))                                 branch 1
        x          = conv1x1(w·[mid, fused])                               branch 2
        embedding  = unit(mask(ACA(Σ_positions SA(ASA(x, a)), a), a))      equations 1-6, section 3.4

    With 8 attributes and the other defaults it has the published code's 26,420,909 parameters.

    Args:
        n_attributes: how many attributes there are; they are numbered from 0.
        embedding_dim: D, at least n_attributes.
        backbone: resnet18, resnet34 or resnet50.
        weights: the backbone's: a torchvision name such as "IMAGENET1K_V1", a file, or None (random).
        classify: with branch 1. Without it, layer4 does not exist (the paper's Zappos50k setting).
        sa_kernel: SA's kernel; 7 is the published code's, 1 the paper's.
    """

    def __init__(
        self,
        n_attributes: int,
        embedding_dim: int = 512,
        backbone: str = "resnet50",
        weights: str | PathLike[str] | None = None,
        classify: bool = True,
        sa_kernel: int = 7,
    ):
        super().__init__()
        if n_attributes < 1:
            raise ValueError(f"n_attributes must be at least 1, not {n_attributes}")
        self.config = {
            "name": "agman",
            "n_attributes": n_attributes,
            "embedding_dim": embedding_dim,
            "backbone": backbone,
            "classify": classify,
            "sa_kernel": sa_kernel,
        }
        self.n_attributes = n_attributes
        self.embedding_dim = embedding_dim
        self.classify = classify

        mask = MaskedEmbedding(n_attributes, embedding_dim)  # refuses a width below n_attributes
        self.backbone = MultiLevelResNet(backbone, weights, top=classify)
        self.classifier = nn.Linear(self.backbone.top_channels, n_attributes) if classify else None
        self.w = nn.Parameter(torch.ones(()))
        self.reduce = nn.Conv2d(2 * self.backbone.channels, embedding_dim, 1)
        self.multi_level = MultiLevelAttention(n_attributes, embedding_dim, sa_kernel)
        self.mask = mask

    def forward(self, images: Tensor, attributes: Tensor) -> Output:
        """Embeddings B×D and logits B×N of B×3×H×W images, each under its own one of B attributes."""
        self.check(images, attributes)
        mid_bchw, fused_bchw = self.backbone(images)
        embedding_bad = self._embed(self._branch2(mid_bchw, fused_bchw), attributes[:, None])
        logits_bn = None
        if self.classifier is not None:
            logits_bn = at_least_float32(self.classifier(self.backbone.top(fused_bchw)))
        return Output(embedding_bad[:, 0], logits_bn)

    def embed_all(self, images: Tensor) -> Tensor:
        """B×N×D: every image under every attribute, from one pass through the backbone."""
        check_images(images)
        x_bdhw = self._branch2(*self.backbone(images))
        attributes_bn = torch.arange(self.n_attributes, device=images.device).expand(len(images), -1)
        return self._embed(x_bdhw, attributes_bn)

    def attention(self, images: Tensor, attributes: Tensor) -> Tensor:
        """The ASA maps B×H×W (equation 3, before w1) of B images under their attributes; each sums to 1."""
        self.check(images, attributes)
        x_bdhw = self._branch2(*self.backbone(images))
        return self.multi_level.map(x_bdhw, attributes[:, None])[:, 0].unflatten(-1, x_bdhw.shape[2:])

    def _branch2(self, mid_bchw: Tensor, fused_bchw: Tensor) -> Tensor:
        """x, B×D×H×W. The published code multiplies the input by w; multiplying the weights is the same."""
        both = torch.cat((mid_bchw, fused_bchw), dim=1)
        return F.conv2d(both, self.w * self.reduce.weight, self.reduce.bias)

    def _embed(self, x_bdhw: Tensor, attributes_ba: Tensor) -> Tensor:
        """B×A×D, unit length."""
        return unit(self.mask(self.multi_level(x_bdhw, attributes_ba), attributes_ba))
