"""A small process that ends a driver's MLflow runs if the driver dies without a word, of SIGKILL for one.

The driver holds the writing end of a pipe; the guard reads the other one. A word means that the runs have ended
properly; end-of-file without one means that the driver is gone. Runs are found by the token that the driver put on
them, so that there is no moment between a run's creation and its being guarded.

Two processes may want to write one run's status: a guard, and a newer driver that takes the run over. MLflow has no
compare-and-set, so each first says what it is about to do and then looks what the other said: a guard sets ENDING,
reads OWNER, writes the status, removes ENDING; a new driver sets OWNER, waits until there is no ENDING, writes RUNNING.

Nothing heavy at the top of this file, and nothing of ours: it runs as a script beside every training. What it cannot
outlive: the machine, and the container whose first process the driver was.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

OWNER = "agman.driver"
"""Tag: the token of the driver that the run, or the sweep it belongs to, is of."""
ENDING = "agman.ending"
"""Tag: the token of whoever is about to write the run's last status."""

PATIENCE = 10.0  # seconds that a new driver waits for an ENDING to go; longer, and the guard that set it was killed too
PAUSES = (1, 2, 4, 8, 16, 32, *[60] * 60)  # seconds between tries while the store does not answer: an hour in all
_ENDED = b"ended"
_pipes: set[IO[bytes]] = set()


class Guard:
    """The driver's end of it. `Guard.start` never raises: a training goes on without a guard."""

    def __init__(self, pipe: IO[bytes] | None):
        self._pipe = pipe
        if pipe:
            _pipes.add(pipe)

    @classmethod
    def start(cls, uri: str, experiment_id: str, token: str, name: str) -> Guard:
        """Guard the RUNNING runs of the experiment that bear the token. `name` is for people who look at `ps`."""
        # -P: the script's own folder is not for importing from; it has modules with common names.
        command = [sys.executable, "-P", __file__, name]
        pipe = None
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                close_fds=True,
                start_new_session=True,
            )
            pipe = process.stdin
            if process.wait(timeout=60) or not pipe:  # it leaves a process of its own behind
                raise OSError(f"it ended with exit code {process.returncode}")
            # Through the pipe, for others may read a command line: the address may hold a password.
            pipe.write(json.dumps({"uri": uri, "experiment_id": experiment_id, "token": token}).encode() + b"\n")
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            from pipeline.common.console import say

            say(f"note: no guard process ({error}): if this process is killed with -9, its run stays RUNNING")
            if pipe:
                pipe.close()
            return cls(None)
        return cls(pipe)

    def dismiss(self) -> None:
        """The runs have ended properly."""
        self._tell(_ENDED)

    def entrust(self, status: str) -> bool:
        """Leave it to the guard to write this status, as soon as the store answers. False if there is no guard."""
        return self._tell(status.encode())

    def _tell(self, word: bytes) -> bool:
        pipe, self._pipe = self._pipe, None
        if not pipe:
            return False
        _pipes.discard(pipe)
        try:
            pipe.write(word + b"\n")
            pipe.close()
        except OSError:  # somebody ended it
            return False
        return True


def _let_go() -> None:
    """In a forked child: or the guard would wait for the child's end too."""
    for pipe in _pipes:
        with suppress(OSError):
            pipe.close()
    _pipes.clear()


os.register_at_fork(after_in_child=_let_go)


def take_over(client: MlflowClient, run_id: str, token: str) -> None:
    """Make the run RUNNING and its owner the driver of this token, whoever had it before."""
    client.set_tag(run_id, OWNER, token)
    deadline = time.monotonic() + PATIENCE
    while ENDING in client.get_run(run_id).data.tags:
        if time.monotonic() > deadline:
            _remove(client, run_id, ENDING)
            break
        time.sleep(0.1)
    client.update_run(run_id, status="RUNNING")


def end(client: MlflowClient, run_id: str, token: str, status: str) -> bool:
    """Write the run's last status, unless the run has a newer owner: then False."""
    client.set_tag(run_id, ENDING, token)
    try:
        mine = client.get_run(run_id).data.tags.get(OWNER) == token
        if mine:
            client.set_terminated(run_id, status)
        return mine
    finally:
        _remove(client, run_id, ENDING)


def end_all(client: MlflowClient, experiment_id: str, token: str, status: str, but: str = "") -> None:
    """End what is still RUNNING of this driver's: its run (unless it is the one to leave), and a sweep's trials."""
    mine = f"attributes.status = 'RUNNING' and tags.`{OWNER}` = '{token}'"
    for run in client.search_runs([experiment_id], mine):
        if run.info.run_id != but:
            end(client, run.info.run_id, token, status)


def _remove(client: MlflowClient, run_id: str, tag: str) -> None:
    """Whoever comes later can do without: it only waits a little longer."""
    with suppress(Exception):
        client.delete_tag(run_id, tag)


def main() -> None:
    """Wait for the driver's word or its end; then, if need be, end its runs."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Nobody's child: what ends a job with all that it started (`ray job stop`) does not find it.
    if os.fork():
        os._exit(0)
    os.chdir("/")
    task = sys.stdin.buffer.readline()
    word = sys.stdin.buffer.readline().strip()
    if not task or word == _ENDED:
        return
    driver = json.loads(task)
    uri = driver.pop("uri")
    for pause in PAUSES:
        try:
            from mlflow.tracking import MlflowClient

            return end_all(MlflowClient(uri), status=word.decode() or "KILLED", **driver)
        except Exception:  # whatever a store that is down, or busy, raises
            time.sleep(pause)


if __name__ == "__main__":
    main()
