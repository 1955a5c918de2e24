"""A killed `agman embed` continues."""

from __future__ import annotations

import os
import re
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
@pytest.mark.parametrize("into", [False, True])
def test_a_killed_embedding_continues(tmp_path: Path, into: bool) -> None:
    """Of a new gallery, and of an update that adds as many pictures to one picture."""
    model = str(agman.save_model(tmp_path / "model", *random_model(["collar", "skirt"])))
    root, gallery = tmp_path / "many", tmp_path / "g"
    root.mkdir()
    if into:
        (root / "first.jpg").write_bytes(jpeg(9_999))
        embed_images(model, root, gallery)
    for number in range(3 * embed.SHARD):
        (root / f"{number:05d}.jpg").write_bytes(jpeg(number))
    asked = ["--into", str(gallery)] if into else [model, "--images", str(root), "--out", str(gallery)]
    command = [str(Path(sys.executable).with_name("agman")), "embed", *asked]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    killed = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    written = (gallery / ".update.partial" if into else tmp_path / ".g.partial") / "embeddings"
    deadline = time.monotonic() + 180
    while not list(written.glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    done = {file.name: file.stat().st_mtime_ns for file in written.glob("*.parquet")}
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert 0 < len(done) < 3
    assert [*Gallery.open(gallery).images] == ["first.jpg"] if into else not gallery.exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert again.returncode == 0, again.stderr
    assert re.search(r"continuing: [\d,]+ were done", again.stderr)
    if not into:
        after = {file.name: file.stat().st_mtime_ns for file in (gallery / "embeddings").iterdir()}
        assert done.items() <= after.items()
    undisturbed, continued = embed_images(model, root, tmp_path / "undisturbed"), Gallery.open(gallery)
    assert list(continued.images) == list(undisturbed.images)
    for number in range(2):
        assert np.array_equal(continued.matrix(number), undisturbed.matrix(number))
