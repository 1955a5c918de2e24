"""Bringing the service up with Ray Serve, and down again."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_prep.cluster import ray_session
from data_prep.errors import InputError
from pipeline.common.console import say
from pipeline.common.errors import JobFailed
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.search import embedder_of
from pipeline.tracking import runs as tracking

NAME = "agman"
WAITING = 256
"""Requests that may wait at a node's proxy; more are answered with 503."""
STOPS_WITHIN = 20
"""Seconds."""
AT_ONCE = 128
"""Requests that a replica works on at a time, most of them waiting for their batch."""


@dataclass(frozen=True)
class Options:
    """How the service runs."""

    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    max_batch: int = 32
    """Pictures that pass the network together."""
    wait_ms: float = 5.0
    """How long the first picture of a batch waits for others."""


@contextmanager
def served(place: Path, model: str | None, options: Options) -> Iterator[str]:
    """The service for the length of the block; gives its address.

    Raises InputError for what is no gallery, for a model that is not the gallery's, and for a port that is taken.
    """
    from ray import serve

    from pipeline.cluster.resources import ONE_HEAP, cpus_for, gpus_for
    from pipeline.serving.app import Replica

    place = place.absolute()
    embedder_of(Gallery.open(place), model, device="cpu")
    _check_free(options)
    if model and Path(model).exists():
        model = str(Path(model).absolute())
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with ray_session():
        _check_alone()
        on_gpu, cpus = gpus_for(options.replicas, "--replicas"), cpus_for(options.replicas, "--replicas")
        serve.start(http_options={"host": options.host, "port": options.port}, logging_config={"log_level": "ERROR"})
        try:
            deployment = Replica.options(  # type: ignore[attr-defined]
                num_replicas=options.replicas,
                # Less than all CPUs: Ray Serve's own actors need none, but others may.
                ray_actor_options={"num_cpus": 0.5 * cpus, "num_gpus": float(on_gpu), "runtime_env": ONE_HEAP},
                max_ongoing_requests=AT_ONCE,
                max_queued_requests=WAITING,
            )
            bound = deployment.bind(
                str(place), tracking.tracking_uri(), model, options.max_batch, options.wait_ms / 1000, cpus
            )
            try:
                serve.run(bound, name=NAME, route_prefix="/")
            except RuntimeError as error:
                raise JobFailed(f"the service did not come up ({tracking.reason(error)})") from error
            yield f"http://{f'[{options.host}]' if ':' in options.host else options.host}:{options.port}"
        finally:
            _within(serve.shutdown, STOPS_WITHIN)


def _within(stop: Callable[[], None], seconds: float) -> None:
    """Where a signal to the whole group has ended Ray's daemons too, Ray Serve would wait for them for minutes."""
    stopping = threading.Thread(target=stop, daemon=True)
    stopping.start()
    stopping.join(seconds)


def serve_until_stopped(place: Path, model: str | None, options: Options) -> None:
    """The command: serve until Ctrl-C or SIGTERM."""
    stop = threading.Event()
    with served(place, model, options) as address:
        before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
        say(f"serving {place} at {address} (Ctrl-C stops)")
        if options.host not in ("127.0.0.1", "localhost", "::1"):
            say("note: it listens beyond this machine, without authentication")
        while not stop.wait(1):
            pass
        say("stopping")
        for number, handler in before.items():
            signal.signal(number, handler)
    say(f"stopped (process {os.getpid()})")


def _check_alone() -> None:
    """A cluster has one Ray Serve: to join another's would change its applications, and to stop would end them."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:  # no such actor
        return
    raise InputError(
        "the cluster runs Ray Serve already: stop that (`serve shutdown`), or unset RAY_ADDRESS for another"
    )


def _check_free(options: Options) -> None:
    """Ray Serve itself would go on trying."""
    with socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((options.host, options.port))
        except OSError as error:
            raise InputError(f"--host {options.host} --port {options.port}: {error.strerror}") from error
