"""Common mistakes in every command: exit code 2, one line on stderr that names the wrong word, nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.commands import Agman

MISTAKES = {
    "a missing folder": [
        "train --data nowhere",
        "tune --data nowhere",
        "compare --data nowhere",
        "evaluate models:/a@b --data nowhere",
        "report models:/a@b --data nowhere",
        "promote agman-a --data nowhere",
        "prep fashionai --root nowhere --out new",
        "prep fashionai --root empty --split-files nowhere --out new",
        "sample fashionai --split-files nowhere --out new",
        "submit --working-dir nowhere -- train",
        "index nowhere",
        "copies nowhere",
        "embed --into nowhere",
        "tag nowhere --images empty --out new.csv",
        "audit models:/a@b --data nowhere",
        "serve nowhere --keys file",
        "search nowhere --query file --attribute a",
        "serve nowhere",
        "export nowhere --out new",
        "embed nowhere --images empty --out new",
        "evaluate nowhere --data empty",
    ],
    "a file instead of a folder": [
        "train --data file",
        "tune --data file",
        "compare --data file",
        "promote agman-a --data file",
        "prep fashionai --root file --out new",
        "sample fashionai --split-files file --out new",
        "sample fashionai --out file",
        "export file --out new",
        "index file",
        "copies file",
        "search file --value a=b",
        "embed --into file",
        "audit models:/a@b --data file",
        "submit --working-dir file -- train",
    ],
    "a folder instead of a file": [
        "train --data x --config empty",
        "tune --data x --config empty",
        "compare --data x --config empty",
        "report models:/a@b --data x --out empty",
        "tag models:/a@b --images x --out empty",
        "key shop --keys empty",
        "evaluate empty.pth.tar --data x",
    ],
    "an empty folder": [
        "train --data empty",
        "evaluate models:/a@b --data empty",
        "prep fashionai --root empty --out new",
        "prep zappos50k --root empty --out new",
        "index empty",
        "copies empty",
        "embed --into empty",
        "audit models:/a@b --data empty",
        "export empty --out new",
    ],
    "a wrong option": [
        *(f"{name} --wrong" for name in ("doctor", "demo", "rollback x", "serve x", "bench scale")),
        *(f"{name} --data x --wrong" for name in ("train", "tune", "compare", "evaluate models:/a@b")),
    ],
    "a misspelt setting": [f"{name} --data x mragin=1" for name in ("train", "tune", "compare")],
    "a setting out of range": [f"{name} --data x batch_size=-7" for name in ("train", "tune", "compare")],
    "a number out of range": [
        "train --data x --workers 0",
        "tune --data x --trials -7",
        "compare --data x --seeds -7",
        "prep fashionai --root x --out new --image-size -7",
        "tag models:/a@b --images x --out new.csv --precision -7",
        "search x --value a=b --top -7",
        "sample fashionai --out new --images -7",
        "serve x --port -7",
        "demo --images -7",
    ],
    "an unknown name": [
        "train --data x model=wrong",
        "train --data x --preset wrong",
        "tune --data x --space wrong",
        "compare --data x --system wrong",
        "sample wrong --out new",
        "bench wrong",
        "submit -- wrong",
    ],
    "a wrong form of a model": [
        "evaluate agman-shirts --data x",
        "report models:/agman-shirts --data x",
        "export agman-shirts --out new",
        "embed runs/0123 --images empty --out new",
    ],
    "a bad URI": [
        "train --data wrong:/bucket",
        "train --data wrong://bucket/data",
        "evaluate models:/a@b --data wrong://bucket/data",
        "compare --data wrong://bucket/data",
    ],
    "an output that exists": [
        "sample fashionai --out full",
        "prep fashionai --root empty --out full",
    ],
}
NAMED = {
    "a missing folder": ("nowhere",),
    "a file instead of a folder": ("file",),
    "a folder instead of a file": ("empty",),
    "an empty folder": ("empty",),
    "a wrong option": ("--wrong",),
    "a misspelt setting": ("'mragin'",),
    "a setting out of range": ("batch_size=-7",),
    "a number out of range": ("-7", "'0'"),
    "an unknown name": ("wrong",),
    "a wrong form of a model": ("agman-shirts", "runs/0123"),
    "a bad URI": ("wrong:/",),
    "an output that exists": ("full",),
}


@pytest.mark.parametrize(("kind", "typed"), [(kind, one) for kind, typed in MISTAKES.items() for one in typed])
def test_a_mistake_is_one_line_and_nothing_is_written(agman_here: Agman, tmp_path: Path, kind: str, typed: str) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    done = agman_here(*typed.split())
    assert done.code == 2, done.err
    (line,) = done.err.splitlines()
    assert line.startswith("agman: ") and any(name in line for name in NAMED[kind]), line
    assert done.out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("typed", ["train --data locked", "prep fashionai --root locked --out new", "index locked"])
def test_an_unreadable_folder_is_one_line(
    agman_here: Agman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    try:
        (tmp_path / "locked" / "x").exists()
        pytest.skip("root reads every folder, so none is unreadable")
    except PermissionError:
        pass
    done = agman_here(*typed.split())
    (tmp_path / "locked").chmod(0o700)
    assert done.code == 2, done.err
    (line,) = done.err.splitlines()
    assert "locked" in line
    shutil.rmtree(tmp_path / "locked")
    assert not list(tmp_path.iterdir())
