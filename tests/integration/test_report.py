"""The report page, read in a real browser."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from playwright.sync_api import Browser
from support.pages import Opened, open_page
from support.s3_server import Bucket

import agman
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.prepare import prepare
from data_prep.storage import Storage
from data_prep.synthetic.samples import sample
from pipeline.config.schema import TrainConfig
from pipeline.evaluation.attention import measure
from pipeline.evaluation.evaluate import Evaluation, evaluate
from pipeline.reports.charts import MARKERS, heat_over
from pipeline.reports.model.confusion import shares
from pipeline.reports.model.embedding_map import FEW, flattened, grouped
from pipeline.reports.model.galleries import chosen
from pipeline.reports.model.neighbours import neighbours
from pipeline.reports.model.page import write_report
from pipeline.tracking import runs as tracking
from pipeline.tuning.tune import DONE, FAILED, PRUNED, StudyResult, Trial

STEPS = {"train/loss": 0.9, "train/loss_triplet": 0.2, "train/loss_class": 0.7, "valid/map": 0.31}


@dataclass
class Report:
    """A written page and what it was written from."""

    file: Path
    figures: dict[str, float]
    dataset: Dataset
    checkpoint: Path
    evaluation: Evaluation
    sweep: StudyResult


@pytest.fixture(scope="module")
def report(store: Path) -> Report:
    sample("fashionai", store / "sample", images=240, size=64)
    prepare("fashionai", store / "sample", store / "data", triplets=10, epochs=1, image_size=64)
    dataset = Dataset(store / "data")
    run = tracking.start_run(dataset.info, "training", {})
    for step in (10, 20, 30):
        run.log({name: value * (1 + 1 / step) for name, value in STEPS.items()}, step)
    checkpoint = _save_model(store / "model", dataset, run.run_id)
    network, description = agman.load_model(checkpoint)
    evaluation = evaluate(network, description, dataset, threads=1)
    sweep = _sweep(run)
    figures = write_report(str(checkpoint), dataset, store / "page.html", study=sweep, evaluation=evaluation)
    return Report(store / "page.html", figures, dataset, checkpoint, evaluation, sweep)


def _save_model(folder: Path, dataset: Dataset, run_id: str | None) -> Path:
    """An untrained model, described as pipeline.training.trainer.Training.save does."""
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


def _sweep(run: tracking.Run) -> StudyResult:
    trials = [
        Trial(0, {"margin": 0.2, "lr": 1e-4}, DONE, [(1, 0.2), (2, 0.3), (3, 0.35)]),
        Trial(1, {"margin": 0.5, "lr": 3e-3}, PRUNED, [(1, 0.1)]),
        Trial(2, {"margin": 0.3, "lr": 5e-4}, DONE, [(1, 0.3), (2, 0.5), (3, 0.45)]),
        Trial(3, {"margin": 0.1, "lr": 2e-4}, FAILED, []),
    ]
    return StudyResult(run, "margins", trials, trials[2], 61.0, Path("report.html"), None)


@pytest.fixture(scope="module")
def opened(report: Report, browser: Browser) -> Opened:
    return open_page(browser, report.file)


def test_the_page_needs_nothing_but_itself(report: Report, opened: Opened) -> None:
    assert opened.console == []
    assert opened.asked_for == [report.file.as_uri()]
    assert report.file.stat().st_size < 3_000_000
    assert [path.name for path in report.file.parent.iterdir() if "partial" in path.name] == []


def test_every_picture_is_there_and_has_a_text(opened: Opened) -> None:
    pictures = opened.page.eval_on_selector_all("img", "all => all.map(i => [i.alt, i.complete && i.naturalWidth > 0])")
    assert len(pictures) > 30
    assert all(alt and loaded for alt, loaded in pictures)


def test_the_headline_is_the_figure(report: Report, opened: Opened) -> None:
    assert report.figures == report.evaluation.metrics
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
    maps = len(report.evaluation.results)
    assert len(charts) == 5 + maps and all(charts)  # losses, MAP, trials, two settings
    page.close()


def test_photographs_and_a_model_without_a_run(report: Report, store: Path) -> None:
    folder = shutil.copytree(report.dataset.path, store / "photographs")
    (folder / "regions.parquet").unlink()
    photographs = Dataset(folder)
    model = _save_model(store / "stranger", photographs, run_id=None)
    write_report(str(model), photographs, store / "new" / "plain.html", evaluation=report.evaluation)
    html = (store / "new" / "plain.html").read_text(encoding="utf-8")
    assert "not photographs" not in html
    assert 'class="region"' not in html
    assert 'id="study"' not in html
    assert "names no run" in html


@pytest.fixture(scope="module")
def of_triplets(report: Report, store: Path) -> tuple[Path, Evaluation]:
    """The page on a dataset that gives triplets and no queries."""
    sample("zappos50k", store / "shoes", images=300, size=64)
    prepare("zappos50k", store / "shoes", store / "given", image_size=64)
    dataset = Dataset(store / "given")
    model = _save_model(store / "of-triplets", dataset, run_id=None)
    network, description = agman.load_model(model)
    evaluation = evaluate(network, description, dataset, threads=1)
    write_report(str(model), dataset, store / "triplets.html", evaluation=evaluation)
    return store / "triplets.html", evaluation


def test_a_dataset_of_given_triplets_has_a_page_of_them(of_triplets: tuple[Path, Evaluation], browser: Browser) -> None:
    file, evaluation = of_triplets
    opened = open_page(browser, file, width=390)
    page = opened.page
    assert opened.console == [] and opened.asked_for == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.text_content("#headline-accuracy") == f"{100 * evaluation.metrics['test/triplet_accuracy']:.2f}"
    assert page.eval_on_selector_all("nav a", "all => all.every(a => document.querySelector(a.getAttribute('href')))")
    pictures = page.eval_on_selector_all("img", "all => all.every(i => i.alt && i.complete && i.naturalWidth > 0)")
    assert pictures
    assert page.locator("[data-attention]").count() == len(evaluation.triplets)
    shown = [found.text_content() for found in page.locator("[data-triplets] figcaption span").all()]
    told = []
    for scores in evaluation.triplets.values():
        order = sorted(range(len(scores.loss)), key=lambda k: float(scores.different[k] - scores.similar[k]))
        for place in (order[0], order[len(order) // 2], order[-1]):
            told += [f"{float(scores.similar[place]):.3f}", f"{float(scores.different[place]):.3f}"]
    assert shown == told
    page.close()


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


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_neighbours_are_ranked_as_the_metric_ranks(chunk: int) -> None:
    torch.manual_seed(0)
    queries, candidates = torch.randn(5, 3), torch.randn(11, 3)
    candidates[7] = candidates[2]  # a tie
    scores, places = neighbours(queries, candidates, 4, chunk)
    similarity = agman.similarities(queries, candidates)
    order = similarity.sort(dim=1, descending=True, stable=True).indices[:, :4]
    assert torch.equal(places, order) and torch.equal(scores, similarity.gather(1, order))
    assert neighbours(queries, candidates, 99)[1].shape == (5, 11)


def test_confusion_is_counted_as_by_hand() -> None:
    asked, found = np.array([0, 2, 0]), np.array([[0, 1], [2, 2], [1, 1]])
    counted = np.zeros((4, 4))
    for value, neighbour_values in zip(asked, found, strict=True):
        for neighbour in neighbour_values:
            counted[value, neighbour] += 1
    expected = [[row / sum(of_value) if sum(of_value) else np.nan for row in of_value] for of_value in counted]
    np.testing.assert_array_equal(shares(asked, found, 4), expected)


def test_the_confusion_on_the_page_is_precision_at_ten(report: Report, opened: Opened) -> None:
    """Over all queries of an attribute, the framed shares come to P@10 (where missing candidates are misses)."""
    sections = opened.page.query_selector_all("[data-confusion]")
    assert [one.get_attribute("data-confusion") for one in sections] == list(report.evaluation.results)
    for section, result in zip(sections, report.evaluation.results.values(), strict=True):
        rows = section.query_selector_all("tbody tr:not(.summary)")
        counts = [int(row.query_selector_all("td")[-1].text_content()) for row in rows]
        own = [float(row.query_selector("td.own").text_content()) for row in rows]
        assert sum(counts) == len(result.relevant)
        mean = sum(n * share for n, share in zip(counts, own, strict=True)) / sum(counts)
        assert mean * min(10, result.candidates) / 10 == pytest.approx(
            100 * float(result.precision[10].mean()), abs=0.06
        )


def test_the_papers_table_has_the_interval(report: Report, opened: Opened) -> None:
    rows = [row.query_selector_all("td") for row in opened.page.query_selector_all("#paper-table tbody tr")]
    overall = report.evaluation.intervals[""]
    assert [row[-1].text_content() for row in rows[:3]] == [
        f"{100 * value:.2f}" for value in (overall.mean, overall.low, overall.high)
    ]
    assert all(len(row) == len(report.evaluation.results) + 1 for row in rows)


def test_a_map_is_the_same_every_time_and_keeps_groups_apart() -> None:
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((3, 20)) * 9
    points = (centres[np.arange(60) % 3] + generator.standard_normal((60, 20))).astype(np.float32)
    places = flattened(points)
    assert np.array_equal(places, flattened(points))
    nearest = np.linalg.norm(places[:, None] - places[None], axis=2).argsort(axis=1)[:, 1]
    assert (nearest % 3 == np.arange(60) % 3).all()
    for few in (0, 1, 2, 3, FEW - 1):
        assert flattened(points[:few]).shape == (few, 2)
    names = [f"value {number // 2}" for number in range(40)]
    assert len(set(grouped(names))) == len(MARKERS) and grouped(names[:8]) == names[:8]


CONTRAST = """() => {
  const channel = c => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4 };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const parse = text => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255] };
  const behind = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour[3] > 0.99) return colour;
    }
    return [255, 255, 255, 1];
  };
  const bad = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || element.closest(".hidden, style, script")) continue;
    texts += 1;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700);
    const [one, other] = [light(parse(style.color)), light(behind(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < (large ? 3 : 4.5)) bad.push([ratio.toFixed(2), walker.currentNode.textContent.trim().slice(0, 40)]);
  }
  return {texts, bad};
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(report: Report, browser: Browser, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.goto(report.file.as_uri())
    found = page.evaluate(CONTRAST)
    assert found["texts"] > 500 and found["bad"] == []
    page.close()


def test_links_lead_somewhere(opened: Opened) -> None:
    targets = opened.page.eval_on_selector_all("nav a", "all => all.map(a => a.getAttribute('href'))")
    assert len(targets) >= 7
    assert all(opened.page.locator(target).count() == 1 for target in targets)


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
