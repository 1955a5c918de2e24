"""Reading annotation files: text with unchecked line ends, encoding and size."""

from __future__ import annotations

import codecs
import csv
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from data_prep.annotation import SPLIT_OF
from data_prep.errors import InputError
from data_prep.pictures import is_within
from data_prep.words import counted

LONGEST_LINE = 10_000
"""Characters of the longest line. Real ones have a few hundred; those of list_attr_img.txt are read elsewhere."""
LONGEST_PATH = 1_000
"""Characters of a path that is looked up."""
LARGEST_FILE = 1_000_000_000
"""Bytes of a file that is read at once; real files have a few million."""
HEAD_LINES = 2
"""Lines before the rows of DeepFashion's list_*.txt."""


_files: ContextVar[set[Path] | None] = ContextVar("files", default=None)


@contextmanager
def files_read() -> Iterator[set[Path]]:
    """Collect the resolved paths of the annotation files that are read in the block."""
    files: set[Path] = set()
    token = _files.set(files)
    try:
        yield files
    finally:
        _files.reset(token)


def annotation_file(path: Path, root: Path) -> Path:
    """Return `path` if it is a regular file inside `root`. Raises InputError for a pipe, a device or a link out of it.

    Reading a pipe or a device may never end; a link could show any file of this machine in a message.
    """
    try:
        if not is_within(root, path):
            raise InputError(f"{path}: is a link that leaves {root}; put the file itself there")
        regular = stat.S_ISREG(path.stat().st_mode)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not regular:
        raise InputError(f"{path}: is not a regular file")
    if (files := _files.get()) is not None:
        files.add(path.resolve())
    return path


def links_of(root: Path) -> list[Path]:
    """Return the links directly in `root` to folders outside of it, sorted; hidden ones are left out."""
    links = (path for path in root.iterdir() if path.is_symlink() and path.is_dir() and not path.name.startswith("."))
    return sorted(link for link in links if not root.resolve().is_relative_to(link.resolve()))


def files_below(root: Path) -> list[str]:
    """Return the sorted paths, relative to `root`, of the files below it and below its links; hidden ones are left out.

    Links further down are not followed.
    """
    found = []
    for top in (root, *links_of(root)):
        for folder, folders, files in os.walk(top):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            relative = os.path.relpath(folder, root).replace(os.sep, "/")
            start = "" if relative == "." else f"{relative}/"
            found += [start + name for name in files if not name.startswith(".")]
    return sorted(found)


def find_files(root: Path, suffix: str) -> list[Path]:
    """Return the files of `files_below` whose names end so, in any case."""
    return [root / path for path in files_below(root) if path.lower().endswith(suffix)]


def is_file(path: Path) -> bool:
    """Return whether the file exists; False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """Return whether the folder exists; False for a name that no folder can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_lines(path: Path, root: Path) -> list[str]:
    """Return the lines of a text file with any line ends (LF, CRLF, lone CR), with or without one at the end.

    Bytes that are not UTF-8 become U+FFFD, so that a damaged line becomes a reject and not an error. Raises
    InputError if the file cannot be read, is not inside `root` or is UTF-16, as spreadsheets' "Unicode text" is.
    """
    try:
        if annotation_file(path, root).stat().st_size > LARGEST_FILE:
            raise InputError(f"{path}: has more than {LARGEST_FILE:,} bytes; it is no annotation file")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path}: is UTF-16 text; save it as UTF-8")
    text = content.decode("utf-8-sig", errors="replace")
    *ended, last = text.split("\n")
    lines = [line for piece in ended for line in piece.rstrip("\r").split("\r")]
    return lines + (last.removesuffix("\r").split("\r") if last else [])


def numbered_lines(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Yield (1-based number, text) of every line that is not blank."""
    for number, line in enumerate(read_lines(path, root), start=1):
        if line.strip():
            yield number, line


def check_commas(file: Path, line: str) -> None:
    """Raise InputError if a line of a CSV file has semicolons or tabs where commas should be."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if "," not in line and line.count(separator) > 1:
            raise InputError(f"{file}: its columns are separated by {name}; save it with commas")


def csv_cells(line: str) -> list[str] | None:
    """Return the cells of a line of a CSV file; None if it cannot be read."""
    if len(line) > LONGEST_LINE:
        return None
    try:
        return next(csv.reader([line], strict=True), None)
    except csv.Error:
        return None


def integers(line: str) -> list[int] | None:
    """Return the integers, separated by blanks, of a line; None if the line contains anything else."""
    # int() would also accept digits of other scripts and underscores between digits.
    if len(line) > LONGEST_LINE or "_" in line or not line.isascii():
        return None
    try:
        return [int(number) for number in line.split()]
    except ValueError:
        return None


class ListHead(NamedTuple):
    """What stands before the rows of one of DeepFashion's list_*.txt: their number, and the names of the columns."""

    said: int | None
    """Number of rows that the first line gives; None if it gives none."""
    lines: int
    """Lines before the first row."""


def list_head(lines: Iterable[str]) -> ListHead:
    """Return the head of a list, of which copies lack one line or both. Blank lines do not count.

    A row ends in a number or in the name of a split, or has a path; a line that does not is one of the head.
    """
    said, before, found = None, 0, 0
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if words and not found and (count := integers(line)) and len(count) == 1:
            said = count[0]
        elif words and (found == HEAD_LINES or "/" in line or words[-1] in SPLIT_OF or integers(words[-1])):
            break
        before, found = number, found + bool(words)
    return ListHead(said, before)


def list_rows(file: Path, root: Path, notes: list[str]) -> list[tuple[int, str]]:
    """Return the rows of a list_*.txt with their line numbers, and note a number of rows that is not as stated."""
    lines = read_lines(file, root)
    head = list_head(lines)
    rows = [(number, line) for number, line in enumerate(lines, start=1) if number > head.lines and line.strip()]
    check_count(file, head, len(rows), notes)
    return rows


def check_count(file: Path, head: ListHead, rows: int, notes: list[str]) -> None:
    """Add a note unless the head gives the number of rows. Raises InputError if rows are expected and there are none.

    An interrupted download has fewer rows, and a file that a user edited has others.
    """
    if not rows and head.said != 0:
        raise InputError(f"{file}: has no rows; is it complete?")
    if head.said is None:
        notes.append(f"{file.name}: line 1 does not give the number of rows: {counted(rows, 'row')} read")
    elif head.said != rows:
        notes.append(
            f"{file.name}: line 1 says {counted(head.said, 'row')}, and {rows:,} can be read; is the file complete?"
        )
