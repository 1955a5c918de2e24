"""Fixtures that several tests need and that take seconds to make.

Imports happen inside the fixtures: the unit tier runs without Ray, MLflow and a browser, and the tests of `agman`
with PyTorch alone.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from support.commands import Agman, Finished
    from support.s3_server import Bucket

    from data_prep.dataset import Dataset

# A shell that starts the tests in its background has SIGINT ignored, and they and their processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Numbers of random examples; `make test-slow` takes the second. A deadline would fail tests on a busy machine.
settings.register_profile("few", max_examples=20, deadline=None)
settings.register_profile("many", max_examples=300, deadline=None)
settings.load_profile("few")

SWITCHES = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SWITCHES += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """540 drawn garments in FashionAI's layout."""
    from support.datasets import draw_garments

    return draw_garments(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="session")
def dataset(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The drawn garments, prepared."""
    from support.datasets import TINY, prepare_small

    out = tmp_path_factory.mktemp("prepared") / "data"
    return prepare_small(drawn, out, **TINY)


@pytest.fixture
def agman_command(tmp_path: Path) -> Agman:
    """Run the installed `agman` command in an empty folder, in a process of its own."""
    from support.commands import agman_process

    def run(*arguments: object, cwd: Path = tmp_path) -> Finished:
        return agman_process(*arguments, cwd=cwd)

    return run


@pytest.fixture
def agman_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Agman:
    """Run `agman` in this process: no seconds for its start and for a Ray of its own."""
    from support.commands import Finished, agman_exit_code

    # The store that the command makes by default, named here because MLflow keeps what it is told in the process.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Finished:
        capsys.readouterr()
        code = agman_exit_code(*arguments)
        said = capsys.readouterr()
        return Finished(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Make a tracking store in a folder, and return its URI.

    MLflow takes seconds to create one; copying it takes none.
    """
    import sqlite3
    from contextlib import closing

    from mlflow.tracking import MlflowClient

    first = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{first}").search_experiments(max_results=1)

    def make(folder: Path) -> str:
        with closing(sqlite3.connect(first)) as database:
            database.execute("VACUUM INTO ?", [str(folder / "mlflow.db")])
        return f"sqlite:///{folder / 'mlflow.db'}"

    return make


@pytest.fixture
def tracking_store(
    empty_store: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The URI of a tracking store of this test's own."""
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
    """An empty bucket of an object store of this test's own."""
    from support.s3_server import served

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
    """Chromium, for the pages that the commands write. One for each module: its event loop would disturb others."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        missing = "this test reads a page in Chromium; install it: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=SWITCHES)
        yield browser
        browser.close()
