"""A checkpoint's URI as MODEL."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
import torch
from s3_server import Bucket

import agman
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline import registry

NAMES = ["skirt", "sleeve", "collar"]


@pytest.fixture(params=["file", "memory", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder's; nothing is in it yet."""
    if request.param == "file":
        return (tmp_path / "there" / "step-00000007-0badcafe").as_uri()
    if request.param == "memory":
        return f"memory://{secrets.token_hex(4)}/step-00000007-0badcafe"
    bucket: Bucket = request.getfixturevalue("bucket")
    return bucket.uri("runs/step-00000007-0badcafe").replace("s3://", "s3://access:sesame@")


def upload(uri: str, folder: Path, **description: object) -> agman.RetrievalModel:
    """A small model at the URI, beside what only its training needs."""
    model = agman.build("csn", n_attributes=3, embedding_dim=11, backbone="resnet18").eval()
    for file in agman.save_model(folder, model, {"attributes": NAMES} | description).iterdir():
        (Storage(uri) / file.name).write_bytes(file.read_bytes())
    (Storage(uri) / "state.pt").write_bytes(b"moments")
    return model


def test_a_checkpoints_uri_is_a_model(uri: str, tmp_path: Path) -> None:
    model = upload(uri, tmp_path / "saved", image_size=32)
    assert sorted(path.name for path in registry.find_model(uri).iterdir()) == ["model.json", "model.safetensors"]
    loaded, description = registry.load(uri, NAMES)
    assert (description["attributes"], description["image_size"]) == (NAMES, 32)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.embed_all(images), model.embed_all(images))


def test_what_is_wrong_with_a_uri_is_one_line_without_credentials(uri: str, tmp_path: Path) -> None:
    name = "step-00000007-0badcafe"
    with pytest.raises(InputError, match=rf"{name}: no model there \(no model\.json\)") as missing:
        registry.find_model(uri)
    upload(uri, tmp_path / "saved")
    with pytest.raises(InputError, match=rf"{name}: its model\.json has no image_size") as sizeless:
        registry.load(uri)
    for error in (missing, sizeless):
        assert "\n" not in str(error.value)
        assert "sesame" not in str(error.value) and "endpoint" not in str(error.value)
