"""A killed `agman embed` continues, and one whose node dies goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.galleries import jpeg, random_model
from support.nodes import Nodes, environment

import agman
from pipeline.retrieval.embed import embed_images
from pipeline.retrieval.gallery import Gallery

pytestmark = pytest.mark.slow
SHARD, SHARDS = 32, 60
JOB = """
import sys
from pipeline.cli import main
from pipeline.retrieval import embed
embed.SHARD = int(sys.argv.pop(1))
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(agman.save_model(tmp_path_factory.mktemp("made") / "model", *random_model(["collar", "skirt"])))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for number in range(SHARD * SHARDS):
        (root / f"{number:05d}.jpg").write_bytes(jpeg(number))
    return root


@pytest.fixture(scope="module")
def undisturbed(model: str, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return embed_images(model, pictures, tmp_path_factory.mktemp("undisturbed") / "g")


def check(made: Gallery, undisturbed: Gallery) -> None:
    """Check that no row is missing, twice, or another one."""
    assert list(made.images) == list(undisturbed.images)
    for number in range(2):
        assert np.array_equal(made.matrix(number), undisturbed.matrix(number))


def start(address: str, *arguments: object) -> subprocess.Popen[str]:
    """Run `agman embed` with small shards in a process of its own."""
    command = [sys.executable, "-c", JOB, str(SHARD), "embed", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(address), start_new_session=True, stderr=subprocess.PIPE, text=True
    )


def wait_for(parts: int, written: Path, running: subprocess.Popen[str]) -> list[Path]:
    """Wait until so many shards are written; return their files."""
    deadline = time.monotonic() + 180
    while len(files := list(written.glob("names-*.parquet"))) < parts and running.poll() is None:
        assert time.monotonic() < deadline, "the embedding did not get on"
        time.sleep(0.005)
    return files


def kill_after_a_shard(written: Path, *arguments: object) -> int:
    """Run `agman embed` and kill it, with all its processes, once a shard is written; return the number of shards."""
    killed = start("local", *arguments)
    wait_for(1, written, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    done = len(list(written.glob("names-*.parquet")))
    assert 0 < done < SHARDS
    return done


def embed_again(*arguments: object) -> str:
    """Run `agman embed` to its end; return what it says."""
    again = start("local", *arguments)
    _, said = again.communicate(timeout=180)
    assert again.returncode == 0, said
    return said


def test_a_killed_embedding_continues(model: str, pictures: Path, undisturbed: Gallery, tmp_path: Path) -> None:
    arguments = (model, "--images", pictures, "--out", tmp_path / "g")
    done = kill_after_a_shard(tmp_path / ".g.partial" / "_partial", *arguments)
    assert not (tmp_path / "g").exists()
    assert f"continuing: {done * SHARD:,} were done" in embed_again(*arguments)
    check(Gallery.open(tmp_path / "g"), undisturbed)


def test_a_killed_update_leaves_the_old_state_and_continues(
    model: str, pictures: Path, undisturbed: Gallery, tmp_path: Path
) -> None:
    """It replaces one picture, removes one, and adds the others."""
    root, gallery = tmp_path / "pictures", tmp_path / "g"
    root.mkdir()
    for name in ("00001.jpg", "gone.jpg"):
        (root / name).write_bytes(jpeg(9_999, (50, 40)))
    before = embed_images(model, root, gallery).matrix(0).copy()
    shutil.copytree(pictures, root, dirs_exist_ok=True)
    (root / "gone.jpg").unlink()
    arguments = ("--into", gallery, "--remove-missing", "--workers", 2)
    kill_after_a_shard(gallery / ".update.partial" / "_partial", *arguments)
    assert list(Gallery.open(gallery).images) == ["00001.jpg", "gone.jpg"]
    assert np.array_equal(Gallery.open(gallery).matrix(0), before)
    said = embed_again(*arguments)
    assert re.search(r"continuing: [\d,]+ were done", said)
    assert f"{SHARD * SHARDS - 1:,} added, 1 replaced, 1 removed, 0 unchanged" in said
    check(Gallery.open(gallery), undisturbed)
    assert sorted(one.name for one in gallery.iterdir()) == ["gallery.json", "lock", "state-000001"]


def test_a_node_dies_while_it_embeds(
    model: str, pictures: Path, undisturbed: Gallery, tmp_path: Path, nodes: Nodes
) -> None:
    both = [nodes.add(), nodes.add()]
    running = start(nodes.address, model, "--images", pictures, "--out", tmp_path / "g", "--workers", 2)
    written = tmp_path / ".g.partial" / "_partial"
    wait_for(2, written, running)
    nodes.wait_for_work(both, "ray::_RemoteWorker.embed")
    nodes.kill(both[0])
    assert len(list(written.glob("names-*.parquet"))) < SHARDS, "the node died too late"
    _, said = running.communicate(timeout=120)
    assert running.returncode == 0, said
    check(Gallery.open(tmp_path / "g"), undisturbed)
