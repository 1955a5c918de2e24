"""The link between the driver and Ray's workers: how far they are, the wish to stop, and when to give up.

Rank 0 writes to a small actor, a thread in the driver reads it.
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

from pipeline.common.console import bar_of, say_above

INTERVAL = 1.0  # seconds between two looks, and between two writes
FRUITLESS_STARTS = 3
"""So many starts in a row that get no further than those before; then the training has failed."""


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Holds what the driver and the workers want to know of each other."""

    def __init__(self) -> None:
        self.latest = (0, "")
        self.stop = False
        self.news: list[str] = []
        self.starts = self.fruitless = self.workers = 0
        self.reached = 0
        self.results: list[dict[str, Any]] = []
        self.error = self.verdict = ""
        self.leader: ActorHandle | None = None
        self.group: PlacementGroup | None = None

    # From the workers

    def begin(self, workers: int, leader: ActorHandle, group: PlacementGroup | None) -> str:
        """A group of workers starts; says why not, if it is not to.

        A start is fruitless if the one before got no further than those before it. Not if the group has another
        size: then Ray has resized it. `leader` is its rank 0, `group` what it holds of the cluster.
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
        """Answers whether to stop."""
        self.latest = (step, note)
        return self.stop

    def failed(self, error: str) -> None:
        """Ray will start anew. The first error counts: it makes the other workers lose their connections."""
        self.error = self.error or error

    def epoch_ended(self, result: dict[str, Any]) -> None:
        self.results.append(result)

    def waits(self) -> bool:
        """Whether an epoch's result has not been taken yet, and nobody has asked to stop."""
        return bool(self.results) and not self.stop

    # From the driver

    def result(self) -> dict[str, Any] | None:
        """The first epoch's result that has not been taken."""
        return self.results[0] if self.results else None

    def taken(self) -> None:
        """That result has been dealt with; the training may go on."""
        self.results.pop(0)

    def look(self) -> tuple[int, str, list[str]]:
        """The latest, and what is new since the last look."""
        news, self.news = self.news, []
        return (*self.latest, news)

    def ask_to_stop(self) -> None:
        self.stop = True

    def held(self) -> tuple[ActorHandle | None, PlacementGroup | None]:
        """The last group's leader, and what the group holds of the cluster."""
        return self.leader, self.group

    def why_not(self) -> str:
        """Why the workers gave up, or what the last error was."""
        return self.verdict or self.error


class Reporter:
    """The worker's end: tells the board at most once a second, without waiting for it."""

    def __init__(self, board: ActorHandle, last: int):
        self.board, self.last = board, last
        self._told = 0.0
        self._answer: Any = None
        self._stop = False

    def tell(self, step: int, note: Callable[[], str]) -> None:
        if time.monotonic() - self._told >= INTERVAL or step == self.last:
            self.stop()  # the answer before must not be lost
            self._told = time.monotonic()
            self._answer = self.board.put.remote(step, note())

    def stop(self) -> bool:
        """Whether the driver has asked to stop, as of the last answer. A lost driver asks for nothing."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            with suppress(RayError):
                self._stop = self._stop or ray.get(self._answer)
            self._answer = None
        return self._stop


def hears(board: ActorHandle) -> bool:
    """Whether a worker is there that will stop when asked to: none is while they wait for resources, or start."""
    try:
        leader, _ = ray.get(board.held.remote())
        if leader is None:
            return False
        ray.get(leader.__ray_ready__.remote(), timeout=10)
    except GetTimeoutError:  # busy, or on a node that is not known to be lost yet
        return True
    except RayError:
        return False
    return True


@contextmanager
def shown(title: str, total: int, stop: threading.Event) -> Iterator[ActorHandle]:
    """A bar on stderr for as long as the block runs, fed by the board that is given; passes `stop` on to it.

    The board lives on this node: the loss of another must not take it along.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ProgressBoard.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    over = threading.Event()
    bar = bar_of(title, total, unit=" steps")
    bar.set_postfix_str("starting the workers")

    def look() -> None:
        with suppress(RayError):  # without a board the training goes on unseen
            step, note, news = ray.get(board.look.remote())
            for line in news:
                say_above(line)
            if not step:
                return
            if not bar.n:
                # Neither the workers' start nor the steps of an earlier command count for the rate and the time left.
                bar.reset()
                bar.initial = bar.n = step
            bar.set_postfix_str(note, refresh=False)
            bar.update(step - bar.n)

    def follow() -> None:
        asked = False
        while not over.wait(INTERVAL):
            if stop.is_set() and not asked:
                asked = bool(board.ask_to_stop.remote())
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
