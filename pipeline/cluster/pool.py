"""Jobs on Ray actors that come and go with the nodes of a cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from pipeline.cluster import resources
from pipeline.common.console import say_above
from pipeline.common.errors import JobFailed, reason

STARTS = 4
"""Workers in a row that may die before they are ready."""
Job = TypeVar("Job")


def each_on_workers(
    start: Callable[[], ActorHandle],
    workers: int,
    jobs: Sequence[Job],
    run: Callable[[ActorHandle, Job], ray.ObjectRef],
) -> Generator[Any, None, None]:
    """Yield the result of every job, in the order in which they end.

    A worker gets a job when it is ready, and one at a time. If it dies, its job goes to another one, and a new worker
    starts as soon as a node has room for it: one living worker is enough for all jobs to end. Ray's own pool would wait
    for the dead worker's return. If there is no room for the first one, the user is told so once. `run` must bear that
    a job runs twice, and end jobs of which workers die. Raises JobFailed if STARTS workers in a row die before they are
    ready.

    Args:
        start: function that starts a worker.
        workers: largest number of workers.
        jobs: jobs.
        run: function that gives a job to a worker.
    """
    waiting, idle, lost = deque(jobs), deque[ActorHandle](), 0
    patience: float | None = resources.PATIENCE
    running: dict[ray.ObjectRef, tuple[ActorHandle, Job | None]] = {}

    def begin() -> None:
        worker = start()
        running[worker.__ray_ready__.remote()] = worker, None

    try:
        for _ in range(min(workers, len(jobs))):
            begin()
        while running:
            first, _ = ray.wait([*running], num_returns=1, timeout=patience)
            if not first:
                say_above(resources.no_room())
                patience = None
                continue
            (ended,) = first
            worker, job = running.pop(ended)
            try:
                result = ray.get(ended)
            except RayActorError as error:
                lost += job is None
                if lost == STARTS:
                    raise JobFailed(f"{lost} workers died before they were ready ({reason(error)})") from error
                if job is not None:
                    waiting.appendleft(job)
                ray.kill(worker)  # it may still live, behind a lost connection
                begin()
            else:
                patience = None
                idle.append(worker)
                if job is not None:
                    lost = 0
                    yield result
            while waiting and idle:
                worker, job = idle.popleft(), waiting.popleft()
                running[run(worker, job)] = worker, job
            if not waiting and all(job is None for _, job in running.values()):
                return
    finally:
        for worker in [*idle, *(worker for worker, _ in running.values())]:
            ray.kill(worker)
