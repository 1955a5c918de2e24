"""`make docs`: the site of the documentation, without a warning."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_site_has_every_page_and_docstring_in_its_search() -> None:
    ready = f"{sys.prefix}/.ready"  # taken as made: this environment is installed
    done = subprocess.run(
        ["make", "-o", ready, "docs", f"VENV={sys.prefix}"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((ROOT / "site" / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    pages = {one["location"].partition("#")[0] for one in found}
    assert {f"docs/{page.stem}.html" for page in (ROOT / "docs").glob("*.md") if page.stem != "README"} <= pages
    assert any(page.startswith("benchmarks/results/train-") for page in pages)
    (similarity,) = [one for one in found if one["location"] == "docs/api.html#agman.TrainedModel.similarity"]
    assert "cosine of two pictures under an attribute" in similarity["text"]
    for page in (ROOT / "docs").glob("*.md"):
        rows = re.findall(r"^ *\|(?![|: -]*-[|: -]*$)", page.read_text(encoding="utf-8"), re.MULTILINE)
        made = (ROOT / "site/docs" / ("index" if page.stem == "README" else page.stem)).with_suffix(".html")
        assert page.stem == "api" or made.read_text(encoding="utf-8").count("<tr>") == len(rows), page.name
    for page in (ROOT / "site").rglob("*.html"):
        loaded = (
            r"""<(?:script|img|iframe)\b[^>]*\bsrc=["']?https?:|<link\b[^>]*\bstylesheet[^>]*https?:|class="mermaid"""
        )
        assert not re.search(loaded, page.read_text(encoding="utf-8")), f"{page} is not complete without a network"
