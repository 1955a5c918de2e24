"""The Ray session of tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import psutil
import pytest
import ray

from data_prep.cluster import ray_session


@contextmanager
def light_session(environment: dict[str, str]) -> Iterator[None]:
    """Start a Ray session whose processes keep `environment`.

    It has no dashboard (ten processes that no test looks at) and no monitor of logs (which reads every file of the
    session ten times a second, for a driver that does not show them), and its trainings end sooner.
    """
    # Ray finds "the cluster of this machine" by a file in its folder. Commands of other tests start clusters of their
    # own; in a shared folder Ray would ask those, and wait 10 s for an answer at the end of every training.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        # Ray gives its workers a niceness of 15: beside another process on every core they would hardly run.
        patch.setenv("RAY_worker_niceness", "0")
        with ExitStack() as session:
            with pytest.MonkeyPatch.context() as start:
                start.setattr(ray, "init", partial(ray.init, include_dashboard=False))
                for name, value in environment.items():
                    start.setenv(name, value)
                session.enter_context(ray_session())
            for child in psutil.Process().children():
                with suppress(psutil.Error):  # it may just have ended
                    if "log_monitor.py" in " ".join(child.cmdline()):
                        child.kill()
            yield
