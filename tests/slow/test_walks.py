"""The walks of README.md and docs/with-a-model.md run; tests/unit/pipeline/test_docs.py checks other pages, and links.

The second needs a dataset and a model as the first one makes them, so it continues in the first one's folder.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pytest
from support.commands import Finished, agman_process

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
WALK = [line for line in next(b for b in BLOCKS if "agman sample" in b).splitlines() if line.startswith("agman ")]
(PYTHON,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

PAGE = (ROOT / "docs" / "with-a-model.md").read_text(encoding="utf-8")
WITH_A_MODEL = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if not line.startswith("agman serve")  # it would not end; tests/integration/test_serve.py serves a gallery
]
(PYTHON_WITH_A_MODEL,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MODELS = ("models:/agman-fashionai-demo/1", "models:/agman-fashionai/1")
"""The page's model, which `agman demo` makes, and the README's."""

pytestmark = pytest.mark.slow


def run_all(lines: Sequence[str], folder: Path) -> list[Finished]:
    """Run commands in processes of their own, as they are typed."""
    ended = []
    for line in lines:
        ended.append(agman_process(*shlex.split(line)[1:], cwd=folder, timeout=900))
        assert ended[-1].code == 0, f"{line}\n{ended[-1].err[-3000:]}"
    return ended


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the README's walk was done. Later lines need what earlier ones wrote."""
    folder = tmp_path_factory.mktemp("walked")
    assert len(WALK) == 7
    run_all(WALK, folder)
    matplotlib.use("agg")
    return folder


@pytest.fixture
def in_walked(walked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change into the walked folder, use the MLflow store in it, and return the folder."""
    monkeypatch.chdir(walked)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{walked / 'mlflow.db'}")
    return walked


def test_the_walk_through_runs_as_it_is_typed(in_walked: Path) -> None:
    assert (in_walked / "work" / "report.html").stat().st_size > 50_000
    exec(PYTHON, {})


def test_every_command_of_the_walk_with_a_model_runs(in_walked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(WITH_A_MODEL) == 10
    assert all(MODELS[0] in text for text in (*WITH_A_MODEL[:2], PYTHON_WITH_A_MODEL))
    Path("demo").mkdir()
    for name in ("fashionai", "data"):
        (in_walked / "demo" / name).symlink_to(in_walked / "work" / name)
    said = run_all([line.replace(*MODELS) for line in WITH_A_MODEL], in_walked)[-1].err
    (images,) = re.findall(r"agman sample .*--images (\d+)", README)
    assert f"40 added, 0 replaced, 0 removed, {int(images):,} unchanged" in said
    assert (in_walked / "demo" / "copies" / "copies.html").is_file()
    exec(compile(PYTHON_WITH_A_MODEL.replace(*MODELS), "with-a-model.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 6
