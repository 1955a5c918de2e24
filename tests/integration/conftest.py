"""The integration tier: Ray, MLflow on sqlite, and a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.planted import PLANTED, SECRET
from support.sessions import light_session
from support.trainings import command, longer, undisturbed  # noqa: F401

LONGEST = ["tuning", "export", "serve", "train_command", "comparing", "train_kills", "embedding", "submitting"]
"""Files that take longest, which begin first: the two processes of `make test-integration` then end at one time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files of tests; the order inside a file stays."""
    first = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.stem, len(first)))


@pytest.fixture(scope="session", autouse=True)
def ray_started() -> Iterator[None]:
    """One Ray session for all tests of this process: starting one takes seconds."""
    with light_session(dict.fromkeys(PLANTED, SECRET)):
        yield
