"""Published checkpoints as the MODEL of commands, on a prepared dataset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from support.commands import agman_exit_code
from support.datasets import prepare_small
from support.pages import read_page, text

import agman
from agman.pixels import IMAGENET
from data_prep.dataset import Dataset, ImageStore
from pipeline.evaluation import evaluate as evaluation
from pipeline.registry.loading import load


@pytest.fixture(scope="module")
def dataset(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare_small(drawn, tmp_path_factory.mktemp("published") / "out", image_size=112)


def original_csn(file: Path, n_attributes: int) -> Path:
    """Write a file like CSN's published code: a ResNet-18 without layer4, a linear layer, masks."""
    torch.manual_seed(3)
    resnet = torchvision.models.resnet18(weights=None).state_dict()
    state = {f"embeddingnet.embeddingnet.{key}": value for key, value in resnet.items() if key[:2] not in ("fc", "la")}
    for layer in ("layer1", "layer2", "layer3"):
        state |= {f"embeddingnet.embeddingnet.{key}": value for key, value in resnet.items() if key.startswith(layer)}
    state["embeddingnet.embeddingnet.fc_embed.weight"] = torch.randn(64, 256)
    state["embeddingnet.embeddingnet.fc_embed.bias"] = torch.randn(64)
    state["embeddingnet.masks.weight"] = torch.randn(n_attributes, 64) + 0.9
    torch.save({"epoch": 7, "state_dict": state, "best_prec1": 0.87}, file)
    return file


def test_evaluate_and_report_take_a_published_checkpoint(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = original_csn(tmp_path / "model_best.pth.tar", n_attributes=8)
    assert agman_exit_code("evaluate", str(file), "--data", str(dataset.path), "--json") == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < figures["test/map"] < 1

    assert agman_exit_code("report", str(file), "--data", str(dataset.path), "--out", "page.html") == 0
    page = text(read_page(tmp_path / "page.html"))
    assert "agman evaluate" in page and "agman train" not in page


def test_export_takes_a_published_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = original_csn(tmp_path / "csn.pth.tar", n_attributes=3)
    assert agman_exit_code("export", str(file), "--out", str(tmp_path / "exported")) == 0
    model, description = agman.load_model(tmp_path / "exported")
    images = torch.randn(2, 3, 112, 112)
    assert torch.equal(model.embed_all(images), agman.load_published(file).embed_all(images))
    assert description["attributes"] == ["attribute_0", "attribute_1", "attribute_2"]
    assert sorted(path.name for path in (tmp_path / "exported").iterdir()) == [
        "embed_all.onnx",
        "embed_all.pt2",
        "inference.py",
        "model.json",
        "model.safetensors",
    ]


def test_another_number_of_attributes_is_one_line(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = original_csn(tmp_path / "zappos.pth.tar", n_attributes=4)
    assert agman_exit_code("evaluate", str(file), "--data", str(dataset.path)) == 2
    assert "for 4 attributes, but the dataset has 8" in capsys.readouterr().err


def test_pictures_too_small_for_the_published_model_are_one_line(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = prepare_small(drawn, tmp_path / "out", image_size=64)
    file = original_csn(tmp_path / "csn.pth.tar", n_attributes=8)
    assert agman_exit_code("evaluate", str(file), "--data", str(small.path)) == 2
    assert "holds images of 64 px, and the model takes 112 px" in capsys.readouterr().err


def test_a_missing_file_is_one_line(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert agman_exit_code("evaluate", "nowhere.pth.tar", "--data", str(dataset.path)) == 2
    assert capsys.readouterr().err.strip() == "agman: nowhere.pth.tar: no such file"


def test_the_embeddings_are_the_published_ones(dataset: Dataset, tmp_path: Path) -> None:
    file = original_csn(tmp_path / "csn.pth.tar", n_attributes=8)
    network, description = load(str(file), dataset.info.attribute_names)
    scored = evaluation.evaluate(network, description, dataset)
    pairs = scored.pairs.head(5)
    pixels = agman.normalise(ImageStore(dataset, "test", 112).read(pairs["image_id"].to_numpy()), IMAGENET)

    state = torch.load(file, weights_only=True)["state_dict"]
    trunk = torchvision.models.resnet18(weights=None)
    layers = [trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool, trunk.layer1, trunk.layer2, trunk.layer3]
    prefix = "embeddingnet.embeddingnet."
    trunk.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, strict=False)
    with torch.no_grad():
        x = torch.nn.Sequential(*layers).eval()(pixels).mean((2, 3))
        general = x @ state[f"{prefix}fc_embed.weight"].T + state[f"{prefix}fc_embed.bias"]
        masks = state["embeddingnet.masks.weight"].relu()
        masked = general * masks[torch.tensor(pairs["attribute"].to_numpy("int64"))]
    expected = masked / masked.norm(dim=1, keepdim=True)
    torch.testing.assert_close(scored.embeddings[:5], expected, rtol=0, atol=1e-5)
