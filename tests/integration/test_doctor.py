"""`agman doctor`: reports what is in order, and a remedy for every problem."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import Agman

from data_prep.dataset import Dataset
from data_prep.progress import silent
from pipeline.cluster import doctor


def test_all_checks_pass_on_this_machine(
    agman_here: Agman,
    ray_started: None,
    dataset: Dataset,
    tracking_store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "SLOW", 0.0)  # the disk may be busy
    done = agman_here("doctor", "--data", dataset.path, "--storage", tmp_path / "runs" / "deep", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"checks": 7 + len(doctor.PACKAGES), "wrong": []}
    for said in ("gloo: two processes agree", "a task ran", "MB/s", "a run was written and removed", "pictures"):
        assert said in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db"}


def test_problems_are_named_with_remedies_and_exit_with_1(
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
    assert done.err.endswith("agman: 3 of 8 checks failed: storage, mlflow store, dataset\n")


def test_all_pictures_are_read_and_a_torn_one_is_found(dataset: Dataset, tmp_path: Path) -> None:
    read: list[int] = []
    doctor._dataset(dataset.path, lambda title, total: read.append)
    assert sum(read) == sum(dataset.info.images.values())

    torn = tmp_path / "torn"
    shutil.copytree(dataset.path, torn)
    shard = sorted((torn / "packed").rglob("*.parquet"))[-1]
    table = pq.read_table(shard)
    pictures = table["jpeg"].to_pylist()
    column = pa.array([*pictures[:-1], pictures[-1][: len(pictures[-1]) // 2]], table.schema.field("jpeg").type)
    pq.write_table(table.set_column(table.schema.get_field_index("jpeg"), "jpeg", column), shard)
    with pytest.raises(doctor.Problem, match=f"picture {table['image_id'].to_pylist()[-1]} of split") as found:
        doctor._dataset(torn, silent)
    assert found.value.remedy


def test_any_exception_of_a_check_is_a_finding() -> None:
    def broken() -> str:
        raise ZeroDivisionError("by nothing")

    found = doctor.finding("odd", broken, "repair it")
    assert (found.ok, found.found, found.remedy) == (False, "ZeroDivisionError: by nothing", "repair it")


def test_a_silent_server_is_given_up(agman_here: Agman, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0.2)
    monkeypatch.setattr(doctor, "PACKAGES", ())
    for name in ("_collectives", "_ray", "_devices", "check_storage"):
        monkeypatch.setattr(doctor, name, lambda *_: "left out")
    with socket.create_server(("127.0.0.1", 0)) as silent_server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent_server.getsockname()[1]}")
        done = agman_here("doctor", "--storage", tmp_path)
    assert done.code == 1 and "mlflow store: no answer in 0.2 s" in done.out
    assert "what to do: start the server" in done.out
