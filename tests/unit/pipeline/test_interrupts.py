"""What a job answers to Ctrl-C and SIGTERM: real signals, to this process."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from pipeline.common.signals import saying_how_to_go_on


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_how_to_go_on(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"^again$"), saying_how_to_go_on("again"):
        os.kill(os.getpid(), number)
        time.sleep(60)
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_says_more_is_left_alone() -> None:
    with (
        pytest.raises(KeyboardInterrupt, match=r"^saved at step 7$"),
        saying_how_to_go_on("again"),
        saying_how_to_go_on("saved at step 7"),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


def test_a_thread_has_no_signals() -> None:
    done = []

    def work() -> None:
        with saying_how_to_go_on("again"):
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
