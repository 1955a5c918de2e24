"""The URI of a checkpoint as MODEL, and a registry that does not answer."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.commands import Agman
from support.s3_server import Bucket

import agman
from agman.state import weights_digest
from agman.tagger import TAGGER, Namer, Tagger
from agman.tagging import Threshold
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline.registry.loading import find_model, load, load_with_tagger

NAMES = ["skirt", "sleeve", "collar"]


@pytest.fixture(params=["file", "memory", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URI of an empty folder."""
    if request.param == "file":
        return (tmp_path / "there" / "step-00000007-0badcafe").as_uri()
    if request.param == "memory":
        return f"memory://{secrets.token_hex(4)}/step-00000007-0badcafe"
    bucket: Bucket = request.getfixturevalue("bucket")
    return bucket.uri("runs/step-00000007-0badcafe").replace("s3://", "s3://access:sesame@")


def upload(uri: str, folder: Path, **description: object) -> agman.RetrievalModel:
    """Upload a small model, with a file that only its training needs."""
    model = agman.build("csn", n_attributes=3, embedding_dim=11, backbone="tiny").eval()
    for file in agman.save_model(folder, model, {"attributes": NAMES} | description).iterdir():
        (Storage(uri) / file.name).write_bytes(file.read_bytes())
    (Storage(uri) / "state.pt").write_bytes(b"moments")
    return model


def test_the_uri_of_a_checkpoint_is_a_model(uri: str, tmp_path: Path) -> None:
    model = upload(uri, tmp_path / "saved", image_size=32)
    assert sorted(path.name for path in find_model(uri).iterdir()) == ["model.json", "model.safetensors"]
    loaded, description = load(uri, NAMES)
    assert (description["attributes"], description["image_size"]) == (NAMES, 32)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.embed_all(images), model.embed_all(images))


def test_errors_about_a_uri_are_one_line_without_credentials(uri: str, tmp_path: Path) -> None:
    name = "step-00000007-0badcafe"
    with pytest.raises(InputError, match=rf"{name}: no model there \(no model\.json\)") as missing:
        find_model(uri)
    upload(uri, tmp_path / "saved")
    with pytest.raises(InputError, match=rf"{name}: its model\.json has no image_size") as sizeless:
        load(uri)
    for error in (missing, sizeless):
        assert "\n" not in str(error.value)
        assert "sesame" not in str(error.value) and "endpoint" not in str(error.value)


@pytest.mark.parametrize(
    "typed",
    [
        "evaluate models:/agman-fashionai@champion --data DATA",
        "report models:/agman-fashionai@champion --data DATA --out made",
        "embed models:/agman-fashionai@champion --images pictures --out made",
        "export models:/agman-fashionai@champion --out made",
        "promote agman-fashionai --data DATA",
        "rollback agman-fashionai --reason worse",
        "compare --data DATA --storage made",
        "tune --data DATA --space margins --trials 1 --storage made",
        "train --data DATA --storage made",
    ],
)
def test_a_silent_registry_is_reported_in_one_line_and_nothing_is_written(
    agman_here: Agman, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_started: None, typed: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:sesame@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "pictures" / "one.png")
    done = agman_here(*typed.replace("DATA", str(dataset.path)).split())
    assert done.code == 2, done.err
    said = done.err.strip().splitlines()[-1]
    assert said.startswith("agman: MLFLOW_TRACKING_URI=http://127.0.0.1:9: the tracking store does not answer")
    assert "sesame" not in done.err
    made = [path for path in (tmp_path / "made").rglob("*") if path.is_file() and path.name != "lock"]
    assert made == []


def test_prototypes_come_with_the_uri_of_a_checkpoint(uri: str, tmp_path: Path) -> None:
    model = upload(uri, tmp_path / "saved", image_size=32)
    assert load_with_tagger(uri, NAMES)[2] is None
    namer = Namer(("short", "long"), (3, 4), torch.eye(2, 11), 0.1, 50, (Threshold(0.5, 0.75, 1.0),))
    tagger = Tagger({"skirt": namer}, weights_digest(model.config, model.state_dict()), "tiny", "0" * 64)
    (Storage(uri) / TAGGER).write_bytes(tagger.to_bytes())
    found = load_with_tagger(uri, NAMES)[2]
    assert found and found.to_bytes() == tagger.to_bytes()
    (Storage(uri) / TAGGER).write_bytes(b"damaged")
    with pytest.raises(InputError, match=rf"badcafe/{TAGGER}: damaged or of another version .+; remove it$") as damaged:
        load_with_tagger(uri, NAMES)
    assert "\n" not in str(damaged.value) and "sesame" not in str(damaged.value)
