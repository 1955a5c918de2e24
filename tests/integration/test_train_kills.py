"""Trainings whose processes are killed (SIGKILL) or interrupted: all end with the weights of an undisturbed one."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from support.commands import Agman
from support.trainings import SETTINGS, STEPS, Command, Undisturbed, check, kept_in, processes, trainings

from data_prep.dataset import Dataset


def test_a_killed_worker_is_replaced(
    agman_here: Agman, longer: Dataset, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """One worker of two is killed. The driver is this process, with the tests' Ray session."""
    workers: list[int] = []

    def kill() -> None:
        while not over.wait(0.05):
            saved = [checkpoint.step for place in trainings(tmp_path) for checkpoint in kept_in(place)]
            if saved and saved[-1] >= 5:
                workers.extend(processes("ray::RayTrainWorker", os.getpid()))
                return os.kill(workers[-1], signal.SIGKILL)

    over, thread = threading.Event(), threading.Thread(target=kill)
    thread.start()
    try:
        settings = [f"{key}={value}" for key, value in SETTINGS.items()]
        done = agman_here("train", "--data", longer.path, "--workers", 2, *settings)
    finally:
        over.set()
        thread.join()
    assert done.code == 0, done.err
    assert len(workers) == 2
    assert "starting anew on 2" in done.err
    check(tmp_path, undisturbed)
    deadline = time.monotonic() + 60
    while processes("ray::RayTrainWorker", os.getpid()):
        assert time.monotonic() < deadline, "workers outlive their training"
        time.sleep(0.1)


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
def test_a_killed_controller_is_replaced(
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
