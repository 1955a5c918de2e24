"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.errors import InputError


@contextmanager
def whole_folder(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder to write in, beside `out`; it becomes `out` when the block ends without an error.

    After an error (or Ctrl-C) nothing is left. Raises InputError if `out` exists and is not empty
    (unless `overwrite`), cannot be written, or the disk is full.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"{out}: exists and is not empty; give another folder or --overwrite")
    aside = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        aside.mkdir(parents=True)
        yield aside
        if out.is_dir():
            shutil.rmtree(out)
        aside.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{out}: no space left on device; free some or give another folder") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise InputError(f"{out}: cannot be written ({error.strerror})") from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
