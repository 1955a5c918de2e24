"""`agman submit` to a head of its own, with token authentication: the log followed, the exit code kept."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient
from support.commands import Finished

TOKEN = secrets.token_hex(16)
"""Of the head and of the commands, which are processes of their own: Ray reads a process's token once."""
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
ENVIRONMENT |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
ENVIRONMENT["PATH"] = f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}"


def started(*words: object, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["agman", "submit", *map(str, words)],
        env=ENVIRONMENT | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def submit(*words: object, **variables: str) -> Finished:
    process = started(*words, **variables)
    out, err = process.communicate(timeout=120)
    return Finished(process.returncode, out, err)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """Its ports are its own: other tests' Ray may hold the usual ones."""
    dashboard, agent, gcs = free_port(), free_port(), free_port()
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    start = ["ray", "start", "--head", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1", *ports]
    process = subprocess.Popen(start, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address, deadline = f"http://127.0.0.1:{dashboard}", time.monotonic() + 90
    while not takes_jobs(address):
        assert process.poll() is None and time.monotonic() < deadline, "the head did not start"
        time.sleep(0.5)
    yield address
    process.terminate()
    process.wait(60)


def takes_jobs(address: str) -> bool:
    try:
        job = client(address).submit_job(entrypoint="true")
        return bool(job)
    except (RuntimeError, ConnectionError):
        return False


def test_a_command_runs_there_and_its_log_is_here(head: str, tmp_path: Path) -> None:
    made = tmp_path / "drawn"
    done = submit("--address", head, "--", "sample", "fashionai", "--out", made, "--images", 9, "--json")
    assert done.code == 0, done.err
    assert '"images": 9' in done.out
    assert re.search(rf"job raysubmit_\w+ at {head}", done.err)
    assert len(list(made.rglob("*.jpg"))) == 9


def test_its_exit_code_is_the_command_s(head: str, tmp_path: Path) -> None:
    done = submit("--address", head, "--", "prep", "fashionai", "--root", tmp_path / "no", "--out", "x")
    assert done.code == 2
    assert "no: no such folder" in done.out


def client(head: str) -> JobSubmissionClient:
    return JobSubmissionClient(head, headers={"Authorization": f"Bearer {TOKEN}"})


def test_files_and_variables_go_with_it(head: str, tmp_path: Path) -> None:
    """The variable is one that the command heeds; its value is in nothing that is printed or listed."""
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


def test_ctrl_c_leaves_it_running_and_says_how_to_stop_it(head: str, tmp_path: Path) -> None:
    many = ("--images", 200_000, "--size", 32)
    process = started("--address", head, "--", "sample", "fashionai", "--out", tmp_path / "long", *many)
    deadline = time.monotonic() + 60
    while not any(job.status == JobStatus.RUNNING for job in client(head).list_jobs()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    found = re.search(r"the job goes on; `ray job stop (\w+) --address (\S+)` stops it", said)
    assert found and found[2] == head
    assert client(head).get_job_status(found[1]) == JobStatus.RUNNING
    client(head).stop_job(found[1])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("trian", "--data", "x"), "trian: no such command; did you mean 'train'?"),
        (("--address", "http://127.0.0.1:9", "--", "train"), "no Ray head takes jobs there"),
        (("--address", "127.0.0.1:8265", "--", "train"), "as http://127.0.0.1:8265"),
        (("--env", "NOT_SET_ANYWHERE", "--", "train"), "--env NOT_SET_ANYWHERE: is not set here"),
        (("--working-dir", "nowhere", "--", "train"), "nowhere: no such folder"),
        ((), "Missing argument"),
    ],
)
def test_what_cannot_be_submitted(typed: tuple[str, ...], message: str) -> None:
    done = submit(*typed)
    assert done.code == 2, done.err
    assert message in done.err.splitlines()[-1]


def test_a_wrong_token_is_refused(head: str) -> None:
    done = submit("--address", head, "--", "train", RAY_AUTH_TOKEN="0" * 32)
    assert done.code == 2, done.err
    assert "no Ray head takes jobs there" in done.err.splitlines()[-1]


def test_a_head_that_says_nothing_does_not_keep_one_waiting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = submit("--address", f"http://127.0.0.1:{silent.getsockname()[1]}", "--", "train")
    assert done.code == 2, done.err
    assert "no Ray head takes jobs there (timed out)" in done.err.splitlines()[-1]


def test_the_dashboard_listens_on_loopback_alone(head: str) -> None:
    port = int(head.rpartition(":")[2])
    listening = {
        each.laddr.ip for each in psutil.net_connections("tcp") if each.status == "LISTEN" and each.laddr.port == port
    }
    assert listening == {"127.0.0.1"}
