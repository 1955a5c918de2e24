"""Steps of the cluster tests. Each has a limit of time, and a failure names the command and what it printed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

SHOWN = 6000
"""Number of characters that are shown of what a command printed, from its end."""


class Step:
    """A command that runs during the block, in a process group of its own, which is killed at the end.

    Its output goes to a file: processes that it leaves behind, such as ssh's masters, may keep it open.
    """

    def __init__(self, *words: object, **more: Any):
        self.words = [*map(str, words)]
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by __exit__)
        self._process = subprocess.Popen(
            self.words,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **more,
        )

    def __enter__(self) -> Step:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()

    @property
    def ended(self) -> bool:
        """Whether the command has ended."""
        return self._process.poll() is not None

    def finish(self, seconds: float) -> str:
        """Wait for its end and return what it printed. Raises RuntimeError if it fails or is not done in time."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self.failure(f"not done within {seconds:g} s") from None
        if code:
            raise self.failure(f"exit code {code}")
        return self.printed()

    def printed(self) -> str:
        """Return what it has printed so far."""
        self._output.seek(0)
        return self._output.read()

    def failure(self, why: str) -> RuntimeError:
        """Return an error that names the command, why it failed and what it printed."""
        return RuntimeError(f"{shlex.join(self.words)}: {why}\n{self.printed()[-SHOWN:]}")


def run(*words: object, seconds: float = 60, **more: Any) -> str:
    """Run a command to its end and return what it printed. Raises RuntimeError if it fails or is not done in time."""
    with Step(*words, **more) as step:
        return step.finish(seconds)


def wait(what: str, until: Callable[[], object], seconds: float, state: Callable[[], str]) -> float:
    """Wait until a condition holds, and return the seconds.

    Raises RuntimeError after `seconds`, with `what` is waited for and what `state` tells.
    """
    begun = time.monotonic()
    while not until():
        if time.monotonic() - begun > seconds:
            try:
                told = state()
            except RuntimeError as error:
                told = str(error)
            raise RuntimeError(f"{what}: not within {seconds:g} s\n{told[-SHOWN:]}")
        time.sleep(0.2)
    return time.monotonic() - begun


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of processes that have the folder's path in their arguments or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line, variables = ((process / name).read_bytes() for name in ("cmdline", "environ"))
            if os.fsencode(folder) in line + variables and int(process.name) != os.getpid():
                found.append(f"process {process.name}: {line.replace(bytes(1), b' ').decode(errors='replace')}")
    return found
