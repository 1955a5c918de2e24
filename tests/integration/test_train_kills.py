"""Trainings whose processes are killed (SIGKILL) or interrupted: all end with the weights of an undisturbed one."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient
from ray.train import UserCallback
from support.commands import Agman
from support.trainings import (
    SETTINGS,
    STEPS,
    Command,
    Undisturbed,
    check,
    kept_in,
    processes,
    train_undisturbed,
    trainings,
)

from data_prep.dataset import Dataset
from pipeline.config.schema import make_config
from pipeline.training.train import train


def wait_for_no_workers() -> None:
    deadline = time.monotonic() + 60
    while processes("ray::RayTrainWorker", os.getpid()):
        assert time.monotonic() < deadline, "workers outlive their training"
        time.sleep(0.1)


def test_a_killed_worker_is_replaced(
    ray_started: None, tracking_store: str, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class KillOne(UserCallback):  # a local class, which is sent to Ray Train's controller as it is
        killed = False

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            """Kill a worker when the first epoch is reported."""
            if self.killed:
                return
            assert "mlflow" not in sys.modules, "importing it takes the controller a second"
            siblings = []
            for one in psutil.Process().parent().children():
                with suppress(psutil.Error):
                    siblings += [one] if "RayTrainWorker" in str(one.cmdline()) else []
            assert len(siblings) == 2
            siblings[-1].kill()
            self.killed = True
            assert not list(tmp_path.glob("runs/*/outcome.json")), "the training had ended"

    epochs = 8
    config = make_config(SETTINGS | {"backbone": "tiny", "epochs": epochs, "checkpoint_every": 3})
    trained = train(dataset, config, workers=2, storage=tmp_path / "runs", callbacks=[KillOne()])
    assert capsys.readouterr().err.count("starting anew on 2") == 1
    alone = train_undisturbed(config, dataset)
    an_epoch = trained.steps // epochs
    assert alone.epochs == [*range(an_epoch, trained.steps + 1, an_epoch)]
    assert [*alone.losses] == [*range(1, trained.steps + 1)]
    check(tmp_path, alone)
    wait_for_no_workers()


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_of_an_epoch_is_replaced(
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
    wait_for_no_workers()


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
