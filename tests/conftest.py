"""Things that several tests need and that take seconds to make: a drawn dataset, prepared."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from s3_server import Bucket, served
from trainings import command, longer, undisturbed  # noqa: F401

from data_prep.annotation import Row, frame_of
from data_prep.cluster import ray_session
from data_prep.dataset import Dataset
from data_prep.layouts.asen_split import assign_splits
from data_prep.layouts.fashionai_vocabulary import ATTRIBUTES
from data_prep.prepare import prepare
from data_prep.synthetic.samples import sample
from data_prep.synthetic.writers import write_split_files
from pipeline.cli import _exit_code, cli

if TYPE_CHECKING:  # only the pages' tests need a browser
    from playwright.sync_api import Browser

SWITCHES = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SWITCHES += ["--disable-component-update", "--disable-sync"]
SIZE = 32
FORKS = multiprocessing.get_context("forkserver")
"""Starts processes that have imported already what takes seconds."""
FORKS.set_forkserver_preload(["agman", "torch.distributed", "pipeline.tracking.runs"])
NECKS = ("ynnnn", "nynnn", "nnynn", "nnnyn", "nnnny")


def make_photographs(root: Path, n: int = 100) -> Path:
    """n small JPEG files of the neck_design attribute with a raw label.csv; value = number mod 5."""
    folder = root / "train1" / "Images" / "neck_design_labels"
    folder.mkdir(parents=True)
    lines = []
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.jpg")
        lines.append(f"Images/neck_design_labels/{i:03d}.jpg,neck_design_labels,{NECKS[i % 5]}\n")
    (root / "train1" / "Annotations").mkdir()
    (root / "train1" / "Annotations" / "label.csv").write_text("".join(lines))
    return root


def prepare_small(root: Path, out: str | Path, **options: object) -> Dataset:
    options = {"triplets": 20, "epochs": 2, "image_size": SIZE} | options
    prepare("fashionai", root, out, **options)  # type: ignore[arg-type]
    return Dataset(out)


def told(titles: list[str]) -> Callable[[str, int], Callable[[int], None]]:
    """A progress that writes down what it is told of."""

    def progress(title: str, total: int) -> Callable[[int], None]:
        titles.append(title)
        return lambda done: None

    return progress


@pytest.fixture(scope="session", autouse=True)
def ray_started() -> Iterator[None]:
    """One Ray session for all tests of this process: starting one takes seconds."""
    with ray_session():
        yield


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """540 drawn garments in FashionAI's layout: two values of each attribute, so that queries find positives."""
    folder = tmp_path_factory.mktemp("drawn")
    path = "fashionAI_attributes_train1/Images/{}_labels/{:03d}.jpg"
    names = list(ATTRIBUTES)
    rows = [
        Row(path.format(names[i % 8], i), attribute=i % 8, value=1 + i // 8 % 2, split="", role="", source="", line=0)
        for i in range(540)
    ]
    write_split_files(folder / "annotation", assign_splits(frame_of(rows), seed=3))
    sample("fashionai", folder / "fashionai", split_files=folder / "annotation", size=SIZE, seed=3)
    return folder / "fashionai"


@pytest.fixture(scope="session")
def dataset(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The drawn garments, prepared."""
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare("fashionai", drawn, out, name="tiny", triplets=48, epochs=2, image_size=SIZE, seed=5)
    return Dataset(out)


def write_files(folder: Path, **files: str | bytes) -> Path:
    """Text files of these names (.txt) and contents, byte for byte."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def records(rows: pd.DataFrame) -> list[Row]:
    """The rows of an annotation one by one."""
    return [Row(*values) for values in zip(*(rows[name].tolist() for name in Row._fields), strict=True)]


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


Agman = Callable[..., Finished]


@pytest.fixture
def agman_command(tmp_path: Path) -> Agman:
    """Runs the installed `agman` command in an empty folder, in a process of its own."""
    program = Path(sys.executable).with_name("agman")

    def run(*arguments: object, cwd: Path = tmp_path) -> Finished:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "RAY_"))}
        done = subprocess.run(
            [str(program), *map(str, arguments)],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def agman_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Agman:
    """Runs `agman` as `agman_command` does, but in this process: no seconds for its start and for a Ray of its own."""
    # The store that it makes by default; said here, because MLflow says it itself, and it would stay.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Finished:
        capsys.readouterr()
        code = agman_exit_code(*arguments)
        said = capsys.readouterr()
        return Finished(code, said.out, said.err)

    return run


def agman_exit_code(*arguments: object) -> int:
    """Runs `agman` in this process."""
    return _exit_code(lambda: cli.main([*map(str, arguments)], prog_name="agman", standalone_mode=False))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Makes a tracking store in a folder, and gives its URI. MLflow takes seconds to make one; a copy takes none."""
    first = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{first}").search_experiments(max_results=1)

    def make(folder: Path) -> str:
        with closing(sqlite3.connect(first)) as database:
            database.execute("VACUUM INTO ?", [str(folder / "mlflow.db")])
        return f"sqlite:///{folder / 'mlflow.db'}"

    return make


@contextmanager
def out_of_order(uri: str, table: str) -> Iterator[None]:
    """A store that raises when it comes to this table, for as long as the block runs."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)) as database:
        # Not the table itself: a process that begins to use the store then makes it anew.
        database.execute(f"ALTER TABLE {table} RENAME COLUMN run_uuid TO away")
        try:
            yield
        finally:
            database.execute(f"ALTER TABLE {table} RENAME COLUMN away TO run_uuid")


@pytest.fixture
def tracking_store(
    empty_store: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A tracking store of this test's own."""
    uri = empty_store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    yield uri


@pytest.fixture(scope="module")
def store(empty_store: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a tracking store of this module's own; for its trainings too."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", empty_store(folder))
        yield folder


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket, of an object store of this test's own."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    with served() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for the pages that the commands write. For one module: its event loop would be in others' way."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "this test reads the page in Chromium; install it: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=SWITCHES)
        yield browser
        browser.close()
