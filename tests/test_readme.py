"""The README's commands: the walk-through is run, the others are parsed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def test_the_walk_through_runs(tmp_path: Path) -> None:
    block = next(block for block in BLOCKS if "agman sample" in block)
    lines = [line for line in block.splitlines() if line.startswith("agman ")]
    assert len(lines) == 6
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "RAY_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for line in lines:
        done = subprocess.run(
            shlex.split(line), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
    assert (tmp_path / "work" / "report.html").stat().st_size > 50_000


@pytest.mark.parametrize("line", [line for block in BLOCKS for line in block.splitlines() if line.startswith("agman ")])
def test_every_command_in_the_readme_parses(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    cli.commands[name].make_context(name, arguments)


def test_the_readme_is_short_and_its_pictures_exist() -> None:
    assert len(README.splitlines()) <= 250
    pictures = re.findall(r"!\[(.+?)\]\((.+?)\)", README)
    assert pictures
    for _, path in pictures:
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("path", re.findall(r"`((?:agman|data_prep|pipeline)/\w+\.py)`", README))
def test_every_file_the_readme_names_exists(path: str) -> None:
    assert (ROOT / path).is_file()
