"""docs/photographs.md: every command on 600 of its photographs, with smaller numbers. `make test-photos`.

The photographs are not part of the project: AGMAN_PHOTOS names their folder.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from support.commands import Agman
from support.sessions import light_session

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "photographs.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.startswith("agman ")]
IMAGES = 600
SMALLER = {
    r"--image-size \d+": "--image-size 64",
    r"--triplets \d+": "--triplets 128",
    r"\b(epochs|max_steps)=\d+": "max_steps=3 threads=1",
    r"--trials \d+": "--trials 1",
    r"--system csn ": "",
    r"--precision 0\.95": "--precision 0.5",
}
"""Smaller numbers, so that all commands take less than two minutes."""


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Every n-th photograph of the table, and those that the page names, where the page's reader has them."""
    root = ROOT / os.environ.get("AGMAN_PHOTOS", "")
    if not (root / "images.csv").is_file():
        pytest.skip("AGMAN_PHOTOS must name a clone of alexeygrigorev/clothing-dataset: a folder with images.csv")
    with (root / "images.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    named = {Path(path).stem for path in re.findall(r"work/photos/images/(\S+)", PAGE)}
    step = len(rows) // IMAGES
    sample = [row for number, row in enumerate(rows) if number % step == 0 or row[0] in named]
    folder = tmp_path / "work" / "photos"
    (folder / "images").mkdir(parents=True)
    with (folder / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *sample])
    for name, *_ in sample:
        if (root / "images" / f"{name}.jpg").is_file():
            shutil.copy(root / "images" / f"{name}.jpg", folder / "images")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "garments.yaml", tmp_path / "docs")
    return folder


def test_every_command_of_the_page_runs(photographs: Path, agman_here: Agman, tmp_path: Path) -> None:
    script = "\n".join(COMMANDS)
    for said, smaller in SMALLER.items():
        script, found = re.subn(said, smaller, script)
        assert found, f"the page no longer says {said}"
    with light_session({}):  # one for all commands, because starting it takes seconds
        for line in script.splitlines():
            words = shlex.split(line)
            if words[1] == "serve":
                _serve(tmp_path / words[2], photographs)
                continue
            done = agman_here(*words[1:])
            proposes = words[1:3] == ["prep", "table"] and "--attribute" not in words
            assert done.code == (2 if proposes else 0), f"{line}\n{done.err[-3000:]}"
            if words[1] == "search":
                assert done.out.count(".jpg") == 10, done.out
    for page in ("garments/report.html", "report.html"):
        assert (tmp_path / "work" / page).stat().st_size > 100_000


def _serve(gallery: Path, photographs: Path) -> None:
    """Serve a gallery, search it for one of its pictures, and open a picture that is found."""
    import httpx

    from pipeline.retrieval.gallery import Gallery
    from pipeline.serving.run import Options, served

    with served(gallery, None, Options(port=0)) as address:
        attribute = Gallery.open(gallery).info.attributes[0]
        picture = next((photographs / "images").iterdir()).read_bytes()
        answer = httpx.post(f"{address}/search", files={"image": picture}, data={"attributes": attribute}, timeout=60)
        hit = answer.json()["hits"][0]
        assert httpx.get(f"{address}/pictures/{hit['row']}", timeout=60).headers["content-type"] == "image/jpeg"
