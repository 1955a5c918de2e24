"""The page on a prepared dataset: every number against plain loops over the tables, and in a real browser."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page
from support.pages import Opened, open_page

from data_prep import tables
from data_prep.annotation import REASONS
from data_prep.dataset import Dataset
from data_prep.packing import discard
from data_prep.storage import Storage
from data_prep.tables import SPLITS, Attribute, DatasetInfo, write_table
from pipeline.cli.data import show_prepared
from pipeline.reports.dataset import charts, contact_sheet
from pipeline.reports.dataset.expectations import expectations
from pipeline.reports.dataset.page import PrepSummary, write_prep_report

COLOURS = [(200, 30, 30), (30, 160, 30), (40, 60, 200)]
HOSTILE = "<script>document.title='gone'</script><img src=x onerror=alert(1)>\x1b[31m\x00\u202e{{ 7*7 }} \ufffd&amp;"
SHAPES = Attribute(name="shape_of_it", values=("round", "square", "<i>odd</i> $x{", "unseen"))
TONES = Attribute(name="tone", values=tuple(f"tone {n}" for n in range(41)))
PAIRS = list[tuple[str, str, int, int, int]]


def jpeg(image_id: int) -> bytes:
    """Upright, 32×48: its top third white, the rest in a colour of its own."""
    image = Image.new("RGB", (32, 48), COLOURS[image_id % 3])
    image.paste("white", (0, 0, 32, 16))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


@dataclass
class Made:
    """The rows of a dataset to write."""

    images: dict[int, str]
    """Image -> split."""
    attributes: tuple[Attribute, ...] = (SHAPES, TONES)
    labels: list[tuple[int, int, int]] = field(default_factory=list)
    """Image, attribute, value."""
    pairs: PAIRS = field(default_factory=list)
    """Split, role, image, attribute, value."""
    rejects: list[tuple[str, int, str, str]] = field(default_factory=list)
    triplets: dict[str, list[tuple[int, int, int, int]]] = field(default_factory=dict)
    given: int = 0
    repeats: int = 3


def write(made: Made, where: str | Path, row_group_size: int = 4) -> Dataset:
    out = Storage(where)
    ids = list(made.images)

    def rows(name: str, schema: pa.Schema, lines: list[tuple]) -> None:
        columns = list(zip(*lines, strict=True)) or [()] * len(schema)
        write_table(out / name, dict(zip(schema.names, map(list, columns), strict=True)), schema)

    rows("images.parquet", tables.IMAGES, [(i, f"{i}.jpg", made.images[i], 32, 48) for i in ids])
    rows("labels.parquet", tables.LABELS, [(*label, made.images[label[0]]) for label in made.labels])
    rows("retrieval.parquet", tables.RETRIEVAL, made.pairs)
    rows("rejects.parquet", tables.REJECTS, made.rejects)
    for split in set(made.images.values()):
        rows(f"triplets/split={split}/epoch=0/part-00000.parquet", tables.TRIPLETS, made.triplets.get(split, []))
        packed = [i for i in ids if made.images[i] == split]
        columns = {"image_id": packed, "jpeg": [jpeg(i) for i in packed]}
        columns |= {"width": [32] * len(packed), "height": [48] * len(packed)}
        file = out / f"packed/split={split}/part-00000.parquet"
        write_table(file, columns, tables.PACKED, row_group_size=row_group_size)
    per_split = Counter(made.images.values())
    roles = Counter((split, role) for split, role, *_ in made.pairs)
    info = DatasetInfo(
        schema_version=tables.SCHEMA_VERSION,
        name="made",
        layout="darn",
        attributes=made.attributes,
        image_size=32,
        seed=7,
        images={split: per_split[split] for split in SPLITS},
        queries={split: roles[split, "query"] for split in SPLITS},
        candidates={split: roles[split, "candidate"] for split in SPLITS},
        triplets=len(made.triplets.get("train", [])),
        triplet_epochs=1,
        rows_in=len(made.labels) + made.given + made.repeats + len(made.rejects),
        repeats=made.repeats,
        given_triplets=made.given,
        rejects=dict(Counter(reject[2] for reject in made.rejects).most_common()),
        digest="ab" * 32,
        versions={"python": "3.99"},
    )
    (out / tables.DESCRIPTION).write_bytes(info.model_dump_json().encode())
    return Dataset(where)


def labelled() -> Made:
    """60 images of two attributes, the second with a long tail; queries and candidates in valid and test."""
    rng = np.random.default_rng(3)
    images = {i: "train" if i < 40 else "valid" if i < 48 else "test" for i in range(60)}
    labels = [(i, 0, int(rng.integers(3))) for i in images]
    labels += [(i, 1, int(40 * rng.random() ** 4)) for i in images]
    labels += [(41, 1, 40), (59, 0, 2)] if (59, 0, 2) not in labels else [(41, 1, 40)]
    pairs = [
        (images[i], "query" if i % 3 == 0 else "candidate", i, attribute, value)
        for i, attribute, value in labels
        if images[i] != "train"
    ]
    reasons = ["missing_image"] * 9 + ["bad_line"] + ["not_in_split"] * 2
    rejects = [(f"list {HOSTILE}.txt", 1000 + i, reason, HOSTILE) for i, reason in enumerate(reasons)]
    triplets = {"train": [(0, 1, 2, 0), (3, 4, 5, 1)], "valid": [(40, 41, 42, 0)], "test": [(50, 51, 52, 1)]}
    return Made(images, labels=labels, pairs=pairs, rejects=rejects, triplets=triplets)


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
def opened(report: Report, browser: Browser) -> Opened:
    return open_page(browser, report.file)


def table_of(report: Report, name: str) -> list[dict]:
    return pq.read_table(report.file.with_name(name)).to_pylist()


def cells(page: Page, rows: str, key: str) -> dict[str, list[str]]:
    found = page.query_selector_all(rows)
    return {row.get_attribute(key): [cell.text_content() for cell in row.query_selector_all("td")] for row in found}


def mean_ap(relevant: int, candidates: int) -> float:
    """The mean of AP over every order of the candidates, written out."""
    if not relevant:
        return 0.0
    orders = combinations(range(1, candidates + 1), relevant)
    return fmean(sum((n + 1) / rank for n, rank in enumerate(ranks)) / relevant for ranks in orders)


def test_the_page_needs_nothing_but_itself(report: Report, opened: Opened) -> None:
    assert opened.console == []
    assert opened.asked_for == [report.file.as_uri()]
    assert report.file.stat().st_size < 2_000_000
    pictures = opened.page.eval_on_selector_all("img", "all => all.map(i => [i.alt, i.complete && i.naturalWidth > 0])")
    assert len(pictures) == 2 + 2 * contact_sheet.SHOWN
    assert all(alt and loaded for alt, loaded in pictures)


def test_counts_per_split_are_those_of_the_tables(report: Report, opened: Opened) -> None:
    shown = cells(opened.page, "#split-table tbody tr", "data-split")
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


def test_the_rows_that_came_in_are_accounted_for(report: Report, opened: Opened) -> None:
    labels = len(table_of(report, "labels.parquet"))
    rows_in = labels + 3 + 12
    equation = f"{rows_in} annotation rows = {labels} labels + 3 repeats of those labels + 12 rejects."
    assert opened.page.text_content("#accounting") == equation


def test_charts_show_the_images_of_every_value(report: Report, opened: Opened) -> None:
    counts = Counter((row["attribute"], row["value"], row["split"]) for row in table_of(report, "labels.parquet"))
    shapes, tones = opened.page.eval_on_selector_all(".spread .chart img", "all => all.map(i => i.alt)")
    for value, name in enumerate(SHAPES.values):
        assert f"{name} " + ", ".join(f"{counts[0, value, split]} {split}" for split in SPLITS) in shapes

    train = {value: counts[1, value, "train"] for value in range(41) if counts[1, value, "train"]}
    falling = sorted(train, key=lambda value: (-train[value], value))
    assert f"{len(train)} values have any" in tones and f"has {train[falling[0]]} train images" in tones
    head, tail, notes = (p.text_content() for p in opened.page.query_selector_all(".spread article:last-child p"))
    named = [f"tone {value} {train[value]}" for value in falling]
    assert " ".join(head.split()) == "Head: " + ", ".join(named[:5])
    assert " ".join(tail.split()) == "Tail: " + ", ".join(named[-5:])
    absent = [sum(not counts[1, value, split] for value in range(41)) for split in SPLITS]
    assert "Values without an image: " + ", ".join(f"{n} in {s}" for n, s in zip(absent, SPLITS, strict=True)) in notes


def test_values_too_rare_for_an_anchor(report: Report, opened: Opened) -> None:
    shown = cells(opened.page, "#rare-table tbody tr", "data-attribute")
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
    report: Report, opened: Opened, split: str
) -> None:
    shown = cells(opened.page, f"[data-expected={split}] tr.of-attribute", "data-attribute")
    over_all, macro = opened.page.query_selector_all(f"[data-expected={split}] tr.summary")
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
        assert shown[attribute.name] == [f"{100 * n:.2f}" if isinstance(n, float) else str(n) for n in numbers]
    for row, flat in ((over_all, True), (macro, False)):
        chance, ceiling = (
            fmean(n for of_attribute in lists for n in of_attribute) if flat else fmean(map(fmean, lists))
            for lists in zip(*per_attribute, strict=True)
        )
        texts = [cell.text_content() for cell in row.query_selector_all("td")]
        assert (texts[2], texts[4]) == (f"{100 * chance:.2f}", f"{100 * ceiling:.2f}")
        assert 0 < chance < ceiling <= 1


def test_chance_and_ceiling_by_hand(tmp_path: Path) -> None:
    # Three candidates round, round, square; one query is round, the other odd. Two relevant ones of three can stand
    # at ranks 1 2 (AP 1), 1 3 (AP 5/6) or 2 3 (AP 7/12).
    pairs: PAIRS = [("test", "candidate", i, 0, value) for i, value in enumerate((0, 0, 1))]
    pairs += [("test", "query", 3, 0, 0), ("test", "query", 4, 0, 2)]
    labels = [(i, attribute, value) for _, _, i, attribute, value in pairs]
    dataset = write(Made(dict.fromkeys(range(5), "test"), labels=labels, pairs=pairs), tmp_path)
    found = expectations(dataset, "test")
    assert found and [one.name for one in found.attributes] == ["shape_of_it"] and found.unasked == ["tone"]
    assert found.over_all.chance == pytest.approx((1 + 5 / 6 + 7 / 12) / 3 / 2)
    assert found.over_all.ceiling == found.macro.ceiling == 0.5
    assert expectations(dataset, "valid") is None
    assert write_prep_report(dataset).expected == {"test": found}


def test_hostile_details_are_text(report: Report, opened: Opened) -> None:
    assert opened.page.title() != "gone"
    assert opened.page.locator(".reason").count() == 3
    for reason, count in (("missing_image", 9), ("bad_line", 1), ("not_in_split", 2)):
        card = opened.page.locator(f"[data-reason={reason}]")
        assert card.locator("h3").text_content() == f"{count} {reason}"
        assert REASONS[reason] in card.locator("p").text_content()
        assert card.locator("li").count() == min(5, count)
    detail = opened.page.locator(".reason li code").first.text_content()
    assert detail.startswith("<script>document.title='gone'</script><img src=x")
    assert detail.endswith("\\x1b[31m\\x00\\u202e{{ 7*7 }} \ufffd&amp;")
    html = report.file.read_text(encoding="utf-8")
    assert "<script" not in html and not set("\x1b\x00\u202e") & set(html)
    assert "no damage" in opened.page.text_content("[data-reason=not_in_split]")
    assert "line 1,000" in opened.page.text_content("[data-reason=missing_image] li")


def test_nothing_overflows_on_a_phone(report: Report, browser: Browser) -> None:
    opened = open_page(browser, report.file, width=390)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    assert opened.console == []
    opened.page.close()


def test_the_contact_sheet_shows_pictures_of_the_values_it_names(report: Report, opened: Opened) -> None:
    labels = {(row["image_id"], row["attribute"], row["value"]) for row in table_of(report, "labels.parquet")}
    for number, attribute in enumerate(report.dataset.info.attributes):
        tiles = opened.page.query_selector_all(f"[data-strip={attribute.name}] li")
        assert len(tiles) == contact_sheet.SHOWN
        for tile in tiles:
            image_id = int(tile.query_selector("img").get_attribute("alt").split()[1])
            value = attribute.values.index(tile.query_selector("figcaption").text_content())
            assert (image_id, number, value) in labels and report.dataset.images["split"][image_id] == "train"


def test_the_contact_sheet_reads_few_pictures(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, read = Dataset(report.dataset.path), []
    packed = dataset.packed
    monkeypatch.setattr(dataset, "packed", lambda split: (read.append(len(group)) or group for group in packed(split)))
    sheet = contact_sheet.contact_sheet(dataset)
    assert [len(strip.tiles) for strip in sheet] == [6, 6]
    assert sum(read) == 8  # two row groups of four, of the split's forty


def test_what_the_model_does_not_see_is_faded() -> None:
    shown = contact_sheet._marked(jpeg(0)).astype(int)
    assert shown.shape == (48, 32, 3)
    assert abs(shown[2] - 255).min() > 60 and abs(shown[45] - COLOURS[0]).max() > 60  # above and below the square
    assert abs(shown[10] - 255).max() < 12 and abs(shown[30] - COLOURS[0]).max() < 25


def test_the_terminal_has_the_figures(report: Report, capfd: pytest.CaptureFixture) -> None:
    figures = show_prepared(report.summary, report.dataset.path)
    out, said = capfd.readouterr()
    expected = expectations(report.dataset, "test")
    assert expected and not out
    assert figures["chance/test"] == expected.over_all.chance and figures["ceiling/test"] == expected.over_all.ceiling
    assert {"chance/valid", "ceiling/valid", "rows_in", "labels", "repeats", "rejects", "digest"} <= set(figures)
    assert figures["report"] == str(report.file) and f"page: {report.file}" in said
    assert f"{expected.attributes[1].chance:.4f}" in said
    assert said.count("e.g. list <script>") == 3 and "\x1b[31m" not in said and "\\x1b[31m" in said
    assert "note: train: " in said and "tone 0" not in said


def test_a_dataset_without_rejects_and_without_queries(tmp_path: Path, browser: Browser) -> None:
    made = labelled()
    made.rejects, made.pairs, made.repeats = [], [], 0
    summary = write_prep_report(write(made, tmp_path))
    opened = open_page(browser, tmp_path / "report.html")
    text = opened.page.text_content("main")
    assert "None: every annotation row was taken" in text and "no queries and candidates" in text
    assert opened.page.locator("#expected").count() == 0 and opened.console == []
    assert not [name for name in show_prepared(summary, tmp_path) if name.startswith(("chance", "ceiling"))]
    opened.page.close()


def test_ready_made_triplets(tmp_path: Path, browser: Browser) -> None:
    heel, closure = (Attribute(name=name, values=()) for name in ("heel", "closure"))
    images = {i: "train" if i < 20 else "test" for i in range(30)}
    triplets = {"train": [(i, i + 1, i + 2, i % 3 // 2) for i in range(12)], "test": [(20, 21, 22, 1)]}
    made = Made(images, (heel, closure), triplets=triplets, given=13, repeats=0, rejects=[("a", 1, "no_label", "b")])
    summary = write_prep_report(write(made, tmp_path))
    assert summary.contents.accounting == "14 annotation rows = 13 triplets + 1 rejects"
    opened = open_page(browser, tmp_path / "report.html")
    assert opened.console == []
    alt = opened.page.get_attribute(".spread .chart img", "alt")
    assert "heel 8 train, 0 test; closure 4 train, 1 test" in alt
    for number, name in enumerate(("heel", "closure")):
        tiles = opened.page.query_selector_all(f"[data-strip={name}] li")
        shown = [int(tile.query_selector("img").get_attribute("alt").split()[1]) for tile in tiles]
        assert [tile.text_content().strip() for tile in tiles] == ["anchor", "positive", "negative"] * 2
        assert all((*shown[i : i + 3], number) in triplets["train"] for i in (0, 3))
    show_prepared(summary, tmp_path)
    opened.page.close()


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
