"""How far Ray's workers are, shown in the driver: rank 0 writes to a small actor, a thread here reads it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.actor import ActorHandle

from pipeline.console import bar_of

INTERVAL = 0.5  # seconds between two looks, and between two writes


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Holds the latest (step, note)."""

    def __init__(self) -> None:
        self.latest = (0, "")

    def put(self, step: int, note: str) -> None:
        self.latest = (step, note)

    def get(self) -> tuple[int, str]:
        return self.latest


class Reporter:
    """The worker's end: tells the board at most twice a second, without waiting for it."""

    def __init__(self, board: ActorHandle):
        self.board = board
        self.told = 0.0

    def tell(self, step: int, note: str) -> None:
        if time.monotonic() - self.told >= INTERVAL:
            self.told = time.monotonic()
            self.board.put.remote(step, note)


@contextmanager
def shown(title: str, total: int) -> Iterator[ActorHandle]:
    """A bar on stderr for as long as the block runs, fed by the board that is given."""
    board = ProgressBoard.remote()  # type: ignore[attr-defined]
    stop = threading.Event()
    bar = bar_of(title, total, unit=" steps")

    def follow() -> None:
        while not stop.wait(INTERVAL):
            step, note = ray.get(board.get.remote())
            bar.set_postfix_str(note, refresh=False)
            bar.update(step - bar.n)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield board
        bar.update(total - bar.n)
    finally:
        stop.set()
        thread.join()
        bar.close()
        ray.kill(board)
