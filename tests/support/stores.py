"""Tracking stores that fail on purpose."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager


@contextmanager
def out_of_order(uri: str, table: str) -> Iterator[None]:
    """Make a sqlite store raise whenever it reads this table, while the block runs."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)) as database:
        # Renaming the table itself would not do: a process that begins to use the store creates it again.
        database.execute(f"ALTER TABLE {table} RENAME COLUMN run_uuid TO away")
        try:
            yield
        finally:
            database.execute(f"ALTER TABLE {table} RENAME COLUMN away TO run_uuid")
