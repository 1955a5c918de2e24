"""The page of `agman copies` in a browser: whole at every width, self-contained, and safe from the name of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser
from support.galleries import NAMES, jpeg, make_gallery, unit
from support.pages import inaccessible, open_page

from pipeline.reports.copies import write_copies
from pipeline.retrieval.copies import find_copies
from pipeline.retrieval.gallery import Gallery


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Write a page of one group of 15 pictures, more than it shows."""
    embeddings = np.repeat(unit(1, 3, 8), 15, axis=0)
    folder = make_gallery(tmp_path / "<script>alert(1)<" / "g", embeddings)
    for row in range(15):
        (folder / f"{row:03d}.png").write_bytes(jpeg(row, size=(40, 120)))
    return write_copies(find_copies(Gallery.open(folder), 0.99), tmp_path / "out")


@pytest.mark.parametrize("width", [1280, 390])
def test_every_picture_is_seen_at_every_width(browser: Browser, page: Path, width: int) -> None:
    opened = open_page(browser, page, width)
    shown = opened.page
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    pictures = shown.locator(".group img")
    assert pictures.count() == 12 and shown.get_by_text("and 3 pictures more").count() == 1
    for i in range(12):
        box = pictures.nth(i).bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 100
    assert pictures.evaluate_all("all => all.every(one => one.naturalWidth > 0)")
    assert [name in shown.locator(".group dl").inner_text() for name in NAMES] == [True] * 3
    assert inaccessible(shown) == []
    assert opened.console == [] and opened.asked_for == [page.as_uri()]
