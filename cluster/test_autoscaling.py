"""A search that asks for more than there is grows a cluster, which shrinks again: half of `make cluster-test`.

Ray's fake provider starts each node as processes on this machine; autoscaler, demands and idle times are the real ones.
"""

from __future__ import annotations

import json
import os
import shutil
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
import ray
import yaml

MOST = 3
"""Nodes of one CPU; the head has none for tasks, as in ray_cluster.yaml."""
IDLE_MINUTES = 0.2
SETTINGS = "backbone=resnet18 embedding_dim=16 batch_size=12 threads=1 precision=fp32 seed=11"
PROGRAM = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def autoscaling_head(folder: Path) -> Iterator[dict[str, str]]:
    """The variables with which a command uses it."""
    example = Path(ray.__file__).parent / "autoscaler/_private/fake_multi_node/example.yaml"
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": 200 << 20},
            "node_config": {},
            "min_workers": 0,
            "max_workers": MOST,
        },
    }
    config = yaml.safe_load(example.read_text()) | {
        "available_node_types": kinds,
        "max_workers": MOST,
        "idle_timeout_minutes": IDLE_MINUTES,
    }
    (folder / "cluster.json").write_text(json.dumps(config))
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
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
        below = psutil.Process(head.pid).children(recursive=True)
        head.send_signal(signal.SIGTERM)
        head.wait(60)
        for process in psutil.wait_procs(below, timeout=5)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


class Watch:
    """How many workers there are, over time."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.seen: list[tuple[float, int]] = [(0.0, 0)]
        self._over = Event()
        self._thread = Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            count = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
            if count != self.seen[-1][1]:
                self.seen.append((time.monotonic() - self.begun, count))
                print(f"  {self.seen[-1][0]:6.1f} s  {count} workers", flush=True)

    @property
    def now(self) -> int:
        return self.seen[-1][1]

    def wait_for(self, count: int, seconds: float) -> float:
        begun = time.monotonic()
        while self.now != count:
            if time.monotonic() - begun > seconds:
                raise TimeoutError(f"{self.now} workers, not {count}, after {seconds} s")
            time.sleep(0.2)
        return time.monotonic() - begun

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def agman(command: str, folder: Path, variables: dict[str, str]) -> None:
    print(f"agman {command}", flush=True)
    begun = time.monotonic()
    done = subprocess.run(["agman", *command.split()], cwd=folder, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"agman {command}: exit code {done.returncode}\n{done.stderr[-6000:]}")
    print(f"  done in {time.monotonic() - begun:.0f} s", flush=True)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="agman-grow-", dir="/tmp"))  # the names of Ray's sockets have to be short
    try:
        with autoscaling_head(folder) as variables:
            ray.init(address=variables["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
            watch = Watch()
            agman("sample fashionai --images 240 --size 32 --out drawn", folder, variables)
            agman("prep fashionai --root drawn --out data --image-size 32 --triplets 96", folder, variables)
            print(f"  idle until none is left: {watch.wait_for(0, 120):.0f} s", flush=True)
            agman(f"train --data data --workers 2 {SETTINGS} epochs=2", folder, variables)
            assert max(count for _, count in watch.seen) >= 2
            print(f"  idle until none is left: {watch.wait_for(0, 120):.0f} s", flush=True)
            search = f"tune --data data --space margins --trials 4 --concurrent {MOST} --final-seeds 0 {SETTINGS}"
            agman(f"{search} epochs=2", folder, variables)
            assert max(count for _, count in watch.seen) == MOST
            print(f"  idle until none is left: {watch.wait_for(0, 120):.0f} s", flush=True)
            watch.close()
            ray.shutdown()
    except BaseException:
        print((folder / "head.log").read_text()[-3000:], file=sys.stderr)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
