"""Checks of `agman doctor` that need neither Ray nor a tracking store."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.s3_server import Bucket

from data_prep.errors import InputError, StorageError
from pipeline.cluster import doctor
from pipeline.cluster.doctor import Problem, check_package, check_storage


def problem(check: object, *arguments: object) -> Problem:
    with pytest.raises(Problem) as found:
        check(*arguments)  # type: ignore[operator]
    assert found.value.remedy
    return found.value


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_package("ray").startswith("2.")
    assert doctor._python()
    monkeypatch.setattr(doctor, "version", lambda name: "1.2.3")
    found = problem(check_package, "ray")
    assert "1.2.3, but >=2.60 is needed" in str(found) and found.remedy.startswith('pip install "ray')
    monkeypatch.setattr(doctor, "python_version", lambda: "3.8.1")
    with pytest.raises(InputError, match=r"3\.8\.1, but >=3\.11"):
        doctor._python()


def test_a_slow_or_full_storage_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE", 1 << 20)
    monkeypatch.setattr(doctor, "SLOW", 1e9)
    assert "under 1e+09 MB/s" in str(problem(check_storage, tmp_path))
    monkeypatch.setattr(doctor, "SLOW", 0.0)
    monkeypatch.setattr(doctor, "ROOM", 1 << 60)
    assert "GiB free" in str(problem(check_storage, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_object_store_is_checked(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE", 1 << 20)
    monkeypatch.setattr(doctor, "SLOW", 0.0)
    assert "writes" in check_storage(bucket.uri("runs").replace("s3://", "s3://access:sesame@"))
    assert bucket.keys == [] or all(key.endswith("/") for key in bucket.keys)
    bucket.failing, bucket.code = ".", 403
    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        check_storage(bucket.uri("runs"))


def test_processes_that_do_not_meet_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0)
    assert "could not add a number with gloo in 0 s" in str(problem(doctor._collectives))


def test_a_timeout_inside_a_check_is_reported_as_it_is() -> None:
    def refuse() -> str:
        raise TimeoutError("the server took its time")

    with pytest.raises(TimeoutError, match="took its time"):
        doctor._in_time(refuse)()
