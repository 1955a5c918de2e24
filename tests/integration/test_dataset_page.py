"""The page on a prepared dataset in a browser."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect
from support.made_dataset import labelled, write
from support.pages import cut_off, inaccessible, open_page, small_charts

from pipeline.reports.dataset.page import write_prep_report


def test_the_page_needs_nothing_but_itself_and_fits_a_phone(tmp_path: Path, browser: Browser) -> None:
    write_prep_report(write(labelled(), tmp_path))
    file = tmp_path / "report.html"
    opened = open_page(browser, file, width=390)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.eval_on_selector_all("img", "all => all.every(one => one.complete && one.naturalWidth > 0)")
    assert page.title() != "gone" and page.locator("h1").is_visible()
    assert cut_off(page) == [] and small_charts(page) == [] and inaccessible(page) == []
    page.click("nav a[href='#rejects']")
    expect(page.locator("#rejects")).to_be_in_viewport()
    assert opened.console == [] and opened.asked_for[0] == file.as_uri()
    assert not [url for url in opened.asked_for if not url.startswith(file.as_uri())]
    page.close()
