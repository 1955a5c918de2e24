"""One MLflow run per training, through kills, restarts and absences of the store: real processes, a real store."""

from __future__ import annotations

import json
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
from support.made_dataset import info_of
from support.processes import FORKS
from support.s3_server import Bucket
from support.stores import out_of_order
from support.trainings import descendants

from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline.common.errors import JobFailed
from pipeline.tracking import runs, watchdog
from pipeline.tracking.runs import (
    RESUMED,
    PointLog,
    Points,
    Run,
    answering,
    connect,
    find_run,
    metric_history,
    open_run,
    start_run,
    system_metrics,
    wait_for_store,
)
from pipeline.tracking.watchdog import ENDING, OWNER, take_over

INFO = info_of()
DRIVER = """
import os, time
os.setsid()
os.environ["MLFLOW_TRACKING_URI"] = store
os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), 2)
from data_prep.tables import DatasetInfo
from pipeline.tracking.runs import open_run, start_run
info = DatasetInfo.model_validate_json(info)
with open_run(info, "training", {"workers": 1}, resume=resume or None) as run:
    exec(body)
    end.send(run.run_id)
    end.recv()  # until the test ends it
"""


class Driver:
    """A process that keeps a run open, forked off one that has imported MLflow; it ends with the test."""

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
        """Kill the process with -9, and its process group, and its descendants."""
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

    connect()  # two processes cannot create the store at a time
    yield begin
    for driver in drivers:
        if driver.process.is_alive():
            driver.kill()
    wait_until(lambda: not watchdogs(tracking_store))


@pytest.fixture
def client(tracking_store: str) -> MlflowClient:
    return connect()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def watchdogs(uri: str) -> list[int]:
    """Return the watchdog processes of this store."""
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
    """Return the address of a tracking server that does not exist."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


# One run per training


def test_a_run_ends_with_its_block(client: MlflowClient, tracking_store: str) -> None:
    with open_run(INFO, "training", {"lr": 0.1}, job="train") as run:
        assert status(client, run.run_id) == "RUNNING"
        assert len(watchdogs(tracking_store)) == 1
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1"}
    assert found.data.tags["job"] == "train"
    assert found.data.tags["dataset_digest"] == INFO.digest
    wait_until(lambda: not watchdogs(tracking_store))


def test_the_dataset_is_an_input_of_the_run_once(client: MlflowClient, dataset: Dataset) -> None:
    with open_run(dataset.info, "training", {}) as parent:
        child = start_run(dataset.info, "trial 0", {}, parent)
        for run in (parent, child, parent):
            run.log_dataset(dataset)
    for run in (parent, child):
        (one,) = client.get_run(run.run_id).inputs.dataset_inputs
        assert (one.dataset.name, one.dataset.source_type) == (dataset.info.name, "local")
        assert dataset.info.digest.startswith(one.dataset.digest) and len(one.dataset.digest) == 36
        assert json.loads(one.dataset.source) == {"uri": str(Path(dataset.path).absolute())}
        assert json.loads(one.dataset.profile)["num_rows"] == sum(dataset.info.images.values())


def test_a_run_says_who_began_it_and_what_came_of_it(
    client: MlflowClient, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGMAN_USER", "ana")
    monkeypatch.setenv("AGMAN_COMMIT", "c0ffee")
    params = {"model": "agman", "backbone": "tiny"}
    with open_run(dataset.info, "night", params, job="tune", sweep="night") as study:
        begun = start_run(dataset.info, "trial 0", params, study, job="trial", trial="0")
        for result in ("0.1", "0.2"):
            study.describe({"result": result})
    with open_run(dataset.info, "night", params, resume=study.run_id, job="tune", sweep="night"):
        pass
    for run in (study, begun):
        found = client.get_run(run.run_id)
        expected = {"mlflow.user": "ana", "mlflow.source.git.commit": "c0ffee", "sweep": "night", "backbone": "tiny"}
        assert found.data.tags.items() >= expected.items()
        assert found.info.user_id == "ana"
    note = client.get_run(study.run_id).data.tags["mlflow.note.content"]
    assert note.startswith(
        "| | |\n|---|---|\n| result | 0.2 |\n| job | tune |\n| study | `night` |\n| model | agman on"
    )
    assert note.count("result") == 1
    experiment = client.get_experiment(client.get_run(begun.run_id).info.experiment_id)
    assert f"(#/models/agman-{dataset.info.name})" in experiment.tags["mlflow.note.content"]


def test_the_page_of_the_dataset_is_an_artifact(
    client: MlflowClient, dataset: Dataset, bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start_run(dataset.info, "training", {})
    page = Storage(bucket.uri("data/report.html"))
    run.log_page(page, "dataset/report.html")  # there is none
    assert client.list_artifacts(run.run_id) == [] and capsys.readouterr().err == ""
    page.write_bytes("<p>sürprise</p>".encode())
    run.log_page(page, "dataset/report.html")
    copy = client.download_artifacts(run.run_id, "dataset/report.html", str(tmp_path))
    assert Path(copy).read_text() == "<p>sürprise</p>"
    Run(run.uri, "0" * 32).log_page(page, "dataset/report.html")
    assert "note: s3://bucket/data/report.html is not logged to run 000" in capsys.readouterr().err


def test_a_store_without_inputs_costs_a_note(
    client: MlflowClient, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise MlflowException("404: no endpoint\nlog-inputs")

    monkeypatch.setattr(MlflowClient, "log_inputs", refuse)
    run = start_run(dataset.info, "training", {})
    run.log_dataset(dataset)
    assert f"note: the dataset is not logged as an input of run {run.run_id} (404" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "ends"),
    [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED"), (MemoryError, "FAILED")],
)
def test_an_error_passes_through(client: MlflowClient, error: type[BaseException], ends: str) -> None:
    with pytest.raises(error), open_run(INFO, "training", {}) as run:
        raise error
    assert status(client, run.run_id) == ends


def test_a_resumed_run_is_the_same_run(client: MlflowClient) -> None:
    with pytest.raises(ValueError), open_run(INFO, "training", {"lr": 0.1, "workers": 2}) as first:
        raise ValueError
    params = {"lr": 0.1, "workers": 3, "precision": "bf16"}
    with open_run(INFO, "training", params, resume=first.run_id, job="train") as second:
        assert status(client, first.run_id) == "RUNNING"
    assert second.run_id == first.run_id
    found = client.get_run(first.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1", "workers": "2", "precision": "bf16"}
    resumed = {key: value for key, value in found.data.tags.items() if key.startswith(RESUMED)}
    assert resumed == {"resumed.workers": "3"}
    assert found.data.tags["job"] == "train"
    with open_run(INFO, "training", {"workers": 2}, resume=first.run_id):
        pass
    assert client.get_run(first.run_id).data.tags["resumed.workers"] == "2"


def test_a_missing_or_deleted_run_is_replaced_by_a_new_one(client: MlflowClient) -> None:
    with open_run(INFO, "training", {}, resume="0" * 32) as first:
        assert first.run_id != "0" * 32
    client.delete_run(first.run_id)
    with open_run(INFO, "training", {}, resume=first.run_id) as second:
        second.log({"loss": 1.0}, 1)
    assert second.run_id != first.run_id
    assert status(client, second.run_id) == "FINISHED"


def test_refused_params_end_the_run_as_failed(client: MlflowClient, tracking_store: str) -> None:
    with pytest.raises(MlflowException), open_run(INFO, "training", {"what?": 1}):
        pass
    (run,) = client.search_runs([client.get_experiment_by_name(INFO.name).experiment_id])
    assert run.info.status == "FAILED"
    wait_until(lambda: not watchdogs(tracking_store))


# No run stays RUNNING


def test_a_killed_driver_leaves_no_running_run_nor_trial(
    drive: Callable[..., Driver], client: MlflowClient, tracking_store: str
) -> None:
    driver = drive("", "child = start_run(info, 'trial 0', {}, run); run.tag({'child': child.run_id})")
    child = client.get_run(driver.run_id).data.tags["child"]
    assert status(client, driver.run_id) == status(client, child) == "RUNNING"
    driver.kill()
    wait_until(lambda: status(client, driver.run_id) == status(client, child) == "KILLED")
    wait_until(lambda: not watchdogs(tracking_store))
    assert ENDING not in client.get_run(driver.run_id).data.tags


def test_a_forked_child_does_not_keep_a_killed_drivers_run_running(
    drive: Callable[..., Driver], client: MlflowClient
) -> None:
    body = "child = os.fork() or (time.sleep(600), os._exit(0)); run.tag({'child': str(child)})"
    driver = drive("", body)
    child = int(client.get_run(driver.run_id).data.tags["child"])
    try:
        driver.process.kill()
        wait_until(lambda: status(client, driver.run_id) == "KILLED")
        os.kill(child, 0)  # still there
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_late_watchdog_leaves_the_run_to_the_next_driver(
    drive: Callable[..., Driver], client: MlflowClient, tracking_store: str
) -> None:
    first = drive()
    (dog,) = watchdogs(tracking_store)
    os.kill(dog, signal.SIGSTOP)  # it comes late, when the run has its next driver
    first.kill()
    second = drive(first.run_id)
    assert second.run_id == first.run_id
    os.kill(dog, signal.SIGCONT)
    wait_until(lambda: dog not in watchdogs(tracking_store))
    assert status(client, first.run_id) == "RUNNING"
    second.finish()
    assert status(client, first.run_id) == "FINISHED"


def test_a_run_resumed_twice_has_every_point_once(
    drive: Callable[..., Driver], client: MlflowClient, tracking_store: str
) -> None:
    """Every process begins with points that are logged already."""
    points = [(step, {"loss": 1.0 / step, "lr": 0.1}) for step in range(1, 8)]
    run_id = ""
    for some in (points[:4], points[2:6]):
        driver = drive(run_id, f"run.log_points({some})")
        assert run_id in ("", driver.run_id)
        run_id = driver.run_id
        driver.kill()
    last = drive(run_id, f"run.log_points({points[3:]})")
    wait_until(lambda: len(watchdogs(tracking_store)) == 1)
    assert status(client, run_id) == "RUNNING"
    assert last.finish() == ""
    assert status(client, run_id) == "FINISHED"
    run = find_run(run_id)
    assert run
    assert points_of(run, "loss") == {"loss": [(step, metrics["loss"]) for step, metrics in points]}
    assert len(metric_history(run, "lr")) == 7


def test_a_run_that_was_taken_over_is_left_alone(client: MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    old = open_run(INFO, "training", {})
    run = old.__enter__()
    with open_run(INFO, "training", {}, resume=run.run_id):
        old.__exit__(None, None, None)
        assert status(client, run.run_id) == "RUNNING"
        assert "taken over" in capsys.readouterr().err
    assert status(client, run.run_id) == "FINISHED"


def test_a_new_driver_waits_for_an_old_watchdog(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_run(INFO, "training", {})
    client.set_terminated(run.run_id, "KILLED")
    client.set_tag(run.run_id, ENDING, "old")
    taking = threading.Thread(target=take_over, args=(client, run.run_id, "new"))
    monkeypatch.setattr(watchdog, "PATIENCE", math.inf)
    taking.start()
    wait_until(lambda: client.get_run(run.run_id).data.tags.get(OWNER) == "new")
    assert status(client, run.run_id) == "KILLED"
    client.delete_tag(run.run_id, ENDING)
    taking.join()
    assert status(client, run.run_id) == "RUNNING"


def test_a_new_driver_does_not_wait_for_a_killed_watchdog(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(INFO, "training", {})
    client.set_tag(run.run_id, ENDING, "old")
    monkeypatch.setattr(watchdog, "PATIENCE", 0.0)
    take_over(client, run.run_id, "new")
    found = client.get_run(run.run_id)
    assert (found.info.status, found.data.tags[OWNER]) == ("RUNNING", "new")
    assert ENDING not in found.data.tags


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_driver_ends_its_run_as_killed(
    drive: Callable[..., Driver], client: MlflowClient, number: int
) -> None:
    driver = drive()
    os.killpg(driver.process.pid, number)
    driver.finish()
    assert driver.process.exitcode
    wait_until(lambda: status(client, driver.run_id) == "KILLED")


def test_the_watchdog_is_a_small_detached_process(
    drive: Callable[..., Driver], client: MlflowClient, tracking_store: str
) -> None:
    driver = drive()
    (dog,) = watchdogs(tracking_store)
    process = Path(f"/proc/{dog}")
    files = {int(file.name): str(file.readlink()) for file in (process / "fd").iterdir()}
    assert set(files) == {0, 1, 2}
    assert files[0].startswith("pipe:")
    assert files[1] == files[2] == "/dev/null"
    assert str((process / "cwd").readlink()) == "/"
    assert tracking_store.encode() not in (process / "cmdline").read_bytes()
    assert os.getsid(dog) != os.getsid(driver.process.pid)
    assert dog not in list(descendants(driver.process.pid))
    memory = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    assert int(memory["VmRSS"].split()[0]) < 40_000  # kB; MLflow is six times as large
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(dog, number)
    driver.kill()
    wait_until(lambda: status(client, driver.run_id) == "KILLED")


def test_a_run_goes_on_without_a_watchdog(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        with open_run(INFO, "training", {}) as run:
            pass
    assert "no watchdog process" in capsys.readouterr().err
    assert status(client, run.run_id) == "FINISHED"


def test_a_run_goes_on_after_its_watchdog_is_killed(client: MlflowClient, tracking_store: str) -> None:
    with open_run(INFO, "training", {}) as run:
        (dog,) = watchdogs(tracking_store)
        os.kill(dog, signal.SIGKILL)
        wait_until(lambda: not watchdogs(tracking_store))
    assert status(client, run.run_id) == "FINISHED"


def test_the_watchdog_writes_the_status_if_the_store_is_down_at_the_end(
    client: MlflowClient, tracking_store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "PAUSES", (0.2,) * 300)
    down = out_of_order(tracking_store, "tags")
    with open_run(INFO, "training", {}) as run:
        down.__enter__()
    assert "is written as soon as it answers" in capsys.readouterr().err
    down.__exit__(None, None, None)
    wait_until(lambda: status(client, run.run_id) == "FINISHED")
    wait_until(lambda: not watchdogs(tracking_store))


# Points


def points_of(run: Run, *names: str) -> dict[str, list[tuple[int, float]]]:
    return {name: metric_history(run, name) for name in names}


def test_points_are_logged_once(client: MlflowClient) -> None:
    run = start_run(INFO, "training", {})
    run.log_points([(1, {"loss": 3.0}), (2, {"loss": 2.0, "lr": 0.5})])
    run.log_points([(2, {"loss": 7.0, "lr": 0.5}), (3, {"loss": 1.0}), (3, {"loss": 8.0})])
    run.log_points([])
    once = {"loss": [(1, 3.0), (2, 2.0), (3, 1.0)], "lr": [(2, 0.5)]}
    assert points_of(run, "loss", "lr") == once


def test_a_process_that_resumes_its_own_run_asks_again(drive: Callable[..., Driver]) -> None:
    with open_run(INFO, "training", {}) as run:
        run.log_points([(1, {"loss": 3.0})])
    drive(run.run_id, "run.log_points([(2, {'loss': 2.0})])").finish()
    with open_run(INFO, "training", {}, resume=run.run_id) as again:
        again.log_points([(1, {"loss": 3.0}), (2, {"loss": 2.0}), (3, {"loss": 1.0})])
    assert points_of(run, "loss") == {"loss": [(1, 3.0), (2, 2.0), (3, 1.0)]}


def test_more_points_than_mlflow_takes_in_one_request(client: MlflowClient) -> None:
    run = start_run(INFO, "training", {})
    points = [(step, {"loss": float(step), "lr": 0.1}) for step in range(1, 1201)]
    run.log_points(points)
    run.log_points(points)
    assert [step for step, _ in metric_history(run, "loss")] == list(range(1, 1201))
    assert len(metric_history(run, "lr")) == 1200


def test_values_that_are_not_finite_are_logged(client: MlflowClient) -> None:
    run = start_run(INFO, "training", {})
    for _ in range(2):
        run.log_points([(1, {"loss": math.nan}), (2, {"loss": math.inf}), (3, {"loss": -math.inf})])
    (_, first), (_, second), (_, third) = metric_history(run, "loss")
    assert math.isnan(first)
    assert second >= sys.float_info.max * 0.9
    assert third == -second


def test_points_are_logged_after_a_failure_between_two_requests(client: MlflowClient, tracking_store: str) -> None:
    run = start_run(INFO, "training", {})
    good = [(step, {"loss": float(step)}) for step in range(1, 1001)]
    bad: Points = [(1, {"what?": 1.0})]
    with pytest.raises(MlflowException):
        run.log_points(good + bad)
    run.log_points([*good, (1001, {"loss": 1001.0})])
    assert [step for step, _ in metric_history(run, "loss")] == list(range(1, 1002))


def test_a_text_artifact_is_replaced(client: MlflowClient, tmp_path: Path) -> None:
    with open_run(INFO, "training", {}) as run:
        run.log_text("[1, 2]", "failed.json")
        run.log_text("[1, 2, 3]", "failed.json")
    file = client.download_artifacts(run.run_id, "failed.json", str(tmp_path))
    assert Path(file).read_text() == "[1, 2, 3]"


# A store that does not answer


def test_points_wait_for_a_missing_server(nobody: str, capsys: pytest.CaptureFixture[str]) -> None:
    log = PointLog(Run(nobody, "0" * 32), [])
    log.send()
    log.points += [(1, {"loss": 3.0}), (2, {"loss": 2.0})]
    for until in (1, 2, math.inf):
        log.send(until, patient=False)
        assert log.points == [(1, {"loss": 3.0}), (2, {"loss": 2.0})]
    assert capsys.readouterr().err.count("wait for the tracking store") == 1


def test_no_message_contains_a_password(
    nobody: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = nobody.replace("//", "//anna:pass@word@")
    log = PointLog(Run(address, "0" * 32), [(1, {"loss": 3.0})])
    log.send()
    with pytest.raises(JobFailed, match=r"; it is trained$") as failed, answering("it is trained"):
        log.run.log_points(log.points)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(InputError) as refused:
        connect()
    said = [capsys.readouterr().err, str(failed.value), str(refused.value)]
    assert all(nobody in text and "word" not in text for text in said), said


def test_waiting_points_are_logged_when_the_store_comes_back(
    client: MlflowClient, tracking_store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start_run(INFO, "training", {})
    log = PointLog(run, [(1, {"loss": 3.0}), (2, {"loss": 2.0})])
    log.send(until=1)
    with out_of_order(tracking_store, "metrics"):
        log.send()
        assert log.points == [(2, {"loss": 2.0})]
    log.points.append((3, {"loss": 1.0}))
    log.send(patient=False)
    assert log.points == []
    assert points_of(run, "loss") == {"loss": [(1, 3.0), (2, 2.0), (3, 1.0)]}
    assert "answers again, the metrics of 2 steps are logged" in capsys.readouterr().err


def test_a_finished_job_waits_for_the_store(
    client: MlflowClient, tracking_store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start_run(INFO, "training", {})
    wait_for_store(run)
    assert not capsys.readouterr().err
    away = out_of_order(tracking_store, "runs")
    away.__enter__()
    monkeypatch.setattr(runs, "PAUSE", 0.1)
    waits = threading.Thread(target=wait_for_store, args=(run,))
    waits.start()
    wait_until(lambda: "waiting for the tracking store, 120 s at most" in capsys.readouterr().err)
    away.__exit__(None, None, None)
    waits.join(60)
    assert not waits.is_alive()
    monkeypatch.setattr(runs, "PATIENCE", 0.0)
    with out_of_order(tracking_store, "runs"), pytest.raises(MlflowException):
        wait_for_store(run)


def test_points_are_added_while_others_are_sent(client: MlflowClient) -> None:
    run = start_run(INFO, "training", {})
    log = PointLog(run, [])
    added = threading.Event()

    def send() -> None:
        while not added.is_set():
            log.send()

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(50):
        log.points.append((step, {"loss": float(step)}))
        time.sleep(0.002)
    added.set()
    for thread in threads:
        thread.join()
    log.send()
    assert log.points == []
    assert [step for step, _ in metric_history(run, "loss")] == list(range(50))


# System metrics


def system_of(client: MlflowClient, run_id: str) -> dict[str, Any]:
    metrics = client.get_run(run_id).data.metrics
    return {name: value for name, value in metrics.items() if name.startswith("system/")}


def test_system_metrics(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with open_run(INFO, "training", {}) as run, system_metrics(run, "node_0"):
        wait_until(lambda: "system/node_0/cpu_utilization_percentage" in system_of(client, run.run_id))
    name = "system/node_0/system_memory_usage_megabytes"
    steps = [step for step, _ in metric_history(run, name)]
    assert steps == list(range(len(steps)))
    with open_run(INFO, "training", {}, resume=run.run_id), system_metrics(run, "node_0"):
        wait_until(lambda: len(metric_history(run, name)) > len(steps))
    after = [step for step, _ in metric_history(run, name)]
    assert after == list(range(len(after)))


def test_system_metrics_without_a_server(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    done = []
    with system_metrics(Run(nobody, "0" * 32), None):
        time.sleep(0.3)
        done.append(1)
    assert done


def test_a_run_goes_on_if_system_metrics_cannot_start(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "often")
    with pytest.raises(ZeroDivisionError), system_metrics(start_run(INFO, "training", {})):
        raise ZeroDivisionError  # the block's own errors pass
