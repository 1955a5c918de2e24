"""The folder that a dataset is prepared in: resumable after a stop, and renamed to the dataset's path at the end."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from data_prep.atomic import (
    BEING_WRITTEN,
    FULL,
    check_output,
    is_full,
    missing_parents,
    not_writable,
    remove_empty,
    replace_folder,
)
from data_prep.errors import InputError, Resumable, StorageError
from data_prep.packing import STATE, begun, discard, is_made_here, unfinished
from data_prep.storage import Storage
from data_prep.tables import DESCRIPTION, DatasetInfo

NO_LOCK = "is in the way, and is no lock of this command; move it, or give another OUT"
KEPT = "what is packed so far is kept in {}, and the same command continues from it"


@contextmanager
def atomic_dataset(
    out: str | Path, *, overwrite: bool = False, inputs: tuple[Path | None, ...] = ()
) -> Iterator[Storage]:
    """Give a folder to write a dataset in, which becomes `out` when the block ends without an error.

    A local dataset is written in a hidden folder beside `out`, so that an older one stays valid until the new one is
    complete. A remote one is written in place; the description, which the block writes last, makes it a dataset. A
    hidden folder of the same name that preparing did not make is refused, and stays as it is.
    Packed images are kept after every error that a second call can overcome: a kill, Ctrl-C, a full disk, a storage
    that stops answering, too many rejects (Resumable). After any other error everything is as before. Raises
    InputError as `atomic.output_folder` does, and if another process is preparing the same local `out`.
    """
    target = Storage(out)
    if target.local:
        with _beside(target.local.resolve(), overwrite, inputs) as staging:
            yield staging
    else:
        with _in_place(target, overwrite):
            yield target


def staging_folder(out: Path) -> Path:
    """Return where a local dataset is while it is being prepared; `out` is a resolved path."""
    return out.parent / f".{out.name}.partial"


def replaced_folder(out: Path) -> Path:
    """Return where an older local dataset is between two renames, and while it is being deleted."""
    return out.parent / f".{out.name}.agman-replaced"


@contextmanager
def _beside(out: Path, overwrite: bool, inputs: tuple[Path | None, ...]) -> Iterator[Storage]:
    parents = missing_parents(out)
    staging, old, lock = staging_folder(out), replaced_folder(out), out.parent / f".{out.name}.lock"
    check_output(out, DESCRIPTION, overwrite, inputs)
    with _locked(lock, out, parents):
        _refuse_foreign(staging, old)
        # A kill between the two renames of replace_folder.
        if (old / DESCRIPTION).exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)
        check_output(out, DESCRIPTION, overwrite, inputs)  # again: only now does no other process write there
        work = Storage(staging)
        continued = unfinished(work)
        try:
            staging.mkdir(exist_ok=True)
        except OSError as error:
            raise not_writable(out, error) from error
        try:
            yield work
            (work / STATE).delete()
            replace_folder(staging, out, old)
        except BaseException as error:
            kept = continued or (_can_be_continued(error) and unfinished(work))
            if not kept:
                shutil.rmtree(staging, ignore_errors=True)
            _explain(error, out, work if kept else None)
            raise


def _refuse_foreign(staging: Path, old: Path) -> None:
    """Raise InputError if one of the hidden folders exists and was not made by preparing."""
    for folder, is_ours in ((staging, _is_unfinished), (old, _is_replaced)):
        if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and is_ours(folder))):
            raise InputError(f"{folder}: is in the way, and was not made by this command; move it, or give another OUT")


def _is_unfinished(folder: Path) -> bool:
    """Return whether preparing stopped here: before its first file, while packing, or just before the rename."""
    work = Storage(folder)
    of_state = (name.startswith(f"{STATE}/") and name.endswith(BEING_WRITTEN) for name in work.files())
    return begun(work) or all(of_state) or _has_description(folder)


def _has_description(folder: Path) -> bool:
    # Its existence alone proves nothing: many programs write a dataset.json.
    try:
        DatasetInfo.model_validate_json((folder / DESCRIPTION).read_bytes())
    except (OSError, ValidationError):
        return False
    return True


def _is_replaced(folder: Path) -> bool:
    """Return whether this is a dataset, of whatever version, or the rest of one whose deletion was stopped."""
    return (folder / DESCRIPTION).is_file() or all(map(is_made_here, Storage(folder).files()))


@contextmanager
def _in_place(target: Storage, overwrite: bool) -> Iterator[None]:
    # Without a lock: object stores have none.
    continued = unfinished(target)
    if (target / DESCRIPTION).exists():
        if not overwrite:
            raise InputError(f"{target}: exists; give another URI or --overwrite")
    elif not begun(target) and target.files():
        raise InputError(
            f"{target}: is not empty, and holds no {DESCRIPTION}: not made by this command; not overwritten"
        )
    try:
        yield
        (target / STATE).delete()
    except BaseException as error:
        kept = continued or _can_be_continued(error)
        if not kept and begun(target) and not (target / DESCRIPTION).exists():
            discard(target)
        _explain(error, target, target if kept else None)
        raise


def _can_be_continued(error: BaseException) -> bool:
    return not isinstance(error, InputError) or isinstance(error, Resumable)


def _explain(error: BaseException, out: Path | Storage, kept: Storage | None) -> None:
    """Raise in place of `error` one that says where packed images are kept and how to continue, if that is so."""
    message = str(error)
    if isinstance(error, OSError) and is_full(error):
        message = f"{out}: {FULL}"
    elif kept and isinstance(error, KeyboardInterrupt):
        raise KeyboardInterrupt(KEPT.format(kept)) from error
    elif not (kept and isinstance(error, Resumable)):
        return
    raise StorageError(f"{message}; {KEPT.format(kept)}" if kept else message) from error


@contextmanager
def _locked(lock: Path, out: Path, parents: list[Path]) -> Iterator[None]:
    """Hold the lock file while the block runs. The lock of a killed process is free at once."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            remove_empty(parents)
            if error.errno in (errno.EISDIR, errno.ELOOP):  # a folder, or a link
                raise InputError(f"{lock}: {NO_LOCK}") from error
            raise not_writable(out, error) from error
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
        os.close(handle)  # its holder has just finished and removed the file
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)
        remove_empty(parents)
