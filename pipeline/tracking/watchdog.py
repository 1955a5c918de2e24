"""A small process that ends a driver's MLflow runs if the driver is killed.

The driver holds the writing end of a pipe, the watchdog the reading end. A word in the pipe means that the runs have
ended properly; end-of-file without a word means that the driver is gone. The watchdog finds the runs by the token
that the driver puts on them, so there is no moment in which a run exists unguarded.

A watchdog and a newer driver that takes the run over may both want to write the run's status. MLflow has no
compare-and-set, so each announces its step before it looks at the other's: a watchdog sets ENDING, reads OWNER, writes
the status and removes ENDING; a new driver sets OWNER, waits until ENDING is gone and writes RUNNING.

This file imports nothing heavy and nothing of this project at its top, because it runs as a script beside every
training. The watchdog does not survive the machine, nor a container whose first process is the driver.
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
"""Tag with the token of the driver that owns the run; a study's trials have the study's token."""
ENDING = "agman.ending"
"""Tag with the token of the process that is about to write the run's final status."""

PATIENCE = 10.0
"""Seconds that a new driver waits for ENDING to go; after that, the process that set it has been killed too."""
PAUSES = (1, 2, 4, 8, 16, 32, *[60] * 60)
"""Seconds between attempts while the store does not answer: an hour in all."""
_ENDED = b"ended"
_pipes: set[IO[bytes]] = set()


class Watchdog:
    """The driver's end of the pipe."""

    def __init__(self, pipe: IO[bytes] | None):
        self._pipe = pipe
        if pipe:
            _pipes.add(pipe)

    @classmethod
    def start(cls, uri: str, experiment_id: str, token: str, name: str) -> Watchdog:
        """Start a process that watches over the RUNNING runs of the experiment with this token.

        Never raises: a training goes on without a watchdog.

        Args:
            uri: tracking store.
            experiment_id: experiment of the runs.
            token: value of the runs' tag OWNER.
            name: title for people who look at `ps`.
        """
        # -P: the script's own folder has modules with common names, which must not be imported.
        command = [sys.executable, "-P", __file__, name]
        pipe = None
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )
            pipe = process.stdin
            if process.wait(timeout=60) or not pipe:  # its child goes on
                raise OSError(f"it ended with exit code {process.returncode}")
            # Through the pipe, because the address may hold a password and others can read a command line.
            task = {"uri": uri, "pauses": PAUSES, "experiment_id": experiment_id, "token": token}
            pipe.write(json.dumps(task).encode() + b"\n")
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            from pipeline.common.console import say

            say(f"note: no watchdog process ({error}): if this process is killed with -9, its run stays RUNNING")
            if pipe:
                pipe.close()
            return cls(None)
        return cls(pipe)

    def dismiss(self) -> None:
        """Tell the watchdog that the runs have ended properly."""
        self._tell(_ENDED)

    def entrust(self, status: str) -> bool:
        """Let the watchdog write this status as soon as the store answers. Return False if there is no watchdog."""
        return self._tell(status.encode())

    def _tell(self, word: bytes) -> bool:
        pipe, self._pipe = self._pipe, None
        if not pipe:
            return False
        _pipes.discard(pipe)
        try:
            with pipe:
                pipe.write(word + b"\n")
        except OSError:  # the watchdog was killed
            return False
        return True


def _close_pipes() -> None:
    """Close the inherited pipes in a forked child; otherwise the watchdog waits for the child's end too."""
    for pipe in _pipes:
        with suppress(OSError):
            pipe.close()
    _pipes.clear()


os.register_at_fork(after_in_child=_close_pipes)


def take_over(client: MlflowClient, run_id: str, token: str) -> None:
    """Make the run RUNNING and the driver of this token its owner, whoever owned it before."""
    client.set_tag(run_id, OWNER, token)
    deadline = time.monotonic() + PATIENCE
    while ENDING in client.get_run(run_id).data.tags:
        if time.monotonic() > deadline:
            _remove(client, run_id, ENDING)
            break
        time.sleep(0.1)
    client.update_run(run_id, status="RUNNING")


def end_run(client: MlflowClient, run_id: str, token: str, status: str) -> bool:
    """Write the run's final status. Return False, and write nothing, if the run has a newer owner."""
    client.set_tag(run_id, ENDING, token)
    try:
        mine = client.get_run(run_id).data.tags.get(OWNER) == token
        if mine:
            client.set_terminated(run_id, status)
        return mine
    finally:
        _remove(client, run_id, ENDING)


def end_all_runs(client: MlflowClient, experiment_id: str, token: str, status: str, but: str = "") -> None:
    """End the RUNNING runs of the driver with this token: its own run, unless it is `but`, and a study's trials."""
    mine = f"attributes.status = 'RUNNING' and tags.`{OWNER}` = '{token}'"
    for run in client.search_runs([experiment_id], mine):
        if run.info.run_id != but:
            end_run(client, run.info.run_id, token, status)


def _remove(client: MlflowClient, run_id: str, tag: str) -> None:
    """Delete a tag if possible; if not, the next driver only waits a little longer."""
    with suppress(Exception):
        client.delete_tag(run_id, tag)


def main() -> None:
    """Wait for the driver's word or its end, and end its runs if necessary."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # An orphan: whatever ends a job with all its children (`ray job stop`) does not find this process.
    if os.fork():
        os._exit(0)
    os.chdir("/")
    task = sys.stdin.buffer.readline()
    word = sys.stdin.buffer.readline().strip()
    if not task or word == _ENDED:
        return
    driver = json.loads(task)
    uri, pauses = driver.pop("uri"), driver.pop("pauses")
    for pause in pauses:
        try:
            from mlflow.tracking import MlflowClient

            return end_all_runs(MlflowClient(uri), status=word.decode() or "KILLED", **driver)
        except Exception:  # any error of a store that is down or busy
            time.sleep(pause)


if __name__ == "__main__":
    main()
