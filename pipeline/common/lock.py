"""Locks on the folders that commands work in."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.errors import InputError


@contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Keep `folder` for this process alone while the block runs.

    Raises InputError if another process has it; the message names `option` as the way to begin another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{folder}: another process is at work there; wait for it, or give {option} to begin another"
            ) from error
        yield
