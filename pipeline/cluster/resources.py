"""What the Ray cluster can give to the workers of a job: what it has, and what its autoscaler may add."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, remove_placement_group

from data_prep.errors import InputError

ONE_HEAP = {"env_vars": {"MALLOC_ARENA_MAX": "1"}}
"""Runtime environment of processes that compute in a thread, as Ray's do. glibc gives threads heaps of their own, which
go back to the system again and again, whatever agman.keep_freed_memory says."""
GROWN = "AGMAN_GROWN_CLUSTER"
"""Set where a cluster's head starts, so that its jobs have it: how many workers the autoscaler may have, and what each
of them has, as `{"nodes": 8, "CPU": 8, "GPU": 1}`. Ray tells its jobs of no more than there is now."""


def cpus_for(workers: int, option: str = "--workers") -> int:
    """The most CPUs that each of `workers` can have, none of them cut over two nodes.

    Where there are GPUs, each is on a node that has one for it; more workers than GPUs share them evenly. Raises
    InputError, naming the `option`, if there is not a CPU for each.
    """
    cpus, gpus = _each_node("CPU"), _each_node("GPU")
    if workers > sum(cpus):
        raise InputError(f"{option} {workers}: the cluster has {_total(cpus)} CPUs, and each needs one")
    on_a_gpu = math.ceil(workers / sum(gpus)) if sum(gpus) else workers

    def room(share: int) -> int:
        most = [gpu * on_a_gpu for gpu in gpus] if sum(gpus) else [workers] * len(cpus)
        return sum(min(cpu // share, limit) for cpu, limit in zip(cpus, most, strict=True))

    shares = [share for share in range(1, max(cpus) + 1) if room(share) >= workers]
    if not shares:
        raise InputError(f"{option} {workers}: the nodes with GPUs have too few CPUs, and each needs one there")
    return max(shares)


def cpus_for_elastic(least: int, most: int) -> int:
    """The same for as many workers, up to `most`, as there is room for.

    Raises InputError if there is no room for `least`.
    """
    cpus_for(least)
    gpus = sum(_each_node("GPU"))
    return cpus_for(min(most, sum(_each_node("CPU")), gpus or most))


def gpus_for(workers: int, option: str = "--workers") -> bool:
    """Whether the workers train on GPUs, one each. Raises InputError if there are some but too few."""
    nodes = _each_node("GPU")
    if 0 < sum(nodes) < workers:
        raise InputError(f"{option} {workers}: the cluster has {_total(nodes)} GPUs, and a worker needs one")
    return sum(nodes) > 0


def gpu_share(processes: int) -> float:
    """GPUs for each of so many processes; several share one where there are more of them."""
    gpus = sum(_each_node("GPU"))
    return 1 / max(1, math.ceil(processes / gpus)) if gpus else 0.0


def _each_node(resource: str) -> list[int]:
    """What every node has of it, those that may yet come too."""
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most, kind = _grown()
    alike = sum(all(node.get(name, 0) >= count for name, count in kind.items()) for node in there)
    return [int(node.get(resource, 0)) for node in there + [kind] * (most - alike)]


def _grown() -> tuple[int, dict[str, int]]:
    text = os.environ.get(GROWN)
    if not text:
        return 0, {}
    try:
        kind = {name: int(count) for name, count in json.loads(text).items()}
        return kind.pop("nodes"), kind
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f'{GROWN}={text}: give it as {{"nodes": 8, "CPU": 8, "GPU": 1}}') from error


def _total(nodes: list[int]) -> str:
    return f"{'at most ' if os.environ.get(GROWN) else ''}{sum(nodes)}"


LOOK_EVERY, PATIENCE = 1.0, 30.0
"""Seconds between two looks for orphans, and that the last ones are waited for at the end."""


@contextmanager
def orphans_removed() -> Iterator[None]:
    """While it lasts, this job's placement groups go when the actor that made them is dead.

    A stopped trial's process takes its workers' controller along, maybe when that has just asked for room to start them
    anew. Ray keeps such a group to the end of the job, and its own cleaner fails where two clusters share a host.
    """
    over, before = threading.Event(), {group.placement_group_id for group in _groups_of_actors()}
    patience = PATIENCE

    def look() -> None:
        while not over.wait(LOOK_EVERY):
            with suppress(Exception):  # Ray is busy, or gone; the next look may do
                _remove_orphans()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        patience = 0.0  # who interrupts does not wait; Ray's session ends with the command
        raise
    finally:
        over.set()
        thread.join()
        deadline = time.monotonic() + patience
        with suppress(Exception):
            while {group.placement_group_id for group in _remove_orphans()} - before and time.monotonic() < deadline:
                time.sleep(LOOK_EVERY)


def _remove_orphans() -> list[PlacementGroupTableData]:
    """Those that are left."""
    groups = _groups_of_actors()
    for group in groups:
        if group.creator_actor_dead:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    return [group for group in groups if not group.creator_actor_dead]


def _groups_of_actors() -> list[PlacementGroupTableData]:
    """This job's that are not removed. Ray's public tables do not tell who made a group."""
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
