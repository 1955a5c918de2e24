"""The link between the driver and Ray's workers: how far they are, and the wish to stop.

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
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.console import bar_of

INTERVAL = 0.5  # seconds between two looks, and between two writes


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Holds the latest (step, note), whether to stop, and what the workers met with."""

    def __init__(self) -> None:
        self.latest = (0, "")
        self.stop = False
        self.began_at = -1
        self.began = 0
        self.error = ""
        self.leader: ActorHandle | None = None

    def put(self, step: int, note: str) -> bool:
        """Answers whether to stop."""
        self.latest = (step, note)
        return self.stop

    def get(self) -> tuple[int, str]:
        return self.latest

    def ask_to_stop(self) -> None:
        self.stop = True

    def begin(self, step: int, leader: ActorHandle) -> tuple[int, str]:
        """A group of workers starts from `step`: how many in a row did so, and the last error of theirs.

        `leader` is its rank 0, which hears the wish to stop.
        """
        self.leader = leader
        self.began = self.began + 1 if step == self.began_at else 1
        self.began_at = step
        return self.began, self.error

    def failed(self, error: str) -> None:
        self.error = error

    def led_by(self) -> ActorHandle | None:
        """The last group's rank 0, if there was one."""
        return self.leader


class Reporter:
    """The worker's end: tells the board at most twice a second, without waiting for it."""

    def __init__(self, board: ActorHandle, last: int):
        self.board, self.last = board, last
        self.told = 0.0
        self.answer: Any = None
        self._stop = False

    def tell(self, step: int, note: Callable[[], str]) -> None:
        if time.monotonic() - self.told >= INTERVAL or step == self.last:
            self.told = time.monotonic()
            self.answer = self.board.put.remote(step, note())

    def stop(self) -> bool:
        """Whether the driver has asked to stop, as of the last answer. A lost driver asks for nothing."""
        if self.answer is not None and ray.wait([self.answer], timeout=0)[0]:
            with suppress(RayError):
                self._stop = self._stop or ray.get(self.answer)
            self.answer = None
        return self._stop


def hears(board: ActorHandle) -> bool:
    """Whether a worker is there that will stop when asked to: none is while they wait for resources, or start."""
    leader = ray.get(board.led_by.remote())
    if leader is None:
        return False
    try:
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
        step, note = ray.get(board.get.remote())
        if not step:
            return
        if not bar.n:
            bar.initial = step  # continued: the steps before count neither for the rate nor for the time left
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
