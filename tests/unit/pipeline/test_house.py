"""Files around the code: workflows, citation, images. What they name exists."""

from __future__ import annotations

import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_limits_and_runs_what_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] and job["steps"] for job in workflow["jobs"].values())
    assert set(re.findall(r"\bmake ([\w-]+)", text)) <= set(TARGETS)
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", one) for one in re.findall(r"uses: (\S+)", text))


def test_the_tested_pythons_are_those_of_the_project() -> None:
    matrix = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert f">={matrix['python'][0]}" == PROJECT["requires-python"]


def test_the_citation_is_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (str(citation["version"]), citation["license"]) == (PROJECT["version"], PROJECT["license"])


def test_constraints_have_every_requirement() -> None:
    """Requirements that this project names; `make constraints` records what they need in turn."""
    pinned = {_plain(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    optional = PROJECT["optional-dependencies"]
    named = [
        *PROJECT["dependencies"],
        *(one for requirements in optional.values() for one in requirements),
    ]
    assert {_plain(re.split(r"[\[<>=; ]", one)[0]) for one in named} - {_plain(PROJECT["name"]), "setuptools"} <= pinned


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


IMAGES = (ROOT / "Dockerfile", ROOT / "cluster" / "kubernetes" / "Dockerfile")


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.parent.name)
def test_what_an_image_copies_and_installs_exists_and_is_not_ignored(image: Path) -> None:
    text = image.read_text(encoding="utf-8")
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?:--\S+ )*(.+)$", text, re.MULTILINE)]
    assert copied and all((ROOT / source).exists() for sources in copied for source in sources)
    extras = re.search(r"/agman\[([\w,]+)\]", text)
    assert not extras or set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
    ignored = [line for line in Path(f"{image}.dockerignore").read_text().splitlines() if not line.startswith("#")]
    needed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    lost = [file for file in needed if any(_ignores(pattern, file) for pattern in ignored)]
    assert not lost
    assert "pyproject.toml" in needed


def _ignores(pattern: str, file: str) -> bool:
    """Return whether a pattern of .dockerignore leaves out a file: by its name or a folder's, with `**/` in any."""
    parts = Path(file).parts
    names = parts if pattern.startswith("**/") else parts[:1]
    return any(fnmatch(name, pattern.removeprefix("**/")) for name in names)


def test_the_image_is_made_in_the_steps_of_the_page() -> None:
    page, text = (ROOT / "docs/installing.md").read_text(encoding="utf-8"), IMAGES[0].read_text(encoding="utf-8")
    (pinned,) = re.findall(r"grep -E '.+?'", text)
    assert pinned in page
    arguments = set(re.findall(r"--build-arg (\w+)=", page))
    assert arguments and arguments <= set(re.findall(r"^ARG (\w+)=", text, re.MULTILINE))


def test_the_images_torch_is_the_tested_one() -> None:
    pattern = re.search(r"grep -E '(.+?)'", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert pattern
    found = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if re.match(pattern[1], line)]
    assert [line.split("==")[0] for line in found] == ["torch", "torchvision"]
