"""Preparations with Ray that are killed with -9, interrupted, or run out of disk, and the same command after them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.datasets import make_photographs, recorded
from support.nodes import Nodes, environment
from support.trainings import descendants

from data_prep import packing
from data_prep.dataset import Dataset
from data_prep.prepare import prepare

pytestmark = pytest.mark.slow

IMAGES = 3_000
SHARD = 100  # small, so that a kill falls between two
OPTIONS = {"triplets": 50, "epochs": 1, "image_size": 32, "seed": 7}
JOB = """
import sys
from pathlib import Path
from data_prep import packing, prepare
from pipeline import cli
packing.SHARD = int(sys.argv[1])
sys.argv[1:] = sys.argv[2:]
cli.main()
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_photographs(tmp_path_factory.mktemp("many") / "raw", n=100)
    folder = root / "train1" / "Images" / "neck_design_labels"
    label_file = root / "train1" / "Annotations" / "label.csv"
    lines = label_file.read_text().splitlines()
    for number in range(100, IMAGES):
        os.link(folder / f"{number % 100:03d}.jpg", folder / f"{number:04d}.jpg")
        lines.append(lines[number % 100].replace(f"{number % 100:03d}.jpg", f"{number:04d}.jpg"))
    label_file.write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module", autouse=True)
def small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHARD", SHARD)
        yield


@pytest.fixture(scope="module")
def undisturbed(photographs: Path, small_shards: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return prepare("fashionai", photographs, out, **OPTIONS).digest  # type: ignore[arg-type]


class Preparing:
    """`agman prep` in its own process, with its own Ray session or on the cluster at an address."""

    def __init__(self, root: Path, out: Path, address: str = "local"):
        options = [text for name, value in OPTIONS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        self.partial = out.parent / f".{out.name}.partial"
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                JOB,
                str(SHARD),
                "prep",
                "fashionai",
                "--root",
                str(root),
                "--out",
                str(out),
                *options,
            ],
            cwd=out.parent,
            env=environment(address),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def records(self) -> list[Path]:
        return sorted((self.partial / packing.STATE).rglob("*.json"))

    def wait_for(self, shards: int) -> None:
        """Wait until so many shards are finished."""
        deadline = time.monotonic() + 120
        while len(self.records()) < shards and self.process.poll() is None:
            assert time.monotonic() < deadline, "the packing did not get on"
            time.sleep(0.005)

    def kill(self) -> None:
        """Kill the process and its descendants with -9."""
        mine = list(descendants(self.process.pid))
        self.process.kill()
        for process in mine:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.communicate()

    def finish(self) -> str:
        _, err = self.process.communicate(timeout=120)
        return err


def times_of(partial: Path) -> dict[str, int]:
    """Return the time of writing of each finished shard."""
    shards = [str(r.relative_to(partial / packing.STATE).with_suffix(".parquet")) for r in partial.rglob("*.json")]
    return {shard: (partial / shard).stat().st_mtime_ns for shard in shards}


def test_a_killed_preparation_is_continued(photographs: Path, tmp_path: Path, undisturbed: str) -> None:
    out = tmp_path / "out"
    first = Preparing(photographs, out)
    first.wait_for(shards=5)
    first.kill()
    assert not out.exists()
    finished = times_of(first.partial)
    assert len(finished) >= 5
    titles: list[str] = []
    prepared = prepare("fashionai", photographs, out, progress=recorded(titles), **OPTIONS)  # type: ignore[arg-type]
    assert prepared.digest == undisturbed == Dataset(out).info.digest
    said = f"continuing: {len(finished) * SHARD:,} of {IMAGES:,} images already packed"
    assert any(said in title for title in titles), titles
    assert {shard: (out / shard).stat().st_mtime_ns for shard in finished} == finished
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("only_the_driver", [False, True])
def test_killed_again_and_again(photographs: Path, tmp_path: Path, undisturbed: str, only_the_driver: bool) -> None:
    out = tmp_path / "out"
    finished: dict[str, int] = {}
    for shards in (0, 1, 8, 20, 30):
        running = Preparing(photographs, out)
        running.wait_for(shards)
        if only_the_driver:
            running.process.kill()
            running.finish()
        else:
            running.kill()
        after = times_of(running.partial) if running.partial.exists() else {}
        assert {shard: after[shard] for shard in finished} == finished, "a finished shard was packed again"
        finished = after
    last = Preparing(photographs, out)
    err = last.finish()
    assert last.process.returncode == 0, err
    assert "images already packed" in err
    assert Dataset(out).info.digest == undisturbed
    assert {shard: (out / shard).stat().st_mtime_ns for shard in finished} == finished


def test_a_node_dies_while_it_packs(photographs: Path, tmp_path: Path, undisturbed: str, nodes: Nodes) -> None:
    both = [nodes.add(), nodes.add()]
    running = Preparing(photographs, tmp_path / "out", nodes.address)
    running.wait_for(shards=3)
    nodes.wait_for_work(both, "ray::MapBatches")
    nodes.kill(both[0])
    assert len(running.records()) < IMAGES // SHARD, "the node died too late"
    err = running.finish()
    assert running.process.returncode == 0, err
    made = Dataset(tmp_path / "out")
    assert made.info.digest == undisturbed
    packed = [
        pq.read_table(file, columns=["image_id"])["image_id"] for file in (tmp_path / "out/packed").rglob("*.parquet")
    ]
    assert sorted(number for one in packed for number in one.to_pylist()) == list(range(IMAGES))


def test_ctrl_c_keeps_what_is_packed(photographs: Path, tmp_path: Path, undisturbed: str) -> None:
    out = tmp_path / "out"
    running = Preparing(photographs, out)
    running.wait_for(shards=3)
    running.process.send_signal(signal.SIGINT)
    last = running.finish().strip().splitlines()[-1]
    assert running.process.returncode == 130
    assert last.startswith("agman: interrupted: what is packed so far is kept in "), last
    assert len(running.records()) >= 3
    assert prepare("fashionai", photographs, out, **OPTIONS).digest == undisturbed  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small disk needs root")
def test_a_disk_that_is_full_for_real(photographs: Path, tmp_path: Path, undisturbed: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting, so no disk can be filled without harm to others")
    try:
        running = Preparing(photographs, disk / "out")
        last = running.finish().strip().splitlines()[-1]
        assert running.process.returncode == 2
        assert "no space left on device" in last
        assert last.endswith("and the same command continues from it")
        assert running.records()
        finished = times_of(running.partial)
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        prepared = prepare("fashionai", photographs, disk / "out", **OPTIONS)  # type: ignore[arg-type]
        assert prepared.digest == undisturbed
        assert {shard: (disk / "out" / shard).stat().st_mtime_ns for shard in finished} == finished
    finally:
        subprocess.run(["umount", str(disk)], check=True)
