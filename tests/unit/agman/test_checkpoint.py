"""Model folders, and weights for the backbone: round trips, and what is said about the wrong file."""

import json

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

import agman

CONFIG = {"attributes": ["skirt", "sleeve", "collar"], "image_size": 32}


@pytest.fixture
def model():
    return agman.build(n_attributes=3, embedding_dim=11, backbone="tiny", classify=False, sa_kernel=1)


def test_round_trip(model, tmp_path):
    folder = agman.save_model(tmp_path / "deep" / "model", model, CONFIG)
    loaded, config = agman.load_model(folder, attributes=CONFIG["attributes"])
    assert config == CONFIG
    assert loaded.config == model.config
    assert not loaded.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]  # nothing left beside it


def test_channels_last_models_save_too(model, tmp_path):
    folder = agman.save_model(tmp_path / "m", model.to(memory_format=torch.channels_last), CONFIG)
    loaded, _ = agman.load_model(folder)
    assert torch.equal(loaded.reduce.weight, model.reduce.weight)


def test_saving_replaces_the_old_model(model, tmp_path):
    folder = agman.save_model(tmp_path / "m", model, CONFIG)
    (folder / "stale").touch()
    other = agman.build(n_attributes=3, embedding_dim=13, backbone="tiny")
    agman.save_model(folder, other, CONFIG)
    assert agman.load_model(folder)[0].embedding_dim == 13
    assert not (folder / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_failed_save_leaves_the_old_model(model, tmp_path):
    folder = agman.save_model(tmp_path / "m", model, CONFIG)
    with pytest.raises(TypeError):
        agman.save_model(folder, model, {"not json": object()})
    assert agman.load_model(folder)[1] == CONFIG
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_missing_files_are_named(model, tmp_path, name):
    folder = agman.save_model(tmp_path / "m", model, CONFIG)
    (folder / name).unlink()
    with pytest.raises(agman.CheckpointError, match=f"{name} is missing"):
        agman.load_model(folder)


def rewrite(folder, **build):
    path = folder / "model.json"
    description = json.loads(path.read_text())
    description["build"] |= build
    path.write_text(json.dumps(description))


def test_another_width_names_the_first_key_and_both_shapes(model, tmp_path):
    folder = agman.save_model(tmp_path / "m", model, CONFIG)
    rewrite(folder, embedding_dim=13)
    message = r"reduce\.weight: expected shape \(13, 64, 1, 1\), found \(11, 64, 1, 1\)"
    with pytest.raises(agman.CheckpointError, match=message):
        agman.load_model(folder)


def test_a_missing_and_a_surplus_key_are_named(model, tmp_path):
    folder = agman.save_model(tmp_path / "m", model, CONFIG)
    tensors = load_file(folder / "model.safetensors")
    save_file({key: tensor for key, tensor in tensors.items() if key != "w"}, folder / "model.safetensors")
    with pytest.raises(agman.CheckpointError, match=r"w: expected shape \(\), found nothing"):
        agman.load_model(folder)
    save_file(tensors | {"extra": torch.zeros(2, 3)}, folder / "model.safetensors")
    with pytest.raises(agman.CheckpointError, match=r"extra: expected nothing, found shape \(2, 3\)"):
        agman.load_model(folder)


def test_other_attributes_are_refused(model, tmp_path):
    folder = agman.save_model(tmp_path / "m", model, CONFIG)
    with pytest.raises(agman.CheckpointError, match="trained for other attributes"):
        agman.load_model(folder, attributes=["sleeve", "skirt", "collar"])
    with pytest.raises(agman.CheckpointError, match="3 attributes, but 2 names"):
        agman.save_model(folder, model, {"attributes": ["skirt", "sleeve"]})


def test_damaged_files_are_refused(model, tmp_path):
    folder = agman.save_model(tmp_path / "m", model, CONFIG)
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(agman.CheckpointError, match="not a readable file of tensors"):
        agman.load_model(folder)
    rewrite(folder, backbone="resnet999")
    with pytest.raises(agman.CheckpointError, match="unknown backbone 'resnet999'"):
        agman.load_model(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(agman.CheckpointError, match="not JSON"):
        agman.load_model(folder)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_backbone_weights_from_a_file(tmp_path, suffix):
    resnet = torchvision.models.resnet18(num_classes=7)  # fc.* is not used, so its size does not matter
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        torch.save(resnet.state_dict(), path)
    else:
        save_file(resnet.state_dict(), path)
    backbone = agman.build(n_attributes=3, backbone="resnet18", weights=path).backbone
    assert torch.equal(backbone.stem[0].weight, resnet.conv1.weight)
    assert torch.equal(backbone.layer4[1].bn2.weight, resnet.layer4[1].bn2.weight)
    assert agman.build(n_attributes=3, backbone="resnet18", weights=path, classify=False).backbone.layer4 is None


def test_old_backbone_files_lack_step_counters(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "old.pth")
    agman.build(n_attributes=3, backbone="resnet18", weights=tmp_path / "old.pth")


def test_wrong_backbone_files_name_the_first_difference(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    path = tmp_path / "resnet.pth"

    torch.save(state | {"bn1.weight": torch.zeros(32)}, path)
    with pytest.raises(ValueError, match=r"bn1\.weight: expected shape \(64,\), found \(32,\)"):
        agman.build(n_attributes=3, backbone="resnet18", weights=path)
    torch.save({k: v for k, v in state.items() if k != "conv1.weight"}, path)
    with pytest.raises(ValueError, match=r"conv1\.weight: expected shape \(64, 3, 7, 7\), found nothing"):
        agman.build(n_attributes=3, backbone="resnet18", weights=path)
    with pytest.raises(ValueError, match="does not hold this resnet34"):
        torch.save(state, path)
        agman.build(n_attributes=3, backbone="resnet34", weights=path)


def test_pickles_are_not_run(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"model": torch.nn.Linear(2, 3)}, path)
    with pytest.raises(ValueError, match="code is never unpickled"):
        agman.build(n_attributes=3, backbone="resnet18", weights=path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="plain state dict"):
        agman.build(n_attributes=3, backbone="resnet18", weights=path)


def test_the_check_of_a_model_finds_weights_in_torchs_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    with torch.device("meta"):
        agman.build(n_attributes=3, backbone="resnet18", weights="IMAGENET1K_V1")


def test_other_folders_and_files_are_not_replaced(tmp_path):
    model = agman.build(n_attributes=2, embedding_dim=3, backbone="tiny")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    (tmp_path / "file").write_text("keep me too")
    for name in ("mine", "file"):
        with pytest.raises(agman.CheckpointError, match=f"{name}: exists and holds no model.json"):
            agman.save_model(tmp_path / name, model)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"
    assert (tmp_path / "file").read_text() == "keep me too"
    (tmp_path / "empty").mkdir()
    saved = agman.save_model(tmp_path / "empty", model)
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o644}
