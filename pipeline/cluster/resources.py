"""Resources that the Ray cluster can give to the workers of a job, now and after its autoscaler has added nodes."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from data_prep.errors import InputError

ONE_HEAP = {"env_vars": {"MALLOC_ARENA_MAX": "1"}}
"""Runtime environment of processes that compute in a thread, as Ray's workers do. By default glibc gives every thread
a heap of its own and returns its memory to the system again and again, in spite of agman.memory.keep_freed_memory."""
GROWN = "AGMAN_GROWN_CLUSTER"
"""Environment variable, set where the head of a cluster starts and inherited by its jobs: the largest number of workers
that the autoscaler starts and the resources of each, as `{"nodes": 8, "CPU": 8, "GPU": 1}`. Ray itself reports only
the nodes that exist now."""
PATIENCE = 30.0
"""Seconds without a ready worker after which the user is told what is free."""


def cpus_for(workers: int, option: str = "--workers") -> int:
    """Return the largest number of CPUs that each of `workers` can have on one node.

    In a cluster with GPUs every worker runs on a node with a GPU; if there are more workers than GPUs, they share the
    GPUs evenly. Raises InputError, which names `option`, if there are fewer CPUs than workers.
    """
    cpus, gpus = _per_node("CPU"), _per_node("GPU")
    if workers > sum(cpus):
        raise InputError(f"{option} {workers}: the cluster has {_total(cpus)} CPUs, and each needs one")
    if sum(gpus):
        workers_per_gpu = math.ceil(workers / sum(gpus))
        limits = [gpu * workers_per_gpu for gpu in gpus]
    else:
        limits = [workers] * len(cpus)
    for cpus_each in range(max(cpus), 0, -1):
        if sum(min(cpu // cpus_each, limit) for cpu, limit in zip(cpus, limits, strict=True)) >= workers:
            return cpus_each
    raise InputError(f"{option} {workers}: the nodes with GPUs have too few CPUs, and each needs one there")


def cpus_for_elastic(least: int, most: int) -> int:
    """Return the CPUs of each worker for the largest group, up to `most` workers, that the cluster has room for.

    Raises InputError if there is no room for `least` workers.
    """
    cpus_for(least)
    gpus = sum(_per_node("GPU"))
    return cpus_for(min(most, sum(_per_node("CPU")), gpus or most))


def gpus_for(workers: int, option: str = "--workers") -> bool:
    """Return whether the workers use GPUs, one each.

    Raises InputError, which names `option`, if there are GPUs but fewer than workers.
    """
    gpus = _per_node("GPU")
    if 0 < sum(gpus) < workers:
        raise InputError(f"{option} {workers}: the cluster has {_total(gpus)} GPUs, and a worker needs one")
    return sum(gpus) > 0


def gpu_share(processes: int) -> float:
    """Return the GPUs of each of `processes`: a fraction if there are fewer GPUs than processes."""
    gpus = sum(_per_node("GPU"))
    return 1 / max(1, math.ceil(processes / gpus)) if gpus else 0.0


def no_room() -> str:
    """Return a line for a user whose job has waited PATIENCE seconds for its first worker."""
    import ray

    free, total = ray.available_resources(), ray.cluster_resources()
    kinds = ["CPU", "GPU"] if "GPU" in total else ["CPU"]
    counts = ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s" for kind in kinds)
    return (
        f"no worker is ready after {PATIENCE:.0f} s: it waits for room, or still starts; free in the cluster: {counts}"
    )


def _per_node(resource: str) -> list[int]:
    """Return the amount of `resource` on every node, including the nodes that the autoscaler may still add."""
    present = [node["Resources"] for node in _ray_nodes() if node["Alive"]]
    most, kind = _grown()
    alike = sum(all(node.get(name, 0) >= count for name, count in kind.items()) for node in present)
    return [int(node.get(resource, 0)) for node in present + [kind] * (most - alike)]


def _ray_nodes() -> list[dict[str, Any]]:
    import ray  # imported late: the arithmetic above is used and tested without Ray

    return ray.nodes()


def _grown() -> tuple[int, dict[str, int]]:
    """Return the number of workers in the grown cluster and the resources of each, as GROWN states them."""
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
