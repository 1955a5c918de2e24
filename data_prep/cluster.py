"""A Ray session: the cluster at RAY_ADDRESS, or a local one for as long as it is needed."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from data_prep.errors import InputError


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to RAY_ADDRESS or start a local Ray, and leave it at the end. Nested calls share the session.

    Raises InputError if no cluster answers at RAY_ADDRESS.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without this, Ray's accelerator variables are overridden with a warning in every CPU task.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A proxy of Ray Serve that needs longer than this to start is killed; Ray's 5 s are too few on a busy machine.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    # Turns off Tune's own table of trials, which is longer than ours.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    address = os.environ.get("RAY_ADDRESS", "local")
    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise InputError(f"RAY_ADDRESS={address}: no Ray cluster answers there") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise InputError if nothing listens at `address`. Ray itself would try for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "local", "auto" or the name of a session
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error.strerror or error})") from error
