"""Start and end of the service on Ray Serve."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import uvicorn
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from data_prep.cluster import ray_session
from data_prep.errors import InputError
from data_prep.shared import Shared
from data_prep.storage import Storage
from pipeline.cluster.resources import ONE_HEAP, cpus_for, gpus_for
from pipeline.common.console import say
from pipeline.common.errors import JobFailed, reason
from pipeline.retrieval.gallery import DESCRIPTION, Gallery, read_info
from pipeline.serving.access import Access, is_loopback
from pipeline.serving.app import serving
from pipeline.serving.backends import served_embedder
from pipeline.serving.engine import Engine
from pipeline.serving.keys import Keys
from pipeline.serving.observe import LOGGING, Observed
from pipeline.serving.replica import Replica
from pipeline.tracking.runs import tracking_uri

NAME = "agman"
CONTROLLER = ("SERVE_CONTROLLER_ACTOR", "serve")
"""Name and namespace of the actor that controls Ray Serve."""
MAX_QUEUED = 256
"""Requests that may wait for a replica; further ones are answered with 503."""
MAX_ONGOING = 128
"""Requests that a replica works on at the same time, most of them waiting for their batch."""
HEALTH_SECONDS = 1
"""Seconds between two looks of Ray Serve at a replica; one that has ended is replaced after as many."""
GRACE_SECONDS = 2
"""Seconds that requests in progress have when the service is stopped."""
SHUTDOWN_SECONDS = 10
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
    backend: str = "torch"
    """Backend that computes the embeddings of pictures: one of BACKENDS."""
    keys: Path | None = None
    """File of the accepted API keys; None: no key is needed."""
    rate_limit: int | None = None
    """Requests a minute that a key, or without keys an address, has; None: any number."""


@contextmanager
def served(path: Path, model: str | None, options: Options) -> Iterator[str]:
    """Run the service for the gallery at `path` during the block, and give its address.

    Requests arrive in this process, and Ray Serve's replicas answer them: so the service can say that it is starting
    while Ray Serve replaces a replica. Raises InputError if there is no gallery, if the model is not the gallery's, or
    if the port is in use; JobFailed if the service does not start.
    """
    keys = Keys.read(options.keys) if options.keys else None
    path = path.absolute()
    facts = _facts(path, model, options.backend)
    with (
        ExitStack() as quiet,
        _listening(options) as listener,
        ray_session(),
        _replicas(path, model, options) as handle,
        _answering(serving(handle, facts), listener, keys, options.rate_limit),
    ):
        host, port = listener.getsockname()[:2]
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            # While Ray Serve ends, Ray reports every call that waits for its controller as failed, on stdout.
            quiet.enter_context(redirect_stdout(io.StringIO()))


def _facts(path: Path, model: str | None, backend: str) -> dict[str, Any]:
    """Return what is served. Nobody keeps the gallery: an opened one keeps the files of its state on the disk."""
    gallery = Gallery.open(path)
    return Engine(gallery, served_embedder(gallery, model, backend, device="cpu")).facts


@contextmanager
def _listening(options: Options) -> Iterator[socket.socket]:
    """Open the socket of the service. Raises InputError if the port is in use."""
    with socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
        except OSError as error:
            raise InputError(f"--host {options.host} --port {options.port}: {error.strerror}") from error
        yield listener


@contextmanager
def _replicas(path: Path, model: str | None, options: Options) -> Iterator[DeploymentHandle]:
    """Run the replicas on Ray Serve during the block. Raises JobFailed if they do not start."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    _check_alone()
    _check_nodes(path, model)
    on_gpu, cpus = gpus_for(options.replicas, "--replicas"), cpus_for(options.replicas, "--replicas")
    say("starting the service")  # the user waits for ten seconds and more
    if model and Path(model).exists():
        model = str(Path(model).absolute())
    deployment = Replica.options(  # type: ignore[attr-defined]
        num_replicas=options.replicas,
        # Half of the CPUs: actors of others may need some.
        ray_actor_options={"num_cpus": 0.5 * cpus, "num_gpus": float(on_gpu), "runtime_env": ONE_HEAP},
        max_ongoing_requests=MAX_ONGOING,
        max_queued_requests=MAX_QUEUED,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=1,  # requests have been answered before the replicas are told to end
    )
    waiting = (options.max_batch, options.wait_ms / 1000)
    bound = deployment.bind(str(path), tracking_uri(), model, options.backend, *waiting, cpus)
    try:
        try:
            serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
            handle = serve.run(bound, name=NAME, route_prefix=None)
        except (RuntimeError, RayError) as error:
            raise JobFailed(f"the service did not start ({reason(error)})") from error
        yield handle
    finally:
        # In a thread: if a signal to the process group has ended Ray's daemons too, Ray waits for minutes.
        stopping = threading.Thread(target=_end_ray_serve, daemon=True)
        stopping.start()
        stopping.join(SHUTDOWN_SECONDS)


def _check_nodes(path: Path, model: str | None) -> None:
    """Raise InputError if a node does not see the gallery, or the folder of its model."""
    folder = Path(model or read_info(path).model)
    Shared(
        Storage(path),
        DESCRIPTION,
        (path / DESCRIPTION).read_text("utf-8"),
        {"model": folder} if folder.is_dir() else {},
    ).check_nodes()


def _end_ray_serve() -> None:
    """End Ray Serve as `serve.shutdown` does, which waits in a call that fails when its end is reached.

    Ray reports that failure on stderr, and repeats the call.
    """
    with suppress(ValueError, RayError):  # there is no such actor
        controller = ray.get_actor(*CONTROLLER)
        ray.get(controller.graceful_shutdown.remote(wait=False))
        while ray.get_actor(*CONTROLLER):
            time.sleep(0.1)


@contextmanager
def _answering(app: FastAPI, listener: socket.socket, keys: Keys | None, rate_limit: int | None) -> Iterator[None]:
    """Answer requests at the socket during the block, in a thread; in the end, wait for requests in progress."""
    guarded = Observed(Access(app, keys, rate_limit))
    config = uvicorn.Config(
        guarded, log_config=LOGGING, access_log=False, lifespan="on", timeout_graceful_shutdown=GRACE_SECONDS
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not (server.started and app.state.replicas.answering):
        if not thread.is_alive():
            raise JobFailed("the service did not start (its HTTP server ended)")
        time.sleep(0.02)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def serve_until_stopped(path: Path, model: str | None, options: Options) -> None:
    """Serve the gallery at `path` until Ctrl-C or SIGTERM."""
    stop = threading.Event()
    with served(path, model, options) as address:
        before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
        say(f"serving {path} at {address} (Ctrl-C stops)")
        if not options.keys and not is_loopback(options.host):
            say("note: everybody who can reach this address can use it: no key is needed")
        while not stop.wait(1):
            pass
        say("stopping")
        for number, handler in before.items():
            signal.signal(number, handler)
    say(f"stopped (process {os.getpid()})")


def _check_alone() -> None:
    """Raise InputError if the cluster runs Ray Serve: there is one for all, and ending ours would end the others."""
    try:
        ray.get_actor(*CONTROLLER)
    except ValueError:
        return  # asked, Ray Serve would ask the controller of this process' last service, which has ended
    status = serve.status()
    if status.proxies or status.applications:
        raise InputError(
            "the cluster runs Ray Serve already: stop it (`serve shutdown`), or unset RAY_ADDRESS for another cluster"
        )
