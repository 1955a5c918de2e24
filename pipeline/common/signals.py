"""Ctrl-C and SIGTERM where no job handles them itself: the job ends at once and says how to continue."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def saying_how_to_go_on(hint: str) -> Iterator[None]:
    """Raise KeyboardInterrupt(hint) in the block after Ctrl-C or SIGTERM.

    A KeyboardInterrupt that has a message already passes unchanged. In threads other than the main thread, which
    receive no signals, only the hint is added.
    """

    def handle(number: int, frame: object) -> None:
        raise KeyboardInterrupt(hint)

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, handle) if is_main else None
    try:
        yield
    except KeyboardInterrupt as stop:
        if stop.args:
            raise
        raise KeyboardInterrupt(hint) from stop
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)
