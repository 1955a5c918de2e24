"""API keys of the service: a file with a name and the SHA-256 of a key on every line.

A key is 256 random bits, so a fast hash is enough: nobody can try them all. Clients send it as a bearer token, or as
the password of HTTP's basic authentication, for which browsers ask by themselves.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from data_prep.errors import InputError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIGEST = re.compile(r"[0-9a-f]{64}")
BYTES = 32


class Keys:
    """The keys that a service accepts.

    Args:
        names: SHA-256 of a key in hexadecimal digits -> its owner's name.
    """

    def __init__(self, names: Mapping[str, str]):
        self._names = dict(names)

    @classmethod
    def read(cls, file: Path) -> Keys:
        """Read a file of keys. Raises InputError if it is missing or empty, or if a line is not a name and a digest."""
        names = _read(file)
        if not names:
            raise InputError(f"{file}: holds no key; `agman key NAME --keys {file}` makes one")
        return cls({digest: name for name, digest in names.items()})

    def name_of(self, authorization: str) -> str | None:
        """Return the owner of the key in an Authorization header, or None if there is none that is known."""
        scheme, _, sent = authorization.partition(" ")
        key = sent.strip()
        if scheme.lower() == "basic":
            try:
                key = base64.b64decode(key, validate=True).decode().partition(":")[2]
            except ValueError:  # no base64, or no text in it
                return None
        elif scheme.lower() != "bearer":
            return None
        return self._names.get(_digest(key))


def add_key(file: Path, name: str) -> str:
    """Make a key, add its digest to `file`, which is made if it is missing, and return the key: it is kept nowhere.

    Raises InputError for a name that is invalid or taken, and for a damaged file; OSError if it cannot be written.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r}: a key's name has letters, digits, '.', '_' and '-', at most 64")
    key = secrets.token_urlsafe(BYTES)
    with os.fdopen(os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "a") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)  # two at once would not see each other's names
        if name in _read(file):
            raise InputError(f"{file}: has a key of {name}; delete its line to replace it")
        whole = not (text := file.read_text(encoding="utf-8")) or text.endswith("\n")
        opened.write(f"{'' if whole else chr(10)}{name} {_digest(key)}\n")
    return key


def _read(file: Path) -> dict[str, str]:
    """Return name -> digest."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(f"--keys {file}: cannot be read ({what})") from error
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, digest = line.strip().partition(" ")
        if not NAME.fullmatch(name) or not DIGEST.fullmatch(digest) or name in names:
            raise InputError(f"{file}, line {number}: expected a new name and 64 hexadecimal digits of a key's SHA-256")
        names[name] = digest
    return names


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
