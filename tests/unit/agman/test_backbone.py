"""Backbones: where networks are cut, and how those without the needed maps are refused."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file

import agman
from agman.backbone import Backbone, MultiLevelBackbone

NETWORKS = {
    # name: channels of layer2, layer3 and layer4; whether maps are rounded up or down
    "tiny": (16, 32, 64, "up"),
    "resnet18": (128, 256, 512, "up"),
    "resnext50_32x4d": (512, 1024, 2048, "up"),
    "convnext_tiny": (192, 384, 768, "down"),
    "efficientnet_b0": (40, 112, 1280, "up"),
    "regnet_y_400mf": (104, 208, 440, "up"),
    "mobilenet_v3_small": (24, 48, 576, "up"),
    "shufflenet_v2_x0_5": (48, 96, 1024, "up"),
    "densenet121": (512, 1024, 1024, "mixed"),
    "vgg11_bn": (512, 512, 512, "down"),
}
SIZES = [(32, 32), (33, 64), (47, 97), (63, 80)]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_maps_of_every_size_agree(name):
    low_channels, channels, top_channels, rounded = NETWORKS[name]
    with torch.device("meta"):
        backbone = MultiLevelBackbone(name).eval()
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


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "densenet121"])
@torch.no_grad()
def test_fused_is_the_pooled_low_level_added_to_the_middle_one(name):
    """On 33×47 pixels, where DenseNet rounds its maps down and the pooling does not."""
    torch.manual_seed(1)
    backbone, images = MultiLevelBackbone(name).eval(), torch.randn(2, 3, 33, 47)
    layer2 = backbone.layer2(backbone.layer1(backbone.stem(images)))
    mid, fused = backbone(images)
    pooled = F.max_pool2d(layer2, 3, stride=2, padding=1)
    low = F.conv2d(pooled, backbone.low[1].weight, backbone.low[1].bias)[:, :, : mid.shape[2], : mid.shape[3]]
    assert torch.equal(mid, backbone.layer3(layer2))
    torch.testing.assert_close(fused, low + mid)


def torchvisions_layer3(network, name, images):
    """Return layer3's map as torchvision's own network computes it."""
    module = {
        "resnet18": lambda: network.layer3,
        "convnext_tiny": lambda: network.features[5],
        "mobilenet_v3_small": lambda: network.features[8],
        "shufflenet_v2_x0_5": lambda: network.stage3,
    }[name]()
    seen = []
    module.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    network(images)
    return seen[0]


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
@torch.no_grad()
def test_layer3_is_what_torchvisions_network_computes(name):
    torch.manual_seed(3)
    backbone = Backbone(name).eval()
    torch.manual_seed(3)
    network = torchvision.models.get_model(name, weights=None).eval()
    images = torch.randn(2, 3, 65, 96)
    assert torch.equal(backbone(images), torchvisions_layer3(network, name, images))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0"])
@torch.no_grad()
def test_all_stages_are_the_whole_network_but_its_head(name):
    images = torch.randn(2, 3, 64, 96)
    torch.manual_seed(1)
    backbone = Backbone(name, top=True).eval()
    torch.manual_seed(1)
    network = torchvision.models.get_model(name, weights=None).eval()
    whole = torch.nn.Sequential(*list(network.children())[:-2]) if name == "resnet18" else network.features
    stages = (backbone.stem, backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
    torch.testing.assert_close(torch.nn.Sequential(*stages)(images), whole(images))


@pytest.mark.parametrize("name", ["tiny", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_layer4_is_absent_without_branch_1(name):
    with torch.device("meta"):
        whole = set(MultiLevelBackbone(name).state_dict())
        without = MultiLevelBackbone(name, top=False)
        alone = set(Backbone(name).state_dict())
    of_branch_1 = {key for key in whole if key.startswith("layer4.")}
    assert set(without.state_dict()) == whole - of_branch_1
    assert alone == {key for key in whole - of_branch_1 if not key.startswith("low.")}
    with pytest.raises(AssertionError, match="top=False"):
        without.top(torch.zeros(1))


@pytest.mark.parametrize("name", ["tiny", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_a_new_backbone_is_in_training_mode_without_statistics(name):
    """Images run through the network to find its strides; batch norm must keep no statistics of them."""
    backbone = MultiLevelBackbone(name)
    assert all(module.training for module in backbone.modules())
    for key, tensor in backbone.state_dict().items():
        if key.endswith("num_batches_tracked") or key.endswith("running_mean"):
            assert (tensor == 0).all(), key


@pytest.mark.parametrize(
    "name", [name for name in NETWORKS if name not in ("vgg11_bn", "resnext50_32x4d", "convnext_tiny")]
)
def test_models_train_on_every_network(name):
    """Every parameter has a gradient, at image sizes that are rounded."""
    torch.manual_seed(1)
    objective = agman.TripletObjective(agman.build(n_attributes=3, embedding_dim=11, backbone=name))
    objective(torch.randn(6, 3, 47, 65), torch.tensor([2, 0])).loss.backward()
    trainable = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in trainable.values())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    network = torchvision.models.mobilenet_v3_small(num_classes=7)  # the head is not used, whatever its size
    path = tmp_path / f"mobilenet{suffix}"
    (torch.save if suffix == ".pth" else save_file)(network.state_dict(), path)
    backbone = Backbone("mobilenet_v3_small", path, top=True)
    ours = torch.nn.Sequential(backbone.stem, backbone.layer2, backbone.layer3, backbone.layer4).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), network.eval().features(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features.0.0.weight": torch.zeros(2, 3)},
            r"features\.0\.0\.weight: expected shape \(16, 3, 3, 3\), found \(2, 3",
        ),
        ({"features.0.0.weight": None}, r"features\.0\.0\.weight: expected shape \(16, 3, 3, 3\), found nothing"),
        ({"more": torch.zeros(2, 3)}, r"more: expected nothing, found shape \(2, 3\)"),
    ],
)
def test_the_first_difference_of_a_file_is_named(tmp_path, change, message):
    state = torchvision.models.mobilenet_v3_small().state_dict() | change
    path = tmp_path / "mobilenet.pth"
    torch.save({key: tensor for key, tensor in state.items() if tensor is not None}, path)
    with pytest.raises(ValueError, match=f"{path} does not hold this mobilenet_v3_small: {message}"):
        Backbone("mobilenet_v3_small", path)
    with torch.device("meta"), pytest.raises(ValueError, match=f"{path} does not hold this mobilenet_v3_small"):
        Backbone("mobilenet_v3_small", path)


@pytest.mark.filterwarnings("ignore:The default weight initialization of inception_v3")
@pytest.mark.parametrize("name", ["swin_t", "vit_b_16", "squeezenet1_0", "inception_v3", "alexnet"])
def test_networks_without_the_maps_are_refused_in_one_line(name):
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=f"^backbone '{name}' (is not a chain|has no feature)") as e,
    ):
        agman.build(n_attributes=3, backbone=name)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet20", "resnet50"), ("ResNet50", "resnet50"), ("convnext", "convnext_tiny"), ("b0", "")]
)
def test_unknown_networks_name_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"unknown backbone '{name}'; the nearest of torchvision's: .*{near}"):
        Backbone(name)


def test_weights_that_are_neither_file_nor_name():
    with pytest.raises(
        ValueError, match=r"weights 'V9': neither a file nor a name that convnext_tiny has \(IMAGENET1K_V1"
    ):
        Backbone("convnext_tiny", "V9")


def test_the_tiny_network_has_no_trained_weights():
    with pytest.raises(ValueError, match="backbone 'tiny' has no trained weights: weights must be None, not 'V1'"):
        Backbone("tiny", "V1")


def test_the_tiny_network_is_tiny():
    """Its five stages at their strides: 3·8·25 + 9·(8·8 + 8·16 + 16·32 + 32·64) weights, and batch norm's."""
    parameters = sum(p.numel() for p in Backbone("tiny", top=True).parameters())
    assert parameters == 600 + 9 * 2752 + 2 * (8 + 8 + 16 + 32 + 64)


def test_tiny_does_without_torchvision():
    script = """
import sys
import agman
agman.build(n_attributes=2, embedding_dim=16, backbone="tiny")
assert "torchvision" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
