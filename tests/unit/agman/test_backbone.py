"""Backbones: where networks are cut, and how those without the needed maps are refused."""

import subprocess
import sys
from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision

import agman
from agman.backbone import Backbone, MultiLevelBackbone

NETWORKS = {
    # name: channels of the maps at 1/8, 1/16 and 1/32; whether maps are rounded up or down
    "tiny": (16, 32, 64, "up"),
    "resnet18": (128, 256, 512, "up"),
    "resnext50_32x4d": (512, 1024, 2048, "up"),
    "tf_efficientnet_lite0": (40, 112, 320, "up"),
    "convnext_atto": (80, 160, 320, "down"),
    "vit_tiny_patch16_224": (192, 192, 192, "up"),
    "regnety_004": (104, 208, 440, "up"),
    "mobilenetv3_small_050": (16, 24, 288, "up"),
    "densenet121": (512, 1024, 1024, "mixed"),
}
FEW = ["tiny", "resnet18", "tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"]
SIZES = [(32, 97), (33, 80), (63, 47)]


@cache
def on_meta(name):
    """Return a network without memory for its weights, which several tests look at."""
    with torch.device("meta"):
        return MultiLevelBackbone(name).eval()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_maps_of_every_size_agree(name):
    low_channels, channels, top_channels, rounded = NETWORKS[name]
    with torch.device("meta"):
        backbone = on_meta(name)
        assert (backbone.low_channels, backbone.channels) == (low_channels, channels)
        for height, width in SIZES:
            mid, fused = backbone(torch.zeros(2, 3, height, width))
            assert mid.shape == fused.shape and mid.shape[:2] == (2, channels)
            up, down = (-(-height // 16), -(-width // 16)), (height // 16, width // 16)
            if rounded == "mixed":
                assert all(low <= size <= high for low, size, high in zip(down, mid.shape[2:], up, strict=True))
            else:
                assert mid.shape[2:] == (up if rounded == "up" else down)
            assert backbone.top(fused).shape == (2, top_channels) == (2, backbone.top_channels)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "densenet121", "vit_tiny_patch16_224"])
@torch.no_grad()
def test_fused_is_the_pooled_low_level_added_to_the_middle_one(name):
    """On 33×47 pixels, where DenseNet rounds its maps down and the pooling does not; a ViT's maps need no pooling."""
    torch.manual_seed(1)
    backbone, images = MultiLevelBackbone(name).eval(), torch.randn(2, 3, 33, 47)
    first, second = backbone.maps(images)
    mid, fused = backbone(images)
    pooled = first if name.startswith("vit") else F.max_pool2d(first, 3, stride=2, padding=1)
    low = F.conv2d(pooled, backbone.low[1].weight, backbone.low[1].bias)[:, :, : mid.shape[2], : mid.shape[3]]
    assert torch.equal(mid, second)
    torch.testing.assert_close(fused, low + mid)


@torch.no_grad()
def test_layer3_is_what_torchvisions_resnet_computes():
    torch.manual_seed(3)
    backbone = Backbone("resnet18").eval()
    torch.manual_seed(3)
    network = torchvision.models.get_model("resnet18", weights=None).eval()
    seen = []
    network.layer3.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    images = torch.randn(2, 3, 65, 96)
    network(images)
    assert torch.equal(backbone(images), seen[0])


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("tf_efficientnet_lite0", [2, 3, 4]),
        ("convnext_atto", [1, 2, 3]),
        ("regnety_004", [2, 3, 4]),
        ("densenet121", [2, 3, 4]),
        ("swin_tiny_patch4_window7_224", [1, 2, 3]),
    ],
)
@torch.no_grad()
def test_the_maps_are_those_of_timm_and_all_stages_the_whole_network(name, last):
    """Maps at 1/8, 1/16, 1/32 of random pictures; the last stage, cut off, computes the same from the map at 1/16."""
    torch.manual_seed(1)
    backbone = Backbone(name, top=True).eval()
    torch.manual_seed(1)
    options = {"strict_img_size": False, "dynamic_img_size": True} if name.startswith("swin") else {}
    network = timm.create_model(name, num_classes=0, **options).eval()
    images = torch.randn(2, 3, 64, 96)
    expected = network.forward_intermediates(images, indices=last, intermediates_only=True)
    low, mid = backbone.maps(images)
    for ours, theirs in zip((low, mid, backbone.layer4(mid)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_a_plain_transformer_gives_maps_after_half_and_three_quarters_of_its_blocks():
    """The remaining blocks, on the patches alone, are branch 1's."""
    torch.manual_seed(1)
    backbone = Backbone("vit_tiny_patch16_224", top=True).eval()
    torch.manual_seed(1)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    images = torch.randn(2, 3, 64, 96)
    low, mid = backbone.maps(images)
    expected = network.forward_intermediates(images, indices=[5, 8], intermediates_only=True)
    torch.testing.assert_close([low, mid], expected)
    last = network.blocks[9:](mid.flatten(2).transpose(1, 2)).mean(1)
    torch.testing.assert_close(backbone.top(mid), last)
    torch.manual_seed(1)
    deep = Backbone("vit_tiny_patch16_224", stride=32).eval()
    expected = network.forward_intermediates(images, indices=[8, 11], intermediates_only=True)
    torch.testing.assert_close(list(deep.maps(images)), expected)


@pytest.mark.parametrize("name", FEW[:-1])
@torch.no_grad()
def test_with_stride_32_the_maps_are_one_stage_deeper(name):
    """The last stage is part of the network then, and branch 1 takes the average of its map."""
    images = torch.randn(2, 3, 64, 96)
    torch.manual_seed(1)
    whole = Backbone(name, top=True).eval()
    torch.manual_seed(1)
    deep = Backbone(name, stride=32).eval()
    low, mid = deep.maps(images)
    torch.testing.assert_close(low, whole.maps(images)[1])
    torch.testing.assert_close(mid, whole.layer4(low))
    torch.testing.assert_close(deep.top(mid), mid.mean((2, 3)))
    assert deep.channels == deep.top_channels == mid.shape[1]


def test_another_stride_is_refused():
    with pytest.raises(ValueError, match="stride must be 16 or 32, not 8"):
        Backbone("tiny", stride=8)


@pytest.mark.parametrize("name", FEW)
def test_layer4_is_absent_without_branch_1(name):
    whole = set(on_meta(name).state_dict())
    with torch.device("meta"):
        without = MultiLevelBackbone(name, top=False)
        alone = set(Backbone(name).state_dict())
    of_branch_1 = {key for key in whole if key.startswith("layer4.")}
    assert of_branch_1 and set(without.state_dict()) == whole - of_branch_1
    assert alone == {key for key in whole - of_branch_1 if not key.startswith("low.")}
    with pytest.raises(AssertionError, match="top=False"):
        without.top(torch.zeros(1))


@pytest.mark.parametrize("name", FEW)
def test_a_new_backbone_is_in_training_mode_without_statistics(name):
    """A blank image runs through the network; batch norm must keep no statistics of it."""
    backbone = MultiLevelBackbone(name)
    assert all(module.training for module in backbone.modules())
    for key, tensor in backbone.state_dict().items():
        if key.endswith("num_batches_tracked") or key.endswith("running_mean"):
            assert (tensor == 0).all(), key


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("resnext50_32x4d", "densenet121")])
def test_agman_trains_on_every_network(name):
    """Every parameter has a gradient, at image sizes that are rounded."""
    torch.manual_seed(1)
    objective = agman.TripletObjective(agman.build(n_attributes=3, embedding_dim=11, backbone=name))
    objective(torch.randn(6, 3, 47, 65), torch.tensor([2, 0])).loss.backward()
    trainable = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in trainable.values())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("levit_128", "has maps at 1/16, 1/32, 1/64 of the image's size; 1/8 and 1/16 are needed"),
        ("vit_tiny_patch16_224.augreg_in21k", r"names its weights: .* weights=augreg_in21k"),
        ("beit_base_patch16_224", r"does not take images of 64 px \(.*\); models take images of many sizes"),
        ("twins_pcpvt_small", "has no last stage that can be cut off for branch 1: take classify=false"),
        ("nest_tiny", "has no map at 1/32 of the image's size for branch 1: take classify=false"),
    ],
)
def test_networks_without_the_maps_are_refused_in_one_line(name, reason):
    with torch.device("meta"), pytest.raises(ValueError, match=f"^backbone '{name}' {reason}") as e:
        agman.build(n_attributes=3, backbone=name)
    assert "\n" not in str(e.value)


def test_without_branch_1_no_last_stage_is_needed():
    with torch.device("meta"):
        agman.build(n_attributes=3, backbone="twins_pcpvt_small", classify=False)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet20", "resnet50"), ("ResNet50", "resnet50"), ("convnext", "convnext_tiny"), ("b0", "")]
)
def test_unknown_networks_name_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"unknown backbone '{name}'; the nearest of timm's: .*{near}"):
        Backbone(name)


def test_the_tiny_network_is_tiny():
    """Its five stages at their strides: 3·8·25 + 9·(8·8 + 8·16 + 16·32 + 32·64) weights, and batch norm's."""
    parameters = sum(p.numel() for p in Backbone("tiny", top=True).parameters())
    assert parameters == 600 + 9 * 2752 + 2 * (8 + 8 + 16 + 32 + 64)


def test_tiny_does_without_torchvision_and_timm():
    script = """
import sys
import agman
agman.build(n_attributes=2, embedding_dim=16, backbone="tiny")
assert not {"torchvision", "timm"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
