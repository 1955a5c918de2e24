"""Places that datasets are kept in: a local folder, or any URI that pyarrow's or fsspec's file systems open."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from data_prep.errors import InputError, StorageError

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
LOST_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]")  # what pathlib makes of a URI
BEING_WRITTEN = ".writing"
"""How names of local files end that are not whole yet."""


class Storage:
    """A file or folder, by path or URI (`s3://bucket/folder?region=…`, `gs://…`, `abfs://…`, `file://…`, fsspec's).

    `storage / "name"` is what lies below. A file appears under its name whole or not at all. Objects can be
    pickled; a worker opens the file system anew, with its own environment's credentials. `str()` shows neither
    credentials nor a URI's query. Every method raises StorageError where a remote place does not answer or
    refuses, and OSError for a local one.
    """

    def __init__(self, where: str | Path | Storage):
        self._base: str | Path
        self._below = ""
        if isinstance(where, Storage):
            self._base, self._below = where._base, where._below
        elif isinstance(where, Path) and LOST_SLASH.match(str(where)):
            raise InputError(f"{where}: give a URI as a string; as a Path it loses a slash")
        elif not SCHEME.match(str(where)):
            self._base = Path(where).absolute()
        elif str(where).startswith(("file://", "local://")):
            self._base = Path(unquote(urlsplit(str(where)).path))
        elif not SCHEME.sub("", str(where)).strip("/"):
            raise InputError(f"{where}: names no place; give a bucket and a folder")
        else:
            self._base = str(where)

    def __truediv__(self, name: str) -> Storage:
        below = Storage(self)
        below._below = f"{self._below}/{name}".strip("/")
        return below

    def __str__(self) -> str:
        if self.local:
            return str(self.local)
        parts = urlsplit(str(self._base))
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        return f"{shown.rstrip('/')}/{self._below}" if self._below else shown

    def __repr__(self) -> str:
        return f"Storage({str(self)!r})"  # not the URI itself: it may hold credentials, and logs show this

    def __reduce__(self) -> tuple:
        return _rebuilt, (self._base, self._below)

    @property
    def local(self) -> Path | None:
        """The absolute path, if this is a local place."""
        return self._base / self._below if isinstance(self._base, Path) else None

    def exists(self) -> bool:
        """Whether there is such a file."""
        with self._plainly():
            return self._info().type == pafs.FileType.File

    def size(self) -> int:
        """Of a file, bytes."""
        with self._plainly():
            return int(self._info().size or 0)

    def files(self) -> dict[str, int]:
        """Name (relative, POSIX) -> bytes of every file below this folder, in the order of the names."""
        with self._plainly():
            selector = pafs.FileSelector(self._path, allow_not_found=True, recursive=True)
            folder = self._path.strip("/")
            found = {
                info.path.strip("/").removeprefix(folder).strip("/"): int(info.size or 0)
                for info in self._filesystem.get_file_info(selector)
                if info.type == pafs.FileType.File
            }
        return dict(sorted(found.items()))

    def open(self) -> pa.NativeFile:
        """A file for random access, as pyarrow's readers want it. Raises FileNotFoundError."""
        with self._plainly():
            return self._filesystem.open_input_file(self._path)

    def read_bytes(self) -> bytes:
        """A file's content. Raises FileNotFoundError."""
        with self._plainly(), self._filesystem.open_input_file(self._path) as file:
            return file.read()

    def write_bytes(self, data: bytes | pa.Buffer) -> None:
        """Make the file, or replace it, in one go."""
        if self.local:
            with self.whole_file() as file:
                file.write_bytes(data)
            return
        with self._plainly():
            # One call: closing a stream, even after an error, makes what was written so far a finished object.
            try:
                stream = self._filesystem.open_output_stream(self._path)
            except FileNotFoundError:  # a file system that has folders
                self._filesystem.create_dir(self._path.rpartition("/")[0], recursive=True)
                stream = self._filesystem.open_output_stream(self._path)
            stream.write(data)
            stream.close()

    @contextmanager
    def whole_file(self) -> Iterator[Path]:
        """Give a local file to write, which becomes this one if the block ends without an error."""
        aside = _writable_aside(self.local)
        try:
            yield aside
            if self.local:
                aside.replace(self.local)
            else:
                with pa.memory_map(str(aside)) as file:
                    self.write_bytes(file.read_buffer())
        finally:
            with suppress(OSError):
                aside.unlink()

    def delete(self) -> None:
        """Remove a file, or a folder and all below it, if it is there."""
        if self.local and self.local.is_dir():
            return shutil.rmtree(self.local)
        with self._plainly():
            kind = self._info().type
            if kind == pafs.FileType.File:
                self._filesystem.delete_file(self._path)
            elif kind == pafs.FileType.Directory:
                self._filesystem.delete_dir(self._path)

    @property
    def _opened(self) -> tuple[pafs.FileSystem, str]:
        """The file system and the base's path in it."""
        try:
            return _open(self._base)
        except Exception as error:  # every file system has its own
            raise StorageError(f"{self}: cannot be opened ({self._without_secrets(error)})") from error

    @property
    def _filesystem(self) -> pafs.FileSystem:
        return self._opened[0]

    @property
    def _path(self) -> str:
        base = self._opened[1]
        return f"{base.rstrip('/')}/{self._below}" if self._below else base

    def _info(self) -> pafs.FileInfo:
        return self._filesystem.get_file_info(self._path)

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """One kind of error for whatever a remote file system raises."""
        try:
            yield
        except (FileNotFoundError, StorageError):
            raise
        except Exception as error:
            if self.local:
                raise
            raise StorageError(f"{self}: cannot be read or written ({self._without_secrets(error)})") from error

    def _without_secrets(self, error: Exception) -> str:
        text = " ".join((str(error) or type(error).__name__).split())
        parts = urlsplit(str(self._base))
        hidden = [parts.netloc.rpartition("@")[0], parts.query, parts.username, parts.password]
        hidden += [
            value for name, value in parse_qsl(parts.query) if re.search("key|secret|token|sig|pass", name, re.I)
        ]
        for secret in hidden:
            if secret:
                text = text.replace(secret, "***")
        return text[:300]


@lru_cache(maxsize=16)  # a file system keeps connections
def _open(base: str | Path) -> tuple[pafs.FileSystem, str]:
    if isinstance(base, Path):
        return pafs.LocalFileSystem(), str(base)
    try:
        return pafs.FileSystem.from_uri(base)
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
    import fsspec  # only where pyarrow has no file system of its own

    filesystem, path = fsspec.core.url_to_fs(base)
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def _rebuilt(base: str | Path, below: str) -> Storage:
    return Storage(base) / below


def _writable_aside(local: Path | None) -> Path:
    """A new file's name: beside a local one, so that it can be renamed, else among the temporary files.

    Of a name of its own, because a retried task may write while the first one is still dying.
    """
    if local is None:
        handle, name = tempfile.mkstemp(suffix=BEING_WRITTEN)
        os.close(handle)
        return Path(name)
    local.parent.mkdir(parents=True, exist_ok=True)
    return local.with_name(f".{local.name}.{secrets.token_hex(4)}{BEING_WRITTEN}")


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of space."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
