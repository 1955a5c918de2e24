"""The report page, read in a real browser."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from playwright.sync_api import Browser, Page
from s3_server import Bucket

import agman
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.prepare import prepare
from data_prep.samples import sample
from data_prep.storage import Storage
from pipeline import tracking
from pipeline.config import TrainConfig
from pipeline.evaluation import Evaluation, evaluate
from pipeline.looking import measure
from pipeline.report.figures import heat_over
from pipeline.report.galleries import chosen, ranked
from pipeline.report.page import write_report
from pipeline.tuning import DONE, FAILED, PRUNED, Sweep, Trial

STEPS = {"train/loss": 0.9, "train/loss_triplet": 0.2, "train/loss_class": 0.7, "valid/map": 0.31}


@dataclass
class Report:
    """A written page and what it was written from."""

    file: Path
    figures: dict[str, float]
    dataset: Dataset
    checkpoint: Path
    evaluation: Evaluation
    sweep: Sweep


@dataclass
class Opened:
    """A page in the browser and what it said and asked for while loading."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def report(store: Path) -> Report:
    sample("fashionai", store / "sample", images=240, size=64)
    prepare("fashionai", store / "sample", store / "data", triplets=10, epochs=1, image_size=64)
    dataset = Dataset(store / "data")
    run = tracking.start(dataset.info, "training", {})
    for step in (10, 20, 30):
        run.log({name: value * (1 + 1 / step) for name, value in STEPS.items()}, step)
    checkpoint = _save_model(store / "model", dataset, run.run_id)
    network, description = agman.load_model(checkpoint)
    evaluation = evaluate(network, description, dataset, threads=1)
    sweep = _sweep(run)
    figures = write_report(str(checkpoint), dataset, store / "page.html", sweep=sweep, evaluation=evaluation)
    return Report(store / "page.html", figures, dataset, checkpoint, evaluation, sweep)


def _save_model(folder: Path, dataset: Dataset, run_id: str | None) -> Path:
    """An untrained model, described as pipeline.loop.Training.save does."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = TrainConfig(backbone="resnet18", embedding_dim=16)
    model = agman.build(n_attributes=len(dataset.info.attributes), backbone="resnet18", embedding_dim=16)
    description = {
        "attributes": dataset.info.attribute_names,
        "image_size": dataset.info.image_size,
        "dataset": dataset.info.name,
        "dataset_digest": dataset.info.digest,
        "training": config.model_dump(),
        "run_id": run_id,
    }
    return agman.save_model(folder, model, description)


def _sweep(run: tracking.Run) -> Sweep:
    trials = [
        Trial(0, {"margin": 0.2, "lr": 1e-4}, DONE, [(1, 0.2), (2, 0.3), (3, 0.35)]),
        Trial(1, {"margin": 0.5, "lr": 3e-3}, PRUNED, [(1, 0.1)]),
        Trial(2, {"margin": 0.3, "lr": 5e-4}, DONE, [(1, 0.3), (2, 0.5), (3, 0.45)]),
        Trial(3, {"margin": 0.1, "lr": 2e-4}, FAILED, []),
    ]
    return Sweep(run, "margins", trials, trials[2], 61.0, Path("report.html"), None)


@pytest.fixture(scope="module")
def opened(report: Report, browser: Browser) -> Opened:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    opened = Opened(page)
    page.on("console", lambda message: opened.console.append(message.text))
    page.on("pageerror", lambda error: opened.console.append(str(error)))
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(report.file.as_uri(), wait_until="load")
    return opened


def test_the_page_needs_nothing_but_itself(report: Report, opened: Opened) -> None:
    assert opened.console == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [report.file.as_uri()]
    assert report.file.stat().st_size < 3_000_000
    assert [path.name for path in report.file.parent.iterdir() if "partial" in path.name] == []


def test_every_picture_is_there_and_has_a_text(opened: Opened) -> None:
    pictures = opened.page.eval_on_selector_all("img", "all => all.map(i => [i.alt, i.complete && i.naturalWidth > 0])")
    assert len(pictures) > 30
    assert all(alt and loaded for alt, loaded in pictures)


def test_the_headline_is_the_figure(report: Report, opened: Opened) -> None:
    assert report.figures == report.evaluation.figures
    assert opened.page.text_content("#headline-map") == f"{100 * report.figures['test/map']:.2f}"
    assert f"{100 * report.figures['test/chance']:.2f}" in opened.page.text_content(".hero")
    assert f"{100 * report.figures['test/p_at_10']:.2f}" in opened.page.text_content(".tiles")
    assert "test/triplet_accuracy" not in report.figures, "no value has two test images, so there is no triplet"
    assert "triplet accuracy" not in opened.page.text_content(".tiles")


def test_the_table_has_a_row_for_every_attribute(report: Report, opened: Opened) -> None:
    rows = {
        row.get_attribute("data-attribute"): row.query_selector_all("td")
        for row in opened.page.query_selector_all("#map-table tr.of-attribute")
    }
    assert list(rows) == list(report.evaluation.results)
    for name, cells in rows.items():
        result = report.evaluation.results[name]
        assert cells[0].text_content() == f"{100 * report.figures[f'test/map/{name}']:.2f}"
        assert cells[3].text_content() == f"{100 * float(result.precision[1].mean()):.2f}"
        assert cells[-2].text_content() == str(len(result.relevant))
    assert opened.page.locator("#map-table tr.summary").count() == 2


def test_galleries_show_ten_candidates_or_all(report: Report, opened: Opened) -> None:
    galleries = opened.page.query_selector_all("[data-gallery]")
    assert [gallery.get_attribute("data-gallery") for gallery in galleries] == list(report.evaluation.results)
    for gallery, result in zip(galleries, report.evaluation.results.values(), strict=True):
        for query in gallery.query_selector_all(".query"):
            assert len(query.query_selector_all(".found li")) == min(10, result.candidates)


def test_galleries_mark_what_the_metric_counts_as_right(report: Report, opened: Opened) -> None:
    for name, result in report.evaluation.results.items():
        queries = opened.page.query_selector_all(f"[data-gallery={name}] .query")
        places = chosen(result.average_precision, result.relevant).values()
        for query, place in zip(queries, places, strict=True):
            ticks = [mark.text_content() for mark in query.query_selector_all(".mark")].count("✓")
            assert ticks == round(10 * float(result.precision[10][place]))


def test_the_page_says_that_pictures_are_drawn_and_shows_their_regions(opened: Opened) -> None:
    assert "not photographs" in opened.page.text_content("header")
    assert "trained on another dataset" not in opened.page.text_content("header")
    assert opened.page.locator(".region").count() == opened.page.locator(".framed").count() > 0


def test_the_search_marks_its_best_trial(opened: Opened) -> None:
    rows = [row.text_content().split() for row in opened.page.query_selector_all("#trials tbody tr")]
    assert rows[0] == ["2", "★", "best", "50.00", "0.3", "0.0005", "3", "done"]
    assert [row[0] for row in rows] == ["2", "0", "1", "3"]
    assert rows[-1][1] == "–"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_on_a_phone(report: Report, browser: Browser, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.goto(report.file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    charts = page.eval_on_selector_all(".chart img", "all => all.map(i => i.naturalWidth > 0)")
    assert len(charts) == 5 and all(charts)  # losses, MAP, trials, two settings
    page.close()


def test_photographs_and_a_model_without_a_run(report: Report, store: Path) -> None:
    photographs = Dataset(report.dataset.path)
    photographs.regions = None
    model = _save_model(store / "stranger", photographs, run_id=None)
    write_report(str(model), photographs, store / "new" / "plain.html", evaluation=report.evaluation)
    html = (store / "new" / "plain.html").read_text(encoding="utf-8")
    assert "not photographs" not in html
    assert 'class="region"' not in html
    assert 'id="search"' not in html
    assert "names no run" in html


def test_a_checkpoints_uri_is_shown_without_its_credentials(report: Report, store: Path, bucket: Bucket) -> None:
    uri = bucket.uri("model").replace("s3://", "s3://access:sesame@")
    for file in report.checkpoint.iterdir():
        (Storage(uri) / file.name).write_bytes(file.read_bytes())
    write_report(uri, report.dataset, store / "remote.html", evaluation=report.evaluation)
    html = (store / "remote.html").read_text(encoding="utf-8")
    assert "agman evaluate s3://bucket/model --data" in html
    assert "sesame" not in html and "endpoint_override" not in html


def test_names_are_escaped(report: Report, store: Path) -> None:
    name = "<script>alert(1)</script>"
    dataset = Dataset(report.dataset.path)
    dataset.info = dataset.info.model_copy(update={"name": name})
    write_report(str(report.checkpoint), dataset, store / "odd.html", evaluation=report.evaluation)
    assert name not in (store / "odd.html").read_text(encoding="utf-8")


def test_a_folder_is_no_page(report: Report, store: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        write_report(str(report.checkpoint), report.dataset, store)


def test_chosen_queries() -> None:
    precision = torch.tensor([0.5, 0.0, 0.9, 0.9, 0.1, 0.3])
    relevant = torch.tensor([2, 0, 1, 1, 1, 1])
    assert chosen(precision, relevant) == {"best": 2, "typical": 0, "worst": 4}
    assert chosen(precision[:1], relevant[:1]) == {"best": 0}
    assert chosen(precision[4:], relevant[4:]) == {"best": 1, "worst": 0}
    assert chosen(precision[1:2], relevant[1:2]) == {"best": 0}


def test_ranking_is_that_of_the_metric() -> None:
    torch.manual_seed(0)
    query, candidates = torch.randn(5), torch.randn(7, 5)
    values = torch.tensor([0, 1, 0, 0, 1, 1, 0])
    _, order = ranked(query, candidates)
    scored = agman.retrieval(query[None], candidates, torch.tensor([1]), values, ks=(3,))
    assert float((values[order[:3]] == 1).double().mean()) == float(scored.precision[3][0])


def test_the_attention_on_the_page_is_the_evaluations(report: Report, opened: Opened) -> None:
    said = opened.page.text_content("#attention")
    for name in ("mass", "hits", "area"):
        assert f"{100 * report.figures[f'test/attention_{name}']:.1f}\xa0%" in said
    assert f"{report.figures['test/attention_pairs']:.0f} test pairs" in said


def test_share_of_even_attention_is_the_area() -> None:
    pairs = pd.DataFrame({"attribute": [0], "x0": 0.25, "y0": 0.0, "x1": 0.75, "y1": 0.55})
    even = measure(torch.full((1, 2, 2), 1 / 4), pairs)
    assert even[["mass", "area"]].iloc[0].tolist() == pytest.approx([0.275] * 2)
    corner = torch.zeros(1, 8, 8)
    corner[0, 7, 7] = 1
    assert measure(corner, pairs)[["mass", "hits"]].to_numpy().tolist() == [[0, 0]]


def test_heat_leaves_the_cold_picture_visible() -> None:
    picture = np.full((4, 4, 3), 200, np.uint8)
    heat = np.zeros((4, 4))
    heat[0, 0] = 1
    shown = heat_over(picture, heat)
    assert abs(shown[1:].astype(int) - 160).max() <= 1  # four fifths of the grey
    assert shown[0, 0, 0] > shown[0, 0, 2]  # yellow
