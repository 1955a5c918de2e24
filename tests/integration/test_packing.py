"""Packing by Ray Data: the same bytes as in one process, on one node or two."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from support.datasets import SIZE, make_images, make_photographs

from data_prep import packing
from data_prep.errors import InputError
from data_prep.packing import MARKER, pack
from data_prep.shared import Shared
from data_prep.storage import Storage


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ray pack few images in several shards; the plan is made by this process."""
    monkeypatch.setattr(packing, "SHARD", 20)
    monkeypatch.setattr(packing, "IN_PROCESS", 20)


def test_this_process_and_ray_pack_the_same_bytes(tmp_path: Path) -> None:
    images = make_images(tmp_path / "root", 64)
    root = (tmp_path / "root").resolve()
    (root / "9.jpg").write_text("no picture")
    by_ray, here = Storage(tmp_path / "ray"), Storage(tmp_path / "here")
    pack(images, root, by_ray, SIZE, seed=1)
    shards = list(packing._plan(images, seed=1))
    assert len(shards) == 4
    plan = (by_ray / MARKER).read_bytes()
    (here / MARKER).write_bytes(plan)
    shared = Shared(here, MARKER, plan.decode(), {"images": root})
    job = partial(packing._pack_shard, root=root, shared=shared, image_size=SIZE)
    assert [row["images"] for row in packing._packed_here(shards, job)] == [13, 17, 17, 17]
    names = set(here.files())
    assert names == set(by_ray.files())
    assert all((here / name).read_bytes() == (by_ray / name).read_bytes() for name in names)


def test_a_worker_that_does_not_see_the_images_says_so(tmp_path: Path) -> None:
    images = make_images(tmp_path / "root", 64)
    with pytest.raises(InputError, match=r"nowhere: not there.*all nodes share.* node "):
        pack(images, tmp_path / "nowhere", Storage(tmp_path / "out"), SIZE, seed=0)


TWO_NODES = """
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from data_prep import packing
from data_prep.prepare import prepare

packing.SHARD = packing.IN_PROCESS = 10
nodes = int(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
for _ in range(nodes - 1):
    cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
assert len([node for node in ray.nodes() if node["Alive"]]) == nodes
prepared = prepare("fashionai", Path(sys.argv[2]), Path(sys.argv[3]), triplets=20, epochs=1, image_size=32)
print(prepared.digest)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_one_node_and_two_pack_the_same_dataset(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw", n=100)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    digests = [
        subprocess.run(
            [sys.executable, "-c", TWO_NODES, str(nodes), str(root), str(tmp_path / f"out{nodes}")],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=180,
        ).stdout.split()[-1]
        for nodes in (1, 2)
    ]
    assert digests[0] == digests[1]
