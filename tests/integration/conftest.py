"""The integration tier: Ray, MLflow on sqlite, and a browser."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest
import ray
from support.planted import PLANTED, SECRET
from support.trainings import command, longer, undisturbed  # noqa: F401

from data_prep.cluster import ray_session

LONGEST = ["walks", "tuning", "export", "serve", "train_command", "comparing", "train_kills", "embedding", "submitting"]
"""Files that take longest, which begin first: the two processes of `make test-integration` then end at one time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files of tests; the order inside a file stays."""
    first = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.stem, len(first)))


@pytest.fixture(scope="session", autouse=True)
def ray_started() -> Iterator[None]:
    """One Ray session for all tests of this process: starting one takes seconds."""
    # Ray finds "the cluster of this machine" by a file in its folder. Commands of other tests start clusters of their
    # own; in a shared folder Ray would ask those, and wait 10 s for an answer at the end of every training.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        with ExitStack() as session:
            with pytest.MonkeyPatch.context() as start:
                # The dashboard is ten processes that no test here looks at. Commands in processes of their own have it.
                start.setattr(ray, "init", partial(ray.init, include_dashboard=False))
                for name in PLANTED:  # Ray's processes keep the environment in which they were started
                    start.setenv(name, SECRET)
                session.enter_context(ray_session())
            yield
