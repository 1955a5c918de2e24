"""`agman export` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import SafetensorError
from support.commands import Agman
from support.galleries import jpeg

import agman
from agman.embedder import Embedder
from data_prep.atomic import FULL
from data_prep.errors import InputError
from pipeline.inference.onnx_embedder import OnnxEmbedder

NAMES = ["skirt", "sleeve", "collar"]
FILES = ["embed_all.onnx", "embed_all.pt2", "inference.py", "model.json", "model.safetensors"]


def make_checkpoint(folder: Path, name: str = "csn", **description: Any) -> agman.RetrievalModel:
    """Write a checkpoint, and return its model. csn is the smallest, where any model will do."""
    model = agman.build(name, n_attributes=3, embedding_dim=11, backbone="tiny")
    agman.save_model(folder, model, {"attributes": NAMES} | description)
    return model.eval()


@torch.no_grad()
def test_export_writes_a_folder_for_other_programs(agman_here: Agman, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "agman", image_size=32, fit="stretch")
    out = tmp_path / "deep" / "out"
    done = agman_here("export", "model", "--out", "deep/out", "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert figures["files"] == {path.name: path.stat().st_size for path in out.iterdir()}
    assert all(0 <= figures["difference"][name] <= 1e-5 for name in ("embed_all.pt2", "embed_all.onnx"))
    assert all(name in done.err for name in FILES)
    assert "Warning" not in done.err

    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    expected = model.embed_all(images)
    assert torch.equal(agman.load_model(out, attributes=NAMES)[0].embed_all(images), expected)
    assert torch.allclose(torch.export.load(out / "embed_all.pt2").module()(images), expected, atol=1e-5)
    session = onnxruntime.InferenceSession(out / "embed_all.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["fit"] == '"stretch"'
    (embeddings,) = session.run(["embeddings"], {"images": images.numpy()})
    assert torch.allclose(torch.from_numpy(embeddings), expected, atol=1e-5)


def test_a_folder_is_replaced_where_that_is_asked_for(agman_here: Agman, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", image_size=32)
    out = tmp_path / "out"
    first = agman_here("export", "model", "--out", "out")
    assert first.code == 0, first.err
    again = agman_here("export", "model", "--out", "out")
    assert again.code == 2
    assert "exists and is not empty; give another folder or --overwrite" in again.err
    other = agman_here("export", "out", "--out", "other")  # what it makes is a model itself
    assert other.code == 0, other.err
    (out / "stale").touch()
    replaced = agman_here("export", "other", "--out", "out", "--overwrite")
    assert replaced.code == 0, replaced.err
    assert sorted(path.name for path in out.iterdir()) == FILES


@pytest.mark.parametrize(
    ("typed", "code", "message"),
    [
        (("model", "--out", "model", "--overwrite"), 2, "which is in use; give a folder of its own"),
        (("model", "--out", "other", "--overwrite"), 2, "holds no embed_all.pt2, so it was not made by this command"),
        (("sizeless", "--out", "x"), 2, "sizeless: its model.json has no image_size"),
        (("model", "--out", "other/file/x"), 2, "cannot be written (Not a directory)"),
        (("broken", "--out", "x"), 2, "agman: broken: its weights hold NaN or infinity, first in project.bias; there"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(
    agman_here: Agman, tmp_path: Path, typed: tuple[str, ...], code: int, message: str
) -> None:
    model = make_checkpoint(tmp_path / "model", image_size=32)
    make_checkpoint(tmp_path / "sizeless")
    with torch.no_grad():
        model.get_parameter("project.bias").fill_(float("nan"))
    agman.save_model(tmp_path / "broken", model, {"attributes": NAMES, "image_size": 32})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    done = agman_here("export", *typed)
    assert done.code == code, done.err
    assert message in done.err.strip().splitlines()[-1]
    assert "Traceback" not in done.err
    assert sorted(set(tmp_path.rglob("*")) - {tmp_path / "mlflow.db"}) == before


def test_missing_packages_are_named_before_any_work(
    agman_here: Agman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(tmp_path / "model", image_size=32)
    monkeypatch.setattr("agman.export.ONNX_PACKAGES", ("onnx", "missing_package"))
    done = agman_here("export", "model", "--out", "out")
    assert done.code == 2, done.err
    message = 'ONNX needs missing_package; install with: pip install "agman-pipeline[export]"'
    assert done.err.strip().splitlines()[-1].endswith(message)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_in_one_line(agman_here: Agman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "model", image_size=32)

    def full(tensors: object, path: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("agman.checkpoint.save_file", full)
    done = agman_here("export", "model", "--out", "out")
    assert done.code == 2, done.err
    assert done.err.strip().splitlines() == [f"agman: {tmp_path / 'out'}: {FULL}"]
    assert not (tmp_path / "out").exists()


def test_int8_is_calibrated_with_pictures_and_close_to_the_model(agman_here: Agman, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "agman", image_size=32)
    (tmp_path / "pictures").mkdir()
    for seed in range(40):
        (tmp_path / "pictures" / f"{seed}.jpg").write_bytes(jpeg(seed))
    done = agman_here("export", "model", "--out", "out", "--int8", "pictures", "--json")
    assert done.code == 0, done.err
    cosine = json.loads(done.out)["cosine"]["embed_all.int8.onnx"]
    assert 0.99 < cosine < 1 and "embed_all.int8.onnx: mean cosine 0.99" in done.err
    torch_embedder = Embedder(model, {"attributes": NAMES, "image_size": 32}, device="cpu")
    squares = [torch_embedder.read(jpeg(100 + seed)) for seed in range(5)]
    expected = torch_embedder.embed(squares)
    exact = OnnxEmbedder(torch_embedder, tmp_path / "out" / "embed_all.onnx", threads=1).embed(squares)
    small = OnnxEmbedder(torch_embedder, tmp_path / "out" / "embed_all.int8.onnx", threads=1).embed(squares)
    np.testing.assert_allclose(exact, expected, atol=1e-5)
    assert not np.allclose(small, expected, atol=1e-4)
    assert (small * expected).sum(-1).min() > 0.9

    other = Embedder(
        make_checkpoint(tmp_path / "other", "agman", image_size=32),
        {"attributes": NAMES, "image_size": 32},
        device="cpu",
    )
    with pytest.raises(InputError, match="has other weights than the model beside it"):
        OnnxEmbedder(other, tmp_path / "out" / "embed_all.onnx", threads=1)
    (tmp_path / "out" / "embed_all.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="cannot be read"):
        OnnxEmbedder(torch_embedder, tmp_path / "out" / "embed_all.onnx", threads=1)


def test_too_few_pictures_calibrate_nothing(agman_here: Agman, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", image_size=32)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.jpg").write_bytes(jpeg(0))
    (tmp_path / "pictures" / "two.jpg").write_bytes(b"no picture")
    done = agman_here("export", "model", "--out", "out", "--int8", "pictures")
    assert (
        done.code == 2
        and "--int8 pictures: 1 pictures can be read; at least 32 are needed to calibrate with" in done.err
    )
    assert not (tmp_path / "out").exists()
