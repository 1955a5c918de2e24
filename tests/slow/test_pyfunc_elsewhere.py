"""The registered model outside this checkout: from the wheel alone, and behind MLflow's scoring server."""

from __future__ import annotations

import base64
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

import numpy as np
import pytest
from support.registered import ROOT, jpeg, load_in_a_fresh_process, register_random

from agman.embedder import Embedder
from data_prep.dataset import Dataset
from pipeline.registry.loading import load
from pipeline.tracking.runs import tracking_uri

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def embedder(store: Path, dataset: Dataset) -> Embedder:
    """The embedder of a model that is registered as agman-tiny, its champion."""
    return Embedder(*load(register_random(dataset, store, seed=1).uri))


def test_the_wheel_is_all_it_needs(embedder: Embedder, tmp_path: Path) -> None:
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
    # Only the libraries: .pth files in there, such as this checkout's, are not read.
    (site / "shared.pth").write_text(f"{shared}\n")
    answer = load_in_a_fresh_process(str(tmp_path / "venv" / "bin" / "python"), tmp_path, jpeg(5))
    assert answer["from"].startswith(str(site)) and answer["unpickled"] == []
    np.testing.assert_allclose(answer["embeddings"], embedder.embed([embedder.read(jpeg(5))])[0], atol=1e-5)


def test_mlflow_serves_it(embedder: Embedder, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/agman-tiny@champion"]
    options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracking_uri(), "PYTHONPATH": str(ROOT)}
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
