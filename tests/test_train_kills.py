"""Trainings whose processes are killed with -9, or interrupted: all end with the weights of an undisturbed one."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from trainings import STEPS, Command, Undisturbed, check, processes


def test_a_killed_worker_is_healed(command: Callable[..., Command], undisturbed: Undisturbed, tmp_path: Path) -> None:
    running = command("--workers", "2")
    running.wait_for_step(5)
    workers = processes("ray::RayTrainWorker", running.process.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    running.finish()
    check(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_killed_driver_is_continued_by_the_same_command(
    command: Callable[..., Command], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    running = command("--workers", "2")
    running.wait_for_step(5)
    running.process.kill()
    running.process.wait()
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    deadline = time.monotonic() + 60
    while client.search_runs([client.get_experiment_by_name("tiny").experiment_id])[0].info.status != "KILLED":
        assert time.monotonic() < deadline, "the run is left as it was"
        time.sleep(0.2)
    saved = max(checkpoint.step for checkpoint in running.checkpoints())
    said = command("--workers", "2").finish()
    continued = re.search(r"from step (\d+)", said)
    assert continued and saved <= int(continued[1]) < STEPS, said
    check(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_killed_controller_is_healed(
    command: Callable[..., Command], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    running = command("--workers", "2")
    running.wait_for_step(5)
    (controller,) = processes("ray::TrainController", running.process.pid)
    os.kill(controller, signal.SIGKILL)
    assert "starting anew" in running.finish()
    check(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_continues_on_another_number_of_workers(
    command: Callable[..., Command], undisturbed: Undisturbed, tmp_path: Path, number: signal.Signals
) -> None:
    running = command("--workers", "2")
    running.wait_for_step(5)
    if number == signal.SIGINT:
        os.killpg(running.process.pid, number)  # as a terminal does
    else:
        running.process.send_signal(number)
    said = running.finish(130).strip().splitlines()[-1]
    stopped = re.fullmatch(r"agman: interrupted: saved at step (\d+); the same command continues", said)
    assert stopped, said
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "KILLED"
    assert f"from step {stopped[1]}" in command("--workers", "1").finish()
    check(tmp_path, undisturbed)
