"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from data_prep.errors import InputError, Resumable, StorageError
from data_prep.packing import STATE, begun, discard, is_made_here, unfinished
from data_prep.storage import BEING_WRITTEN, Storage, is_full
from data_prep.tables import DESCRIPTION, DatasetInfo

FULL = "no space left on device; free some or give another folder"
LONGEST_NAME = 200
"""Bytes. File systems take 255, and the hidden folders' names are longer than OUT's."""
NO_LOCK = "is in the way, and is no lock of this command; move it, or give another OUT"
KEPT = "what is packed so far is kept in {}, and the same command continues from it"


@contextmanager
def whole_folder(out: Path, *, marker: str, overwrite: bool, inputs: tuple[Path | None, ...] = ()) -> Iterator[Path]:
    """Give a folder to write in, beside `out`; it becomes `out` when the block ends without an error.

    After an error (or Ctrl-C) nothing is left, and an older `out` is as it was. `overwrite` replaces a folder that
    has the file `marker`, that is, one made by the same command. Raises InputError if `out` is in the way of
    something (`inputs`, the working folder), cannot be written, or the disk is full.
    """
    out = out.resolve()
    _check(out, marker, overwrite, inputs)
    new_parents = _new_parents(out)
    # Names of their own: what is at another name is somebody else's.
    token = secrets.token_hex(4)
    aside, old = (out.parent / f".{out.name}.{what}-{token}" for what in ("partial", "old"))
    _make(aside, out, new_parents)
    try:
        yield aside
        put_in_place(aside, out, old)
    except BaseException as error:
        _remove(aside, new_parents)
        if isinstance(error, OSError) and is_full(error):
            raise InputError(f"{out}: {FULL}") from error
        raise


@contextmanager
def whole_dataset(
    out: str | Path, *, overwrite: bool = False, inputs: tuple[Path | None, ...] = ()
) -> Iterator[Storage]:
    """Give a place to write a dataset in, which becomes `out` when the block ends without an error.

    A local dataset is written in a hidden folder beside `out`, so that an older one stays valid until the new one
    stands; a remote one in place, where the description, which the block writes last, makes it a dataset. What is
    at the hidden folders' names and was not made by preparing is refused, and stays as it is.
    Packed images outlive all that can be continued from: a kill, Ctrl-C, a full disk, a storage that stops
    answering, too many rejects (Resumable). After any other error nothing is left that was not there before. Raises
    InputError as whole_folder does, and if another process is preparing the same local `out`.
    """
    place = Storage(out)
    if place.local:
        with _beside(place.local.resolve(), overwrite, inputs) as aside:
            yield aside
    else:
        with _in_place(place, overwrite):
            yield place


def hidden_folder(out: Path) -> Path:
    """Where a local dataset is while it is being prepared; `out` is a resolved path."""
    return out.parent / f".{out.name}.partial"


def replaced_folder(out: Path) -> Path:
    """Where an older local dataset is for the moment between two renames, and while it is being deleted."""
    return out.parent / f".{out.name}.agman-replaced"


@contextmanager
def _beside(out: Path, overwrite: bool, inputs: tuple[Path | None, ...]) -> Iterator[Storage]:
    new_parents = _new_parents(out)
    aside, old, lock = hidden_folder(out), replaced_folder(out), out.parent / f".{out.name}.lock"
    _check(out, DESCRIPTION, overwrite, inputs)
    with _locked(lock, out, new_parents):
        _refuse_foreign(aside, old)
        # A kill between the two renames of put_in_place.
        if (old / DESCRIPTION).exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)
        _check(out, DESCRIPTION, overwrite, inputs)  # again: only now is nobody else at it
        work = Storage(aside)
        continued = unfinished(work)
        if not aside.exists():
            _make(aside, out, new_parents)
        try:
            yield work
            (work / STATE).delete()
            put_in_place(aside, out, old)
        except BaseException as error:
            kept = continued or (_can_be_continued(error) and unfinished(work))
            if not kept:
                _remove(aside, new_parents)
            _tell(error, out, work if kept else None)
            raise


def _refuse_foreign(aside: Path, old: Path) -> None:
    """Raises InputError if one of the hidden folders is there and was not made by preparing."""
    for folder, is_ours in ((aside, _is_unfinished), (old, _is_replaced)):
        if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and is_ours(folder))):
            raise InputError(f"{folder}: is in the way, and was not made by this command; move it, or give another OUT")


def _is_unfinished(folder: Path) -> bool:
    """Stopped before the first file was whole, while packing, or after all when only the rename was missing."""
    work = Storage(folder)
    of_state = (name.startswith(f"{STATE}/") and name.endswith(BEING_WRITTEN) for name in work.files())
    return begun(work) or all(of_state) or _has_description(folder)


def _has_description(folder: Path) -> bool:
    # Many programs have a dataset.json.
    try:
        DatasetInfo.model_validate_json((folder / DESCRIPTION).read_bytes())
    except (OSError, ValidationError):
        return False
    return True


def _is_replaced(folder: Path) -> bool:
    """A dataset, of whatever version, or what is left of one whose deletion was stopped."""
    return (folder / DESCRIPTION).is_file() or all(map(is_made_here, Storage(folder).files()))


@contextmanager
def _in_place(place: Storage, overwrite: bool) -> Iterator[None]:
    # No lock: an object store has none to give.
    continued = unfinished(place)
    if (place / DESCRIPTION).exists():
        if not overwrite:
            raise InputError(f"{place}: exists; give another place or --overwrite")
    elif not begun(place) and place.files():
        raise InputError(
            f"{place}: is not empty, and holds no {DESCRIPTION}: not made by this command; not overwritten"
        )
    try:
        yield
        (place / STATE).delete()
    except BaseException as error:
        kept = continued or _can_be_continued(error)
        if not kept and begun(place) and not (place / DESCRIPTION).exists():
            discard(place)
        _tell(error, place, place if kept else None)
        raise


def _can_be_continued(error: BaseException) -> bool:
    return not isinstance(error, InputError) or isinstance(error, Resumable)


def _tell(error: BaseException, out: Path | Storage, kept: Storage | None) -> None:
    """Raise in the place of `error` one that says where packed images are kept and how to go on, if that is so."""
    message = str(error)
    if isinstance(error, OSError) and is_full(error):
        message = f"{out}: {FULL}"
    elif kept and isinstance(error, KeyboardInterrupt):
        raise KeyboardInterrupt(KEPT.format(kept)) from error
    elif not (kept and isinstance(error, Resumable)):
        return
    raise StorageError(f"{message}; {KEPT.format(kept)}" if kept else message) from error


@contextmanager
def _locked(lock: Path, out: Path, new_parents: list[Path]) -> Iterator[None]:
    """Hold the lock file as long as this process lives; a killed one's lock is free at once."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            _remove_empty(new_parents)
            if error.errno in (errno.EISDIR, errno.ELOOP):  # a folder, or a link
                raise InputError(f"{lock}: {NO_LOCK}") from error
            raise InputError(f"{out}: cannot be written ({error.strerror})") from error
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size:
            os.close(handle)
            raise InputError(f"{lock}: {NO_LOCK}")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise InputError(f"{out}: is being prepared by another process; wait, or give another folder") from error
        except OSError:
            pass  # a file system without locks
        if lock.exists() and os.path.samestat(os.fstat(handle), lock.stat()):
            break
        os.close(handle)  # its holder has just finished and removed it
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)
        _remove_empty(new_parents)


def _check(out: Path, marker: str, overwrite: bool, inputs: tuple[Path | None, ...]) -> None:
    if len(os.fsencode(out.name)) > LONGEST_NAME:
        raise InputError(f"{out}: the name is longer than {LONGEST_NAME} bytes; give a shorter one")
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


def _new_parents(out: Path) -> list[Path]:
    return [folder for folder in out.parents if not folder.exists()]


def _make(aside: Path, out: Path, new_parents: list[Path]) -> None:
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        _remove_empty(new_parents)
        if is_full(error):
            raise InputError(f"{out}: {FULL}") from error
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error


def put_in_place(aside: Path, out: Path, old: Path) -> None:
    """Rename; an older folder goes away only when the new one stands."""
    replaces = out.is_dir()
    if replaces:
        out.rename(old)
    try:
        aside.rename(out)
    except BaseException:
        if replaces:
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove(aside: Path, new_parents: list[Path]) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    _remove_empty(new_parents)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # somebody else may have put something there
            folder.rmdir()
