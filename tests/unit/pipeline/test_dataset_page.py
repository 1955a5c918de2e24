"""The page on a prepared dataset: every number is compared with plain loops over the tables."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from xml.etree.ElementTree import Element

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.made_dataset import COLOURS, SHAPES, Made, Pairs, jpeg, labelled, write
from support.pages import read_page, text, texts, with_class

from data_prep.annotation import REASONS
from data_prep.dataset import Dataset
from data_prep.packing import discard
from data_prep.tables import SPLITS, Attribute
from pipeline.cli.data import show_prepared
from pipeline.evaluation.expectations import expectations
from pipeline.reports.dataset import charts, contact_sheet
from pipeline.reports.dataset.page import PrepSummary, write_prep_report


@dataclass
class Report:
    """A written page and what it was written from."""

    dataset: Dataset
    summary: PrepSummary
    file: Path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("prepared")
    dataset = write(labelled(), folder)
    return Report(dataset, write_prep_report(dataset), folder / "report.html")


@pytest.fixture(scope="module")
def page(report: Report) -> Element:
    return read_page(report.file)


def table_of(report: Report, name: str) -> list[dict]:
    return pq.read_table(report.file.with_name(name)).to_pylist()


def cells(page: Element, table: str, key: str) -> dict[str, list[str]]:
    """Return the cells of the table's rows that have the attribute `key`, by its value."""
    return {row.attrib[key]: texts(row, "td") for row in page.findall(f".//table[{table}]/tbody/tr[@{key}]")}


def image_of(tile: Element) -> int:
    """Return the image index in the text of a tile's picture."""
    found = re.search(r"\d+", tile.findall(".//img")[0].attrib["alt"])
    assert found
    return int(found[0])


def mean_ap(relevant: int, candidates: int) -> float:
    """The mean of AP over every order of the candidates, written out."""
    if not relevant:
        return 0.0
    orders = combinations(range(1, candidates + 1), relevant)
    return fmean(sum((n + 1) / rank for n, rank in enumerate(ranks)) / relevant for ranks in orders)


def test_every_picture_has_a_text_and_is_inside_the_page(report: Report, page: Element) -> None:
    assert report.file.stat().st_size < 2_000_000
    pictures = page.findall(".//img")
    assert len(pictures) == 2 + 2 * contact_sheet.SHOWN
    assert all(one.attrib["alt"] and one.attrib["src"].startswith("data:image/") for one in pictures)
    sections = {element.get("id") for element in page.iter()}
    assert {link.attrib["href"].removeprefix("#") for link in page.findall(".//nav//a")} <= sections


def test_counts_per_split_are_those_of_the_tables(report: Report, page: Element) -> None:
    shown = cells(page, "@id='split-table'", "data-split")
    for split in SPLITS:
        counts = [
            sum(row["split"] == split for row in table_of(report, f"{name}.parquet")) for name in ("images", "labels")
        ]
        for role in ("query", "candidate"):
            rows = table_of(report, "retrieval.parquet")
            counts.append(sum(row["split"] == split and row["role"] == role for row in rows))
        triplets = report.file.parent / "triplets" / f"split={split}" / "epoch=0" / "part-00000.parquet"
        counts.append(len(pq.read_table(triplets)))
        assert shown[split] == [str(count) for count in counts]


def test_the_rows_that_came_in_are_accounted_for(report: Report, page: Element) -> None:
    labels = len(table_of(report, "labels.parquet"))
    rows_in = labels + 3 + 12
    equation = f"{rows_in} annotation rows = {labels} labels + 3 repeats of those labels + 12 rejects."
    assert text(page.find(".//*[@id='accounting']")) == equation


def test_charts_show_the_images_of_every_value(report: Report, page: Element) -> None:
    counts = Counter((row["attribute"], row["value"], row["split"]) for row in table_of(report, "labels.parquet"))
    (spread,) = with_class(page, "spread")
    shapes, tones = (chart.findall(".//img")[0].attrib["alt"] for chart in with_class(spread, "chart"))
    for value, name in enumerate(SHAPES.values):
        assert f"{name} " + ", ".join(f"{counts[0, value, split]} {split}" for split in SPLITS) in shapes

    train = {value: counts[1, value, "train"] for value in range(41) if counts[1, value, "train"]}
    falling = sorted(train, key=lambda value: (-train[value], value))
    assert f"{len(train)} values have any" in tones and f"has {train[falling[0]]} train images" in tones
    head, tail, notes = texts(spread.findall("article")[-1], "p")
    named = [f"tone {value} {train[value]}" for value in falling]
    assert head == "Head: " + ", ".join(named[:5])
    assert tail == "Tail: " + ", ".join(named[-5:])
    absent = [sum(not counts[1, value, split] for value in range(41)) for split in SPLITS]
    assert "Values without an image: " + ", ".join(f"{n} in {s}" for n, s in zip(absent, SPLITS, strict=True)) in notes


def test_values_too_rare_for_an_anchor(report: Report, page: Element) -> None:
    shown = cells(page, "@id='rare-table'", "data-attribute")
    having: dict[tuple, set[int]] = {}
    of_attribute: dict[tuple, set[int]] = {}
    for row in table_of(report, "labels.parquet"):
        having.setdefault((row["split"], row["attribute"], row["value"]), set()).add(row["image_id"])
        of_attribute.setdefault((row["split"], row["attribute"]), set()).add(row["image_id"])
    for number, attribute in enumerate(report.dataset.info.attributes):
        expected = [len(attribute.values)]
        for split in SPLITS:
            groups = [images for (s, a, _), images in having.items() if (s, a) == (split, number)]
            rare = [images for images in groups if len(images) < 2 or images == of_attribute[split, number]]
            expected += [len(groups), len(rare)]
        assert shown[attribute.name] == [str(count) for count in expected]


@pytest.mark.parametrize("split", ["valid", "test"])
def test_chance_and_ceiling_are_those_of_every_order_of_the_candidates(
    report: Report, page: Element, split: str
) -> None:
    shown = cells(page, f"@data-expected='{split}'", "data-attribute")
    over_all, macro = page.findall(f".//table[@data-expected='{split}']/tbody/tr[@class='summary']")
    rows = [row for row in table_of(report, "retrieval.parquet") if row["split"] == split]
    per_attribute = []
    for number, attribute in enumerate(report.dataset.info.attributes):
        queries, candidates = (
            [row["value"] for row in rows if row["attribute"] == number and row["role"] == role]
            for role in ("query", "candidate")
        )
        relevant = [candidates.count(value) for value in queries]
        chances = [mean_ap(r, len(candidates)) for r in relevant]
        per_attribute.append((chances, [float(r > 0) for r in relevant]))
        numbers = [len(queries), len(candidates), fmean(chances), relevant.count(0), fmean(r > 0 for r in relevant)]
        figures = [f"{100 * n:.2f}" if isinstance(n, float) else str(n) for n in numbers]
        assert shown[attribute.name] == [f"{figures[0]} (few)", *figures[1:]]
    for row, flat in ((over_all, True), (macro, False)):
        chance, ceiling = (
            fmean(n for of_attribute in lists for n in of_attribute) if flat else fmean(map(fmean, lists))
            for lists in zip(*per_attribute, strict=True)
        )
        shown_cells = texts(row, "td")
        assert (shown_cells[2], shown_cells[4]) == (f"{100 * chance:.2f}", f"{100 * ceiling:.2f}")
        assert 0 < chance < ceiling <= 1


def test_chance_and_ceiling_by_hand(tmp_path: Path) -> None:
    # Three candidates round, round, square; one query is round, the other odd. Two relevant ones of three can stand
    # at ranks 1 2 (AP 1), 1 3 (AP 5/6) or 2 3 (AP 7/12).
    pairs: Pairs = [("test", "candidate", i, 0, value) for i, value in enumerate((0, 0, 1))]
    pairs += [("test", "query", 3, 0, 0), ("test", "query", 4, 0, 2)]
    labels = [(i, attribute, value) for _, _, i, attribute, value in pairs]
    dataset = write(Made(dict.fromkeys(range(5), "test"), labels=labels, pairs=pairs), tmp_path)
    found = expectations(dataset, "test")
    assert found and [one.name for one in found.attributes] == ["shape_of_it"] and found.unasked == ["tone"]
    assert found.over_all.chance == pytest.approx((1 + 5 / 6 + 7 / 12) / 3 / 2)
    assert found.over_all.ceiling == found.macro.ceiling == 0.5
    assert expectations(dataset, "valid") is None
    assert write_prep_report(dataset).expected == {"test": found}


def test_hostile_details_are_text(report: Report, page: Element) -> None:
    cards = {card.attrib["data-reason"]: card for card in with_class(page, "reason")}
    assert list(cards) == ["missing_image", "not_in_split", "bad_line"]
    for reason, count in (("missing_image", 9), ("bad_line", 1), ("not_in_split", 2)):
        card = cards[reason]
        assert text(card.find("h3")) == f"{count} {reason}"
        assert REASONS[reason] in text(card.find("p"))
        assert len(card.findall("ul/li")) == min(5, count)
    detail = texts(cards["missing_image"], "ul/li/code")[0]
    assert detail.startswith("<script>document.title='gone'</script><img src=x")
    assert detail.endswith("\\x1b[31m\\x00\\u202e{{ 7*7 }} \ufffd&amp;")
    html = report.file.read_text(encoding="utf-8")
    assert "<script" not in html and not set("\x1b\x00\u202e") & set(html)
    assert "no damage" in text(cards["not_in_split"])
    assert "line 1,000" in texts(cards["missing_image"], "ul/li")[0]


def test_the_contact_sheet_shows_pictures_of_the_values_it_names(report: Report, page: Element) -> None:
    labels = {(row["image_id"], row["attribute"], row["value"]) for row in table_of(report, "labels.parquet")}
    for number, attribute in enumerate(report.dataset.info.attributes):
        tiles = page.findall(f".//*[@data-strip='{attribute.name}']//li")
        assert len(tiles) == contact_sheet.SHOWN
        for tile in tiles:
            value = attribute.values.index(text(tile.find(".//figcaption")))
            image_id = image_of(tile)
            assert (image_id, number, value) in labels and report.dataset.images["split"][image_id] == "train"


def test_the_contact_sheet_reads_few_pictures(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, read = Dataset(report.dataset.path), []
    packed = dataset.packed
    monkeypatch.setattr(dataset, "packed", lambda split: (read.append(len(group)) or group for group in packed(split)))
    sheet = contact_sheet.contact_sheet(dataset)
    assert [len(strip.tiles) for strip in sheet] == [6, 6]
    assert sum(read) == 8  # two row groups of four, of the split's forty


def test_what_the_model_does_not_see_is_faded() -> None:
    shown = contact_sheet._marked(jpeg(0), "crop").astype(int)
    assert shown.shape == (48, 32, 3)
    assert abs(shown[2] - 255).min() > 60 and abs(shown[45] - COLOURS[0]).max() > 60  # above and below the square
    assert abs(shown[10] - 255).max() < 12 and abs(shown[30] - COLOURS[0]).max() < 25


def test_the_terminal_has_the_figures(report: Report, capfd: pytest.CaptureFixture) -> None:
    figures = show_prepared(report.summary, report.dataset.path)
    said = "".join(capfd.readouterr())
    expected = expectations(report.dataset, "test")
    assert expected
    assert figures["chance/test"] == expected.over_all.chance and figures["ceiling/test"] == expected.over_all.ceiling
    assert {"chance/valid", "ceiling/valid", "rows_in", "labels", "repeats", "rejects", "digest"} <= set(figures)
    assert figures["report"] == str(report.file) and f"page: {report.file}" in said
    assert f"{expected.attributes[1].chance:.4f}" in said
    assert said.count("e.g. list <script>") == 3 and "\x1b[31m" not in said and "\\x1b[31m" in said
    assert "note: train: " in said and "tone 0" not in said


def test_a_dataset_without_rejects_and_without_queries(tmp_path: Path) -> None:
    made = labelled()
    made.rejects, made.pairs, made.repeats = [], [], 0
    summary = write_prep_report(write(made, tmp_path))
    page = read_page(tmp_path / "report.html")
    said = text(page.find(".//main"))
    assert "None: every annotation row was taken" in said and "no queries and candidates" in said
    assert page.find(".//*[@id='expected']") is None
    assert not [name for name in show_prepared(summary, tmp_path) if name.startswith(("chance", "ceiling"))]


def test_given_triplets(tmp_path: Path) -> None:
    heel, closure = (Attribute(name=name, values=()) for name in ("heel", "closure"))
    images = {i: "train" if i < 20 else "test" for i in range(30)}
    triplets = {"train": [(i, i + 1, i + 2, i % 3 // 2) for i in range(12)], "test": [(20, 21, 22, 1)]}
    made = Made(images, (heel, closure), triplets=triplets, given=13, repeats=0, rejects=[("a", 1, "no_label", "b")])
    summary = write_prep_report(write(made, tmp_path))
    assert summary.contents.accounting == "14 annotation rows = 13 triplets + 1 reject"
    page = read_page(tmp_path / "report.html")
    alt = with_class(page, "chart")[0].findall(".//img")[0].attrib["alt"]
    assert "heel 8 train, 0 test; closure 4 train, 1 test" in alt
    for number, name in enumerate(("heel", "closure")):
        tiles = page.findall(f".//*[@data-strip='{name}']//li")
        shown = [image_of(tile) for tile in tiles]
        assert [text(tile) for tile in tiles] == ["anchor", "positive", "negative"] * 2
        assert all((*shown[i : i + 3], number) in triplets["train"] for i in (0, 3))
    show_prepared(summary, tmp_path)


def test_the_same_dataset_gives_the_same_page_at_a_uri_too(report: Report) -> None:
    first = report.file.read_bytes()
    assert write_prep_report(Dataset(report.dataset.path)).page.read_bytes() == first
    dataset = write(labelled(), "memory://prep-report/data")
    summary = write_prep_report(dataset)
    assert (dataset.storage / "report.html").read_bytes() == first
    assert str(summary.page) == "memory://prep-report/data/report.html"
    discard(dataset.storage)
    assert dataset.storage.files() == {}


def test_half_of_the_labels() -> None:
    counts = charts.ValueCounts("a", ("x", "y", "z"), {"train": np.array([1, 5, 4])}, {"train": np.array([0, 5, 4])})
    assert counts.half("train") == 1 and counts.seen("train") == 3 and counts.too_rare("train") == 1
    counts.images["train"][1] = 4
    assert counts.half("train") == 2
