"""Test that a cluster grows with the requests of a training and of a tuning study, and shrinks again.

The first half of `make cluster-test`. Ray's fake provider starts each node as processes on this machine; the
autoscaler, the requests and the idle times are real.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import psutil
from steps import run, wait

MOST = 3
"""Largest number of nodes, with one CPU each; the head has no CPU for tasks, as in ray_cluster.yaml."""
IDLE_MINUTES = 0.2
SETTINGS = "backbone=resnet18 embedding_dim=16 batch_size=12 threads=1 precision=fp32 seed=11"
COMMANDS = ["initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"]
COMMANDS += ["head_start_ray_commands", "worker_start_ray_commands"]
PROGRAM = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def autoscaling_head(folder: Path) -> Iterator[dict[str, str]]:
    """Run the head of a cluster during the block, and give the environment of commands that use it."""
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": 200 << 20},
            "node_config": {},
            "min_workers": 0,
            "max_workers": MOST,
        },
    }
    port = free_port()
    provider = {
        "type": "fake_multinode",
        "gcs_address": f"127.0.0.1:{port}",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    config = {command: [] for command in COMMANDS} | {
        "cluster_name": "agman",
        "provider": provider,
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "max_workers": MOST,
        "idle_timeout_minutes": IDLE_MINUTES,
    }
    (folder / "cluster.json").write_text(json.dumps(config))
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("RAY_AUTH") or not name.startswith(("RAY_", "MLFLOW_"))
    }
    variables = kept | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{PROGRAM}:{kept['PATH']}",
    }
    words = ["ray", "start", "--head", "--block", "--num-cpus=0", f"--port={port}", f"--temp-dir={folder / 'ray'}"]
    words += ["--node-ip-address=127.0.0.1", f"--dashboard-port={free_port()}", "--object-store-memory=200000000"]
    log = (folder / "head.log").open("w")
    head = subprocess.Popen(
        [*words, f"--autoscaling-config={folder / 'cluster.json'}"], env=variables, stdout=log, stderr=log
    )
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "head.log").read_text())
            time.sleep(0.2)
        grown = json.dumps({"nodes": MOST, "CPU": 1})
        yield kept | {"RAY_ADDRESS": f"127.0.0.1:{port}", "AGMAN_GROWN_CLUSTER": grown, "PATH": variables["PATH"]}
    finally:
        top = psutil.Process(head.pid)
        below = top.children(recursive=True)
        head.send_signal(signal.SIGTERM)
        psutil.wait_procs([top], timeout=60)
        for process in psutil.wait_procs([top, *below], timeout=5)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


class WorkerCount:
    """Number of workers in the cluster over time."""

    def __init__(self) -> None:
        self.history = [0]
        self._over = Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        import ray  # reads its token when it is imported

        started = time.monotonic()
        ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
        while not self._over.wait(0.5):
            count = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
            if count != self.history[-1]:
                self.history.append(count)
                print(f"  {time.monotonic() - started:6.1f} s  {count} workers", flush=True)
        ray.shutdown()

    def wait_for_none(self, seconds: float = 120) -> None:
        """Wait until the cluster has no worker. Raises RuntimeError after `seconds`."""
        took = wait("no worker", lambda: not self.history[-1], seconds, lambda: f"{self.history[-1]} workers")
        print(f"  idle until no worker is left: {took:.0f} s", flush=True)

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def agman(command: str, folder: Path, variables: dict[str, str]) -> None:
    print(f"agman {command}", flush=True)
    started = time.monotonic()
    run("agman", *command.split(), seconds=600, cwd=folder, env=variables)
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    with tempfile.TemporaryDirectory(prefix="agman-grow-", dir="/tmp") as work:  # Ray's sockets need a short path
        folder = Path(work)
        try:
            with autoscaling_head(folder) as variables:
                grow_and_shrink(folder, variables)
        except BaseException:
            print((folder / "head.log").read_text()[-3000:], file=sys.stderr)
            raise


def grow_and_shrink(folder: Path, variables: dict[str, str]) -> None:
    os.environ["RAY_ADDRESS"] = variables["RAY_ADDRESS"]
    workers = WorkerCount()
    agman("sample fashionai --images 240 --size 32 --out drawn", folder, variables)
    agman("prep fashionai --root drawn --out data --image-size 32 --triplets 96", folder, variables)
    workers.wait_for_none()
    before = len(workers.history)
    agman(f"train --data data --workers 2 {SETTINGS} epochs=2", folder, variables)
    assert max(workers.history[before:]) >= 2
    workers.wait_for_none()
    tune = f"tune --data data --space margins --trials 4 --concurrent {MOST} --final-seeds 0 {SETTINGS}"
    before = len(workers.history)
    agman(f"{tune} epochs=2", folder, variables)
    assert max(workers.history[before:]) == MOST
    workers.wait_for_none()
    workers.close()


if __name__ == "__main__":
    main()
