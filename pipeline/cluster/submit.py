"""`agman submit`: a command of agman as a job of a cluster, followed to its end."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from aiohttp import ClientError
from ray.job_submission import JobStatus, JobSubmissionClient

from data_prep.errors import InputError
from pipeline.common.console import say
from pipeline.common.errors import JobFailed
from pipeline.tracking.runs import reason, without_credentials

LEFT_OUT = [".git", ".venv", "runs", "mlartifacts", "*.db", "*.parquet"]
"""Of an uploaded working folder, beside what its .gitignore says."""
ANSWERING = 10.0
"""Seconds in which a head answers at all."""
SETTLING = 30.0
"""Seconds after the end of its log in which a job says how it ended."""


def submit(command: Sequence[str], address: str, variables: Sequence[str] = (), working_dir: Path | None = None) -> int:
    """Run `agman COMMAND` on the cluster whose dashboard is at `address`; its log goes to stdout.

    `variables` are names; their values go to the job as its environment, not onto its command line. Returns the
    command's own exit code. Ctrl-C leaves the job running, and says how to stop it. With RAY_AUTH_MODE=token Ray's
    client sends the token of RAY_AUTH_TOKEN or ~/.ray/auth_token. Raises InputError where no head answers, for a
    variable that is not set and a folder that is not there; JobFailed where the job was stopped, or is out of sight.
    """
    environment: dict[str, Any] = {"env_vars": {name: _value(name) for name in variables}} if variables else {}
    if working_dir:
        if not working_dir.is_dir():
            raise InputError(f"--working-dir {working_dir}: no such folder")
        environment |= {"working_dir": str(working_dir), "excludes": LEFT_OUT}
    client = _client(address)
    try:
        job = client.submit_job(entrypoint=shlex.join(["agman", *command]), runtime_env=environment)
    except Exception as error:  # Ray's client raises RuntimeError for nearly all
        raise JobFailed(f"{without_credentials(address)}: the job was not taken ({reason(error)})") from error
    say(f"job {job} at {without_credentials(address)}")
    stop = f"`ray job stop {job} --address {without_credentials(address)}` stops it"
    try:
        asyncio.run(_follow(client, job))
        return _outcome(client, job)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the job goes on; {stop}") from None
    except (RuntimeError, OSError, ClientError) as error:
        raise JobFailed(f"job {job} is out of sight ({reason(error)}); it may go on; {stop}") from error


def _value(name: str) -> str:
    if name not in os.environ:
        raise InputError(f"--env {name}: is not set here")
    return os.environ[name]


def _client(address: str) -> JobSubmissionClient:
    if not address.startswith(("http://", "https://")):
        raise InputError(f"--address {without_credentials(address)}: the dashboard's address, as http://127.0.0.1:8265")
    try:
        with suppress(HTTPError):  # any answer will do: Ray's client would wait for one without an end
            urlopen(address, timeout=ANSWERING).close()
        return JobSubmissionClient(address)
    except Exception as error:  # ConnectionError, and RuntimeError for a refused token or another version of Ray
        said = without_credentials(" ".join(str(error).split()))
        raise InputError(
            f"--address {without_credentials(address)}: no Ray head takes jobs there ({said}); "
            "`ray dashboard ray_cluster.yaml` makes a way to one"
        ) from error


async def _follow(client: JobSubmissionClient, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        sys.stdout.write(lines)
        sys.stdout.flush()


def _outcome(client: JobSubmissionClient, job: str) -> int:
    deadline = time.monotonic() + SETTLING
    while not (info := client.get_job_info(job)).status.is_terminal():
        if time.monotonic() > deadline:
            raise JobFailed(f"job {job}: its log has ended, but it is said to be {info.status.value.lower()}")
        time.sleep(0.2)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        raise JobFailed(f"job {job} was stopped")
    if info.driver_exit_code is None:
        raise JobFailed(f"job {job}: {info.message}")
    return int(info.driver_exit_code)
