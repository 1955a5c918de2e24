"""What a person sees: progress bars, tables and messages on stderr; figures for machines on stdout."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from data_prep.progress import Advance

LEFT = ("allowed", "meaning")
"""Columns of words."""

_bars: WeakSet[tqdm] = WeakSet()
# A log file has no width; eighty columns would fold every table.
_console = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else 140)


def say(message: str) -> None:
    """One line on stderr."""
    _console.print(message, markup=False)


def say_above(message: str) -> None:
    """One line on stderr while a bar stands there."""
    tqdm.write(message, file=_STDERR)  # the bars' own file, or tqdm would not take them away first


def printable(text: str, longest: int = 300) -> str:
    """Text from somebody else's file: control characters as escapes, so that none acts on a terminal or a page."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def progress_bar(title: str, total: int) -> Advance:
    """A bar with rate and ETA on stderr; closes itself when `total` is reached."""
    bar = bar_of(title, total)

    def advance(done: int) -> None:
        bar.update(min(done, total - bar.n))
        if bar.n >= total:
            bar.close()

    return advance


def bar_of(title: str, total: int, unit: str = "") -> tqdm:
    """A tqdm bar; in a log file (no terminal) it writes a line every ten seconds at most."""
    interval = 0.2 if sys.stderr.isatty() else 10
    bar = tqdm(desc=title, total=total, unit=unit, file=_STDERR, mininterval=interval, dynamic_ncols=True)
    _bars.add(bar)
    return bar


class _Stderr:
    """stderr, or nothing once nobody reads it (`2>&1 | head`): tqdm keeps its lock where a write fails, and hangs."""

    def write(self, text: str) -> None:
        with suppress(BrokenPipeError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(BrokenPipeError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


_STDERR = _Stderr()


def close_bars() -> None:
    """End the bars that a failed job left standing, so that what is said next is the last line."""
    for bar in list(_bars):
        bar.close()


def line_width() -> int:
    """Characters that a line on stderr has room for."""
    return _console.width


def show_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table on stderr: first column left, the others right."""
    table = Table(title=title or None, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if not number or name in LEFT else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    _console.print(table)


def emit(figures: dict[str, Any], as_json: bool) -> None:
    """With --json: the command's figures as one JSON object, the last line on stdout."""
    if as_json:
        print(json.dumps(figures), flush=True)
