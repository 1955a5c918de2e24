"""A killed `agman embed` continues: with --out, and with --into."""

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
@pytest.mark.parametrize("into", [False, True], ids=["out", "into"])
def test_a_killed_embedding_continues(tmp_path: Path, into: bool) -> None:
    """A new gallery, and an update that replaces one picture, removes one and adds three shards."""
    model = str(agman.save_model(tmp_path / "model", *random_model(["collar", "skirt"])))
    root, gallery = tmp_path / "many", tmp_path / "g"
    root.mkdir()
    before = ["00001.jpg", "gone.jpg", "stays.jpg"] if into else []
    for name in before:
        (root / name).write_bytes(jpeg(9_999, (50, 40)))
    if into:
        old = embed_images(model, root, gallery).matrix(0).copy()
        (root / "gone.jpg").unlink()
    for number in range(3 * embed.SHARD):
        (root / f"{number:05d}.jpg").write_bytes(jpeg(number))
    asked = ["--into", gallery, "--remove-missing"] if into else [model, "--images", root, "--out", gallery]
    command = [str(one) for one in (Path(sys.executable).with_name("agman"), "embed", *asked, "--workers", 2)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    killed = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    written = (gallery / ".update.partial" if into else tmp_path / ".g.partial") / "embeddings"
    deadline = time.monotonic() + 180
    while not list(written.glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert 0 < len(list(written.glob("*.parquet"))) < 3
    if into:
        assert list(Gallery.open(gallery).images) == before
        assert np.array_equal(Gallery.open(gallery).matrix(0), old)
    else:
        assert not gallery.exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert again.returncode == 0, again.stderr
    (done,) = re.findall(r"continuing: ([\d,]+) were done", again.stderr)
    assert int(done.replace(",", "")) in range(embed.SHARD, 3 * embed.SHARD + 1, embed.SHARD)
    continued, undisturbed = Gallery.open(gallery), embed_images(model, root, tmp_path / "undisturbed")
    assert list(continued.images) == list(undisturbed.images)
    for number in range(2):
        np.testing.assert_allclose(continued.matrix(number), undisturbed.matrix(number), atol=1e-6)
    if into:
        assert sorted(one.name for one in gallery.iterdir()) == ["gallery.json", "lock", "state-000001"]
