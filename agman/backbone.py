"""Backbones: a network as stages, and the multi-level feature maps made of them.

Shape suffixes: B images, C channels, H, W the map's height and width (image size / stride, rounded up).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agman.pixels import IMAGENET, Pixels
from agman.weights import Weights, cannot_be_had, choose, described, load_file, on_meta, require_answer

if TYPE_CHECKING:  # imported only where a network is built: it takes longer to import than PyTorch
    from torchvision.models import WeightsEnum

TINY = "tiny"  # the one backbone that is nobody else's
TINY_CHANNELS = (8, 8, 16, 32, 64)  # after the stem and each of the four stages
RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
"""The backbones that are torchvision's, as in the published code; all others are timm's."""
PUBLISHED_STRIDE, LAST_STRIDE = 16, 32
"""Strides in pixels of the map that a model attends over: as published, and of the last map of most networks."""
HEADS = ("fc",)  # the layers of a ResNet that turn a map into classes
PROBE = 64  # side in pixels of the blank image that shows how wide the maps are


class Levels(NamedTuple):
    """The two feature maps of a `MultiLevelBackbone`."""

    mid_bchw: Tensor
    fused_bchw: Tensor


class Backbone(nn.Module):
    """A network without its head, as stages.

    `name` is a ResNet of torchvision, as in the papers; any other network of timm with maps at 1/stride and
    2/stride of the image's size; or "tiny": one convolution for each stage, random weights only, for tests and quick
    tries.

    `stride` is that of the map that models attend over: 16 as published, or 32, the last one.

    A ResNet has the stages `stem` and `layer1` to `layer4`, which end at 1/4, 1/4, 1/8, 1/16 and 1/32. A network of
    timm has `body`, which ends at 1/stride and gives the map before as well, and `layer4`: the blocks behind it, see
    `agman.timm_network.cut`. With stride 16, `layer4` exists only with `top=True`; with 32 there is nothing more that
    `top` could add.

    `weights`: see `agman.weights`; `origin` says in words which they are. `pixels` says how pictures are resized and
    normalised for this network.

    Raises ValueError if the name or the weights are unknown, the stride is another, or the network has no such maps;
    OSError if the weights cannot be fetched or read.
    """

    def __init__(
        self, name: str = "resnet50", weights: Weights = None, stride: int = PUBLISHED_STRIDE, top: bool = False
    ):
        super().__init__()
        if stride not in (PUBLISHED_STRIDE, LAST_STRIDE):
            raise ValueError(f"stride must be {PUBLISHED_STRIDE} or {LAST_STRIDE}, not {stride}")
        self.name = name
        self.stride = stride
        self.origin: str | None
        self.pixels: Pixels
        self.body: Any = None
        self.checkpointing = False
        """Whether the backward pass computes activations again, see `checkpoint_gradients`."""
        self.one_stride = False
        """Whether the map low is as large as mid."""
        if name == TINY or name in RESNETS:
            stages, self.origin = (_tiny(weights), None) if name == TINY else _resnet(name, weights)
            self.pixels = IMAGENET
            self.stem, self.layer1, self.layer2, self.layer3 = stages[:4]
            self.layer4 = stages[4] if top or stride == LAST_STRIDE else None
        else:
            from agman.timm_network import cut

            self.body, self.layer4, self.one_stride, self.pixels, self.origin = cut(
                name, weights, stride, top and stride != LAST_STRIDE
            )
        self.low_channels, self.channels, self.top_channels = self._channels()

    def forward(self, images_b3hw: Tensor) -> Tensor:
        """Return the map mid, B×channels×H×W."""
        return self.maps(images_b3hw)[1]

    def maps(self, images_b3hw: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps low and mid: with stride 16 those of layer2 and layer3, with 32 of layer3 and layer4."""
        if self.body is not None:
            low_bchw, mid_bchw = self.body(images_b3hw)
            return low_bchw, mid_bchw
        low_bchw = self.layer2(self.layer1(self.stem(images_b3hw)))
        mid_bchw = self.layer3(low_bchw)
        if self.stride == PUBLISHED_STRIDE:
            return low_bchw, mid_bchw
        assert self.layer4 is not None
        return mid_bchw, self.layer4(mid_bchw)

    def top(self, x_bchw: Tensor) -> Tensor:
        """Return branch 1's feature, B×top_channels, of a map like mid: the average over positions of the last map."""
        if self.stride == LAST_STRIDE:
            return x_bchw.mean((2, 3))
        assert self.layer4 is not None, "built with top=False"
        if self.checkpointing and self.training:
            return checkpoint(self.layer4, x_bchw, use_reentrant=False).mean((2, 3))
        return self.layer4(x_bchw).mean((2, 3))

    def checkpoint_gradients(self) -> None:
        """Keep fewer activations for the backward pass, which computes them again: less memory, more time.

        Raises ValueError for a network that timm cannot do it with.
        """
        try:
            if self.body is None:
                raise ValueError("only networks of timm have it")
            self.body.network.set_grad_checkpointing(True)
        except (AssertionError, AttributeError, NotImplementedError, ValueError) as error:
            raise ValueError(f"gradient_checkpointing: not with backbone {self.name!r} ({error})") from error
        self.checkpointing = True

    def check_side(self, side: int) -> None:
        """Raise ValueError if the network cannot compute images of this side, e.g. because patches do not fit."""
        if self.body is not None:
            self.body.check_side(self.name, side)

    def _channels(self) -> tuple[int, int, int]:
        """Return the numbers of channels of the maps low, mid and last; the latter is 0 if there is none."""
        self.eval()  # batch norm's running statistics stay as they are
        with torch.no_grad():
            low_bchw, mid_bchw = self.maps(torch.zeros(1, 3, PROBE, PROBE))
            has_top = self.stride == LAST_STRIDE or self.layer4 is not None
            top_channels = self.top(mid_bchw).shape[1] if has_top else 0
        self.train()
        return low_bchw.shape[1], mid_bchw.shape[1], top_channels


class MultiLevelBackbone(Backbone):
    """A backbone with its map low fused into its map mid: layer2 and layer3 in the paper (section 3.2).

        fused = conv1x1(maxpool(low)) + mid

    The paper says "add the output of block 2 and block 3", which differ in size and width. The pooling and the
    convolution (with bias, no batch norm, no ReLU) that make them fit are those of the published code; maps of one
    size need no pooling. Only branch 1 uses `top`. With `fuse=False`, fused = mid.
    """

    def __init__(
        self,
        name: str = "resnet50",
        weights: Weights = None,
        stride: int = PUBLISHED_STRIDE,
        top: bool = True,
        fuse: bool = True,
    ):
        super().__init__(name, weights, stride, top)
        self.low = None
        if fuse:
            pool = nn.Identity() if self.one_stride else nn.MaxPool2d(3, stride=2, padding=1)
            self.low = nn.Sequential(pool, nn.Conv2d(self.low_channels, self.channels, kernel_size=1))

    def forward(self, images_b3hw: Tensor) -> Levels:  # type: ignore[override]
        """Return the maps mid and fused, both B×channels×H×W."""
        low, mid = self.maps(images_b3hw)
        if self.low is None:
            return Levels(mid, mid)
        # Pooling rounds sizes up, as a ResNet does. The maps of a network that rounds down are smaller.
        fitting = self.low(low)[..., : mid.shape[2], : mid.shape[3]]
        return Levels(mid, fitting + mid)


def _tiny(weights: Weights) -> list[nn.Module]:
    """Return the five stages of "tiny": 3×3 convolutions at a ResNet's strides, after a stem of stride 4."""
    if weights is not None:
        raise ValueError(f"backbone {TINY!r} has no trained weights: weights must be none, not {weights}")
    stages: list[nn.Module] = []
    in_channels = 3
    for channels, stride in zip(TINY_CHANNELS, (4, 1, 2, 2, 2), strict=True):
        kernel = 5 if stride == 4 else 3  # either rounds the map's size up, as a ResNet does
        convolution = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")  # keeps the size of the activations
        stages.append(nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)))
        in_channels = channels
    return stages


def _resnet(name: str, weights: Weights) -> tuple[list[nn.Module], str | None]:
    """Return torchvision's ResNet as its five stages, and where its weights are from.

    On the meta device, weights are only fetched or compared.
    """
    from torchvision import models

    named = models.get_model_weights(name).__members__
    chosen = choose(name, weights, list(named))
    network = models.get_model(name, weights=None)
    if isinstance(chosen, Path):
        load_file(network, name, chosen, HEADS)
    elif chosen is not None:
        try:
            state = _fetched(named[chosen])
        except Exception as error:  # whatever the libraries raise that fetch it
            raise cannot_be_had(name, chosen, error) from error
        if not on_meta():
            network.load_state_dict(state)
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    return [stem, network.layer1, network.layer2, network.layer3, network.layer4], described(chosen)


def _fetched(weights: WeightsEnum) -> Mapping[str, Any]:
    """Return torchvision's state dict, from torch's cache or fetched."""
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    if not file.is_file():
        require_answer(weights.url)
    return weights.get_state_dict(check_hash=True, map_location="meta" if on_meta() else "cpu")
