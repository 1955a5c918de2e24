"""Removal of placement groups whose creator has died."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, remove_placement_group

INTERVAL, PATIENCE = 1.0, 30.0
"""Seconds between two searches for orphans, and seconds that the end waits for the last ones."""


@contextmanager
def orphans_removed() -> Iterator[None]:
    """Remove placement groups of this job whose creating actor is dead, while the block runs and at its end.

    When the process of a stopped trial ends, the controller of its workers ends too, possibly just after it has
    requested a new group. Ray keeps such a group until the job ends, and Ray Train's own cleaner fails where two
    clusters share a host.
    """
    over, before = threading.Event(), {group.placement_group_id for group in _groups_of_actors()}
    patience = PATIENCE

    def watch() -> None:
        while not over.wait(INTERVAL):
            with suppress(Exception):  # Ray is busy or gone; try again
                _remove_orphans()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        patience = 0.0  # do not keep the user waiting: Ray's session ends with the command
        raise
    finally:
        over.set()
        thread.join()
        deadline = time.monotonic() + patience
        with suppress(Exception):
            while {group.placement_group_id for group in _remove_orphans()} - before and time.monotonic() < deadline:
                time.sleep(INTERVAL)


def _remove_orphans() -> list[PlacementGroupTableData]:
    """Remove the groups whose creator is dead, and return the others."""
    groups = _groups_of_actors()
    for group in groups:
        if group.creator_actor_dead:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    return [group for group in groups if not group.creator_actor_dead]


def _groups_of_actors() -> list[PlacementGroupTableData]:
    """Return this job's placement groups that an actor has created and that are not removed."""
    # A private name: Ray's public tables (ray.util.state, placement_group_table) omit a group's creator. Read in Ray
    # 2.60; tests/integration/test_cluster.py fails for a version in which it has moved.
    from ray._private.state import state

    rows = state._connect_and_get_accessor().get_placement_group_table()
    groups = [PlacementGroupTableData.FromString(row) for row in rows]
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    return [
        group
        for group in groups
        if group.creator_job_id == job
        and not ray.ActorID(group.creator_actor_id).is_nil()
        and group.state != PlacementGroupTableData.REMOVED
    ]
