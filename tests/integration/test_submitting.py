"""`agman submit` to a head with token authentication: it follows the log, and returns the exit code."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient
from support.commands import Agman, Finished

from pipeline.cluster import submit as submit_module

TOKEN = secrets.token_hex(16)
"""Token of the head and of the commands. Ray reads the token once per process, so the commands are processes."""
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
ENVIRONMENT |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
ENVIRONMENT["PATH"] = f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}"


def start(*words: object, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["agman", "submit", *map(str, words)],
        env=ENVIRONMENT | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def submit(*words: object, **variables: str) -> Finished:
    process = start(*words, **variables)
    out, err = process.communicate(timeout=120)
    return Finished(process.returncode, out, err)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a head with ports of its own, as the Ray of other tests may use the default ones."""
    dashboard, agent, gcs = free_port(), free_port(), free_port()
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command = ["ray", "start", "--head", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1", *ports]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address, deadline = f"http://127.0.0.1:{dashboard}", time.monotonic() + 90
    while not accepts_jobs(address):
        assert process.poll() is None and time.monotonic() < deadline, "the head did not start"
        time.sleep(0.2)
    yield address
    process.terminate()
    process.wait(60)


def accepts_jobs(address: str) -> bool:
    try:
        return bool(client(address).submit_job(entrypoint="true"))
    except (RuntimeError, ConnectionError):
        return False


def test_a_command_runs_on_the_cluster_and_its_log_is_followed(head: str, tmp_path: Path) -> None:
    made = tmp_path / "drawn"
    origin = {"AGMAN_USER": "ana", "AGMAN_COMMIT": "c0ffee"}
    done = submit("--address", head, "--", "sample", "fashionai", "--out", made, "--images", 9, "--json", **origin)
    assert done.code == 0, done.err
    assert '"images": 9' in done.out
    job = re.search(rf"job (raysubmit_\w+) at {head}", done.err)
    assert job and len(list(made.rglob("*.jpg"))) == 9
    assert client(head).get_job_info(job[1]).runtime_env == {"env_vars": origin}


def client(head: str) -> JobSubmissionClient:
    return JobSubmissionClient(head, headers={"Authorization": f"Bearer {TOKEN}"})


def test_files_and_variables_are_sent_with_the_command_and_its_exit_code_is_returned(head: str, tmp_path: Path) -> None:
    """The command uses the variable; its value appears in nothing that is printed or listed."""
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "marker").write_text("here")
    variables = {"MLFLOW_TRACKING_URI": "http://user:sesame@127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    options = [word for name in variables for word in ("--env", name)] + ["--working-dir", tmp_path / "up"]
    done = submit("--address", head, *options, "--", "rollback", "agman-x", "--reason", "none", **variables)
    assert done.code == 2, done.err + done.out
    assert "http://127.0.0.1:9" in done.out
    assert "sesame" not in done.out + done.err
    jobs = client(head).list_jobs()
    assert jobs and all("sesame" not in f"{job.entrypoint} {job.metadata} {job.message}" for job in jobs)


def test_ctrl_c_leaves_the_job_running_and_says_how_to_stop_it(head: str, tmp_path: Path) -> None:
    many = ("--images", 200_000, "--size", 32)
    with start("--address", head, "--", "sample", "fashionai", "--out", tmp_path / "long", *many) as process:
        job = next(found[1] for line in process.stderr if (found := re.search(r"job (\w+) at", line)))
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(30) == 130, said
    found = re.search(r"the job continues; `ray job stop (\w+) --address (\S+)` stops it", said)
    assert found and found.groups() == (job, head)
    deadline = time.monotonic() + 60
    while (status := client(head).get_job_status(job)) == JobStatus.PENDING:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert status == JobStatus.RUNNING
    client(head).stop_job(job)


def test_ctrl_c_in_the_moment_in_which_asyncio_begins_to_listen_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio.run counts interrupts from zero after it has taken over SIGINT: one in between cancels its task only."""

    async def cancelled(job: str) -> AsyncIterator[str]:
        task = asyncio.current_task()
        assert task and task.cancel()
        await asyncio.sleep(0)
        yield job

    client = SimpleNamespace(submit_job=lambda **_: "raysubmit_1", tail_job_logs=cancelled)
    monkeypatch.setattr(submit_module, "_client", lambda address: client)
    with pytest.raises(KeyboardInterrupt, match="the job continues; `ray job stop raysubmit_1"):
        submit_module.submit(["train"], "http://127.0.0.1:8265")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("trian", "--data", "x"), "trian: no such command; did you mean 'train'?"),
        (("--address", "http://127.0.0.1:9", "--", "train"), "no Ray head accepts jobs there"),
        (("--address", "127.0.0.1:8265", "--", "train"), "as http://127.0.0.1:8265"),
        (("--env", "NOT_SET_ANYWHERE", "--", "train"), "--env NOT_SET_ANYWHERE: is not set here"),
        (("--working-dir", "nowhere", "--", "train"), "Directory 'nowhere' does not exist"),
        ((), "Missing argument"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(agman_here: Agman, typed: tuple[str, ...], message: str) -> None:
    done = agman_here("submit", *typed)
    assert done.code == 2, done.err
    assert message in done.err.splitlines()[-1]


def test_a_wrong_token_is_refused(head: str) -> None:
    done = submit("--address", head, "--", "train", RAY_AUTH_TOKEN="0" * 32)
    assert done.code == 2, done.err
    assert "no Ray head accepts jobs there" in done.err.splitlines()[-1]


def test_a_silent_head_is_given_up(agman_here: Agman, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_module, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = agman_here("submit", "--address", f"http://127.0.0.1:{silent.getsockname()[1]}", "--", "train")
    assert done.code == 2, done.err
    assert "no Ray head accepts jobs there (timed out)" in done.err.splitlines()[-1]


def test_the_address_given_counts_and_not_that_of_drivers(agman_here: Agman, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as no_head:
        threading.Thread(target=no_head.serve_forever).start()
        done = agman_here("submit", "--address", f"http://127.0.0.1:{no_head.server_port}", "--", "train")
        no_head.shutdown()
    assert done.code == 2, done.err
    line = done.err.splitlines()[-1]
    assert "no Ray head accepts jobs there" in line and "nonsense" not in line
    assert "RAY_API_SERVER_ADDRESS" not in os.environ


def test_the_dashboard_listens_only_on_loopback(head: str) -> None:
    port = int(head.rpartition(":")[2])
    listening = {
        each.laddr.ip for each in psutil.net_connections("tcp") if each.status == "LISTEN" and each.laddr.port == port
    }
    assert listening == {"127.0.0.1"}
