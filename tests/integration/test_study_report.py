"""The page of a study in a real browser: it draws, sorts and copies, and asks for nothing."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Browser
from support.pages import cut_off, inaccessible, open_page
from support.studies import FACTS, made_study

from pipeline.reports.study.page import write_study_report


def test_the_page_works_offline_in_a_browser(tmp_path: Path, browser: Browser) -> None:
    study = made_study(31)
    write_study_report(study, tmp_path / "report", FACTS)
    file = tmp_path / "report" / "report.html"
    opened = open_page(browser, file)
    page = opened.page
    for chart in ("history", "curves", "parallel", "slices", "importances"):
        page.wait_for_selector(f"[data-figure={chart}] svg.main-svg")
    assert page.title() == "fashionai-losses · study · AG-MAN"

    lr = {trial.number: trial.params["lr"] for trial in study.trials}
    shown = "all => all.map(row => +row.dataset.trial)"
    for reverse in (True, False):
        page.get_by_role("button", name="lr", exact=True).click()
        assert page.eval_on_selector_all("#trials tbody tr", shown) == sorted(lr, key=lr.__getitem__, reverse=reverse)
    for _ in range(2):  # either way round, trials that lack the setting go last
        page.get_by_role("button", name="kernel", exact=True).click()
        has = ["kernel" in study.trials[n].params for n in page.eval_on_selector_all("#trials tbody tr", shown)]
        assert has == sorted(has, reverse=True)

    page.locator("[data-copy]").click()
    page.get_by_role("button", name=re.compile("Copied|Selected")).wait_for()
    assert inaccessible(page) == []
    assert opened.console == [] and opened.asked_for == [file.as_uri()]
    # Even if a text became markup, the page's policy would let no other script run.
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'gone = 1'}))")
    assert page.evaluate("typeof gone") == "undefined" and opened.console
    assert cut_off(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.close()

    still = open_page(browser, file, java_script_enabled=False).page
    assert still.locator("noscript img").count() == 5 and still.locator("#trials tbody tr").count() == 32
    still.close()
