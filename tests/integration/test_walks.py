"""The walks of README.md and docs/with-a-model.md run; tests/unit/pipeline/test_docs.py checks other pages, and links.

The second needs a dataset and a model as the first one makes them, so it continues in the first one's folder.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from support.commands import agman_exit_code

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
WALK = [line for line in next(b for b in BLOCKS if "agman sample" in b).splitlines() if line.startswith("agman ")]
(PYTHON,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SMALLER = {
    r"--images \d+": "--images 240",
    r"--(image-|)size \d+": r"--\1size 32",
    r"--triplets \d+": "--triplets 64",
    r"\bepochs=\d+": "epochs=1",
    r"--workers \d+": "--workers 1",
    r"--trials \d+": "--trials 1",
    r"--preset strong": "--preset strong backbone=tiny weights=none batch_size=96 threads=1",
}
"""Smaller numbers for the quick walk. Each training starts processes, which is what takes the time."""

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


@pytest.fixture(scope="module")
def walked(store: Path) -> Path:
    """The folder in which the README's walk was done with smaller numbers. Later lines need what earlier ones wrote."""
    script = "\n".join(WALK)
    for said, smaller in SMALLER.items():
        script, found = re.subn(said, smaller, script)
        assert found, f"the README no longer says {said}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(store)
        for line in script.splitlines():
            assert agman_exit_code(*shlex.split(line)[1:]) == 0, line
    matplotlib.use("agg")
    return store


def test_the_walk_through_runs_with_smaller_numbers(walked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (walked / "work" / "report.html").stat().st_size > 50_000
    monkeypatch.chdir(walked)
    exec(PYTHON, {})


def test_every_command_of_the_walk_with_a_model_runs(
    walked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(WITH_A_MODEL) == 10
    assert all(MODELS[0] in text for text in (*WITH_A_MODEL[:2], PYTHON_WITH_A_MODEL))
    monkeypatch.chdir(walked)
    Path("demo").mkdir()
    for name in ("fashionai", "data"):
        (walked / "demo" / name).symlink_to(walked / "work" / name)
    for line in WITH_A_MODEL:
        code = agman_exit_code(*shlex.split(line.replace(*MODELS))[1:])
        said = capsys.readouterr().err
        assert code == 0, f"{line}\n{said[-3000:]}"
    assert "40 added, 0 replaced, 0 removed, 240 unchanged" in said
    assert (walked / "demo" / "copies" / "copies.html").is_file()
    exec(compile(PYTHON_WITH_A_MODEL.replace(*MODELS), "with-a-model.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 6


@pytest.mark.slow
def test_the_walk_through_runs_as_it_is_typed(tmp_path: Path) -> None:
    assert len(WALK) == 7
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "RAY_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for line in WALK:
        done = subprocess.run(
            shlex.split(line), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
    assert (tmp_path / "work" / "report.html").stat().st_size > 50_000


def test_the_readme_is_short_and_its_pictures_exist() -> None:
    assert len(README.splitlines()) <= 120
    assert len(PYTHON.splitlines()) <= 12
    pictures = re.findall(r"!\[(.+?)\]\((.+?)\)", README)
    assert pictures
    for _, path in pictures:
        assert (ROOT / path).is_file(), path
