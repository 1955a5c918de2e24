"""The `agman` command as tests run it: in this process, or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline import cli


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


Agman = Callable[..., Finished]


def agman_exit_code(*arguments: object) -> int:
    """Run `agman` in this process and return its exit code."""
    return cli.run([*map(str, arguments)])


def agman_process(*arguments: object, cwd: Path, timeout: float = 300) -> Finished:
    """Run the installed `agman` command in `cwd`, in a process of its own."""
    program = Path(sys.executable).with_name("agman")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "RAY_"))}
    done = subprocess.run(
        [str(program), *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )
    return Finished(done.returncode, done.stdout, done.stderr)
