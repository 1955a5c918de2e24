"""Texts from outside in Markdown, and its tables."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

from pipeline.common.console import printable

HEADER = "|---|---|"
"""Line below the head of a table of two columns."""
BAR = "\\|"
"""A bar that ends no cell of a table."""
LONGEST = 2_000
"""Characters of a text from outside that are shown."""


def plain(text: str) -> str:
    """Escape a text from outside for Markdown: no markup of its own, no line breaks."""
    escaped = html.escape(printable(text, LONGEST), quote=False).replace("`", "'")
    return re.sub(r"([\\*|]|(?<=\])\()", r"\\\1", escaped)  # without "](" there is no link and no picture


def code(text: str) -> str:
    """Format a text from outside as code, in a table too."""
    return f"`{printable(text, LONGEST).replace('`', chr(39)).replace('|', BAR)}`"


def with_rows(text: str, rows: Mapping[str, str]) -> str:
    """Return a text with these rows, name and Markdown, on top of its table, in place of rows of the same names.

    A text without a table gets one. All other lines stay as they are, because people may have written some.
    """
    lines = [line for line in text.splitlines() if not line.startswith(tuple(f"| {name} |" for name in rows))]
    if HEADER not in lines:
        lines += [*([""] if lines else []), "| | |", HEADER]
    top = lines.index(HEADER) + 1
    return "\n".join([*lines[:top], *(f"| {name} | {value} |" for name, value in rows.items()), *lines[top:]])


def with_section(text: str, heading: str, body: str) -> str:
    """Return a text whose first section of the second level is this one; an older one of this heading is removed."""
    head, *sections = _split(text)
    others = [section for section in sections if _heading(section) != heading]
    return _joined(head, f"## {heading}\n\n{body}", *others)


def with_sections_of(text: str, older: str) -> str:
    """Return a text with the sections of an older one that it has not, before its own: people have written them."""
    head, *sections = _split(text)
    own = {_heading(section) for section in sections}
    return _joined(head, *(section for section in _split(older)[1:] if _heading(section) not in own), *sections)


def _split(text: str) -> list[str]:
    """Return what is before the first heading of the second level, and each section."""
    return re.split(r"^(?=## )", text, flags=re.MULTILINE)


def _heading(section: str) -> str:
    return section.partition("\n")[0].removeprefix("## ").strip()


def _joined(*parts: str) -> str:
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"
