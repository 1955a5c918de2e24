"""A model that was registered before the modules moved into rooms loads and predicts.

tests/data/registered_before_rooms holds the files that MLflow stored then (pyfunc_model.py with `.txt` after its
name, so that no tool takes it for today's code), without the weights, which this test draws.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from safetensors.torch import save_file

import agman
from agman.embedder import Embedder
from pipeline.registry.loading import load

STORED = Path(__file__).parents[1] / "data" / "registered_before_rooms"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the folder of the old version, complete."""
    folder = shutil.copytree(STORED, tmp_path / "model")
    (folder / "pyfunc_model.py.txt").rename(folder / "pyfunc_model.py")
    torch.manual_seed(1)
    network = agman.build("csn", n_attributes=3, embedding_dim=8, backbone="resnet18", mask="learned")
    save_file(dict(network.state_dict()), folder / "artifacts" / "model" / "model.safetensors")
    return folder


def test_a_version_registered_before_the_move_loads_and_predicts(model: Path, tracking_store: str) -> None:
    client = MlflowClient(tracking_store)
    client.create_registered_model("agman-tiny")
    version = client.create_model_version("agman-tiny", str(model)).version
    uri = f"models:/agman-tiny/{version}"
    network, description = load(uri, ["collar", "sleeve", "skirt"])
    assert (network.config["name"], description["step"], description["training"]["parts"]) == ("csn", 7, 1)
    embedder = Embedder(network, description, device="cpu")

    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8)).save(picture, "PNG")
    rows = pd.DataFrame({"image": [picture.getvalue()] * 2, "attribute": [None, "skirt"]})
    answer = mlflow.pyfunc.load_model(uri).predict(rows)
    every, skirt = (np.array(one) for one in answer["embeddings"])
    expected = embedder.embed([embedder.read(picture.getvalue())])[0]
    np.testing.assert_allclose(every, expected, atol=1e-5)
    np.testing.assert_allclose(skirt, expected[[2]], atol=1e-5)
    assert answer["attributes"].tolist() == [["collar", "sleeve", "skirt"], ["skirt"]]
