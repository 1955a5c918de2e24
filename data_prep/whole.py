"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_prep.errors import InputError


@contextmanager
def whole_folder(out: Path, *, marker: str, overwrite: bool, inputs: tuple[Path | None, ...] = ()) -> Iterator[Path]:
    """Give a folder to write in, beside `out`; it becomes `out` when the block ends without an error.

    After an error (or Ctrl-C) nothing is left, and an older `out` is as it was. `overwrite` replaces a folder that
    has the file `marker`, that is, one made by the same command. Raises InputError if `out` is in the way of
    something (`inputs`, the working folder), cannot be written, or the disk is full.
    """
    out = out.resolve()
    _check(out, marker, overwrite, inputs)
    new_parents = [folder for folder in out.parents if not folder.exists()]
    aside = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        try:
            aside.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror})") from error
        yield aside
        _put_in_place(aside, out)
    except BaseException as error:
        _remove(aside, new_parents)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{out}: no space left on device; free some or give another folder") from error
        raise


def _check(out: Path, marker: str, overwrite: bool, inputs: tuple[Path | None, ...]) -> None:
    for path in (Path.cwd(), *(folder.resolve() for folder in inputs if folder)):
        if path.is_relative_to(out):
            raise InputError(f"{out}: contains {path}, which is in use; give a folder of its own")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise InputError(f"{out}: exists and is not empty; give another folder or --overwrite")
        if not (out / marker).is_file():
            raise InputError(f"{out}: holds no {marker}, so it was not made by this command; it is not overwritten")


def _put_in_place(aside: Path, out: Path) -> None:
    """Rename; an older folder goes away only when the new one stands."""
    old = aside.with_name(aside.name.replace(".partial-", ".old-"))
    if out.is_dir():
        out.rename(old)
    aside.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _remove(aside: Path, new_parents: list[Path]) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    for folder in new_parents:
        with suppress(OSError):  # somebody else may have put something there
            folder.rmdir()
