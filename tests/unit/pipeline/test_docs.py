"""README.md, CONTRIBUTING.md and docs/*.md: their links, commands, files, tests and names exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest

import agman
from pipeline.cli import cli

ROOT = Path(__file__).parents[3]
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(
    r"`((?:agman|benchmarks|cluster|data_prep|docs|pipeline|tests|tune_spaces)/[\w./-]*\.\w+)(?:::(\w+))?`"
)
NAME = re.compile(r"`((?:agman|data_prep|pipeline|tune_spaces)(?:\.\w+)+)(?:\(.*?\))?`")


def everywhere(pattern: re.Pattern[str]) -> list[tuple[str, ...]]:
    """Return (page, groups of the match) for every match in the prose of every page, without repeats."""
    found = [(page, *match.groups("")) for page, text in PAGES.items() for match in pattern.finditer(prose(text))]
    return list(dict.fromkeys(found))


def prose(text: str) -> str:
    """Return a page without its code blocks."""
    return FENCED.sub("", text)


@pytest.mark.parametrize("page", PAGES)
def test_sentences_fit_a_line_of_120_characters_and_no_gap_is_left(page: str) -> None:
    lines = [line for line in prose(PAGES[page]).splitlines() if not line.lstrip().startswith("|")]
    assert [line for line in lines if len(line) > 120 and " " in line.strip()] == []
    assert [line for line in lines if re.fullmatch(r"[A-Z]{4,}|TODO.*|XXX.*", line.strip())] == []


def commands() -> list[tuple[str, str]]:
    """Return (page, line) for every `agman` command in a shell block, or in a container; lines are joined."""
    blocks = [(page, code) for page, text in PAGES.items() for kind, code in FENCED.findall(text) if kind == "sh"]
    lines = [(page, line) for page, code in blocks for line in code.replace("\\\n", " ").splitlines()]
    lines = [(page, re.sub(r"^docker run .*? agman(:\w+)? ", "agman ", line)) for page, line in lines]
    return [(page, line) for page, line in lines if line.startswith("agman ")]


def is_defined(name: str) -> bool:
    """Return whether a dotted name is a module, or defined in one; read from the source, because imports are slow."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:n])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file() or path.is_dir():
            body = ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []
            return all((body := _members(body, part)) is not None for part in parts[n:])
    return False


def _members(body: list[ast.stmt], name: str) -> list[ast.stmt] | None:
    """Return the body of what a module or class calls `name` ([] if it has none); None if there is no such name."""
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef) and statement.name == name:
            return statement.body
        if isinstance(statement, ast.If) and (found := _members(statement.body, name)) is not None:
            return found  # imported for type checkers; a module's __getattr__ gives it to others
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        imported = statement.names if isinstance(statement, ast.Import | ast.ImportFrom) else []
        if name in {getattr(target, "id", None) for target in targets} | {one.asname or one.name for one in imported}:
            return []
    return None


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of headings: lower case, hyphens for blanks, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "link"), everywhere(LINK))
def test_every_link_leads_somewhere(page: str, link: str) -> None:
    if link.startswith(("http://", "https://")):
        return
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists(), f"{page}: {link}"
    assert not anchor or anchor in anchors(target), f"{page}: {link}"


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_parses(monkeypatch: pytest.MonkeyPatch, page: str, line: str) -> None:
    monkeypatch.setattr("pipeline.cli.options.check_model", lambda model: None)  # its file is not here
    name, *arguments = shlex.split(line, comments=True)[1:]
    cli.commands[name].make_context(name, arguments)


def test_the_readme_is_short_and_its_pictures_exist() -> None:
    readme = PAGES["README.md"]
    assert len(readme.splitlines()) <= 120
    (python,) = [code for kind, code in FENCED.findall(readme) if kind == "python"]
    assert len(python.splitlines()) <= 12
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", readme)
    assert pictures and all((ROOT / path).is_file() for path in pictures)


@pytest.mark.parametrize(("page", "path", "test"), everywhere(FILE))
def test_every_file_and_test_that_is_named_exists(page: str, path: str, test: str) -> None:
    file = ROOT / path
    assert file.is_file(), f"{page}: {path}"
    assert not test or re.search(rf"^def {test}\(", file.read_text(encoding="utf-8"), re.MULTILINE), f"{page}: {test}"


@pytest.mark.parametrize(("page", "name"), everywhere(NAME))
def test_every_python_name_exists(page: str, name: str) -> None:
    if not name.endswith((".py", ".json")):
        assert is_defined(name), f"{page}: {name}"


def test_the_attributes_file_of_the_photographs_is_the_one_that_the_page_shows() -> None:
    shown = [code for kind, code in FENCED.findall(PAGES["docs/photographs.md"]) if kind == "yaml"]
    assert shown == [(ROOT / "docs" / "garments.yaml").read_text(encoding="utf-8")]


def test_the_rooms_are_shown_in_the_order_that_the_check_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (held,) = [one["layers"] for one in contracts if one.get("containers") == ["pipeline"]]
    shown = [code.splitlines() for kind, code in FENCED.findall(PAGES["docs/architecture.md"]) if kind == "text"]
    assert [line.removesuffix(" | embedder") for line in held] in shown


def test_the_index_links_every_page() -> None:
    linked = set(LINK.findall(PAGES["docs/README.md"]))
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")} - {"README.md"}
    assert pages <= linked, pages - linked


def test_the_reference_has_every_name_that_agman_exports() -> None:
    assert {f"agman.{name}" for name in agman.__all__} <= set(re.findall(r"^::: (\S+)", PAGES["docs/api.md"], re.M))


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs_and_their_commands_parse(
    monkeypatch: pytest.MonkeyPatch, notebook: Path
) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        if line.startswith("agman "):
            test_every_command_parses(monkeypatch, notebook.stem, re.split(r" (?:2>|\||>)", line)[0])


def test_every_numbered_equation_has_a_row_that_names_its_code_and_its_test() -> None:
    section = PAGES["docs/paper.md"].partition("\n## The numbered equations\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \((\d)\) \|(.+)$", section, re.MULTILINE)
    assert [number for number, _ in rows] == list("123456789")
    for number, row in rows:
        assert NAME.search(row), f"equation {number} names no code"
        assert FILE.search(row), f"equation {number} names no test"
