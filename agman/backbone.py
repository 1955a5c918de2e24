"""The multi-level ResNet: low-level, mid-level and fused feature maps (paper, section 3.2).

Shape suffixes: B images, C channels, H, W the map's height and width (image size / 16, rounded up).
"""

from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torchvision
from torch import Tensor, nn

from agman.state import first_difference, read_tensors

BACKBONES = ("resnet18", "resnet34", "resnet50")


class Levels(NamedTuple):
    mid_bchw: Tensor
    fused_bchw: Tensor


class MultiLevelResNet(nn.Module):
    """torchvision's ResNet, with its layer2 fused into its layer3.

        low = conv1x1(maxpool(layer2)),   mid = layer3,   fused = low + mid

    The paper says "add the output of block 2 and block 3", which differ in size and width; the pooling and
    the convolution (with bias, no batch norm, no ReLU) that make them fit are those of the published code.
    `layer4` serves branch 1 alone, so it exists only with `top=True`.

    `weights`: a torchvision weights name, a file of a torchvision ResNet's state dict, or None (random).
    """

    def __init__(self, name: str = "resnet50", weights: str | PathLike[str] | None = None, top: bool = True):
        super().__init__()
        resnet = _torchvision_resnet(name, weights)
        expansion = resnet.fc.in_features // 512
        self.top_channels = 512 * expansion
        self.channels = 256 * expansion  # of mid, of low and of fused

        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.layer1 = resnet.layer1
        self.layer2 = resnet.layer2
        self.low = nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), nn.Conv2d(128 * expansion, self.channels, 1))
        self.layer3 = resnet.layer3
        self.layer4 = resnet.layer4 if top else None

    def forward(self, images_b3hw: Tensor) -> Levels:
        layer2 = self.layer2(self.layer1(self.stem(images_b3hw)))
        # Pooling and layer3's first convolution, both 3 wide, stride 2, padding 1, agree on every image size.
        mid = self.layer3(layer2)
        return Levels(mid, self.low(layer2) + mid)

    def top(self, fused_bchw: Tensor) -> Tensor:
        """Branch 1's feature: layer4 and a global average, B×top_channels."""
        assert self.layer4 is not None, "built with top=False"
        return self.layer4(fused_bchw).mean((2, 3))


def _torchvision_resnet(name: str, weights: str | PathLike[str] | None) -> torchvision.models.ResNet:
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; known: {', '.join(BACKBONES)}")
    if weights is None:
        return torchvision.models.get_model(name, weights=None)

    named = torchvision.models.get_model_weights(name).__members__
    if str(weights) in named:
        try:
            return torchvision.models.get_model(name, weights=str(weights))
        except OSError as error:
            raise OSError(f"cannot fetch {name}'s weights {weights} ({error}); a local file will do as well") from error

    path = Path(weights)
    if not path.is_file():
        raise ValueError(f"weights {str(weights)!r}: neither a file nor a name that {name} has ({', '.join(named)})")
    resnet = torchvision.models.get_model(name, weights=None)
    _load_all_but_fc(resnet, path)
    return resnet


def _load_all_but_fc(resnet: torchvision.models.ResNet, path: Path) -> None:
    expected = {key: tensor for key, tensor in resnet.state_dict().items() if not key.startswith("fc.")}
    # Files from before 2018 lack batch norm's step counters, which nothing reads at a fixed momentum.
    counters = {key: tensor for key, tensor in expected.items() if key.endswith("num_batches_tracked")}
    found = counters | {key: tensor for key, tensor in read_tensors(path).items() if not key.startswith("fc.")}
    difference = first_difference(expected, found)
    if difference:
        raise ValueError(f"{path} does not hold this ResNet: {difference}")
    resnet.load_state_dict(found, strict=False)
