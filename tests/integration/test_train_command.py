"""`agman train` on one Ray worker: which training a command continues, and how a failed one ends."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file
from support.commands import agman_exit_code
from support.stores import out_of_order

from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline.common.errors import JobFailed
from pipeline.config.schema import make_config
from pipeline.tracking import runs as tracking
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.ray_driver import TrainJob, run_workers
from pipeline.training.train import train

SETTINGS = {"backbone": "tiny", "embedding_dim": 16, "batch_size": 12, "epochs": 1, "max_triplets": 24}
SETTINGS |= {"threads": 1, "precision": "fp32", "seed": 11}
HOLD_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def agman_train(dataset: Dataset, store: Path, *options: str, **settings: object) -> int:
    """Run the command in this process, which has a Ray session; return its exit code."""
    typed = [f"{key}={value}" for key, value in (SETTINGS | settings).items()]
    return agman_exit_code("train", "--data", dataset.path, "--storage", store / "runs", *options, *typed)


@dataclass
class Failed:
    """End of a training whose second batch makes NaN."""

    code: int
    said: str
    path: Path


@pytest.fixture(scope="module")
def failed(ray_started: None, store: Path, dataset: Dataset) -> Failed:
    said = io.StringIO()
    with redirect_stderr(said):
        code = agman_train(dataset, store, lr=1e30, log_every=1)
    (path,) = (store / "runs").iterdir()
    return Failed(code, said.getvalue(), path)


def test_a_batch_of_nan_ends_the_training_in_one_line_and_is_kept(failed: Failed, dataset: Dataset) -> None:
    assert failed.code == 1
    assert "Traceback" not in failed.said
    last = failed.said.strip().splitlines()[-1]
    file = failed.path / "non-finite-step-2.json"
    assert last.startswith("agman: training failed: step 2 (epoch 1): the loss or its gradient is not finite: loss nan")
    assert f"its triplets are in {file}; what is saved is in {failed.path}" in last
    record = json.loads(file.read_text())
    triplets = dataset.triplets("train", 0).columns()
    assert record["triplets"] == {name: ids[12:24].tolist() for name, ids in triplets.items()}
    assert {path for paths in record["paths"].values() for path in paths} <= set(dataset.images["path"])
    assert json.loads((failed.path / "outcome.json").read_text())["state"] == "failed"
    assert Checkpoints(Storage(failed.path / "checkpoints")).latest() is None


def test_the_run_of_a_failed_training_is_failed_and_has_the_batch_and_the_curve_up_to_it(
    failed: Failed, store: Path
) -> None:
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    run_id = json.loads((failed.path / "training.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "FAILED"
    assert [point.step for point in client.get_metric_history(run_id, "steps/loss")] == [1]
    (artifact,) = client.list_artifacts(run_id)
    copy = Path(client.download_artifacts(run_id, artifact.path))
    assert copy.name == "non-finite-step-2.json"
    assert json.loads(copy.read_text()) == json.loads((failed.path / copy.name).read_text())


class Begun(Exception):
    """Raised in the place where the workers of a training would start."""


def test_a_silent_store_loses_neither_training_nor_points_and_the_same_command_then_begins_anew(
    ray_started: None, tracking_store: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is silent from the workers' start. The same command then only logs and registers; the next one would train."""
    trained: list[dict[str, Any]] = []
    away = out_of_order(tracking_store, "runs")

    def in_silence(job: TrainJob, *arguments: Any, **options: Any) -> dict[str, Any]:
        if trained:
            raise Begun(str(job.path))
        away.__enter__()
        trained.append(run_workers(job, *arguments, **options))
        return trained[-1]

    monkeypatch.setattr("pipeline.training.train.run_workers", in_silence)
    monkeypatch.setattr(tracking, "PATIENCE", 0.0)
    config, runs = make_config(SETTINGS | {"log_every": 1}), tmp_path / "runs"
    with pytest.raises(JobFailed, match=r"store does not answer .* is trained, and the same command goes on from"):
        train(dataset, config, storage=runs)
    (outcome,) = trained
    assert (outcome["state"], outcome["step"]) == ("finished", 2)
    assert [step for step, _ in outcome["unlogged"]] == [1, 2, 2]
    away.__exit__(None, None, None)
    finished = train(dataset, config, storage=runs)
    (name,) = [folder.name for folder in runs.iterdir()]
    assert name.startswith("tiny-agman-") and finished.steps == 2
    client = MlflowClient(tracking_store)
    run = client.get_run(finished.run.run_id)
    assert run.info.status == "FINISHED"
    assert finished.registered and (finished.registered.version, finished.registered.alias) == (1, "challenger")
    score, chance = (f"{100 * finished.metrics[f'valid/{name}']:.2f}" for name in ("map", "chance"))
    note = run.data.tags["mlflow.note.content"]
    assert (
        f"| result | MAP {score}, chance {chance}, on validation" in note
        and "| registered | `models:/agman-tiny/1` (challenger) |" in note
    )
    for metric, steps in {"steps/loss": [1, 2], "valid/map": [2]}.items():
        assert [point.step for point in client.get_metric_history(run.info.run_id, metric)] == steps
    ended = json.loads((runs / name / "outcome.json").read_text())
    assert "unlogged" not in ended and ended["registered"] == finished.registered.uri
    with pytest.raises(Begun, match=f"^{runs / name}-2$"):
        train(dataset, make_config(SETTINGS | {"log_every": 2, "prefetch": 0}), storage=runs)


@pytest.mark.slow
def test_a_training_begun_anew_ends_with_equal_weights_which_are_one_version(
    ray_started: None, tracking_store: str, dataset: Dataset, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    first = train(dataset, make_config(SETTINGS | {"log_every": 1}), storage=runs)
    again = train(dataset, make_config(SETTINGS | {"log_every": 2, "prefetch": 0}), storage=runs)
    folders = [one.checkpoint.local for one in (first, again)]
    assert folders[0] and folders[1]
    names = [folder.parent.parent.name for folder in folders if folder]
    assert names[1] == f"{names[0]}-2" and first.steps == again.steps == 2
    one, other = (load_file(folder / "model.safetensors") for folder in folders if folder)
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert first.run.run_id != again.run.run_id
    registered = [one.registered for one in (first, again)]
    assert [(one.version, one.alias) for one in registered if one] == [(1, "challenger"), (1, "challenger")]
    client = MlflowClient(tracking_store)
    assert [client.get_run(one.run.run_id).info.status for one in (first, again)] == ["FINISHED"] * 2
    assert [point.step for point in client.get_metric_history(again.run.run_id, "steps/loss")] == [2]


@pytest.mark.slow
def test_a_server_that_is_down_when_a_training_ends_is_waited_for(
    ray_started: None, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed when the workers start, and started again when they have ended."""
    server = Server(tmp_path)
    starts = 0

    def without_server(*arguments: Any) -> dict[str, Any]:
        nonlocal starts
        starts += 1
        server.kill()
        try:
            return run_workers(*arguments)
        finally:
            server.start(wait=False)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr("pipeline.training.train.run_workers", without_server)
    try:
        server.start()
        trained = train(dataset, make_config(SETTINGS | {"log_every": 1}), storage=tmp_path / "runs", name="mine")
        client = MlflowClient(server.uri)
        assert client.get_run(trained.run.run_id).info.status == "FINISHED"
        assert [point.step for point in client.get_metric_history(trained.run.run_id, "steps/loss")] == [1, 2]
    finally:
        server.kill()
    assert starts == 1
    assert trained.registered and trained.registered.uri == "models:/agman-tiny/1"


class Server:
    """An `mlflow server` on a free port."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        stores = ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        stores += ["--artifacts-destination", str(self.folder / "artifacts")]
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *stores, *place],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while wait and not self.answers():
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)

    def answers(self) -> bool:
        with suppress(OSError), urlopen(f"{self.uri}/health") as answer:
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        """It and its workers."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.mark.parametrize(("fresh", "at"), [(False, "mine"), (True, "mine-2")])
def test_two_processes_do_not_work_at_one_training(
    store: Path, dataset: Dataset, tmp_path: Path, fresh: bool, at: str
) -> None:
    """`fresh` skips what was begun, here by a process that has ended."""
    for name in ("mine", at):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "mine" / "training.json").write_text("{}")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path / at / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(InputError) as error:
            train(dataset, make_config(SETTINGS), storage=tmp_path, name="mine", fresh=fresh)
    assert str(error.value).startswith(f"{tmp_path / at}: another process is at work there; wait for it")
    assert "--fresh" in str(error.value)
    assert (tmp_path / "mine" / "training.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ("0", "'0': at least 1, and MIN not above MAX"),
        ("0-2", "'0-2': at least 1, and MIN not above MAX"),
        ("2-1", "'2-1': at least 1, and MIN not above MAX"),
        ("x", "'x' is neither a number nor MIN-MAX"),
        ("1-", "'1-' is neither a number nor MIN-MAX"),
        ("-2", "'-2' is neither a number nor MIN-MAX"),
    ],
)
def test_a_wrong_number_of_workers_is_answered_in_one_line(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str, message: str
) -> None:
    assert agman_train(dataset, tmp_path, f"--workers={workers}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("agman: ") and message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "fahionai"], "--preset fahionai: no such preset; did you mean 'paper-fashionai'?"),
        (["--workers", "2", "micro_batches=1"], "micro_batches=1 with --workers 2"),
        (["parts=2"], "setting 'parts' is now called 'micro_batches'"),
        (["batch_norm=sync", "micro_batches=2"], "leave micro_batches out, or take batch_norm=per_micro_batch"),
        (["lerning_rate=1"], "unknown setting 'lerning_rate'"),
        (["btch_size=8"], "unknown setting 'btch_size'; did you mean 'batch_size'?"),
    ],
)
def test_a_wrong_request_is_answered_in_one_line(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert agman_train(dataset, tmp_path, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("agman: ") and message in line
    assert not list(tmp_path.iterdir())
