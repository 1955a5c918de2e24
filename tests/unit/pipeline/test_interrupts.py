"""Ctrl-C and SIGTERM during a job, as real signals to this process."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from pipeline.common.signals import saying_how_to_go_on


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_the_message_says_how_to_continue(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"^again$"), saying_how_to_go_on("again"):
        os.kill(os.getpid(), number)
        time.sleep(60)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_message_that_says_more_is_kept() -> None:
    with (
        pytest.raises(KeyboardInterrupt, match=r"^saved at step 7$"),
        saying_how_to_go_on("again"),
        saying_how_to_go_on("saved at step 7"),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


def test_other_threads_keep_the_signal_handlers() -> None:
    done = []

    def work() -> None:
        with saying_how_to_go_on("again"):
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
