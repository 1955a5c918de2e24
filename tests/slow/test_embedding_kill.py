"""A killed `agman embed` continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.galleries import jpeg, random_model

import agman
from pipeline.retrieval import embed
from pipeline.retrieval.embed import embed_images
from pipeline.retrieval.gallery import Gallery


@pytest.mark.slow
def test_a_killed_embedding_continues(tmp_path: Path) -> None:
    model = str(agman.save_model(tmp_path / "model", *random_model(["collar", "skirt"])))
    root = tmp_path / "many"
    root.mkdir()
    for number in range(3 * embed.SHARD):
        (root / f"{number:05d}.jpg").write_bytes(jpeg(number))
    program = Path(sys.executable).with_name("agman")
    command = [str(program), "embed", model, "--images", str(root), "--out", str(tmp_path / "g")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    killed = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    written = tmp_path / ".g.partial" / "_partial"
    deadline = time.monotonic() + 180
    while not list(written.glob("names-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = list(written.glob("names-*.parquet"))
    assert 0 < len(done) < 3 and not (tmp_path / "g").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert again.returncode == 0, again.stderr
    assert f"continuing: {len(done) * embed.SHARD:,} were done" in again.stderr
    undisturbed = embed_images(model, root, tmp_path / "undisturbed")
    assert list(Gallery.open(tmp_path / "g").images) == list(undisturbed.images)
    for number in range(2):
        name = f"vectors/attribute-{number:02d}.npy"
        assert np.array_equal(np.load(tmp_path / "g" / name), np.load(undisturbed.folder / name))
