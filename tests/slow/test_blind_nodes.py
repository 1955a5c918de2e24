"""Nodes that do not see what a command needs: one line, exit code 2, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.datasets import make_photographs
from support.galleries import embed_folder, random_model
from support.nodes import Nodes, environment

import agman

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
        reason="a node with mounts of its own needs root",
    ),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, a model, and a gallery."""
    root = tmp_path_factory.mktemp("made")
    make_photographs(root / "raw", n=2_100)
    model = agman.save_model(root / "model", *random_model(["collar"]))
    few = root / "few"
    few.mkdir()
    (few / "a.jpg").write_bytes(next((root / "raw").rglob("*.jpg")).read_bytes())
    embed_folder(model, few, root / "gallery")
    (root / "out").mkdir()
    return root


@pytest.fixture
def blind(started: Nodes, made: Path) -> Iterator[Nodes]:
    """A cluster of a node that sees everything, and one that does not."""
    started.add()
    with started.blind(made / "raw", made / "gallery"):
        yield started
    started.clear()


def test_a_node_without_a_folder_is_refused_in_one_line(blind: Nodes, made: Path) -> None:
    def told(*typed: object) -> str:
        command = [str(Path(sys.executable).with_name("agman")), *map(str, typed)]
        done = subprocess.run(
            command, cwd=made / "out", env=environment(blind.address), capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 2, done.stderr
        return done.stderr.splitlines()[-1]

    unseen = "not there, or empty; the images must be in a folder that all nodes share, but it is not seen on the "
    raw, gallery = made / "raw", made / "gallery"
    line = told("prep", "fashionai", "--root", raw, "--out", "data", "--image-size", 32, "--triplets", 20)
    assert line.startswith(f"agman: {raw}: {unseen}")
    line = told("embed", made / "model", "--images", raw, "--out", "new")
    assert line.startswith(f"agman: {raw}: {unseen}")
    line = told("embed", made / "model", "--images", made / "few", "--out", raw / "new")
    assert "must be a folder that all nodes share, but it is not seen on the cluster's node " in line
    line = told("serve", gallery, "--port", 0)
    assert line.startswith(f"agman: {gallery}: must be a folder that all nodes share, but it is not seen on the ")
