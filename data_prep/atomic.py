"""Local files and folders that appear complete or not at all: written beside their path, then renamed.

`Storage.atomic_file` and `Storage.atomic_folder` do the same for remote storage, where one object appears at once and
the last file of a folder makes it complete. `data_prep.staging` has the resumable folder of a dataset.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_prep.errors import InputError

BEING_WRITTEN = ".writing"
"""End of the names of local files and folders that are not complete yet."""
FULL = "no space left on device; free some or give another folder"
LONGEST_NAME = 200
"""Bytes of the longest output name. File systems allow 255, and the staging names are longer than the final ones."""


@contextmanager
def file(path: Path) -> Iterator[Path]:
    """Give a path to write to; the file there becomes `path` if the block ends without an error.

    Raises FileExistsError if `path` is a folder, or a device or pipe, which the rename would remove from the system.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "exists and is no file; give another path", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = _staging(path)
    try:
        yield staging
        staging.replace(path)
    except OSError as error:
        if is_full(error) and error.filename is None:  # a failed write does not know which file it was
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            staging.unlink()


@contextmanager
def folder(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a new folder to write in; it becomes `path` if the block ends without an error.

    An older folder at `path` is replaced; after an error it is as it was, and no folder that was made here is left.
    If `durable`, the content is forced to the disk before the rename. Raises OSError.
    """
    restore(path)
    parents = missing_parents(path)
    staging = _staging(path)
    try:
        staging.mkdir(parents=True)
        yield staging
        if durable:
            _sync(staging)
        replace_folder(staging, path)
        if durable:
            _sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        remove_empty(parents)
        raise


@contextmanager
def output_folder(out: Path, *, marker: str, overwrite: bool, inputs: tuple[Path | None, ...] = ()) -> Iterator[Path]:
    """Give a new folder to write in, which becomes a command's output `out`, as in `folder`.

    `overwrite` replaces a folder that has the file `marker`, that is, one made by the same command. Raises InputError
    if `out` contains something that is in use (`inputs`, the working folder), cannot be written, or the disk is full.
    """
    out = out.resolve()
    restore(out)
    check_output(out, marker, overwrite, inputs)
    begun = False
    try:
        with folder(out) as staging:
            begun = True
            yield staging
    except OSError as error:
        if begun and not is_full(error):
            raise
        raise not_writable(out, error) from error


def check_output(
    out: Path, marker: str, overwrite: bool, inputs: tuple[Path | None, ...], own: tuple[str, ...] = ()
) -> None:
    """Raise InputError if `out`, a resolved path, must not be written; the conditions are those of `output_folder`.

    With `own`, the names of all files that the command writes, a folder with other files is refused, too.
    """
    if len(os.fsencode(out.name)) > LONGEST_NAME:
        raise InputError(f"{out}: the name is longer than {LONGEST_NAME} bytes; give a shorter one")
    for path in (Path.cwd(), *(one.resolve() for one in inputs if one)):
        if path.is_relative_to(out):
            raise InputError(f"{out}: contains {path}, which is in use; give a folder of its own")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise InputError(f"{out}: exists and is not empty; give another folder or --overwrite")
        if not (out / marker).is_file():
            raise InputError(f"{out}: holds no {marker}, so it was not made by this command; it is not overwritten")
        if others := sorted({file.name for file in out.iterdir()} - {*own}) if own else []:
            raise InputError(f"{out}: has other files in it ({others[0]}); move them, or give another folder")


def not_writable(out: Path, error: OSError) -> InputError:
    """Return the error for an output folder that cannot be made, or that fills the disk."""
    return InputError(f"{out}: {FULL if is_full(error) else f'cannot be written ({error.strerror})'}")


def is_full(error: OSError) -> bool:
    """Return whether a write failed for lack of space."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def replace_folder(staging: Path, path: Path, old: Path | None = None) -> None:
    """Rename `staging` to `path`. An older folder at `path` is renamed to `old` before, and deleted afterwards."""
    old = old or path.with_name(f".{path.name}.replaced-{secrets.token_hex(4)}")
    replaces = path.is_dir()
    if replaces:
        path.rename(old)
    try:
        staging.rename(path)
    except BaseException:
        if replaces:
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def restore(path: Path) -> None:
    """Rename the older folder back to `path` if a process was killed between the two renames of `replace_folder`."""
    for old in sorted(path.parent.glob(f".{glob.escape(path.name)}.replaced-????????")):
        if not path.exists():
            old.rename(path)


def missing_parents(path: Path) -> list[Path]:
    """Return the folders above `path` that do not exist, the lowest first."""
    return [parent for parent in path.parents if not parent.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Remove the folders that are empty."""
    for one in folders:
        with suppress(OSError):  # another process may have written something there
            one.rmdir()


def _staging(path: Path) -> Path:
    # The name is random, because a retried task may write while the first one is still dying.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{BEING_WRITTEN}")


def _sync(top: Path) -> None:
    """Force all files below a folder to the disk.

    Otherwise a crash of the machine could leave complete names with half contents. Some quotas show only here.
    """
    for path in top.rglob("*"):
        if path.is_dir():
            _sync_folder(path)
        else:
            with path.open("rb") as written:
                os.fsync(written.fileno())
    _sync_folder(top)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system can
            os.fsync(handle)
    finally:
        os.close(handle)
