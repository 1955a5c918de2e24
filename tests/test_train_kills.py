"""Trainings whose processes are killed with -9, or interrupted: all end with the weights of an undisturbed one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from test_kill import descendants

import agman
from data_prep.dataset import Dataset
from data_prep.prepare import prepare
from data_prep.storage import Storage
from pipeline.checkpoints import Checkpoint, Checkpoints
from pipeline.config import make_config
from pipeline.loop import Share, StepEnd, Training

SETTINGS = {
    "backbone": "resnet18",
    "embedding_dim": 16,
    "batch_size": 12,
    "epochs": 2,
    "parts": 2,
    "threads": 1,
    "precision": "fp32",
    "loss_weighting": "learned",
    "proxy_weight": 0.5,
    "lr": 1e-3,
    "lr_decay_epochs": 1,
    "checkpoint_every": 6,
    "log_every": 1,
    "seed": 11,
}
STEPS_AN_EPOCH = 20


@pytest.fixture(scope="module")
def longer(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Enough triplets for a kill in mid-epoch."""
    out = tmp_path_factory.mktemp("longer") / "data"
    prepare("fashionai", drawn, out, name="tiny", triplets=12 * STEPS_AN_EPOCH, epochs=2, image_size=32, seed=5)
    return Dataset(out)


@dataclass
class Undisturbed:
    """A training in one process, without Ray."""

    state: dict[str, torch.Tensor]
    losses: dict[int, float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def undisturbed(longer: Dataset) -> Undisturbed:
    training = Training(make_config(SETTINGS), longer, Share())
    losses: dict[int, float] = {}

    def step_end(end: StepEnd) -> None:
        losses[end.step] = end.result.loss

    assert training.run(step_end=step_end) == "finished"
    return Undisturbed({key: tensor.clone() for key, tensor in training.model.state_dict().items()}, losses)


class Command:
    """`agman train` in a process of its own."""

    def __init__(self, data: Path, folder: Path, *options: str, address: str | None = None):
        self.folder = folder
        settings = [f"{key}={value}" for key, value in SETTINGS.items()]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        if address:
            environment["RAY_ADDRESS"] = address
        self.log = folder / f"log-{time.monotonic_ns()}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("agman")), "train", "--data", str(data), *options, *settings],
                cwd=folder,
                env=environment,
                stderr=log,
                stdout=log,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def checkpoints(self) -> list[Checkpoint]:
        return [one for place in self.folder.glob("runs/*/checkpoints") for one in Checkpoints(Storage(place)).whole()]

    def wait_for_step(self, step: int) -> None:
        self.wait(lambda: any(checkpoint.step >= step for checkpoint in self.checkpoints()))

    def wait(self, until: Callable[[], object], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.said}"
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def finish(self, code: int = 0) -> str:
        assert self.process.wait(timeout=300) == code, self.said
        return self.said

    def kill(self) -> None:
        """What is left of it, whatever happened."""
        mine = [*descendants(self.process.pid), self.process.pid]
        for process in mine:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def command(longer: Dataset, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(*options: str, address: str | None = None) -> Command:
        assert isinstance(longer.path, Path)
        started.append(Command(longer.path, tmp_path, *options, address=address))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def processes(named: str, below: int | None = None) -> list[int]:
    """Ids of processes whose title begins so; of those that `below` started, or of all."""
    found = []
    for process in descendants(below) if below else [int(p.name) for p in Path("/proc").glob("[0-9]*")]:
        with suppress(OSError):
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(named.encode()):
                found.append(process)
    return found


def check(folder: Path, undisturbed: Undisturbed, runs: int = 1) -> None:
    """The last checkpoint has the undisturbed weights; MLflow has every step once, in one finished run."""
    (place,) = folder.glob("runs/*")
    latest = Checkpoints(Storage(place / "checkpoints")).latest()
    assert latest and latest.place.local
    assert latest.step == 2 * STEPS_AN_EPOCH
    model, _ = agman.load_model(latest.place.local)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, undisturbed.state[name], rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n} {m}")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "tiny"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_id == json.loads((place / "training.json").read_text())["run_id"]
    points = client.get_metric_history(run.info.run_id, "steps/loss")
    assert [point.step for point in points] == list(range(1, 2 * STEPS_AN_EPOCH + 1))
    assert {point.step: point.value for point in points} == pytest.approx(undisturbed.losses, abs=1e-5)
    epochs = client.get_metric_history(run.info.run_id, "valid/map")
    assert [point.step for point in epochs] == [STEPS_AN_EPOCH, 2 * STEPS_AN_EPOCH]
    assert len(client.search_model_versions("name='agman-tiny'")) == 1


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
    assert continued and saved <= int(continued[1]) < 2 * STEPS_AN_EPOCH, said
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
