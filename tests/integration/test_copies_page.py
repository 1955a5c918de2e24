"""The page of `agman copies` in a browser: whole at every width, self-contained, and safe from the name of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, expect
from support.galleries import NAMES, add_prototypes, jpeg, make_gallery, unit
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


def test_the_same_photograph_is_apart_and_values_are_named(browser: Browser, tmp_path: Path) -> None:
    """Pictures 0 and 1 agree; 2 and 3 are one photograph; the model names what the first two agree in."""
    folder = make_gallery(tmp_path / "g", np.repeat(unit(2, 3, 8), 2, axis=0))
    add_prototypes(folder, {"collar": ("round", "square")}, 8)
    for row in range(4):
        (folder / f"{row:03d}.png").write_bytes(jpeg(min(row, 2)))
    gallery = Gallery.open(folder)
    file = write_copies(find_copies(gallery, 0.99), tmp_path / "out")
    page = open_page(browser, file).page
    for title, names in (("Pictures that agree", ["000", "001"]), ("The same photograph", ["002", "003"])):
        page.get_by_role("link", name=title).press("Enter")
        expect(page.locator(":target h2")).to_have_text(title)
        group = page.locator(":target .group")
        expect(group.locator("figcaption")).to_contain_text(names)
    namer = gallery.tagger.namers["collar"]  # type: ignore[union-attr]
    named = namer.values[int(namer.probabilities(torch.tensor(gallery.matrix(0)[:1])).argmax())]
    expect(page.locator(".group").first.locator(".trait").first).to_contain_text(f"collar {named}")
    assert inaccessible(page) == []


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
