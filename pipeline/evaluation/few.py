"""The mark of attributes that have too few queries to be judged, wherever a figure of theirs is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

FEW = 100
"""Fewer queries are too few to judge an attribute by."""
MEANING = f"few: fewer than {FEW} queries are too few to judge an attribute by"


def is_few(queries: int | None) -> bool:
    """Return whether an attribute has few queries; one whose number is unknown, or that has no queries, does not."""
    return queries is not None and 0 < queries < FEW


def marked(text: str, queries: int | None) -> str:
    """Return a text about an attribute, marked if it has few queries."""
    return f"{text} (few)" if is_few(queries) else text


def query_count(queries: int) -> str:
    """Return the number of queries as a text, marked if they are few."""
    return marked(f"{queries:,}", queries)


def meaning_for(queries: Iterable[int | None]) -> list[str]:
    """Return the line that explains the mark, if any of these numbers of queries has it."""
    return [MEANING] if any(map(is_few, queries)) else []


def validation_queries(names: Sequence[str], queries_of: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return attribute -> number of validation queries, from a dataset's `queries_of`; empty if it has none."""
    return dict(zip(names, queries_of.get("valid", []), strict=False))
