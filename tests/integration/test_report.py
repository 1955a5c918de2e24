"""The report page: read with a parser, and opened in a browser."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
import torch
from playwright.sync_api import Browser
from support.datasets import sample_here
from support.pages import cut_off, inaccessible, open_page, read_page, small_charts, text, texts, with_class
from support.s3_server import Bucket

import agman
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.prepare import prepare
from data_prep.storage import Storage
from pipeline.config.schema import TrainConfig
from pipeline.evaluation.evaluate import Evaluation, evaluate
from pipeline.evaluation.tagging import NamingScores, naming_metrics
from pipeline.reports.model.galleries import chosen
from pipeline.reports.model.page import write_report
from pipeline.tracking import runs as tracking
from pipeline.tuning.tune import DONE, FAILED, PRUNED, StudyResult, Trial

STEPS = {"train/loss": 0.9, "train/loss_triplet": 0.2, "train/loss_class": 0.7, "valid/map": 0.31}
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


@dataclass
class Report:
    """A written page and what it was written from."""

    file: Path
    figures: dict[str, float]
    dataset: Dataset
    checkpoint: Path
    evaluation: Evaluation


@pytest.fixture(scope="module")
def report(store: Path) -> Report:
    sample_here("fashionai", store / "sample", images=240, size=64)
    prepare("fashionai", store / "sample", store / "data", triplets=10, epochs=1, image_size=64)
    dataset = Dataset(store / "data")
    run = tracking.start_run(dataset.info, "training", {})
    for step in (10, 20, 30):
        run.log({name: value * (1 + 1 / step) for name, value in STEPS.items()}, step)
    checkpoint = _save_model(store / "model", dataset, run.run_id)
    network, description = agman.load_model(checkpoint)
    evaluation = evaluate(network, description, dataset, threads=1)
    figures = write_report(str(checkpoint), dataset, store / "page.html", study=_study(run), evaluation=evaluation)
    return Report(store / "page.html", figures, dataset, checkpoint, evaluation)


def _save_model(folder: Path, dataset: Dataset, run_id: str | None) -> Path:
    """Save an untrained model with the description that pipeline.training.trainer.Training.save writes."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = TrainConfig(backbone="tiny", embedding_dim=16)
    model = agman.build(n_attributes=len(dataset.info.attributes), backbone="tiny", embedding_dim=16)
    description = {
        "attributes": dataset.info.attribute_names,
        "image_size": dataset.info.image_size,
        "dataset": dataset.info.name,
        "dataset_digest": dataset.info.digest,
        "training": config.model_dump(),
        "run_id": run_id,
    }
    return agman.save_model(folder, model, description)


def _study(run: tracking.Run) -> StudyResult:
    trials = [
        Trial(0, {"margin": 0.2, "lr": 1e-4}, DONE, [(1, 0.2), (2, 0.3), (3, 0.35)]),
        Trial(1, {"margin": 0.5, "lr": 3e-3}, PRUNED, [(1, 0.1)]),
        Trial(2, {"margin": 0.3, "lr": 5e-4}, DONE, [(1, 0.3), (2, 0.5), (3, 0.45)]),
        Trial(3, {"margin": 0.1, "lr": 2e-4}, FAILED, []),
    ]
    return StudyResult(run, "margins", trials, trials[2], 0.22, 61.0, Path("report.html"), None)


@pytest.fixture(scope="module")
def page(report: Report) -> Element:
    return read_page(report.file)


@pytest.mark.parametrize(("name", "scheme"), [("report", "light"), ("report", "dark"), ("of_triplets", "light")])
def test_the_page_works_offline_on_a_phone_and_can_be_read(
    request: pytest.FixtureRequest, browser: Browser, name: str, scheme: str
) -> None:
    made = request.getfixturevalue(name)
    opened = open_page(browser, made.file, width=390, color_scheme=scheme)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.eval_on_selector_all("img", "all => all.every(i => i.alt && i.complete && i.naturalWidth > 0)")
    found = page.evaluate(CONTRAST)
    assert found["texts"] > 100 and found["bad"] == []
    assert cut_off(page) == [] and inaccessible(page) == []
    assert name == "of_triplets" or small_charts(page) == []  # triplets have no charts
    page.click("nav a[href='#attention']")
    assert opened.console == [] and {url.partition("#")[0] for url in opened.asked_for} == {made.file.as_uri()}
    page.close()


def test_the_file_is_small_and_complete(report: Report, page: Element) -> None:
    assert report.file.stat().st_size < 3_000_000
    assert [path.name for path in report.file.parent.iterdir() if "partial" in path.name] == []
    pictures = page.findall(".//img")
    assert len(pictures) > 30
    assert all(one.attrib["alt"] and one.attrib["src"].startswith("data:image/") for one in pictures)
    charts = [chart for chart in with_class(page, "chart") if chart.find("picture/source") is not None]
    assert len(charts) == 5 + len(report.evaluation.results)  # losses, MAP, trials, two settings; a map each


def test_the_headline_is_the_figure(report: Report, page: Element) -> None:
    assert report.figures == report.evaluation.metrics
    assert texts(page, ".//*[@id='headline-map']") == [f"{100 * report.figures['test/map']:.2f}"]
    (hero,), (tiles,) = with_class(page, "hero"), with_class(page, "tiles")
    assert f"{100 * report.figures['test/chance']:.2f}" in text(hero)
    assert f"{100 * report.figures['test/p_at_10']:.2f}" in text(tiles)
    assert "test/triplet_accuracy" not in report.figures, "no value has two test images, so there is no triplet"
    assert "triplet accuracy" not in text(tiles)


def test_the_table_has_a_row_for_every_attribute(report: Report, page: Element) -> None:
    table = page.find(".//table[@id='map-table']")
    assert table is not None
    rows = {row.attrib["data-attribute"]: texts(row, "td") for row in with_class(table, "of-attribute")}
    assert list(rows) == list(report.evaluation.results)
    for name, cells in rows.items():
        result = report.evaluation.results[name]
        assert cells[0] == f"{100 * report.figures[f'test/map/{name}']:.2f}"
        assert cells[3] == f"{100 * float(result.precision[1].mean()):.2f}"
        assert cells[-2] == f"{len(result.relevant)} (few)"
    assert len(with_class(table, "summary")) == 2


def test_galleries_show_ten_candidates_or_all(report: Report, page: Element) -> None:
    galleries = page.findall(".//*[@data-gallery]")
    assert [gallery.attrib["data-gallery"] for gallery in galleries] == list(report.evaluation.results)
    for gallery, result in zip(galleries, report.evaluation.results.values(), strict=True):
        for query in with_class(gallery, "query"):
            assert len(query.findall(".//li")) == min(10, result.candidates)


def test_galleries_mark_what_the_metric_counts_as_right(report: Report, page: Element) -> None:
    for name, result in report.evaluation.results.items():
        (gallery,) = page.findall(f".//*[@data-gallery='{name}']")
        places = chosen(result.average_precision, result.relevant).values()
        for query, place in zip(with_class(gallery, "query"), places, strict=True):
            ticks = [text(mark) for mark in with_class(query, "mark")].count("✓")
            assert ticks == round(10 * float(result.precision[10][place]))


def test_the_page_says_that_pictures_are_drawn_and_shows_their_regions(page: Element) -> None:
    header = text(page.find(".//header"))
    assert "not photographs" in header and "trained on another dataset" not in header
    assert len(with_class(page, "region")) == len(with_class(page, "framed")) > 0


def test_the_study_marks_its_best_trial(page: Element) -> None:
    rows = [row.split() for row in texts(page, ".//table[@id='trials']/tbody/tr")]
    assert rows[0] == ["2", "★", "best", "50.00", "0.3", "0.0005", "3", "done"]
    assert [row[0] for row in rows] == ["2", "0", "1", "3"]
    assert rows[-1][1] == "–"
    assert "chance is 22.00" in text(page.find(".//*[@id='trials-caption']"))


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
def of_triplets(report: Report, store: Path) -> Report:
    """The page on a dataset that gives triplets and no queries."""
    sample_here("zappos50k", store / "shoes", images=300, size=64)
    prepare("zappos50k", store / "shoes", store / "given", image_size=64)
    dataset = Dataset(store / "given")
    model = _save_model(store / "of-triplets", dataset, run_id=None)
    network, description = agman.load_model(model)
    evaluation = evaluate(network, description, dataset, threads=1)
    figures = write_report(str(model), dataset, store / "triplets.html", evaluation=evaluation)
    return Report(store / "triplets.html", figures, dataset, model, evaluation)


def test_a_dataset_of_given_triplets_has_a_page_of_them(of_triplets: Report) -> None:
    page, evaluation = read_page(of_triplets.file), of_triplets.evaluation
    accuracy = f"{100 * evaluation.metrics['test/triplet_accuracy']:.2f}"
    assert texts(page, ".//*[@id='headline-accuracy']") == [accuracy]
    names = [element.get("id") for element in page.iter()]
    assert all(link.attrib["href"].removeprefix("#") in names for link in page.findall(".//nav//a"))
    assert all(one.attrib["alt"] for one in page.findall(".//img"))
    assert len(page.findall(".//*[@data-attention]")) == len(evaluation.triplets)
    shown = texts(page, ".//*[@data-triplets]//figcaption/span")
    told = []
    for scores in evaluation.triplets.values():
        order = sorted(range(len(scores.loss)), key=lambda k: float(scores.different[k] - scores.similar[k]))
        for place in (order[0], order[len(order) // 2], order[-1]):
            told += [f"{float(scores.similar[place]):.3f}", f"{float(scores.different[place]):.3f}"]
    assert shown == told


def test_a_checkpoints_uri_is_shown_without_its_credentials(report: Report, store: Path, bucket: Bucket) -> None:
    uri = bucket.uri("model").replace("s3://", "s3://access:sesame@")
    for file in report.checkpoint.iterdir():
        (Storage(uri) / file.name).write_bytes(file.read_bytes())
    write_report(uri, report.dataset, store / "remote.html", evaluation=report.evaluation)
    html = (store / "remote.html").read_text(encoding="utf-8")
    assert "agman evaluate s3://bucket/model --data" in text(read_page(store / "remote.html"))
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


def test_the_confusion_on_the_page_is_precision_at_ten(report: Report, page: Element) -> None:
    """Over all queries of an attribute, the framed shares come to P@10 (where missing candidates are misses)."""
    sections = page.findall(".//*[@data-confusion]")
    assert [one.attrib["data-confusion"] for one in sections] == list(report.evaluation.results)
    for section, result in zip(sections, report.evaluation.results.values(), strict=True):
        rows = [row for row in section.findall(".//tbody/tr") if row.get("class") != "summary"]
        counts = [int(texts(row, "td")[-1]) for row in rows]
        own = [float(text(with_class(row, "own")[0])) for row in rows]
        assert sum(counts) == len(result.relevant)
        mean = sum(n * share for n, share in zip(counts, own, strict=True)) / sum(counts)
        assert mean * min(10, result.candidates) / 10 == pytest.approx(
            100 * float(result.precision[10].mean()), abs=0.06
        )


def test_the_papers_table_has_the_interval(report: Report, page: Element) -> None:
    rows = [texts(row, "td") for row in page.findall(".//table[@id='paper-table']/tbody/tr")]
    overall = report.evaluation.intervals[""]
    assert rows[3][-1] == f"{100 * report.figures['test/chance']:.2f}"
    assert [row[-1] for row in rows[:3]] == [
        f"{100 * value:.2f}" for value in (overall.mean, overall.low, overall.high)
    ]
    assert all(len(row) == len(report.evaluation.results) + 1 for row in rows)


def test_links_lead_somewhere(page: Element) -> None:
    targets = [link.attrib["href"].removeprefix("#") for link in page.findall(".//nav//a")]
    names = [element.get("id") for element in page.iter()]
    assert len(targets) >= 7 and all(names.count(target) == 1 for target in targets)


def test_the_attention_on_the_page_is_the_evaluations(report: Report, page: Element) -> None:
    said = "".join(page.find(".//*[@id='attention']").itertext())
    for name in ("mass", "hits", "area"):
        assert f"{100 * report.figures[f'test/attention_{name}']:.1f}\xa0%" in said
    assert f"{report.figures['test/attention_pairs']:.0f} test pairs" in said


def test_values_that_were_named_have_a_table_beside_chance(report: Report, page: Element, store: Path) -> None:
    assert page.find(".//table[@id='naming-table']") is None  # the model has no prototypes
    scores = {"skirt_length": NamingScores(120, 0.75, 0.5, 0.625, 0.03, float("nan"), 0.0, 0.8, 0.4)}
    metrics = {f"test/{name}": value for name, value in naming_metrics(scores).items()}
    named = replace(report.evaluation, naming=scores, metrics=report.evaluation.metrics | metrics)
    write_report(str(report.checkpoint), report.dataset, store / "named.html", evaluation=named)
    rows = read_page(store / "named.html").findall(".//table[@id='naming-table']/tbody/tr")
    assert [texts(row, "th")[0] for row in rows] == ["skirt length", "mean"]
    assert texts(rows[0], "td") == ["75.0", "50.0", "62.5", "3.0", "", "0.0", "80.0", "40.0", "120"]
