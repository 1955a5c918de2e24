"""The README's commands and its Python run; tests/unit/pipeline/test_docs.py checks other commands, and links."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from support.commands import Agman

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


def test_the_walk_through_runs_with_smaller_numbers(agman_here: Agman, tmp_path: Path) -> None:
    """Run one line after the other in this process; later ones need what earlier ones have written."""
    script = "\n".join(WALK)
    for said, smaller in SMALLER.items():
        script, found = re.subn(said, smaller, script)
        assert found, f"the README no longer says {said}"
    for line in script.splitlines():
        done = agman_here(*shlex.split(line)[1:])
        assert done.code == 0, f"{line}\n{done.err[-3000:]}"
    assert (tmp_path / "work" / "report.html").stat().st_size > 50_000
    matplotlib.use("agg")
    exec(PYTHON, {})


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
