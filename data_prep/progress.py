"""Progress of long jobs, reported without knowing who shows it."""

from __future__ import annotations

from collections.abc import Callable

Advance = Callable[[int], None]
Progress = Callable[[str, int], Advance]
"""Function of a title and a total that returns a function of the number of newly finished items."""


def silent(title: str, total: int) -> Advance:
    """Show nothing."""
    return lambda done: None
