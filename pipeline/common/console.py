"""Output for users: tables, or the JSON of --json, on stdout; progress bars and messages on stderr."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from data_prep.progress import Advance

if TYPE_CHECKING:  # imported where they are used, so that `--help` does not wait for them
    from rich.console import Console
    from tqdm import tqdm

LEFT = ("allowed", "image", "label", "meaning")
"""Columns of text, which are aligned left."""
UNFOLDED = 100_000
"""Characters in a line where no terminal folds tables, so that a line of a file is a row."""

_bars: WeakSet[tqdm[Any]] = WeakSet()


class _Pipe:
    """stdout or stderr that ignores a closed pipe (`| head`), so that the work goes on.

    tqdm does not release its lock if a write fails, and hangs.
    """

    def __init__(self, name: str):
        self._name = name

    def write(self, text: str) -> None:
        self._surely(lambda file: file.write(text))

    def flush(self) -> None:
        self._surely(lambda file: file.flush())

    def _surely(self, work: Callable[[Any], object]) -> None:
        file = getattr(sys, self._name)
        try:
            work(file)
        except BrokenPipeError:  # what is buffered would fail again when Python ends
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(sys, self._name), name)


_STDOUT, _STDERR = _Pipe("stdout"), _Pipe("stderr")


@cache
def _console(file: _Pipe) -> Console:
    from rich.console import Console

    return Console(file=file, highlight=False, soft_wrap=True, width=None if file.isatty() else UNFOLDED)  # type: ignore[arg-type]


def _results() -> _Pipe:
    """Return where results for people go: stdout, but stderr where the command was given --json."""
    import click

    context = click.get_current_context(silent=True)
    return _STDERR if context and context.params.get("as_json") else _STDOUT


def say(message: str) -> None:
    """Write a message to stderr."""
    _console(_STDERR).print(message, markup=False)


def show(line: str) -> None:
    """Write a line of a command's result to stdout; to stderr with --json."""
    _console(_results()).print(line, markup=False)


def say_above(message: str) -> None:
    """Write a message to stderr, above the progress bars."""
    from tqdm import tqdm

    tqdm.write(message, file=_STDERR)  # the file of the bars: tqdm clears only those of the same file


def printable(text: str, longest: int = 300) -> str:
    """Return text with control characters as escapes, so that foreign text cannot act on a terminal or a page.

    A text longer than `longest` characters is cut and ends in "…".
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def mean_and_deviation(values: Sequence[float], scale: float = 100, digits: int = 2) -> str:
    """Return "mean ± standard deviation" of values times `scale`; of a single value, which has no deviation, itself."""
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def progress_bar(title: str, total: int) -> Advance:
    """Start a bar with rate and ETA on stderr, and return the function that advances it; it closes at `total`."""
    bar = bar_of(title, total)

    def advance(done: int) -> None:
        bar.update(min(done, total - bar.n))
        if bar.n >= total:
            bar.close()

    return advance


def bar_of(title: str, total: int, unit: str = "") -> tqdm:
    """Start a tqdm bar; in a log file (no terminal) it writes at most one line every ten seconds."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10
    bar = tqdm(desc=title, total=total, unit=unit, file=_STDERR, mininterval=interval, dynamic_ncols=True)
    _bars.add(bar)
    return bar


def close_bars() -> None:
    """Close the bars that a failed job has left open, so that the next message is the last line."""
    for bar in list(_bars):
        bar.close()


def line_width() -> int:
    """Return the number of characters that fit in a line of a table."""
    return _console(_results()).width


def show_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Write a table to stdout (with --json to stderr); the first column is aligned left, the others right."""
    from rich.markup import escape
    from rich.table import Table

    if title:
        show(title)
    table = Table()
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if not number or name in LEFT else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    _console(_results()).print(table, soft_wrap=False)


def emit(result: dict[str, Any], as_json: bool) -> None:
    """Print the result of a command as one JSON object, the last line on stdout, if --json was given."""
    if as_json:
        print(json.dumps(result), file=_STDOUT, flush=True)
