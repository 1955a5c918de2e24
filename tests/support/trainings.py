"""Trainings in processes that tests kill, and the undisturbed training with whose weights all must end."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

import agman
from data_prep.dataset import Dataset
from data_prep.prepare import prepare
from data_prep.storage import Storage
from pipeline.config.schema import TrainConfig, make_config
from pipeline.training.checkpoints import Checkpoint, Checkpoints
from pipeline.training.trainer import StepEnd, Training, WorkerContext

ROOT = Path(__file__).parents[2]
AGMAN = "from pipeline.cli import main; main()"
MARK = "AGMAN_TEST"
"""Environment variable that all processes of a command inherit."""
SETTINGS = {
    "backbone": "resnet18",
    "embedding_dim": 16,
    "batch_size": 12,
    "epochs": 2,
    "micro_batches": 2,
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
STEPS = 2 * STEPS_AN_EPOCH


@pytest.fixture(scope="session")
def longer(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset with enough triplets for a kill in mid-epoch."""
    out = tmp_path_factory.mktemp("longer") / "data"
    prepare("fashionai", drawn, out, name="tiny", triplets=12 * STEPS_AN_EPOCH, epochs=2, image_size=32, seed=5)
    return Dataset(out)


@dataclass
class Undisturbed:
    """A training in one process, without Ray."""

    state: dict[str, torch.Tensor]
    losses: dict[int, float]
    epochs: list[int]
    """Last step of each epoch."""


def train_undisturbed(config: TrainConfig, dataset: Dataset) -> Undisturbed:
    training = Training(config, dataset, WorkerContext())
    losses: dict[int, float] = {}
    epochs: list[int] = []

    def step_end(end: StepEnd) -> None:
        losses[end.step] = end.result.loss

    assert training.run(step_end=step_end, epoch_end=lambda end: epochs.append(end.step)) == "finished"
    return Undisturbed({key: tensor.clone() for key, tensor in training.model.state_dict().items()}, losses, epochs)


@pytest.fixture(scope="session")
def undisturbed(longer: Dataset) -> Undisturbed:
    trained = train_undisturbed(make_config(SETTINGS), longer)
    assert trained.epochs == [STEPS_AN_EPOCH, STEPS] and [*trained.losses] == [*range(1, STEPS + 1)]
    return trained


class Command:
    """`agman train`, or another job of trainings, in a process of its own.

    without: settings that the command is not to be given.
    variables: more of its environment.
    storage: where it keeps its state; None is the default, below its working folder.
    """

    def __init__(
        self,
        data: Path,
        folder: Path,
        *options: str,
        address: str | None = None,
        storage: str | None = None,
        without: tuple[str, ...] = (),
        variables: dict[str, str] | None = None,
        job: str = "train",
    ):
        self.folder, self.storage = folder, storage
        self.mark = secrets.token_hex(8)
        self.seen: dict[int, str] = {}
        """Start times of its processes by id, including those whose titles hide the mark."""
        settings = [f"{key}={value}" for key, value in SETTINGS.items() if key not in without]
        where = ["--storage", storage] if storage else []
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        environment |= {MARK: self.mark, "PYTHONPATH": str(ROOT)} | (variables or {})
        if address:  # of a cluster that this process has started, in whatever mode its own Ray is in
            environment |= {"RAY_ADDRESS": address, "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled")}
        self._looked = 0.0
        self.log = folder / f"log-{time.monotonic_ns()}"
        self.out = self.log.with_suffix(".out")
        with self.log.open("w") as log, self.out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", AGMAN, job, "--data", str(data), *where, *options, *settings],
                cwd=folder,
                env=environment,
                stderr=log,
                stdout=out,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def figures(self) -> dict[str, Any]:
        """Return the metrics of the last line, printed with `--json`; Ray may report a worker's death before it."""
        return json.loads(self.out.read_text().splitlines()[-1])

    def checkpoints(self) -> list[Checkpoint]:
        return [one for place in trainings(self.folder, self.storage) for one in kept_in(place)]

    def wait_for_step(self, step: int) -> None:
        self.wait(lambda: any(checkpoint.step >= step for checkpoint in self.checkpoints()))

    def wait(self, until: Callable[[], object], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.said}"
            assert time.monotonic() < deadline, self.said
            self.look()
            time.sleep(0.05)

    def finish(self, code: int = 0) -> str:
        deadline = time.monotonic() + 300
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.said
            self.look()
            time.sleep(0.2)
        assert self.process.returncode == code, self.said
        return self.said

    def look(self) -> None:
        """Note its processes, at most once a second."""
        if time.monotonic() - self._looked >= 1:
            self._looked = time.monotonic()
            self.seen |= {process: began for process in descendants(self.process.pid) if (began := _began(process))}

    def left(self) -> dict[int, str]:
        """Return the command lines of its living processes by id."""
        alive = {process: _line(process) for process, began in self.seen.items() if _began(process) == began}
        return alive | marked(self.mark)

    def wait_for_the_end(self) -> None:
        """Wait until no process of it is left. Ray's agents check once a minute whether their raylet is alive."""
        deadline = time.monotonic() + 180
        while left := self.left():
            assert time.monotonic() < deadline, f"processes that outlive their command: {left}"
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill its remaining processes."""
        mine = [*descendants(self.process.pid), *self.left(), self.process.pid]
        for process in mine:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def command(longer: Dataset, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """A function that starts a training. After a successful test, no process of it may be left."""
    started: list[Command] = []

    def start(*options: str, **more: Any) -> Command:
        assert isinstance(longer.path, Path)
        started.append(Command(longer.path, tmp_path, *options, **more))
        return started[-1]

    yield start
    try:
        for one in started:
            if one.process.poll() is not None:
                one.wait_for_the_end()
    finally:
        for one in started:
            one.kill()


def descendants(process: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    waiting = [process]
    while waiting:
        below = children.get(waiting.pop(), [])
        yield from below
        waiting += below


def marked(mark: str) -> dict[int, str]:
    """Return the command lines of the processes that inherited this mark, by id, whatever their parent is now."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                found[int(process.name)] = _line(int(process.name))
    return found


def _line(process: int) -> str:
    with suppress(OSError):
        return " ".join(Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode().split())
    return ""


def _began(process: int) -> str:
    """Return the start time of a process; empty if it has ended or is a zombie."""
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def processes(named: str, below: int | None = None) -> list[int]:
    """Return the ids of processes whose title begins so, among all or those that `below` started."""
    found = []
    for process in descendants(below) if below else [int(p.name) for p in Path("/proc").glob("[0-9]*")]:
        with suppress(OSError):
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(named.encode()):
                found.append(process)
    return found


def trainings(folder: Path, storage: str | None = None) -> list[Storage]:
    place = Storage(storage or folder / "runs")
    return [place / name for name in place.folders()]


def kept_in(training: Storage) -> list[Checkpoint]:
    return Checkpoints(training / "checkpoints").complete()


def run_of(folder: Path) -> Run:
    """Return the only run of the folder's tracking store."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "tiny"]
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def check(folder: Path, undisturbed: Undisturbed, storage: str | None = None) -> None:
    """Check that the last checkpoint has the undisturbed weights, and one finished run has every step once."""
    (place,) = trainings(folder, storage)
    kept = Checkpoints(place / "checkpoints")
    latest = kept.latest()
    assert latest
    assert latest.step == undisturbed.epochs[-1]
    with kept.opened(latest) as local:
        model, _ = agman.load_model(local)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, undisturbed.state[name], rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n} {m}")
    run = run_of(folder)
    assert run.info.status == "FINISHED"
    assert run.info.run_id == json.loads((place / "training.json").read_bytes())["run_id"]
    assert len(run.inputs.dataset_inputs) == run.data.tags["mlflow.note.content"].count("| result |") == 1
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    points = client.get_metric_history(run.info.run_id, "steps/loss")
    assert [point.step for point in points] == [*undisturbed.losses]
    assert {point.step: point.value for point in points} == pytest.approx(undisturbed.losses, abs=1e-5)
    epochs = client.get_metric_history(run.info.run_id, "valid/map")
    assert [point.step for point in epochs] == undisturbed.epochs
    assert len(client.search_model_versions("name='agman-tiny'")) == 1
