"""DeepFashion's `list_attr_img.txt`: 289,222 lines of a path and 1,000 values of 1, -1 or 0, 0.9 GB of text.

It is read in blocks, all lines of a block at once: without a Python loop over values, and with one block in memory.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.annotation import SHOWN, Reject
from data_prep.layouts.text_files import LONGEST_PATH, ListHead, annotation_file, list_head

BLOCK = 8_000_000
"""Bytes of a block."""
LONGEST = 1_000_000
"""Bytes of a line. Real ones have about 4,000."""
MINUS, ZERO, ONE = (ord(letter) for letter in "-01")
TAB, SPACE = ord("\t"), ord(" ")


@dataclass
class Marks:
    """The columns marked 1 of each image, in the order of the file."""

    paths: list[str]
    """Path of every line that could be read."""
    lines: np.ndarray
    """1-based line number of every path."""
    image: np.ndarray
    """Index into paths of every mark."""
    column: np.ndarray
    """0-based column of every mark."""
    rejects: list[Reject]


def read_head(file: Path, root: Path) -> ListHead:
    """Return the head of the file. Raises InputError if it is not inside `root`."""
    with annotation_file(file, root).open("rb") as stream:
        lines = iter(lambda: stream.readline(LONGEST), b"")
        return list_head(line.decode("utf-8-sig", errors="replace") for line in lines)


def read_marks(
    file: Path, root: Path, head: ListHead, n_columns: int, advance: Callable[[int], None] = lambda read: None
) -> Marks:
    """Read the complete file after its `head`; `advance` is called with the bytes of every block.

    Raises InputError if the file is not inside `root`.
    """
    source = annotation_file(file, root).relative_to(root).as_posix()
    marks = Marks([], np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int16), [])
    images, columns, numbers = [], [], []
    line = head.lines + 1
    for block in _blocks(file, head.lines, advance):
        parsed = _parse(block, line, source, n_columns)
        images.append(parsed.image + len(marks.paths))
        columns.append(parsed.column)
        numbers.append(parsed.lines)
        marks.paths += parsed.paths
        marks.rejects += parsed.rejects
        line += block.count(b"\n")
    if images:
        marks.image, marks.column, marks.lines = (np.concatenate(arrays) for arrays in (images, columns, numbers))
    return marks


def _blocks(file: Path, skipped: int, advance: Callable[[int], None]) -> Iterator[bytes]:
    """Yield blocks of complete lines after the first `skipped` ones. A line that is too long is made unreadable."""
    with file.open("rb") as stream:
        if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            stream.seek(0)
        for _ in range(skipped):
            stream.readline(LONGEST)
        rest = b""
        cutting = False
        while read := stream.read(BLOCK):
            advance(len(read))
            if cutting:
                _, end, read = read.partition(b"\n")
                cutting = not end
                read = end + read
            rest += read
            complete, end, rest = rest.rpartition(b"\n")
            if end:
                yield complete + end
            if len(rest) > LONGEST:
                rest, cutting = b"too long: " + rest[:SHOWN], True
        if rest:
            yield rest + b"\n"


def _parse(block: bytes, first_line: int, source: str, n_columns: int) -> Marks:
    text = np.frombuffer(block, np.uint8)
    # The five control characters from tab to carriage return; smaller ones wrap around to large numbers.
    blank = (text == SPACE) | (text - np.uint8(TAB) < 5)
    after_blank = np.empty_like(blank)
    after_blank[0], after_blank[1:] = True, blank[:-1]
    start = after_blank & ~blank
    tokens = np.cumsum(start, dtype=np.int32)

    end = np.flatnonzero(text == ord("\n"))
    begin = np.concatenate([[0], end[:-1] + 1])
    before = tokens[begin] - start[begin]
    count = tokens[end] - before
    bad = (count != n_columns + 1) & (count > 0)

    # A value is 1, 0 or -1 between blanks. Anything else after the path makes its line unreadable.
    before_blank = np.empty_like(blank)
    before_blank[-1], before_blank[:-1] = True, blank[1:]
    one, minus = text == ONE, text == MINUS
    positive = one & start
    after_minus = np.zeros_like(blank)
    after_minus[1:] = (minus & start)[:-1]
    value = ((positive | (start & (text == ZERO)) | (one & after_minus)) & before_blank) | (minus & start)
    odd = np.flatnonzero(~(value | blank))
    lone_minus = np.flatnonzero(minus & start & before_blank)
    for wrong in (odd, lone_minus):
        line = np.searchsorted(end, wrong)
        bad[line[tokens[wrong] - before[line] > 1]] = True

    marked = np.flatnonzero(positive & before_blank)
    line = np.searchsorted(end, marked)
    column = tokens[marked] - before[line] - 2
    good = (count > 0) & ~bad
    fits = good[line] & (column >= 0)
    number = np.cumsum(good) - 1
    return Marks(
        paths=_paths(block, np.flatnonzero(start)[before[good]]),
        lines=np.flatnonzero(good) + first_line,
        image=number[line[fits]].astype(np.int32),
        column=column[fits].astype(np.int16),
        rejects=[
            Reject(source, int(i) + first_line, "bad_line", _shown(block, begin[i], end[i]))
            for i in np.flatnonzero(bad)
        ],
    )


def _paths(block: bytes, begin: np.ndarray) -> list[str]:
    """Return the words that begin there, cut to LONGEST_PATH. No real path is that long."""
    words = (block[i : i + LONGEST_PATH].split(None, 1)[0] for i in begin.tolist())
    return [word.decode("utf-8", errors="replace") for word in words]


def _shown(block: bytes, begin: int, end: int) -> str:
    return " ".join(block[begin : min(end, begin + SHOWN)].decode("utf-8", errors="replace").split())
