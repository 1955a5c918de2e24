"""The board between the driver and the workers: requests to stop, and the end of fruitless restarts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from pipeline.cluster import resources
from pipeline.training import progress as progress_board
from pipeline.training.progress import FRUITLESS_STARTS, ProgressBoard, Reporter, hears, shown


@pytest.fixture
def board(ray_started: None) -> Iterator[Any]:
    board = ProgressBoard.remote()  # type: ignore[attr-defined]
    yield board
    ray.kill(board)


def begin(board: Any, workers: int = 2) -> str:
    return ray.get(board.begin.remote(workers, ray.cloudpickle.dumps(board), None))


def reach(board: Any, step: int) -> None:
    ray.get(board.put.remote(step, "a note"))


def test_a_workers_line_reaches_the_user(board: Any) -> None:
    ray.get(board.tell.remote("warning: epoch 2: the embeddings hardly differ"))
    assert ray.get(board.step.remote()) == 0, "this takes no line away"
    assert ray.get(board.look.remote())[2] == ["warning: epoch 2: the embeddings hardly differ"]
    assert ray.get(board.look.remote())[2] == []


def test_a_request_to_stop_arrives_if_steps_are_slower_than_messages(
    board: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step reports to the board, and then asks whether to stop."""
    monkeypatch.setattr(progress_board, "INTERVAL", 0.0)
    reporter = Reporter(board, last=100)
    ray.get(board.ask_to_stop.remote())
    heard = []
    for step in range(1, 4):
        reporter.tell(step, lambda: "a note")
        heard.append(reporter.stop())
        time.sleep(0.3)  # the step: in it, the answer arrives
    assert heard[-1]
    assert ray.get(board.look.remote())[:2] == (3, "a note")


def test_restarts_without_progress_end_with_the_first_error(board: Any) -> None:
    assert begin(board) == ""
    reach(board, 7)
    for _ in range(FRUITLESS_STARTS):
        assert begin(board) == ""
        reach(board, 6)
        ray.get(board.failed.remote("worker 1: ValueError: no"))
        ray.get(board.failed.remote("worker 0: RuntimeError: connection closed by peer"))
    verdict = begin(board)
    assert verdict == f"{FRUITLESS_STARTS} starts in a row got no further than step 7 (worker 1: ValueError: no)"
    assert ray.get(board.why_not.remote()) == verdict
    *_, news = ray.get(board.look.remote())
    assert news[-1] == "worker 1: ValueError: no: starting anew on 2"


def test_restarts_with_progress_or_another_size_go_on(board: Any) -> None:
    for step in range(2 * FRUITLESS_STARTS):
        assert begin(board) == ""
        reach(board, step + 1)
    for workers in (3, 4, 5, 6, 7):  # nodes join
        assert begin(board, workers) == ""
    assert begin(board, 8) == ""


def test_a_training_whose_workers_do_not_start_says_what_is_free(
    ray_started: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_board, "INTERVAL", 0.1)
    monkeypatch.setattr(resources, "PATIENCE", 0.2)
    for started in (False, True):
        with shown("training", 10, threading.Event()) as board:
            said, deadline = "", time.monotonic() + (1 if started else 60)
            if started:
                begin(board)
            while time.monotonic() < deadline and "free in the cluster: " not in said:
                time.sleep(0.05)
                said += capsys.readouterr().err
        assert ("no worker is ready" in said) != started


def test_no_worker_is_alive_before_a_group_starts_nor_after_its_leader_died(board: Any) -> None:
    assert not hears(board)
    leader = ProgressBoard.remote()  # type: ignore[attr-defined]
    ray.get(board.begin.remote(1, ray.cloudpickle.dumps(leader), None))
    assert hears(board)
    ray.kill(leader)
    assert not hears(board)
