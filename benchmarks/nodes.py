"""`prep`, `embed` and `serve` on one, two and four nodes of a Ray cluster: `agman bench nodes`.

The nodes are raylets of this machine with one CPU each, and a head without CPUs, on which the command runs. More nodes
than cores cannot be faster here; the table shows that the work is spread over them, and that no row is lost or twice.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray.cluster_utils import Cluster
from ray.util.state import list_actors, list_nodes, list_tasks

import agman
from benchmarks.common import in_own_process, timed, write_table
from benchmarks.packing import make_images
from benchmarks.serve import load_on
from data_prep import packing
from data_prep.packing import pack
from data_prep.storage import Storage
from pipeline.common.console import progress_bar
from pipeline.retrieval import embed
from pipeline.retrieval.embed import embed_images
from pipeline.retrieval.gallery import Gallery
from pipeline.serving.run import Options, served

COUNTS = (1, 2, 4)
PACKED, EMBEDDED, SEARCHED = 16_000, 8_192, 256
SIZE, SIDE, CLIENTS = 224, 64, 16
NAMES = ["category", "kids", "sleeve_length", "leg_length"]


@contextmanager
def cluster_of(nodes: int) -> Iterator[str]:
    """Start a cluster, join it during the block, and give its address."""
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(nodes):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def tasks_by_node(address: str, name: str, tasks: int) -> list[int]:
    """Return the number of finished tasks of this name on each node, once so many are known."""
    while True:
        found: list[Any] = list_tasks(address, filters=[("name", "=", name), ("state", "=", "FINISHED")], limit=10_000)
        if len(found) >= tasks:
            return sorted(Counter(one.node_id for one in found).values(), reverse=True)
        time.sleep(1)  # Ray tells of tasks with a delay


def packed(folder: Path, address: str) -> dict[str, Any]:
    """Pack images."""
    root = (folder / "images").resolve()
    images = make_images(root, PACKED)
    seconds, made = timed(lambda: pack(images, root, Storage(folder / "packed"), SIZE, seed=0, progress=progress_bar))
    assert list(made.sizes["image_id"]) == list(range(PACKED))
    by_node = tasks_by_node(address, "MapBatches(_pack_shard)", PACKED // packing.SHARD)
    return {"rows": PACKED, "seconds": seconds, "by_node": [tasks * packing.SHARD for tasks in by_node]}


def embedded(folder: Path, address: str, nodes: int) -> dict[str, Any]:
    """Embed the first of the images."""
    torch.manual_seed(0)
    network = agman.build("agman", n_attributes=len(NAMES), backbone="resnet18", embedding_dim=128)
    description = {"attributes": NAMES, "image_size": SIDE, "training": {}, "dataset_digest": None, "run_id": None}
    model = agman.save_model(folder / "model", network, description)
    for number in range(EMBEDDED, PACKED):
        (folder / "images" / f"{number}.jpg").unlink()
    images, out = folder / "images", folder / "gallery"
    seconds, gallery = timed(lambda: embed_images(str(model), images, out, workers=nodes, progress=progress_bar))
    assert sorted(gallery.images) == sorted(f"{number}.jpg" for number in range(EMBEDDED))
    by_node = tasks_by_node(address, "_RemoteWorker.embed", EMBEDDED // embed.SHARD)
    return {"rows": EMBEDDED, "seconds": seconds, "by_node": [tasks * embed.SHARD for tasks in by_node]}


def searched(folder: Path, address: str, nodes: int) -> dict[str, Any]:
    """Search in the gallery over HTTP, with a replica for each node."""
    gallery = Gallery.open(folder / "gallery")
    pictures = [(folder / "images" / f"{number}.jpg").read_bytes() for number in range(SEARCHED)]
    with served(gallery.folder, None, Options(port=0, replicas=nodes)) as where:
        load_on(where, pictures[:32], CLIENTS)  # warms up
        rate, _ = load_on(where, pictures, CLIENTS)
        alive: list[Any] = list_actors(address, filters=[("state", "=", "ALIVE")], limit=1_000)
        replicas = Counter(one.node_id for one in alive if one.class_name.startswith("ServeReplica"))
    return {"rows": SEARCHED, "seconds": SEARCHED / rate, "by_node": sorted(replicas.values(), reverse=True)}


def measure(nodes: int) -> dict[str, Any]:
    """Return the figures of every step on so many nodes."""
    with tempfile.TemporaryDirectory() as temporary, cluster_of(nodes) as address:
        folder = Path(temporary)
        assert sum(node.state == "ALIVE" and not node.is_head_node for node in list_nodes(address)) == nodes
        return {
            "prep": packed(folder, address),
            "embed": embedded(folder, address, nodes),
            "serve": searched(folder, address, nodes),
        }


def main() -> None:
    """Measure COUNTS nodes, each in a process of its own; write the table."""
    found = {nodes: json.loads(in_own_process("nodes", str(nodes)).splitlines()[-1]) for nodes in COUNTS}
    rows = []
    for step in ("prep", "embed", "serve"):
        for nodes in COUNTS:
            one = found[nodes][step]
            spread = ", ".join(f"{count:,}" for count in one["by_node"])
            rows.append([step, str(nodes), f"{one['seconds']:.1f}", f"{one['rows'] / one['seconds']:,.0f}", spread])
    notes = (
        f"Nodes are raylets of this machine with one CPU each: more nodes than cores bring no speed. prep: {PACKED:,} "
        f"images to {SIZE} px; embed: {EMBEDDED:,} of them, resnet18 at {SIDE} px, {len(NAMES)} attributes, a worker a "
        f"node; both with the start of the workers, every image once (checked). serve: {SEARCHED} searches over HTTP "
        f"by {CLIENTS} clients, a replica a node; its last column counts replicas."
    )
    write_table("nodes", ["step", "nodes", "seconds", "rows/s", "rows by node"], rows, notes)


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
