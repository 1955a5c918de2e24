"""Ctrl-C and SIGTERM where nothing nearer answers them: the job ends at once, and says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def saying_how_to_go_on(hint: str) -> Iterator[None]:
    """Both raise KeyboardInterrupt with this hint in the block; one that says more already is left as it is."""

    def handle(number: int, frame: object) -> None:
        raise KeyboardInterrupt(hint)

    mine = threading.current_thread() is threading.main_thread()  # signals are the main thread's
    before = signal.signal(signal.SIGTERM, handle) if mine else None
    try:
        yield
    except KeyboardInterrupt as stop:
        if stop.args:
            raise
        raise KeyboardInterrupt(hint) from stop
    finally:
        if mine:
            signal.signal(signal.SIGTERM, before)
