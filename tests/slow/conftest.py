"""The slow tier: trainings and searches that are killed, clusters of several nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.nodes import nodes, started  # noqa: F401
from support.trainings import command, longer, undisturbed  # noqa: F401

from data_prep.cluster import ray_session


@pytest.fixture(scope="session", autouse=True)
def ray_started() -> Iterator[None]:
    """One Ray session for all tests of this process: starting one takes seconds."""
    with ray_session():
        yield
