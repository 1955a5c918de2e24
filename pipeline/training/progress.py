"""Messages between the driver and Ray's workers: progress, requests to stop, and restarts without progress.

Rank 0 writes to a small actor, and a thread in the driver reads it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster import resources
from pipeline.common.console import bar_of, say_above

INTERVAL = 1.0
"""Seconds between two reads of the board, and between two writes."""
FRUITLESS_STARTS = 3
"""Starts in a row without progress after which a training has failed."""


@ray.remote(num_cpus=0)
class ProgressBoard:
    """State that the driver and the workers share."""

    def __init__(self) -> None:
        self.latest = (0, "")
        self.stop = False
        self.news: list[str] = []
        self.starts = self.fruitless = self.workers = 0
        self.reached = 0
        self.results: list[dict[str, Any]] = []
        self.error = self.verdict = ""
        self.leader = b""
        self.group: PlacementGroup | None = None

    # Called by the workers

    def begin(self, workers: int, leader: bytes, group: PlacementGroup | None) -> str:
        """Note that a group of workers starts; return why it must not, or an empty string.

        A start is fruitless if the one before made no progress, unless the group has another size: then Ray has
        resized it. `leader` is the pickled handle of the group's rank 0, as bytes because unpickling it here would
        import Ray Train. `group` is its placement group.
        """
        self.leader, self.group = leader, group
        error, self.error = self.error, ""
        reached = self.latest[0]
        if self.starts:
            self.news.append(f"{error or 'workers were lost, or joined'}: starting anew on {workers}")
            if reached > self.reached:
                self.fruitless = 0
            elif workers == self.workers or error:
                self.fruitless += 1
        self.reached = max(self.reached, reached)
        self.workers = workers
        self.starts += 1
        if self.fruitless >= FRUITLESS_STARTS:
            cause = error or "the workers were killed"
            self.verdict = f"{FRUITLESS_STARTS} starts in a row got no further than step {self.reached:,} ({cause})"
        return self.verdict

    def put(self, step: int, note: str) -> bool:
        """Note the progress; return whether to stop."""
        self.latest = (step, note)
        return self.stop

    def tell(self, line: str) -> None:
        """Note a line for the user."""
        self.news.append(line)

    def failed(self, error: str) -> None:
        """Note an error. The first one counts: it makes the other workers lose their connections."""
        self.error = self.error or error

    def epoch_ended(self, result: dict[str, Any]) -> None:
        """Note an epoch's result for the driver."""
        self.results.append(result)

    def waits(self) -> bool:
        """Return whether a result has not been taken yet, and nobody has asked to stop."""
        return bool(self.results) and not self.stop

    # Called by the driver

    def result(self) -> dict[str, Any] | None:
        """Return the oldest result that has not been taken."""
        return self.results[0] if self.results else None

    def taken(self) -> None:
        """Remove that result; the training may continue."""
        self.results.pop(0)

    def look(self) -> tuple[int, str, list[str]]:
        """Return the latest step and note, and the messages about restarts since the last call."""
        news, self.news = self.news, []
        return (*self.latest, news)

    def step(self) -> int:
        """Return the latest step."""
        return self.latest[0]

    def ask_to_stop(self) -> None:
        """Tell the workers to stop."""
        self.stop = True

    def held(self) -> tuple[bytes, PlacementGroup | None]:
        """Return the pickled handle of the last group's leader, empty before the first, and its placement group."""
        return self.leader, self.group

    def why_not(self) -> str:
        """Return why the workers gave up, or the last error."""
        return self.verdict or self.error


class Reporter:
    """The worker's side: reports to the board at most once in INTERVAL, without waiting for it."""

    def __init__(self, board: ActorHandle, last: int):
        self.board, self.last = board, last
        self._told = 0.0
        self._answer: Any = None
        self._stop = False

    def tell(self, step: int, note: Callable[[], str]) -> None:
        """Report a step if it is time, or if it is the last one."""
        if time.monotonic() - self._told >= INTERVAL or step == self.last:
            self.stop()  # reads the answer to the message before
            self._told = time.monotonic()
            self._answer = self.board.put.remote(step, note())

    def stop(self) -> bool:
        """Return whether the driver has asked to stop, as of the last answer; a lost driver does not."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            with suppress(RayError):
                self._stop = self._stop or ray.get(self._answer)
            self._answer = None
        return self._stop


def hears(board: ActorHandle) -> bool:
    """Return whether a worker is alive that will stop when asked; none is while they wait for resources or start."""
    try:
        leader, _ = ray.get(board.held.remote())
        if not leader:
            return False
        ray.get(ray.cloudpickle.loads(leader).__ray_ready__.remote(), timeout=10)
    except GetTimeoutError:  # busy, or on a node that is not known to be lost yet
        return True
    except RayError:
        return False
    return True


@contextmanager
def shown(title: str, total: int, stop: threading.Event) -> Iterator[ActorHandle]:
    """Yield a board, and show its progress in a bar on stderr while the block runs; pass `stop` on to the board.

    If no group of workers has begun after PATIENCE seconds, say what is free in the cluster. The board is on this node,
    so that it survives the loss of any other.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ProgressBoard.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    over = threading.Event()
    bar = bar_of(title, total, unit=" steps")
    bar.set_postfix_str("starting the workers")

    def look() -> None:
        with suppress(RayError):  # if the board is lost, the training continues without a bar
            step, note, news = ray.get(board.look.remote())
            for line in news:
                say_above(line)
            if not step:
                return
            if not bar.n:
                # The rate and the time left exclude the workers' start and the steps of earlier commands.
                bar.reset()
                bar.initial = bar.n = step
            bar.set_postfix_str(note, refresh=False)
            bar.update(step - bar.n)

    def follow() -> None:
        asked, told, began = False, False, time.monotonic()
        while not over.wait(INTERVAL):
            if stop.is_set() and not asked:
                asked = bool(board.ask_to_stop.remote())
            if not told and time.monotonic() - began > resources.PATIENCE:
                told = True
                with suppress(RayError):
                    if not ray.get(board.held.remote())[0]:
                        say_above(resources.no_room())
            look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield board
        look()
    finally:
        over.set()
        thread.join()
        bar.close()
        ray.kill(board)
