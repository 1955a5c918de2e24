"""A Ray session: the cluster at RAY_ADDRESS, or a local one for as long as it is needed."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from data_prep.errors import InputError

CONNECT_SECONDS = 60.0
"""Seconds that the cluster at RAY_ADDRESS has to let a process join."""
JOIN = """
import sys
import ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
except Exception as error:
    sys.exit(" ".join(str(error).split())[:300] or type(error).__name__)
"""


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to RAY_ADDRESS or start a local Ray, and leave it at the end. Nested calls share the session.

    Raises InputError if no cluster answers at RAY_ADDRESS in CONNECT_SECONDS.
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
    # Turns off Tune's own files of every trial (CSV, JSON, TensorBoard), which nobody reads.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        # One more process of every training, which watches for hosts that are about to be taken away.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    else:
        check_cluster(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise InputError(f"RAY_ADDRESS={address}: no Ray cluster answers there") from error
    try:
        yield
    finally:
        ray.shutdown()


def check_cluster(address: str) -> None:
    """Raise InputError if no cluster can be joined at `address` in CONNECT_SECONDS.

    A process of its own tries it: where anything but a cluster answers, Ray's C++ code waits for ever, deaf to
    signals, or ends its process.
    """
    wrong = f"RAY_ADDRESS={address!r}" if not address.isprintable() else f"RAY_ADDRESS={address}"
    _check_port(address, wrong)
    # Without this, inside a submitted job, Ray would count the process as that job's driver.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_JOB_CONFIG_JSON_ENV_VAR"}
    try:
        joined = subprocess.run(
            [sys.executable, "-c", JOIN, address],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CONNECT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{wrong}: no Ray cluster answers there in {CONNECT_SECONDS:g} s; give HOST:PORT of its head, or unset it"
        ) from None
    if joined.returncode:
        said = joined.stderr.decode(errors="replace").strip().splitlines()
        why = f" ({said[-1]})" if said and joined.returncode == 1 else ""  # others: Ray has ended the process
        raise InputError(f"{wrong}: no Ray cluster answers there{why}; give HOST:PORT of its head, or unset it")


def _check_port(address: str, wrong: str) -> None:
    """Raise InputError at once if nothing listens at `address`."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return  # "auto", or an address that Ray itself refuses
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{wrong}: no Ray cluster answers there ({why})") from error
