"""Numbers with their nouns."""

from __future__ import annotations

from data_prep.words import counted


def test_a_noun_follows_its_number() -> None:
    assert [counted(n, "query") for n in (0, 1, 2)] == ["0 queries", "1 query", "2 queries"]
    assert [counted(n, "test image") for n in (1, 1200)] == ["1 test image", "1,200 test images"]
