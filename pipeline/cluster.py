"""What the Ray cluster can give to the workers of a job."""

from __future__ import annotations

import ray

from data_prep.errors import InputError

ONE_HEAP = {"env_vars": {"MALLOC_ARENA_MAX": "1"}}
"""Runtime environment of processes that compute in a thread, as Ray's do. glibc gives threads heaps of their own, which
go back to the system again and again, whatever agman.keep_freed_memory says."""


def cpus_for(workers: int, option: str = "--workers") -> int:
    """The most CPUs that each of `workers` can have, none of them cut over two nodes.

    Raises InputError, naming the `option`, if there is not one for each.
    """
    nodes = _cpus_of_nodes()
    if workers > sum(nodes):
        raise InputError(f"{option} {workers}: the cluster has {sum(nodes)} CPUs, and each needs one")
    return max(share for share in range(1, max(nodes) + 1) if sum(node // share for node in nodes) >= workers)


def cpus_for_elastic(least: int, most: int) -> int:
    """The same for as many workers, up to `most`, as there is room for now; more may come with more nodes.

    Raises InputError if there is no room for `least`.
    """
    cpus_for(least)
    return cpus_for(min(most, sum(_cpus_of_nodes())))


def _cpus_of_nodes() -> list[int]:
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]


def gpus_for(workers: int) -> bool:
    """Whether the workers train on GPUs, one each. Raises InputError if there are some but too few."""
    total = int(ray.cluster_resources().get("GPU", 0))
    if 0 < total < workers:
        raise InputError(f"--workers {workers}: the cluster has {total} GPUs, and a worker needs one")
    return total > 0
