"""Backbones: a torchvision network as five stages, and the multi-level feature maps made of them.

Shape suffixes: B images, C channels, H, W the map's height and width (image size / 16, rounded up).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from agman.state import first_difference, read_tensors

if TYPE_CHECKING:  # imported only where a network is built: it takes longer to import than PyTorch
    from torchvision.models import ResNet

TINY = "tiny"  # the one backbone that is not torchvision's
TINY_CHANNELS = (8, 8, 16, 32, 64)  # after the stem and each of the four stages
PROBE = 64  # side in pixels of the blank image that shows where a network's strides change
HEADS = ("avgpool", "classifier", "fc")  # the layers of torchvision's networks that turn a map into classes


class Levels(NamedTuple):
    """The two feature maps of a `MultiLevelBackbone`."""

    mid_bchw: Tensor
    fused_bchw: Tensor


class Backbone(nn.Module):
    """A convolutional network, cut into the stages of a ResNet.

    `name` is a network of torchvision, which loses its head, or "tiny": one convolution for each stage, random
    weights only, for tests and quick tries.

    `stem` and `layer1` end at 1/4 of the image's size, `layer2` at 1/8, `layer3` at 1/16, `layer4` at 1/32.
    A ResNet has stages of these names. Any other convolutional network of torchvision (ConvNeXt, EfficientNet, RegNet,
    MobileNet, DenseNet, VGG ...) is cut where its maps shrink, with `layer1` left empty. `layer4` exists only with
    `top=True`.

    `weights` is a torchvision weights name, a file of this network's state dict, or None (random).

    Raises ValueError if the name or the weights are unknown, or the network has no maps at 1/8, 1/16 and 1/32.
    """

    def __init__(self, name: str = "resnet50", weights: str | PathLike[str] | None = None, top: bool = False):
        super().__init__()
        stages = _tiny_stages(weights) if name == TINY else _torchvision_stages(name, weights)
        self.stem, self.layer1, self.layer2, self.layer3 = stages[:4]
        self.layer4 = stages[4] if top else None
        self.low_channels, self.channels, self.top_channels = _channels(stages)

    def forward(self, images_b3hw: Tensor) -> Tensor:
        """Return layer3's map, B×channels×H×W."""
        return self.layer3(self.layer2(self.layer1(self.stem(images_b3hw))))


class MultiLevelBackbone(Backbone):
    """A backbone with its layer2 fused into its layer3 (paper, section 3.2).

        low = conv1x1(maxpool(layer2)),   mid = layer3,   fused = low + mid

    The paper says "add the output of block 2 and block 3", which differ in size and width. The pooling and the
    convolution (with bias, no batch norm, no ReLU) that make them fit are those of the published code. Only branch 1
    uses `layer4`. With `fuse=False` there is no `low`, and fused = mid.
    """

    def __init__(
        self,
        name: str = "resnet50",
        weights: str | PathLike[str] | None = None,
        top: bool = True,
        fuse: bool = True,
    ):
        super().__init__(name, weights, top)
        self.low = None
        if fuse:
            self.low = nn.Sequential(
                nn.MaxPool2d(3, stride=2, padding=1), nn.Conv2d(self.low_channels, self.channels, kernel_size=1)
            )

    def forward(self, images_b3hw: Tensor) -> Levels:  # type: ignore[override]
        """Return layer3's map and the fused one, both B×channels×H×W."""
        layer2 = self.layer2(self.layer1(self.stem(images_b3hw)))
        mid = self.layer3(layer2)
        if self.low is None:
            return Levels(mid, mid)
        # Pooling rounds sizes up, as a ResNet does. The maps of a network that rounds down are smaller.
        low = self.low(layer2)[..., : mid.shape[2], : mid.shape[3]]
        return Levels(mid, low + mid)

    def top(self, fused_bchw: Tensor) -> Tensor:
        """Return branch 1's feature, the global average of layer4's map: B×top_channels."""
        assert self.layer4 is not None, "built with top=False"
        return self.layer4(fused_bchw).mean((2, 3))


def _tiny_stages(weights: str | PathLike[str] | None) -> list[nn.Module]:
    """Return the five stages of "tiny": 3×3 convolutions at a ResNet's strides, after a stem of stride 4."""
    if weights is not None:
        raise ValueError(f"backbone {TINY!r} has no trained weights: weights must be None, not {str(weights)!r}")
    stages: list[nn.Module] = []
    in_channels = 3
    for channels, stride in zip(TINY_CHANNELS, (4, 1, 2, 2, 2), strict=True):
        kernel = 5 if stride == 4 else 3  # either rounds the map's size up, as a ResNet does
        convolution = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")  # keeps the size of the activations
        stages.append(nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)))
        in_channels = channels
    return stages


def _torchvision_stages(name: str, weights: str | PathLike[str] | None) -> list[nn.Module]:
    from torchvision.models import ResNet

    network = _torchvision_network(name, weights)
    if isinstance(network, ResNet):
        return _resnet_stages(network)
    return _stages_by_stride(name, network)


def _resnet_stages(network: ResNet) -> list[nn.Module]:
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    return [stem, network.layer1, network.layer2, network.layer3, network.layer4]


def _stages_by_stride(name: str, network: nn.Module) -> list[nn.Module]:
    """Return the network's blocks, grouped by the size of their outputs: stem, (empty), layer2, layer3, layer4."""
    of_stride: dict[int, list[nn.Module]] = {4: [], 8: [], 16: [], 32: []}
    x = torch.zeros(1, 3, PROBE, PROBE)
    with torch.no_grad():
        for block in _blocks(network.eval()):
            try:
                x = block(x)
                stride = PROBE // x.shape[2] if x.shape[2] == x.shape[3] else 0
                of_stride[max(stride, 4)].append(block)
            except (AssertionError, IndexError, KeyError, RuntimeError) as error:
                raise ValueError(f"backbone {name!r} is not a chain of blocks with maps B×C×H×W") from error
    if not all(of_stride.values()):
        raise ValueError(f"backbone {name!r} has no feature maps at 1/8, 1/16 and 1/32 of the image's size")
    stem, layer2, layer3, layer4 = (nn.Sequential(*blocks) for blocks in of_stride.values())
    return [stem, nn.Sequential(), layer2, layer3, layer4]


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks before the head, in order; the network's containers are opened."""
    for name, child in network.named_children():
        if name in HEADS:
            return
        yield from child if isinstance(child, nn.Sequential) else [child]


def _channels(stages: list[nn.Module]) -> list[int]:
    """Return the numbers of channels after layer2, layer3 and layer4."""
    channels = []
    x = torch.zeros(1, 3, PROBE, PROBE)
    with torch.no_grad():
        for stage in stages:
            x = stage.eval()(x)  # batch norm's running statistics stay as they are
            channels.append(x.shape[1])
            stage.train()
    return channels[2:]


def _torchvision_network(name: str, weights: str | PathLike[str] | None) -> nn.Module:
    """Return torchvision's network. On the meta device, weights are fetched or compared, but not loaded."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
        raise ValueError(f"unknown backbone {name!r}; the nearest of torchvision's: {', '.join(near)}")
    if weights is None:
        return _random_network(name)

    named = models.get_model_weights(name).__members__
    if str(weights) in named:
        try:
            if not _on_meta():
                return models.get_model(name, weights=str(weights))
            named[str(weights)].get_state_dict(check_hash=True, map_location="meta")
        except OSError as error:
            raise OSError(f"cannot fetch {name}'s weights {weights} ({error}); a local file will do as well") from error
        return _random_network(name)

    path = Path(weights)
    if not path.is_file():
        raise ValueError(f"weights {str(weights)!r}: neither a file nor a name that {name} has ({', '.join(named)})")
    network = _random_network(name)
    _load_all_but_head(network, name, path)
    return network


def _on_meta() -> bool:
    return torch.get_default_device().type == "meta"


def _random_network(name: str) -> nn.Module:
    """Return torchvision's network with random weights, on the default device."""
    from torchvision import models

    if not name.startswith("regnet"):
        return models.get_model(name, weights=None)
    with torch.device("cpu"):  # torchvision computes a RegNet's widths with tensors, and reads their values
        network = models.get_model(name, weights=None)
    return network.to(torch.get_default_device())


def _load_all_but_head(network: nn.Module, name: str, path: Path) -> None:
    heads = tuple(f"{head}." for head in HEADS)
    expected = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith(heads)}
    # Files from before 2018 lack batch norm's step counters, which nothing reads at a fixed momentum.
    counters = {key: tensor for key, tensor in expected.items() if key.endswith("num_batches_tracked")}
    found = counters | {key: tensor for key, tensor in read_tensors(path).items() if not key.startswith(heads)}
    difference = first_difference(expected, found)
    if difference:
        raise ValueError(f"{path} does not hold this {name}: {difference}")
    if not _on_meta():
        network.load_state_dict(found, strict=False)
