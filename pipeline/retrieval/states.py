"""States of a gallery: folders of files that never change. `gallery.json` names the one that counts.

A gallery that was never updated has its files beside `gallery.json`. An update writes the files of the new state into a
folder of their own, `state-000001`, and then replaces `gallery.json` in one step: a reader finds the old state or the
new one. A reader holds the state that it has opened; a state is removed when it no longer counts and nobody holds it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import weakref
from contextlib import suppress
from pathlib import Path

from data_prep.atomic import BEING_WRITTEN

PREFIX = "state-"
NAME = rf"({PREFIX}\d{{6}})?"
"""Regular expression of the name of a state; empty for the files beside `gallery.json`."""
VECTORS, INDEX, UNFINISHED_INDEX = "vectors", "index", "index.partial"
EMBEDDINGS = "embeddings"
"""Folder of galleries of an earlier version: their vectors a second time, as Parquet files."""
IMAGES_FILE = "images.parquet"
"""File of every state that its readers lock."""
REJECTS_FILE, SKIPPED_FILE, SOURCE_FILE = "rejects.parquet", "skipped.parquet", "source.parquet"
COLUMNS_FILE = "columns.parquet"
STORE_FILE = "store.json"
"""Record of a vector store that has the gallery; beside `gallery.json`, not in a state."""
TAGGER_FILE = "tagger.safetensors"
"""Name of the file of prototypes. It equals agman.tagger.TAGGER, whose import would take torch's time."""
FILES = (
    *(VECTORS, EMBEDDINGS, INDEX, UNFINISHED_INDEX, REJECTS_FILE, SKIPPED_FILE, SOURCE_FILE),
    *(COLUMNS_FILE, TAGGER_FILE, IMAGES_FILE),
)
"""Files and folders of a state; the locked file is the last to be removed."""


class Hold:
    """Shared lock on a state. It ends when this object is collected, or with the process. Raises OSError."""

    def __init__(self, state: Path):
        handle = os.open(state / IMAGES_FILE, os.O_RDONLY)
        weakref.finalize(self, os.close, handle)
        with suppress(OSError):  # not every file system can
            fcntl.flock(handle, fcntl.LOCK_SH)


def following(state: str) -> str:
    """Return the name of the state after this one."""
    return f"{PREFIX}{int(state.removeprefix(PREFIX) or 0) + 1:06d}"


def remove_unused(gallery: Path, current: str) -> None:
    """Remove the states that do not count and that nobody holds, and what killed updates have left.

    Only the process that has the gallery's lock may call this.
    """
    for torn in gallery.glob(f".{PREFIX}*{BEING_WRITTEN}"):
        shutil.rmtree(torn, ignore_errors=True)
    for state in [gallery, *gallery.glob(f"{PREFIX}??????")]:
        if state == gallery / current:
            continue
        with suppress(OSError):  # somebody holds it
            if not (state / IMAGES_FILE).exists():
                _remove(state, gallery)
                continue
            with (state / IMAGES_FILE).open("r+b") as file:  # over NFS, only a file open for writing can be locked so
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(state, gallery)


def _remove(state: Path, gallery: Path) -> None:
    for name in FILES:
        if (state / name).is_dir():
            shutil.rmtree(state / name)
        else:
            (state / name).unlink(missing_ok=True)
    if state != gallery:
        shutil.rmtree(state)
