"""`agman submit`: runs a command of agman as a job of a cluster, and follows it to its end."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from aiohttp import ClientError
from ray.job_submission import JobStatus, JobSubmissionClient

from data_prep.errors import InputError
from pipeline.common.console import say
from pipeline.common.errors import JobFailed, reason, without_credentials
from pipeline.tracking import origin

EXCLUDED = [".git", ".venv", "runs", "mlartifacts", "*.db", "*.parquet"]
"""Files of the working folder that are not uploaded, besides those that its .gitignore names."""
API_SERVER = "RAY_API_SERVER_ADDRESS"
"""Environment variable that Ray's client prefers to RAY_ADDRESS, and both to its argument."""
CONNECT_SECONDS = 10.0
"""Seconds that the head has to answer."""
SETTLE_SECONDS = 30.0
"""Seconds that a job has to report its status after the end of its log."""


def submit(command: Sequence[str], address: str, variables: Sequence[str] = (), working_dir: Path | None = None) -> int:
    """Run `agman COMMAND` on a cluster, write its log to stdout, and return its exit code.

    Ctrl-C leaves the job running and says how to stop it. With RAY_AUTH_MODE=token Ray's client sends the token of
    RAY_AUTH_TOKEN or ~/.ray/auth_token. The job's MLflow runs name this machine's user and this folder's commit. Raises
    InputError if no head answers, a variable is not set or the folder does not exist; JobFailed if the job was stopped
    or its state is unknown.

    Args:
        command: arguments of agman.
        address: address of the cluster's dashboard.
        variables: names of environment variables that the job gets with their values, outside its command line.
        working_dir: folder to upload as the job's working folder.
    """
    given = {name: _value(name) for name in variables}
    environment: dict[str, Any] = {"env_vars": origin.variables() | given}
    if working_dir:
        if not working_dir.is_dir():
            raise InputError(f"--working-dir {working_dir}: no such folder")
        environment |= {"working_dir": str(working_dir), "excludes": EXCLUDED}
    client, shown = _client(address), without_credentials(address)
    try:
        job = client.submit_job(entrypoint=shlex.join(["agman", *command]), runtime_env=environment)
    except Exception as error:  # Ray's client raises RuntimeError for most failures
        raise JobFailed(f"{shown}: the job was not accepted ({reason(error)})") from error
    stop = f"`ray job stop {job} --address {shown}` stops it"
    try:
        say(f"job {job} at {shown}")
        asyncio.run(_follow(client, job))
        return _outcome(client, job)
    except (KeyboardInterrupt, asyncio.CancelledError):  # asyncio gives the latter if it has just begun to listen
        raise KeyboardInterrupt(f"the job continues; {stop}") from None
    except (RuntimeError, OSError, ClientError) as error:
        raise JobFailed(f"the connection to job {job} is lost ({reason(error)}); it may continue; {stop}") from error


def _value(name: str) -> str:
    if name not in os.environ:
        raise InputError(f"--env {name}: is not set here")
    return os.environ[name]


def _client(address: str) -> JobSubmissionClient:
    shown = without_credentials(address)
    if not address.startswith(("http://", "https://")):
        raise InputError(f"--address {shown}: give the dashboard's address, as http://127.0.0.1:8265")
    try:
        with suppress(HTTPError):  # any answer will do; Ray's client has no timeout
            urlopen(address, timeout=CONNECT_SECONDS).close()
        with _alone(address):
            return JobSubmissionClient(address)
    except Exception as error:  # ConnectionError, and RuntimeError for a refused token or another version of Ray
        message = without_credentials(" ".join(str(error).split()))
        raise InputError(
            f"--address {shown}: no Ray head accepts jobs there ({message}); "
            "`ray dashboard ray_cluster.yaml` forwards a head's address"
        ) from error


@contextmanager
def _alone(address: str) -> Iterator[None]:
    """Keep Ray's client from taking RAY_ADDRESS, which is for drivers, for the address and waiting there for ever."""
    before = os.environ.get(API_SERVER)
    os.environ[API_SERVER] = address
    try:
        yield
    finally:
        del os.environ[API_SERVER]
        if before is not None:
            os.environ[API_SERVER] = before


async def _follow(client: JobSubmissionClient, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        sys.stdout.write(lines)
        sys.stdout.flush()


def _outcome(client: JobSubmissionClient, job: str) -> int:
    deadline = time.monotonic() + SETTLE_SECONDS
    while not (info := client.get_job_info(job)).status.is_terminal():
        if time.monotonic() > deadline:
            raise JobFailed(f"job {job}: its log has ended, but its status is {info.status.value.lower()}")
        time.sleep(0.2)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        raise JobFailed(f"job {job} was stopped")
    if info.driver_exit_code is None:
        raise JobFailed(f"job {job}: {info.message}")
    return int(info.driver_exit_code)
