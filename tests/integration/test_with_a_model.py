"""The walk of docs/with-a-model.md is run on a small demo; tests/unit/pipeline/test_docs.py checks its links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.commands import Agman

PAGE = (Path(__file__).parents[2] / "docs" / "with-a-model.md").read_text(encoding="utf-8")
WALK = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if not line.startswith("agman serve")  # it would not end; tests/integration/test_serve.py serves a gallery
]
(PYTHON,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
DEMO = (
    "agman sample fashionai --out demo/fashionai --images 240 --size 32",
    "agman prep fashionai --root demo/fashionai --out demo/data --name fashionai-demo --image-size 32 --triplets 64",
    "agman train --data demo/data --preset strong backbone=tiny weights=none batch_size=96 threads=1 epochs=1",
)
"""Commands that make the pictures, tables and models of `agman demo`, in less time."""


def test_every_command_of_the_walk_runs(agman_here: Agman, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(WALK) == 10
    for line in (*DEMO, *WALK):
        done = agman_here(*shlex.split(line)[1:])
        assert done.code == 0, f"{line}\n{done.err[-3000:]}"
    assert "40 added, 0 replaced, 0 removed, 240 unchanged" in done.err
    assert (tmp_path / "demo" / "copies" / "copies.html").is_file()
    exec(compile(PYTHON, "with-a-model.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 6
