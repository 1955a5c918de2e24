"""Files and folders, local or at any URI that a file system of pyarrow or fsspec opens."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, unquote_plus

import pyarrow as pa
from pyarrow import fs as pafs

from data_prep import atomic
from data_prep.errors import InputError, StorageError

NAME = r"[A-Za-z][A-Za-z0-9+.-]*"
URI = re.compile(rf"(?:{NAME}::)*{NAME}://")
CHAIN = re.compile(rf"::(?={NAME}://)")
"""Separator of fsspec's chained URIs, as in `simplecache::s3://bucket/folder`."""
LINK = re.compile(
    rf"(?P<start>(?:{NAME}::)*{NAME}://|)"
    # A key with an unquoted slash is a common mistake, and must not be shown either.
    r"(?:(?P<user>[^/?]*|[^/?@:]+:(?!\d+/)[^?@]*)@)?"
    r"(?P<path>[^?]*)(?:\?(?P<query>.*))?",
    re.DOTALL,
)
HARMLESS = ("region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion")
"""Options of a URI's query that error messages may show."""
LOCAL = re.compile(r"(file|local)://", re.IGNORECASE)
LOST_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]")  # the form of a URI after pathlib has read it
PIECE = 16 << 20
"""Bytes of one read in a download. pyarrow's default of 64 KiB costs a round trip each."""


class Storage:
    """A file or folder, by path or URI (`s3://bucket/folder?region=…`, `gs://…`, `abfs://…`, `file://…`, fsspec's).

    `storage / "name"` is a path below it. A file appears complete or not at all. Objects can be pickled; a worker
    opens the file system again, with the credentials of its own environment. `str()` shows neither credentials nor a
    URI's query. Every method raises StorageError if a remote store does not answer or refuses, and OSError for a local
    file.
    """

    def __init__(self, where: str | Path | Storage):
        self._base: str | Path
        self._below = ""
        if isinstance(where, Storage):
            self._base, self._below = where._base, where._below
        elif isinstance(where, Path) and LOST_SLASH.match(str(where)):
            raise InputError(f"{where}: a URI has two slashes, SCHEME://PATH; in Python, give a URI as a string")
        elif "://" not in str(where):
            self._base = Path(where).absolute()
        elif not URI.match(str(where)):
            shown = re.sub(r"://.*@", "://", str(where).partition("?")[0], flags=re.DOTALL)
            raise InputError(f"{shown}: neither a path nor a URI; a URI is SCHEME://PATH")
        elif LOCAL.match(str(where)):
            self._base = _local_path(str(where))
        elif not URI.sub("", _shown(str(where)), count=1).strip("/"):
            raise InputError(f"{_shown(str(where))}: has no path; give a bucket and a folder")
        else:
            self._base = str(where)

    def __truediv__(self, name: str) -> Storage:
        below = Storage(self)
        below._below = f"{self._below}/{name}".strip("/")
        return below

    def __str__(self) -> str:
        if self.local:
            return str(self.local)
        shown = _shown(str(self._base))
        return f"{shown.rstrip('/')}/{self._below}" if self._below else shown

    def __repr__(self) -> str:
        return f"Storage({str(self)!r})"  # not the URI itself: it may hold credentials, and logs show this

    def __reduce__(self) -> tuple:
        return _rebuilt, (self._base, self._below)

    @property
    def local(self) -> Path | None:
        """Absolute path of a local file or folder; None for a remote one."""
        return self._base / self._below if isinstance(self._base, Path) else None

    def exists(self) -> bool:
        """Return whether the file exists."""
        with self._plainly():
            return self._info().type == pafs.FileType.File

    def size(self) -> int:
        """Return the file's size in bytes; 0 if it does not exist."""
        with self._plainly():
            return int(self._info().size or 0)

    def stamp(self) -> str:
        """Return "SIZE NANOSECONDS", size and modification time of the file; the time is "None" if none is known."""
        with self._plainly():
            found = self._info()
            return f"{found.size} {found.mtime_ns}"

    def files(self) -> dict[str, int]:
        """Return name (relative, POSIX) -> size in bytes of every file below this folder, ordered by name."""
        with self._plainly():
            selector = pafs.FileSelector(self._path, allow_not_found=True, recursive=True)
            folder = self._path.strip("/")
            found = {
                info.path.strip("/").removeprefix(folder).strip("/"): int(info.size or 0)
                for info in self._filesystem.get_file_info(selector)
                if info.type == pafs.FileType.File
            }
        return dict(sorted(found.items()))

    def folders(self) -> list[str]:
        """Return the sorted names of the folders in this folder; empty ones too, if the file system has them."""
        with self._plainly():
            found = self._filesystem.get_file_info(pafs.FileSelector(self._path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

    def open(self) -> pa.NativeFile:
        """Open the file for random access by pyarrow's readers. Raises FileNotFoundError."""
        with self._plainly():
            return self._filesystem.open_input_file(self._path)

    def read_bytes(self) -> bytes:
        """Return the file's content. Raises FileNotFoundError."""
        with self._plainly(), self._filesystem.open_input_file(self._path) as file:
            return file.read()

    def download(self, copy: Path) -> None:
        """Copy the file, of any size, to a local path. Raises FileNotFoundError."""
        with self._plainly(), self._filesystem.open_input_file(self._path) as file:
            file.download(str(copy), buffer_size=PIECE)

    def write_bytes(self, data: bytes | pa.Buffer) -> None:
        """Write or replace the file atomically."""
        if self.local:
            with atomic.file(self.local) as file:
                file.write_bytes(data)
            return
        with self._plainly():
            # One call, because closing a stream makes the bytes written so far an object, even after an error.
            try:
                stream = self._filesystem.open_output_stream(self._path)
            except FileNotFoundError:  # a file system that has folders
                self._filesystem.create_dir(self._path.rpartition("/")[0], recursive=True)
                stream = self._filesystem.open_output_stream(self._path)
            stream.write(data)
            stream.close()

    @contextmanager
    def atomic_file(self) -> Iterator[Path]:
        """Give a local file to write, which becomes this one if the block ends without an error."""
        if self.local:
            with atomic.file(self.local) as staging:
                yield staging
            return
        with tempfile.TemporaryDirectory(prefix="agman-") as folder:
            staging = Path(folder, "file")
            yield staging
            self._upload(staging)

    @contextmanager
    def atomic_folder(self, last: str) -> Iterator[Path]:
        """Give a local folder to write in, whose files become this folder's if the block ends without an error.

        A local one is forced to the disk and renamed. In a remote one, the file `last` appears after all others: a
        folder without it is not complete.
        """
        if self.local:
            with atomic.folder(self.local, durable=True) as staging:
                yield staging
            return
        with tempfile.TemporaryDirectory(prefix="agman-") as folder:
            yield Path(folder)
            names = Storage(Path(folder)).files()
            for name in sorted(names, key=lambda name: name == last):
                (self / name)._upload(Path(folder, name))

    def _upload(self, file: Path) -> None:
        with pa.memory_map(str(file)) as content:
            self.write_bytes(content.read_buffer())

    def delete(self) -> None:
        """Delete the file, or the folder with its content, if it exists."""
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
        """File system, and the path of the base in it."""
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
        """Raise StorageError for any exception of a remote file system."""
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
        # The longest first: a shorter secret may be contained in a longer one, whose rest would stay.
        for secret in sorted(_secrets(str(self._base)), key=len, reverse=True):
            # Short ones only as complete words: a user named "me" must not turn "some" into "so***".
            spelled = re.escape(secret) if len(secret) > 3 else rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])"
            text = re.sub(spelled, "***", text, flags=re.IGNORECASE)
        return text[:300]


def _links(uri: str) -> list[re.Match[str]]:
    """Return a match for each link of a URI; a chained URI has several links."""
    return [match for link in CHAIN.split(uri) if (match := LINK.fullmatch(link))]


def _shown(uri: str) -> str:
    """Return a URI without credentials and query."""
    return "::".join(f"{link['start']}{link['path']}" for link in _links(uri))


def _secrets(uri: str) -> set[str]:
    """Return user, password and values of options, as written and in the spellings that an error may use."""
    raw: set[str] = set()
    for link in _links(uri):
        user, query = link["user"] or "", link["query"] or ""
        raw |= {user, *user.split(":", 1), query}
        options = (option.partition("=") for option in re.split("[&;]", query))
        raw |= {value for name, _, value in options if name.lower() not in HARMLESS}
    plain = raw | {unquote(secret) for secret in raw} | {unquote_plus(secret) for secret in raw}
    quoted = {spell(secret) for secret in plain for spell in (quote, quote_plus, partial(quote, safe=""))}
    return (plain | quoted) - {""}


def _local_path(uri: str) -> Path:
    """Return the path of a `file://` URI, in which `?` and `#` are ordinary characters."""
    scheme, _, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise InputError(f"{uri}: {scheme}:// URIs have three slashes: {scheme}:///{rest}")
    if not slash:
        raise InputError(f"{uri}: has no path; give a folder")
    return Path(f"/{unquote(path)}")


@lru_cache(maxsize=16)  # because a file system keeps connections
def _open(base: str | Path) -> tuple[pafs.FileSystem, str]:
    if isinstance(base, Path):
        return pafs.LocalFileSystem(), str(base)
    if not CHAIN.search(base):
        try:
            return pafs.FileSystem.from_uri(base)
        except pa.ArrowInvalid as error:
            if "Unrecognized filesystem type" not in str(error):
                raise
    import fsspec  # only for schemes that pyarrow does not know

    filesystem, path = fsspec.core.url_to_fs(base)
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def _rebuilt(base: str | Path, below: str) -> Storage:
    return Storage(base) / below
