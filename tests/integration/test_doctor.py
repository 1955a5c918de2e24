"""`agman doctor`: what is well is said to be, and whatever is not has a line that says what to do."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import Agman
from support.s3_server import Bucket

from data_prep.dataset import Dataset
from pipeline.cluster import doctor
from pipeline.cluster.doctor import Ailment, package, place


def ailment(check: object, *arguments: object) -> Ailment:
    with pytest.raises(Ailment) as found:
        check(*arguments)  # type: ignore[operator]
    assert found.value.remedy
    return found.value


def test_a_machine_on_which_the_tests_run_is_well(
    agman_here: Agman, ray_started: None, dataset: Dataset, tmp_path: Path
) -> None:
    done = agman_here("doctor", "--data", dataset.path, "--storage", tmp_path / "runs" / "deep", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"checks": 7 + len(doctor.PACKAGES), "wrong": []}
    for said in ("gloo: two processes agree", "a task ran", "MB/s", "a run was written and removed", "pictures"):
        assert said in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db"}


def test_what_is_wrong_is_named_and_exits_with_1(
    agman_here: Agman, ray_started: None, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:sesame@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(doctor, "PACKAGES", ("ray",))
    monkeypatch.setattr(doctor, "_collectives", lambda: "left out")
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset.path, damaged)
    (damaged / "labels.parquet").write_bytes(b"PAR1")
    done = agman_here("doctor", "--data", damaged, "--storage", "/proc/runs", "--json")
    assert done.code == 1, done.err
    assert json.loads(done.out)["wrong"] == ["storage", "mlflow store", "dataset"]
    assert "sesame" not in done.err + done.out and "http://127.0.0.1:9" in done.err
    assert "Traceback" not in done.err
    assert done.err.count("what to do:") == 3


def test_a_torn_picture_is_found_and_all_are_counted(dataset: Dataset, tmp_path: Path) -> None:
    read: list[int] = []
    doctor._dataset(dataset.path, lambda title, total: read.append)
    assert sum(read) == sum(dataset.info.images.values())

    torn = tmp_path / "torn"
    shutil.copytree(dataset.path, torn)
    shard = sorted((torn / "packed").rglob("*.parquet"))[-1]
    table = pq.read_table(shard)
    whole = table["jpeg"].to_pylist()
    column = pa.array([*whole[:-1], whole[-1][: len(whole[-1]) // 2]], table.schema.field("jpeg").type)
    pq.write_table(table.set_column(table.schema.get_field_index("jpeg"), "jpeg", column), shard)
    last = table["image_id"].to_pylist()[-1]
    assert f"picture {last} of split" in ailment(doctor._dataset, torn, lambda title, total: lambda done: None).wrong


def test_a_check_that_times_out_by_itself_says_so() -> None:
    def refuse() -> str:
        raise TimeoutError("the server took its time")

    assert "took its time" in doctor.finding("mlflow store", doctor._in_time(refuse), "look").found


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert package("ray").startswith("2.")
    monkeypatch.setattr(doctor, "version", lambda name: "1.2.3")
    found = ailment(package, "ray")
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.8.1")
    assert "3.8.1, but >=3.11" in doctor.finding("python", doctor._python, "another").found
    assert "1.2.3, but >=2.60 is needed" in found.wrong and found.remedy.startswith('pip install "ray')


def test_a_slow_storage_and_a_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SLOW", 1e9)
    assert "under 1e+09 MB/s" in ailment(place, tmp_path).wrong
    monkeypatch.setattr(doctor, "SLOW", 0.0)
    monkeypatch.setattr(doctor, "ROOM", 1 << 60)
    assert "GiB free" in ailment(place, tmp_path).wrong
    assert list(tmp_path.iterdir()) == []


def test_an_object_store_is_tried_too(bucket: Bucket) -> None:
    assert "writes" in place(bucket.uri("runs").replace("s3://", "s3://access:sesame@"))
    assert bucket.keys == [] or all(key.endswith("/") for key in bucket.keys)
    bucket.failing, bucket.code = ".", 403
    finding = doctor.finding("storage", lambda: place(bucket.uri("runs")), "look")
    assert not finding.ok and "ACCESS_DENIED" in finding.found


def test_processes_that_do_not_meet_are_an_ailment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0)
    assert "could not add a number with gloo" in ailment(doctor._collectives).wrong


def test_whatever_a_check_throws_is_a_finding() -> None:
    def broken() -> str:
        raise ZeroDivisionError("by nothing")

    found = doctor.finding("odd", broken, "mend it")
    assert (found.ok, found.found, found.remedy) == (False, "ZeroDivisionError: by nothing", "mend it")


def test_a_server_that_says_nothing_does_not_keep_one_waiting(
    agman_here: Agman, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 1)
    monkeypatch.setattr(doctor, "PACKAGES", ())
    for name in ("_collectives", "_ray", "_devices"):
        monkeypatch.setattr(doctor, name, lambda: "left out")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        done = agman_here("doctor", "--storage", tmp_path)
    assert done.code == 1 and "mlflow store: no answer in 1 s" in done.err
    assert "what to do: start the server" in done.err
