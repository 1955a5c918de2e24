"""The registered model as a pyfunc: what it takes, what it answers, what it refuses, and that it unpickles nothing."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from support.datasets import SIZE

import agman
from data_prep.dataset import Dataset
from pipeline.inference.embedder import Embedder
from pipeline.registry import models as registry
from pipeline.tracking import runs as tracking

ROOT = Path(__file__).parents[2]


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (50, 40, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def embedder(store: Path, dataset: Dataset) -> Embedder:
    """Of a model that is registered in the store as agman-tiny, its champion."""
    torch.manual_seed(1)
    names = dataset.info.attribute_names
    network = agman.build("agman", n_attributes=len(names), backbone="resnet18", embedding_dim=16)
    run = tracking.start(dataset.info, "training", {})
    description = {"attributes": names, "image_size": SIZE, "step": 0, "run_id": run.run_id, "training": {}}
    registry.register(agman.save_model(store / "model", network, description), "tiny", run)
    return Embedder(*registry.load("models:/agman-tiny@champion"))


@pytest.fixture(scope="module")
def model(embedder: Embedder) -> Any:
    return mlflow.pyfunc.load_model("models:/agman-tiny@champion")


def test_bytes_or_base64_and_one_attribute_several_or_all(model: Any, embedder: Embedder) -> None:
    names = embedder.attributes
    expected = [embedder.embed([embedder.read(jpeg(seed))])[0] for seed in range(2)]
    text = base64.encodebytes(jpeg(1)).decode()  # with line breaks
    rows = pd.DataFrame(
        {"image": [jpeg(0), text, jpeg(0), jpeg(1)], "attribute": [names[2], [names[1], names[0]], None, []]}
    )
    answer = model.predict(rows)
    assert answer["attributes"].tolist() == [[names[2]], [names[1], names[0]], names, names]
    wanted = [expected[0][[2]], expected[1][[1, 0]], expected[0], expected[1]]
    for found, of_row in zip(answer["embeddings"], wanted, strict=True):
        np.testing.assert_allclose(found, of_row, atol=1e-5)
    alone = model.predict(pd.DataFrame({"image": [jpeg(0)]}))
    np.testing.assert_allclose(alone["embeddings"][0], expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("image", "attribute", "said"),
    [
        (jpeg(0), "neck_desing", "row 0: unknown attribute 'neck_desing'; did you mean 'neck_design'?"),
        (jpeg(0), [3], "row 0: attribute must be a name or a list of names, not 3"),
        (b"text", "neck_design", "row 0: not a picture that can be read"),
        ("no base64!", "neck_design", "row 0: image is text, but not base64"),
        (7, "neck_design", "row 0: image must be a picture file's bytes or base64 of them, not 7"),
    ],
)
def test_what_it_refuses(model: Any, image: Any, attribute: Any, said: str) -> None:
    python = model.unwrap_python_model()  # MLflow itself refuses a number for the image
    with pytest.raises(mlflow.exceptions.MlflowException) as refused:
        python.predict(None, pd.DataFrame({"image": [image], "attribute": [attribute]}))
    assert str(refused.value).startswith(said) or said in str(refused.value)


LOADED = """
import sys
def watch(event, arguments):
    if event == "pickle.find_class":
        found.append(arguments)
found = []
sys.addaudithook(watch)
import base64, json, mlflow, pandas as pd
model = mlflow.pyfunc.load_model("models:/agman-tiny@champion")
answer = model.predict(pd.DataFrame({"image": [sys.argv[1]]}))
import agman
print(json.dumps({"embeddings": answer["embeddings"][0], "unpickled": found, "from": agman.__file__}))
"""


def _fresh(python: str, store: Path, cwd: Path, **variables: str) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": tracking.tracking_uri()} | variables
    picture = base64.b64encode(jpeg(5)).decode()
    done = subprocess.run(
        [python, "-c", LOADED, picture], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_fresh_process_unpickles_nothing(embedder: Embedder, store: Path, tmp_path: Path) -> None:
    answer = _fresh(sys.executable, store, tmp_path, PYTHONPATH=str(ROOT))
    np.testing.assert_allclose(answer["embeddings"], embedder.embed([embedder.read(jpeg(5))])[0], atol=1e-5)
    assert answer["unpickled"] == []
    files = {file.suffix for file in registry.find_model("models:/agman-tiny@champion").parents[1].rglob("*.*")}
    assert not files & {".pkl", ".pickle", ".pt", ".pth", ".bin"} and ".safetensors" in files


@pytest.mark.slow
def test_the_wheel_is_all_it_needs(embedder: Embedder, store: Path, tmp_path: Path) -> None:
    source = shutil.copytree(
        ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".venv", ".git", "build", "*.egg-info")
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("agman_pipeline-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", site, wheel], check=True)
    shared = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "shared.pth").write_text(
        f"{shared}\n"
    )  # the libraries; its own .pth files, and so this checkout, are left out
    answer = _fresh(str(tmp_path / "venv" / "bin" / "python"), store, tmp_path)
    assert answer["from"].startswith(str(site)) and answer["unpickled"] == []
    np.testing.assert_allclose(answer["embeddings"], embedder.embed([embedder.read(jpeg(5))])[0], atol=1e-5)


@pytest.mark.slow
def test_mlflow_serves_it(embedder: Embedder, store: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/agman-tiny@champion"]
    options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracking.tracking_uri(), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # it starts uvicorn by name
    server = subprocess.Popen([*program, *options], cwd=tmp_path, env=environment, stderr=(tmp_path / "log").open("w"))

    def post(rows: list[dict[str, Any]]) -> Any:
        body = json.dumps({"dataframe_records": rows}).encode()
        address = f"http://127.0.0.1:{port}/invocations"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=60))["predictions"]

    try:
        deadline = time.monotonic() + 180
        while server.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        picture = base64.b64encode(jpeg(6)).decode()
        names = embedder.attributes
        one, several, every = post(
            [{"image": picture, "attribute": names[1]}, {"image": picture, "attribute": names[:2]}, {"image": picture}]
        )
        expected = embedder.embed([embedder.read(jpeg(6))])[0]
        np.testing.assert_allclose(one["embeddings"], expected[[1]], atol=1e-5)
        np.testing.assert_allclose(several["embeddings"], expected[:2], atol=1e-5)
        np.testing.assert_allclose(every["embeddings"], expected, atol=1e-5)
        with pytest.raises(urllib.error.HTTPError) as refused:
            post([{"image": "bm8gcGljdHVyZQ==", "attribute": names[0]}])
        assert refused.value.code == 400
        assert "not a picture that can be read" in refused.value.read().decode()
    finally:
        server.terminate()
        server.wait(30)
