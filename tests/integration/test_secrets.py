"""A planted secret: a training neither prints nor saves nor logs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from support.s3_server import Bucket

from data_prep.dataset import Dataset

SECRET = "sesame-0f3c-street"
PLANTED = ["AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"]
AGMAN = [sys.executable, "-c", "from pipeline.cli import main; main()"]
SETTINGS = ["backbone=tiny", "embedding_dim=16", "epochs=1", "max_triplets=4", "batch_size=4", "threads=1"]


def files_with(secret: bytes, folder: Path) -> tuple[set[str], list[Path]]:
    """Return the names of all files below `folder`, and the files that contain the secret."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {path.name for path in files}, [path for path in files if secret in path.read_bytes()]


def test_a_training_keeps_secrets(dataset: Dataset, bucket: Bucket, tmp_path: Path) -> None:
    """Plant it in the environment and in the storage's URI; search output, files, objects and Ray's logs for it."""
    storage = bucket.uri("runs").replace("s3://", f"s3://access:{SECRET}@")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    command = [*AGMAN, "train", "--data", str(dataset.path), "--storage", storage, "--json", *SETTINGS]
    with TemporaryDirectory(dir="/tmp") as rays:  # the names of its sockets have to be short
        variables = environment | dict.fromkeys(PLANTED, SECRET) | {"RAY_TMPDIR": rays}
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        logs, found = files_with(SECRET.encode(), Path(rays))
        assert "raylet.out" in logs and found == []
    assert SECRET.encode() not in done.stdout + done.stderr
    files, found = files_with(SECRET.encode(), tmp_path)
    assert "mlflow.db" in files and found == []
    keys = [key for key in bucket.keys if not key.endswith("/")]
    assert keys and [key for key in keys if SECRET.encode() in bucket.read(key)] == []
