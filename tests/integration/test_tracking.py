"""One MLflow run per training, through kills, restarts and absences of the store: real processes, a real store."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from support.processes import FORKS
from support.stores import out_of_order
from support.trainings import descendants

from data_prep.errors import InputError
from data_prep.tables import DatasetInfo
from pipeline.common.errors import JobFailed
from pipeline.tracking import runs as tracking
from pipeline.tracking import watchdog as run_guard

INFO = DatasetInfo(
    schema_version=1,
    name="tiny",
    layout="drawn",
    attributes=(),
    image_size=32,
    seed=1,
    images={},
    queries={},
    candidates={},
    triplets=0,
    triplet_epochs=1,
    rows_in=0,
    rejects={},
    digest="0" * 64,
    versions={},
)
DRIVER = """
import os, time
os.setsid()
os.environ["MLFLOW_TRACKING_URI"] = store
os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), 2)
from data_prep.tables import DatasetInfo
from pipeline.tracking import runs as tracking
info = DatasetInfo.model_validate_json(info)
with tracking.run(info, "training", {"workers": 1}, resume=resume or None) as run:
    exec(body)
    end.send(run.run_id)
    end.recv()  # until the test says so
"""


class Driver:
    """A process that has a run; at the end of the test it is gone. Forked off one that has imported MLflow once."""

    def __init__(self, store: str, said: Path, resume: str = "", body: str = ""):
        self._end, end = FORKS.Pipe()
        self._said = said
        self._said.touch()
        names = {"store": store, "said": str(said), "resume": resume, "body": body, "end": end}
        self.process = FORKS.Process(target=exec, args=(DRIVER, names | {"info": INFO.model_dump_json()}))
        self.process.start()
        end.close()
        self.run_id = ""
        with suppress(EOFError):  # it has ended before it had one
            self.run_id = self._end.recv()

    def kill(self) -> None:
        """With -9, and its process group, and all that it started."""
        assert self.process.pid
        mine = list(descendants(self.process.pid))
        os.killpg(self.process.pid, signal.SIGKILL)
        for process in mine:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.join()

    def finish(self) -> str:
        with suppress(BrokenPipeError):  # it has been interrupted
            self._end.send(None)
        self.process.join(120)
        assert self.process.exitcode is not None
        return self._said.read_text()


@pytest.fixture
def drive(tracking_store: str, tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def begin(*arguments: str) -> Driver:
        drivers.append(Driver(tracking_store, tmp_path / f"said-{len(drivers)}", *arguments))
        assert drivers[-1].run_id, drivers[-1].finish()
        return drivers[-1]

    tracking.connect()  # two processes cannot create the store at a time
    yield begin
    for driver in drivers:
        if driver.process.is_alive():
            driver.kill()
    wait_until(lambda: not guards(tracking_store))


@pytest.fixture
def client(tracking_store: str) -> MlflowClient:
    return tracking.connect()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def guards(uri: str) -> list[int]:
    """The processes that guard runs of this store."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue  # it has just ended
        if b"watchdog.py" in command and f"MLFLOW_TRACKING_URI={uri}\0".encode() in environment:
            found.append(int(process.name))
    return found


def status(client: MlflowClient, run_id: str) -> str:
    return client.get_run(run_id).info.status


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a tracking server that is not there."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


# One run per training


def test_a_run_ends_as_its_block_does(client: MlflowClient, tracking_store: str) -> None:
    with tracking.run(INFO, "training", {"lr": 0.1}, job="train") as run:
        assert status(client, run.run_id) == "RUNNING"
        assert len(guards(tracking_store)) == 1
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1"}
    assert found.data.tags["job"] == "train"
    assert found.data.tags["dataset_digest"] == INFO.digest
    wait_until(lambda: not guards(tracking_store))


@pytest.mark.parametrize(
    ("error", "ends"),
    [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED"), (MemoryError, "FAILED")],
)
def test_an_error_passes_through(client: MlflowClient, error: type[BaseException], ends: str) -> None:
    with pytest.raises(error), tracking.run(INFO, "training", {}) as run:
        raise error
    assert status(client, run.run_id) == ends


def test_a_resumed_run_is_the_same_run(client: MlflowClient) -> None:
    with pytest.raises(ValueError), tracking.run(INFO, "training", {"lr": 0.1, "workers": 2}) as first:
        raise ValueError
    params = {"lr": 0.1, "workers": 3, "precision": "bf16"}
    with tracking.run(INFO, "training", params, resume=first.run_id, job="train") as second:
        assert status(client, first.run_id) == "RUNNING"
    assert second.run_id == first.run_id
    found = client.get_run(first.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1", "workers": "2", "precision": "bf16"}
    resumed = {key: value for key, value in found.data.tags.items() if key.startswith(tracking.RESUMED)}
    assert resumed == {"resumed.workers": "3"}
    assert found.data.tags["job"] == "train"
    with tracking.run(INFO, "training", {"workers": 2}, resume=first.run_id):
        pass
    assert client.get_run(first.run_id).data.tags["resumed.workers"] == "2"


def test_what_cannot_be_resumed_starts_anew(client: MlflowClient) -> None:
    with tracking.run(INFO, "training", {}, resume="0" * 32) as first:
        assert first.run_id != "0" * 32
    client.delete_run(first.run_id)
    with tracking.run(INFO, "training", {}, resume=first.run_id) as second:
        second.log({"loss": 1.0}, 1)
    assert second.run_id != first.run_id
    assert status(client, second.run_id) == "FINISHED"


def test_params_that_the_store_refuses(client: MlflowClient, tracking_store: str) -> None:
    with pytest.raises(MlflowException), tracking.run(INFO, "training", {"what?": 1}):
        pass
    (run,) = client.search_runs([client.get_experiment_by_name(INFO.name).experiment_id])
    assert run.info.status == "FAILED"
    wait_until(lambda: not guards(tracking_store))


# Never left RUNNING


def test_a_killed_driver_leaves_no_running_run_nor_trial(
    drive: Callable[..., Driver], client: MlflowClient, tracking_store: str
) -> None:
    driver = drive("", "child = tracking.start(info, 'trial 0', {}, run); run.tag({'child': child.run_id})")
    child = client.get_run(driver.run_id).data.tags["child"]
    assert status(client, driver.run_id) == status(client, child) == "RUNNING"
    driver.kill()
    wait_until(lambda: status(client, driver.run_id) == status(client, child) == "KILLED")
    wait_until(lambda: not guards(tracking_store))
    assert run_guard.ENDING not in client.get_run(driver.run_id).data.tags


def test_nor_does_a_forked_child_keep_it_running(drive: Callable[..., Driver], client: MlflowClient) -> None:
    body = "child = os.fork() or (time.sleep(600), os._exit(0)); run.tag({'child': str(child)})"
    driver = drive("", body)
    child = int(client.get_run(driver.run_id).data.tags["child"])
    try:
        driver.process.kill()
        wait_until(lambda: status(client, driver.run_id) == "KILLED")
        os.kill(child, 0)  # still there
    finally:
        os.kill(child, signal.SIGKILL)


def test_killed_and_resumed_at_once(drive: Callable[..., Driver], client: MlflowClient, tracking_store: str) -> None:
    first = drive()
    (guard,) = guards(tracking_store)
    os.kill(guard, signal.SIGSTOP)  # it comes late, when the run has its next driver
    first.kill()
    second = drive(first.run_id)
    assert second.run_id == first.run_id
    os.kill(guard, signal.SIGCONT)
    wait_until(lambda: guard not in guards(tracking_store))
    assert status(client, first.run_id) == "RUNNING"
    second.finish()
    assert status(client, first.run_id) == "FINISHED"


def test_resumed_again_and_again(drive: Callable[..., Driver], client: MlflowClient, tracking_store: str) -> None:
    """One run, whose points are logged once, though every process begins with some that are logged already."""
    points = [(step, {"loss": 1.0 / step, "lr": 0.1}) for step in range(1, 8)]
    run_id = ""
    for some in (points[:4], points[2:6]):
        driver = drive(run_id, f"run.log_points({some})")
        assert run_id in ("", driver.run_id)
        run_id = driver.run_id
        driver.kill()
    last = drive(run_id, f"run.log_points({points[3:]})")
    wait_until(lambda: len(guards(tracking_store)) == 1)
    assert status(client, run_id) == "RUNNING"
    assert last.finish() == ""
    assert status(client, run_id) == "FINISHED"
    run = tracking.existing(run_id)
    assert run
    assert points_of(run, "loss") == {"loss": [(step, metrics["loss"]) for step, metrics in points]}
    assert len(tracking.history(run, "lr")) == 7


def test_a_run_that_was_taken_over_is_left_alone(client: MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    old = tracking.run(INFO, "training", {})
    run = old.__enter__()
    with tracking.run(INFO, "training", {}, resume=run.run_id):
        old.__exit__(None, None, None)
        assert status(client, run.run_id) == "RUNNING"
        assert "taken over" in capsys.readouterr().err
    assert status(client, run.run_id) == "FINISHED"


def test_a_new_driver_waits_for_an_old_guard(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracking.start(INFO, "training", {})
    client.set_terminated(run.run_id, "KILLED")
    client.set_tag(run.run_id, run_guard.ENDING, "old")
    taking = threading.Thread(target=run_guard.take_over, args=(client, run.run_id, "new"))
    monkeypatch.setattr(run_guard, "PATIENCE", math.inf)
    taking.start()
    wait_until(lambda: client.get_run(run.run_id).data.tags.get(run_guard.OWNER) == "new")
    assert status(client, run.run_id) == "KILLED"
    client.delete_tag(run.run_id, run_guard.ENDING)
    taking.join()
    assert status(client, run.run_id) == "RUNNING"


def test_but_not_for_one_that_was_killed(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracking.start(INFO, "training", {})
    client.set_tag(run.run_id, run_guard.ENDING, "old")
    monkeypatch.setattr(run_guard, "PATIENCE", 0.0)
    run_guard.take_over(client, run.run_id, "new")
    found = client.get_run(run.run_id)
    assert (found.info.status, found.data.tags[run_guard.OWNER]) == ("RUNNING", "new")
    assert run_guard.ENDING not in found.data.tags


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(drive: Callable[..., Driver], client: MlflowClient, number: int) -> None:
    driver = drive()
    os.killpg(driver.process.pid, number)
    driver.finish()
    assert driver.process.exitcode
    wait_until(lambda: status(client, driver.run_id) == "KILLED")


def test_what_a_guard_is(drive: Callable[..., Driver], client: MlflowClient, tracking_store: str) -> None:
    driver = drive()
    (guard,) = guards(tracking_store)
    process = Path(f"/proc/{guard}")
    files = {int(file.name): str(file.readlink()) for file in (process / "fd").iterdir()}
    assert set(files) == {0, 1, 2}
    assert files[0].startswith("pipe:")
    assert files[1] == files[2] == "/dev/null"
    assert str((process / "cwd").readlink()) == "/"
    assert tracking_store.encode() not in (process / "cmdline").read_bytes()
    assert os.getsid(guard) != os.getsid(driver.process.pid)
    assert guard not in list(descendants(driver.process.pid))
    memory = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    assert int(memory["VmRSS"].split()[0]) < 40_000  # kB; MLflow is six times as large
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(guard, number)
    driver.kill()
    wait_until(lambda: status(client, driver.run_id) == "KILLED")


def test_a_training_needs_no_guard(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        with tracking.run(INFO, "training", {}) as run:
            pass
    assert "no watchdog process" in capsys.readouterr().err
    assert status(client, run.run_id) == "FINISHED"


def test_nor_one_that_lives(client: MlflowClient, tracking_store: str) -> None:
    with tracking.run(INFO, "training", {}) as run:
        (guard,) = guards(tracking_store)
        os.kill(guard, signal.SIGKILL)
        wait_until(lambda: not guards(tracking_store))
    assert status(client, run.run_id) == "FINISHED"


def test_the_store_is_down_at_the_end(
    client: MlflowClient, tracking_store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    down = out_of_order(tracking_store, "tags")
    with tracking.run(INFO, "training", {}) as run:
        down.__enter__()
    assert "is written as soon as it answers" in capsys.readouterr().err
    down.__exit__(None, None, None)
    wait_until(lambda: status(client, run.run_id) == "FINISHED")
    wait_until(lambda: not guards(tracking_store))


# Points


def points_of(run: tracking.Run, *names: str) -> dict[str, list[tuple[int, float]]]:
    return {name: tracking.history(run, name) for name in names}


def test_points_are_logged_once(client: MlflowClient) -> None:
    run = tracking.start(INFO, "training", {})
    run.log_points([(1, {"loss": 3.0}), (2, {"loss": 2.0, "lr": 0.5})])
    run.log_points([(2, {"loss": 7.0, "lr": 0.5}), (3, {"loss": 1.0}), (3, {"loss": 8.0})])
    run.log_points([])
    once = {"loss": [(1, 3.0), (2, 2.0), (3, 1.0)], "lr": [(2, 0.5)]}
    assert points_of(run, "loss", "lr") == once


def test_a_process_that_resumes_its_own_run_asks_again(drive: Callable[..., Driver]) -> None:
    with tracking.run(INFO, "training", {}) as run:
        run.log_points([(1, {"loss": 3.0})])
    drive(run.run_id, "run.log_points([(2, {'loss': 2.0})])").finish()
    with tracking.run(INFO, "training", {}, resume=run.run_id) as again:
        again.log_points([(1, {"loss": 3.0}), (2, {"loss": 2.0}), (3, {"loss": 1.0})])
    assert points_of(run, "loss") == {"loss": [(1, 3.0), (2, 2.0), (3, 1.0)]}


def test_more_than_mlflow_takes_at_a_time(client: MlflowClient) -> None:
    run = tracking.start(INFO, "training", {})
    points = [(step, {"loss": float(step), "lr": 0.1}) for step in range(1, 1201)]
    run.log_points(points)
    run.log_points(points)
    assert [step for step, _ in tracking.history(run, "loss")] == list(range(1, 1201))
    assert len(tracking.history(run, "lr")) == 1200


def test_values_that_are_not_finite(client: MlflowClient) -> None:
    run = tracking.start(INFO, "training", {})
    for _ in range(2):
        run.log_points([(1, {"loss": math.nan}), (2, {"loss": math.inf}), (3, {"loss": -math.inf})])
    (_, first), (_, second), (_, third) = tracking.history(run, "loss")
    assert math.isnan(first)
    assert second >= sys.float_info.max * 0.9
    assert third == -second


def test_a_failure_between_two_batches(client: MlflowClient, tracking_store: str) -> None:
    run = tracking.start(INFO, "training", {})
    good = [(step, {"loss": float(step)}) for step in range(1, 1001)]
    bad: tracking.Points = [(1, {"what?": 1.0})]
    with pytest.raises(MlflowException):
        run.log_points(good + bad)
    run.log_points([*good, (1001, {"loss": 1001.0})])
    assert [step for step, _ in tracking.history(run, "loss")] == list(range(1, 1002))


def test_a_small_text(client: MlflowClient, tmp_path: Path) -> None:
    with tracking.run(INFO, "training", {}) as run:
        run.log_text("[1, 2]", "failed.json")
        run.log_text("[1, 2, 3]", "failed.json")
    file = client.download_artifacts(run.run_id, "failed.json", str(tmp_path))
    assert Path(file).read_text() == "[1, 2, 3]"


# A store that does not answer


def test_a_server_that_is_not_there(nobody: str, capsys: pytest.CaptureFixture[str]) -> None:
    log = tracking.PointLog(tracking.Run(nobody, "0" * 32))
    assert log.close() == []
    log.add([(1, {"loss": 3.0})])
    log.add([(2, {"loss": 2.0})])
    assert capsys.readouterr().err.count("wait for the tracking store") == 1
    for _ in range(2):
        assert log.close() == [(1, {"loss": 3.0}), (2, {"loss": 2.0})]


def test_no_message_tells_a_password(
    nobody: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = nobody.replace("//", "//anna:pass@word@")
    log = tracking.PointLog(tracking.Run(address, "0" * 32))
    log.add([(1, {"loss": 3.0})])
    with pytest.raises(JobFailed, match=r"; it is trained$") as failed, tracking.answering("it is trained"):
        log.run.log_points(log.close())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(InputError) as refused:
        tracking.connect()
    said = [capsys.readouterr().err, str(failed.value), str(refused.value)]
    assert all(nobody in text and "word" not in text for text in said), said


def test_a_store_that_comes_back(client: MlflowClient, tracking_store: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = tracking.start(INFO, "training", {})
    log = tracking.PointLog(run)
    log.add([(1, {"loss": 3.0})])
    with out_of_order(tracking_store, "metrics"):
        log.add([(2, {"loss": 2.0})])
        assert log.close() == [(2, {"loss": 2.0})]
    log.add([(3, {"loss": 1.0})])
    assert log.close() == []
    assert points_of(run, "loss") == {"loss": [(1, 3.0), (2, 2.0), (3, 1.0)]}
    assert "answers again, 2 steps' metrics are logged" in capsys.readouterr().err


def test_a_finished_job_waits_for_the_store(
    client: MlflowClient, tracking_store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tracking.start(INFO, "training", {})
    tracking.wait_for_store(run)
    assert not capsys.readouterr().err
    away = out_of_order(tracking_store, "runs")
    away.__enter__()
    waits = threading.Thread(target=tracking.wait_for_store, args=(run,))
    waits.start()
    wait_until(lambda: "waiting for the tracking store, 120 s at most" in capsys.readouterr().err)
    away.__exit__(None, None, None)
    waits.join(60)
    assert not waits.is_alive()
    monkeypatch.setattr(tracking, "PATIENCE", 0.0)
    with out_of_order(tracking_store, "runs"), pytest.raises(MlflowException):
        tracking.wait_for_store(run)


def test_several_threads_add(client: MlflowClient) -> None:
    run = tracking.start(INFO, "training", {})
    log = tracking.PointLog(run)

    def add(first: int) -> None:
        for step in range(first, first + 20):
            log.add([(step, {"loss": float(step)})])

    threads = [threading.Thread(target=add, args=(first,)) for first in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert [step for step, _ in tracking.history(run, "loss")] == list(range(50))


# The machine's load


def system_of(client: MlflowClient, run_id: str) -> dict[str, Any]:
    metrics = client.get_run(run_id).data.metrics
    return {name: value for name, value in metrics.items() if name.startswith("system/")}


def test_system_metrics(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with tracking.run(INFO, "training", {}) as run, tracking.system_metrics(run, "node_0"):
        wait_until(lambda: "system/node_0/cpu_utilization_percentage" in system_of(client, run.run_id))
    name = "system/node_0/system_memory_usage_megabytes"
    steps = [step for step, _ in tracking.history(run, name)]
    assert steps == list(range(len(steps)))
    with tracking.run(INFO, "training", {}, resume=run.run_id), tracking.system_metrics(run, "node_0"):
        wait_until(lambda: len(tracking.history(run, name)) > len(steps))
    after = [step for step, _ in tracking.history(run, name)]
    assert after == list(range(len(after)))


def test_system_metrics_without_a_server(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    done = []
    with tracking.system_metrics(tracking.Run(nobody, "0" * 32), None):
        time.sleep(0.3)
        done.append(1)
    assert done


def test_system_metrics_that_cannot_start(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "often")
    with pytest.raises(ZeroDivisionError), tracking.system_metrics(tracking.start(INFO, "training", {})):
        raise ZeroDivisionError  # the block's own errors pass


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://user:sesame@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        ("no answer from 'postgresql://user:se/sa:me@db/x' now", "no answer from 'postgresql://db/x' now"),
        ("mysql+pymysql://user:se@same@db/x?y=1", "mysql+pymysql://db/x?y=1"),
        ("http://token@host/path", "http://host/path"),
        ("s3://bucket/runs@night", "s3://bucket/runs@night"),
        ("sqlite:////srv/mlflow.db and me@home", "sqlite:////srv/mlflow.db and me@home"),
    ],
)
def test_addresses_are_shown_without_names_and_passwords(address: str, shown: str) -> None:
    assert tracking.public(address) == shown
