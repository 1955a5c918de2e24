"""Ray clusters of several nodes on this machine, whose nodes tests add and kill."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from support.trainings import MARK, descendants, marked, processes


class Nodes:
    """A Ray cluster: a head without CPUs, on which the drivers run, and nodes of one CPU each."""

    def __init__(self) -> None:
        # A port of its own: this process has another Ray, whose dashboard has the usual one.
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self.cluster.address

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1)

    @contextmanager
    def blind(self, *hidden: Path) -> Iterator[None]:
        """Add, during the block, a node on which these folders are empty: its processes have mounts of their own."""
        ray = Path(sys.executable).with_name("ray")
        mounts = "".join(f"mount -t tmpfs tmpfs {shlex.quote(str(folder))} && " for folder in hidden)
        start = f"{mounts}exec {ray} start --block --address={self.address} --num-cpus=1"
        before = self._alive()
        node = subprocess.Popen(["unshare", "--mount", "sh", "-c", start], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 120
            while self._alive() == before:
                assert node.poll() is None and time.monotonic() < deadline, "no node has joined"
                time.sleep(0.1)
            yield
        finally:
            for process in [*descendants(node.pid), node.pid]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            node.wait()

    def _alive(self) -> int:
        return sum(node["Alive"] for node in self.cluster.global_state.node_table())

    def workers(self, node: Any, named: str = "ray::RayTrainWorker") -> list[int]:
        """Return the ids of the processes on a node whose titles begin so."""
        return processes(named, _raylet(node))

    def wait_for_work(self, nodes: Iterable[Any], named: str) -> None:
        """Wait until each of the nodes runs a process whose title begins so."""
        deadline = time.monotonic() + 120
        while not all(self.workers(node, named) for node in nodes):
            assert time.monotonic() < deadline, f"not on all nodes: {named}"
            time.sleep(0.005)

    def kill(self, node: Any) -> None:
        """Kill the raylet and all that it started (SIGKILL), like a power cut."""
        lost = [_raylet(node), *descendants(_raylet(node))]
        for process in lost:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def clear(self) -> None:
        for node in list(self.cluster.worker_nodes):
            self.kill(node)


def _raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def environment(address: str) -> dict[str, str]:
    """Return the environment of a command that uses a cluster that this process has started."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    return kept | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled")}


@pytest.fixture(scope="module")
def started() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        mark = secrets.token_hex(8)
        patch.setenv(MARK, mark)
        nodes = Nodes()
        yield nodes
        nodes.clear()
        nodes.cluster.shutdown()
        deadline = time.monotonic() + 60
        while (left := marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        assert not left, "processes that outlive their cluster"


@pytest.fixture
def nodes(started: Nodes) -> Iterator[Nodes]:
    yield started
    started.clear()
