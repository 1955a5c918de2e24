"""Start and end of the service on Ray Serve."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_prep.cluster import ray_session
from data_prep.errors import InputError
from pipeline.cluster.resources import ONE_HEAP, cpus_for, gpus_for
from pipeline.common.console import say
from pipeline.common.errors import JobFailed, reason
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.search import embedder_of
from pipeline.tracking.runs import tracking_uri

NAME = "agman"
MAX_QUEUED = 256
"""Requests that may wait at the proxy of a node; further ones are answered with 503."""
MAX_ONGOING = 128
"""Requests that a replica works on at the same time, most of them waiting for their batch."""
SHUTDOWN_SECONDS = 20
"""Seconds that Ray Serve has to end."""


@dataclass(frozen=True)
class Options:
    """Options of the service."""

    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    max_batch: int = 32
    """Largest number of pictures that pass the network together."""
    wait_ms: float = 5.0
    """Milliseconds that the first picture of a batch waits for others."""


@contextmanager
def served(path: Path, model: str | None, options: Options) -> Iterator[str]:
    """Run the service for the gallery at `path` during the block, and give its address.

    Raises InputError if there is no gallery, if the model is not the gallery's, or if the port is in use; JobFailed if
    the service does not start.
    """
    from ray import serve
    from ray.exceptions import RayError

    from pipeline.serving.app import Replica

    path = path.absolute()
    embedder_of(Gallery.open(path), model, device="cpu")
    _check_port(options)
    if model and Path(model).exists():
        model = str(Path(model).absolute())
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with ray_session():
        _check_alone()
        on_gpu, cpus = gpus_for(options.replicas, "--replicas"), cpus_for(options.replicas, "--replicas")
        try:
            deployment = Replica.options(  # type: ignore[attr-defined]
                num_replicas=options.replicas,
                # Half of the CPUs: actors of others may need some.
                ray_actor_options={"num_cpus": 0.5 * cpus, "num_gpus": float(on_gpu), "runtime_env": ONE_HEAP},
                max_ongoing_requests=MAX_ONGOING,
                max_queued_requests=MAX_QUEUED,
            )
            bound = deployment.bind(str(path), tracking_uri(), model, options.max_batch, options.wait_ms / 1000, cpus)
            http = {"host": options.host, "port": options.port}
            try:
                serve.start(http_options=http, logging_config={"log_level": "ERROR"})
                serve.run(bound, name=NAME, route_prefix="/")
            except (RuntimeError, RayError) as error:
                raise JobFailed(f"the service did not start ({reason(error)})") from error
            yield f"http://{f'[{options.host}]' if ':' in options.host else options.host}:{options.port}"
        finally:
            # In a thread: if a signal to the process group has ended Ray's daemons too, Ray Serve waits for minutes.
            stopping = threading.Thread(target=serve.shutdown, daemon=True)
            stopping.start()
            stopping.join(SHUTDOWN_SECONDS)


def serve_until_stopped(path: Path, model: str | None, options: Options) -> None:
    """Serve the gallery at `path` until Ctrl-C or SIGTERM."""
    stop = threading.Event()
    with served(path, model, options) as address:
        before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
        say(f"serving {path} at {address} (Ctrl-C stops)")
        if options.host not in ("127.0.0.1", "localhost", "::1"):
            say("note: other machines can reach it, and it has no authentication")
        while not stop.wait(1):
            pass
        say("stopping")
        for number, handler in before.items():
            signal.signal(number, handler)
    say(f"stopped (process {os.getpid()})")


def _check_alone() -> None:
    """Raise InputError if the cluster runs Ray Serve: there is one for all, and ending ours would end the others."""
    from ray import serve

    status = serve.status()
    if status.proxies or status.applications:
        raise InputError(
            "the cluster runs Ray Serve already: stop it (`serve shutdown`), or unset RAY_ADDRESS for another cluster"
        )


def _check_port(options: Options) -> None:
    """Raise InputError if the port is in use: Ray Serve itself would try again and again."""
    with socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            raise InputError(f"--host {options.host} --port {options.port}: {error.strerror}") from error
