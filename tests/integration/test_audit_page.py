"""The page of `agman audit` in a browser: decided by keyboard, and its file back through `agman prep`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from support.audited import TWIN, WRONG, draw_catalogue, drawn_colour, prepare_catalogue, seeing_model
from support.pages import cut_off, inaccessible, open_page

from data_prep.corrections import COLUMNS
from data_prep.dataset import Dataset
from pipeline.evaluation.audit import audit
from pipeline.reports.audit import write_audit


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_catalogue(tmp_path_factory.mktemp("audited") / "catalogue")


@pytest.fixture(scope="module")
def spoiled(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare_catalogue(catalogue, tmp_path_factory.mktemp("prepared") / "data")


@pytest.fixture(scope="module")
def file(spoiled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = audit(*seeing_model(["colour"]), spoiled, threads=1)
    return write_audit(found, "a model", tmp_path_factory.mktemp("page") / "audit").page


def shown(page: Page) -> str:
    """Return the path of the picture of the only finding that is visible."""
    visible = page.locator(".finding:visible")
    expect(visible).to_have_count(1)
    return visible.locator("> figure figcaption").inner_text().split(" · ")[0]


def downloaded(page: Page, to: Path) -> list[list[str]]:
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "shop-corrections.csv"
    download.value.save_as(to)
    with to.open(newline="") as opened:
        header, *rows = csv.reader(opened)
    assert tuple(header) == COLUMNS
    return rows


def test_labels_are_decided_by_keyboard_and_the_file_corrects_the_dataset(
    file: Path, spoiled: Dataset, catalogue: Path, browser: Browser, tmp_path: Path
) -> None:
    opened = open_page(browser, file)
    page = opened.page
    expect(page.locator("#undo")).to_be_disabled()
    expect(page.locator("#download")).to_be_disabled()
    status = page.locator("#status")
    decided: dict[str, tuple[str, str]] = {}
    assert shown(page) == TWIN[1]
    page.keyboard.press("c")
    decided[TWIN[1]] = ("change", drawn_colour(20))
    expect(status).to_contain_text(f"green: changed to {drawn_colour(20)}. 2 of")
    second = shown(page)
    page.keyboard.press("d")
    page.keyboard.press("u")
    expect(status).to_contain_text("Undone. 2 of")
    assert shown(page) == second
    page.keyboard.press("ArrowRight")
    third = shown(page)
    page.keyboard.press("d")
    decided[third] = ("drop", "")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert shown(page) == second
    other = next(one for one in ("red", "green") if one not in (WRONG.get(second), drawn_colour(int(second[:2]))))
    page.select_option("#value", other)
    page.click("#change")
    decided[second] = ("change", other)
    fourth = shown(page)
    page.focus("#value")
    page.keyboard.press("k")  # letters choose a value there
    assert shown(page) == fourth
    page.locator("#value").blur()
    page.keyboard.press("Control+k")
    page.keyboard.press("k")
    decided[fourth] = ("keep", "")
    expect(status).to_contain_text("1 kept, 2 changed, 1 dropped.")
    page.reload()
    expect(status).to_contain_text("1 kept, 2 changed, 1 dropped.")
    assert shown(page) not in decided
    rows = downloaded(page, tmp_path / "corrections.csv")
    assert {row[2]: (row[5], row[6]) for row in rows} == decided
    assert {(row[0], row[1], row[3]) for row in rows} == {("shop", spoiled.info.labels_digest, "colour")}
    corrected = prepare_catalogue(catalogue, tmp_path / "data", [tmp_path / "corrections.csv"])
    assert corrected.info.corrections == {"keep": 1, "change": 2, "drop": 1}
    assert opened.console == [] and not [url for url in opened.asked_for if not url.startswith(file.as_uri())]
    page.close()


def test_a_finding_without_a_suggestion_needs_a_chosen_value(file: Path, browser: Browser) -> None:
    page = open_page(browser, file).page
    while page.locator("#next").is_enabled():
        page.click("#next")
    expect(page.locator(".finding:visible h3")).to_have_text("Like no other picture")
    page.keyboard.press("c")
    expect(page.locator("#status")).to_contain_text("Choose the new value first.")
    expect(page.locator("#value")).to_be_focused()
    expect(page.locator("#download")).to_be_disabled()
    page.close()


def test_the_page_works_without_storage_and_says_so(file: Path, browser: Browser, tmp_path: Path) -> None:
    context = browser.new_context()
    context.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('none'); } })")
    page = context.new_page()
    page.goto(file.as_uri())
    page.keyboard.press("d")
    page.keyboard.press("k")
    expect(page.locator("#status")).to_contain_text("1 kept, 0 changed, 1 dropped. This browser does not keep them")
    assert [row[5] for row in downloaded(page, tmp_path / "c.csv")] == ["drop", "keep"]
    context.close()


def test_the_page_fits_a_phone_and_its_pictures_and_buttons_have_names(file: Path, browser: Browser) -> None:
    opened = open_page(browser, file, width=390)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.eval_on_selector_all("img", "all => all.every(one => one.alt)")
    for name in ("Previous finding", "Next finding", "Keep", "Change to", "Drop", "Undo", "Download corrections"):
        button = page.get_by_role("button", name=name)
        expect(button).to_be_visible()
        assert button.evaluate("one => one.clientHeight") >= 40
    assert page.locator("b").count() == 0, "a value's name was taken for HTML"
    assert cut_off(page) == [] and inaccessible(page) == []
    assert opened.console == []
    page.close()
