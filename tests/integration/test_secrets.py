"""A planted secret: a training neither prints nor saves nor logs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import ray
from support.commands import agman_exit_code
from support.planted import PLANTED, SECRET
from support.s3_server import Bucket

from data_prep.dataset import Dataset

AGMAN = [sys.executable, "-c", "from pipeline.cli import main; main()"]
SETTINGS = ["backbone=tiny", "embedding_dim=16", "epochs=1", "max_triplets=4", "batch_size=4", "threads=1"]


def training(dataset: Dataset, bucket: Bucket) -> list[str]:
    """Return a command whose storage has the secret in its URI."""
    storage = bucket.uri("runs").replace("s3://", f"s3://access:{SECRET}@")
    return ["train", "--data", str(dataset.path), "--storage", storage, "--json", *SETTINGS]


def files_with(secret: bytes, folder: Path) -> tuple[set[str], list[Path]]:
    """Return the names of all files below `folder`, and the files that contain the secret."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {path.name for path in files}, [path for path in files if secret in path.read_bytes()]


def check(said: bytes, folder: Path, rays: Path, bucket: Bucket) -> None:
    """Look for the secret in what was printed, in files, in Ray's logs and in objects."""
    assert SECRET.encode() not in said
    logs, found = files_with(SECRET.encode(), rays)
    assert "raylet.out" in logs and found == []
    files, found = files_with(SECRET.encode(), folder)
    assert "mlflow.db" in files and found == []
    keys = [key for key in bucket.keys if not key.endswith("/")]
    assert keys and [key for key in keys if SECRET.encode() in bucket.read(key)] == []


def test_a_training_keeps_secrets(
    ray_started: None,
    dataset: Dataset,
    bucket: Bucket,
    tracking_store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The secret is in the environment of this process and of Ray's, and in the storage's URI."""

    @ray.remote(num_cpus=0)
    def planted() -> list[str | None]:
        return [os.environ.get(name) for name in PLANTED]

    assert ray.get(planted.remote()) == [SECRET] * len(PLANTED)
    for name in PLANTED:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.chdir(tmp_path)
    code = agman_exit_code(*training(dataset, bucket))
    said = "".join(capfd.readouterr())
    assert code == 0, said
    check(said.encode(), tmp_path, Path(os.environ["RAY_TMPDIR"]), bucket)


@pytest.mark.slow
def test_a_command_with_a_ray_of_its_own_keeps_secrets(dataset: Dataset, bucket: Bucket, tmp_path: Path) -> None:
    """Its Ray has a dashboard, which that of the tests has not."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    with TemporaryDirectory(dir="/tmp") as rays:  # the names of its sockets have to be short
        variables = environment | dict.fromkeys(PLANTED, SECRET) | {"RAY_TMPDIR": rays}
        command = [*AGMAN, *training(dataset, bucket)]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        check(done.stdout + done.stderr, tmp_path, Path(rays), bucket)
