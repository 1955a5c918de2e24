"""How long jobs tell of their progress without knowing who shows it."""

from __future__ import annotations

from collections.abc import Callable

Advance = Callable[[int], None]
Progress = Callable[[str, int], Advance]
"""Given a title and a total, returns a function that is told how many more are done."""


def silent(title: str, total: int) -> Advance:
    """Show nothing."""
    return lambda done: None
