"""The report of a study: every trial is in the tables, and the page's HTML says what the study has."""

from __future__ import annotations

import csv
import json
import shlex
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from optuna.trial import TrialState, create_trial
from PIL import Image
from support.studies import FACTS, HOSTILE, LONG, LR, MARGIN, attributes, made_study, new_study, of_two

from data_prep.errors import InputError
from pipeline.config.schema import load_config
from pipeline.reports.study import page as page_module
from pipeline.reports.study.page import write_study_report
from pipeline.tuning.study import (
    CHANCE,
    ENDED,
    HISTORY,
    REASON,
    RUN_ID,
    SECONDS,
    front_of,
    places_of,
    trials_in,
)

VOID = {"meta", "link", "img", "input", "br"}


class Html(HTMLParser):
    """Elements of a page as (tag, attributes, text inside), in the order of their start."""

    def __init__(self, file: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, dict(attrs), list[str]())
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, "elements are closed in order"

    def handle_data(self, data: str) -> None:
        for _, _, texts in self._open:
            texts.append(data)

    def having(self, attribute: str) -> list[tuple[str | None, str]]:
        """Return the attribute's value and the text of every element that has the attribute."""
        return [(given[attribute], _text(texts)) for _, given, texts in self.elements if attribute in given]

    def texts(self, tag: str) -> list[str]:
        return [_text(texts) for name, _, texts in self.elements if name == tag]


def _text(texts: list[str]) -> str:
    return " ".join("".join(texts).split())


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    study = made_study(61, pruned=0.9)
    study.set_user_attr(CHANCE, 0.2272)
    return study


@pytest.fixture(scope="module")
def report(study: optuna.Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "report"
    files = write_study_report(study, folder, FACTS)
    assert sorted(folder.iterdir()) == files
    return folder


@pytest.fixture(scope="module")
def html(report: Path) -> Html:
    return Html(report / "report.html")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "report"
    write_study_report(of_two(), folder, FACTS)
    return folder


def test_the_tables_have_every_trial_and_every_value(study: optuna.Study, report: Path) -> None:
    table = pq.read_table(report / "trials.parquet").to_pylist()
    assert len(table) == len(study.trials) == 62
    for row, trial in zip(table, study.trials, strict=True):
        given, history = trial.user_attrs, trial.user_attrs[HISTORY]
        assert row["number"] == trial.number
        assert row["best_map"] == max((value for _, value in history), default=None)
        assert row["ended"] == given.get(ENDED, "running") and row["reason"] == given.get(REASON, "")
        assert row["epochs"] == (history[-1][0] if history else 0)
        assert row["values_valid/map"] == (trial.value if trial.state is TrialState.COMPLETE else None)
        assert (row["seconds"], row["run_id"]) == (given.get(SECONDS, 0.0), given.get(RUN_ID))
        for name in ("lr", "margin", "mining", "decay", "fused", "size", "kernel"):
            assert row[f"params_{name}"] == trial.params.get(name)
        if "classify" in trial.params:
            assert row["params_classify"] == str(trial.params["classify"]).lower()
    assert table[-1]["ended"] == "running" and table[-1]["params_margin"] is table[-1]["params_classify"] is None


def test_columns_are_typed_and_the_csv_says_the_same(report: Path) -> None:
    table = pq.read_table(report / "trials.parquet")
    kinds = {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types, strict=True)}
    assert kinds == {
        "number": "int64",
        "ended": "string",
        "reason": "string",
        "epochs": "int64",
        "best_map": "double",
        "values_valid/map": "double",
        "params_lr": "double",
        "params_margin": "double",
        "params_mining": "string",
        "params_decay": "double",
        "params_classify": "string",  # true, false or none
        "params_fused": "bool",
        "params_size": "int64",
        "params_kernel": "int64",
        "seconds": "double",
        "run_id": "string",
    }
    convert = pa.csv.ConvertOptions(
        column_types=table.schema, strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    read = pa.csv.read_csv(report / "trials.csv", convert_options=convert, parse_options=parse)
    assert read.to_pylist() == table.to_pylist()


def test_every_picture_is_one(report: Path, two: Path) -> None:
    names = ["curves", "history", "importances", "parallel", "slices"]
    for folder, expected in ((report, names), (two, sorted([*names, "pareto"]))):
        assert [file.stem for file in sorted(folder.glob("*.png"))] == expected
        for name in expected:
            pixels = np.asarray(Image.open(folder / f"{name}.png").convert("L"))
            assert min(pixels.shape) > 400 and pixels.std() > 5
            assert all(rim.min() > 240 for rim in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])), "cut off"


def test_the_same_study_gives_the_same_files(two: Path, tmp_path: Path) -> None:
    for file in write_study_report(of_two(), tmp_path / "again", FACTS):
        assert file.read_bytes() == (two / file.name).read_bytes()


def test_the_charts_have_every_scored_trial(study: optuna.Study, html: Html) -> None:
    figures = {name: json.loads(text) for name, text in html.having("data-figure")}
    assert list(figures) == ["history", "curves", "parallel", "slices", "importances"]
    validated = {trial.number for trial in study.trials if trial.user_attrs[HISTORY]}
    assert {int(line["name"].removeprefix("Trial")) for line in figures["curves"]["data"]} == validated
    best = {
        trial.number: 100 * max(value for _, value in trial.user_attrs[HISTORY])
        for trial in study.trials
        if trial.user_attrs.get(ENDED) in ("done", "pruned")
    }
    marks = figures["history"]["data"][0]
    assert dict(zip(marks["x"], marks["y"], strict=True)) == {n: pytest.approx(best.get(n), nan_ok=True) for n in best}
    bars = figures["importances"]["data"][0]
    assert bars["y"][-1] == "lr" and bars["x"][-1] > 0.5 and sum(bars["x"]) == pytest.approx(1)


def test_chance_stands_beside_the_best(html: Html) -> None:
    assert any("(chance 22.72)" in text for text in html.texts("h3"))
    assert ("chance MAP × 100", "chance MAP × 10022.72") in html.having("data-tile")


def test_tiles_and_failures_count_trials_and_reasons(study: optuna.Study, html: Html) -> None:
    counts = Counter(trial.user_attrs.get(ENDED, "running") for trial in study.trials)
    tiles = {str(name): text.removeprefix(str(name)).strip() for name, text in html.having("data-tile")}
    assert {name: int(tiles[name]) for name in counts} == counts and tiles["trials"] == "62"
    failures = [text for text in html.texts("li") if " × " in text]
    assert len(failures) == 2 and sum(int(text.split(" ×")[0]) for text in failures) == counts["failed"]
    assert any(LONG.strip() in text and text.endswith("trial 5, 21, 37, 53") for text in failures)


def test_the_best_setting_can_be_given_to_a_training(study: optuna.Study, html: Html) -> None:
    ((number, _),) = html.having("data-chosen")
    assert number == str(study.best_trial.number)
    setting = dict(one.split("=", 1) for one in shlex.split(html.texts("code")[0]))
    best = study.best_trial.params
    known = ("lr", "margin", "classify")
    config = load_config(None, [f"{key}={setting[key]}" for key in known])
    assert {key: getattr(config, key) for key in known} == {key: best[key] for key in known}


def test_the_table_of_the_page_has_all_trials_the_best_first(study: optuna.Study, html: Html) -> None:
    numbers = [int(str(number)) for number, _ in html.having("data-trial")]
    assert sorted(numbers) == [trial.number for trial in study.trials]
    scores = [max((v for _, v in study.trials[n].user_attrs[HISTORY]), default=-1.0) for n in numbers]
    assert numbers[0] == study.best_trial.number and scores[1:] == sorted(scores[1:], reverse=True)
    assert html.texts("th")[:6] == ["number", "ended", "reason", "epochs", "best_map", "valid/map"]


def test_hostile_texts_are_text(report: Path, html: Html) -> None:
    tags = Counter(tag for tag, _, _ in html.elements)
    assert tags["script"] == 5 + 2 and tags["img"] == 5, "the page's own: data and pictures of charts, two scripts"
    assert html.texts("title") == ["fashionai-losses · study · AG-MAN"]
    source = (report / "report.html").read_text(encoding="utf-8")
    assert HOSTILE not in source and "\x1b" not in source.split("/**")[0]
    facts = html.texts("dd")
    assert any("<script>document.title='gone'</script>" in text and "{{ 7*7 }}" in text for text in facts)
    charts = json.dumps([json.loads(text) for _, text in html.having("data-figure")])
    assert "<script" not in charts and "&lt;script&gt;" in charts, "plotly would read markup"


def test_the_front_of_two_objectives(two: Path) -> None:
    study, html = of_two(), Html(two / "report.html")
    done = {trial.number: trial.values for trial in study.trials if trial.values}
    front = {trial.number for trial in study.best_trials}
    assert 1 < len(front) < len(done)
    chosen = [int(str(number)) for number, _ in html.having("data-chosen")]
    assert set(chosen) == front and chosen == sorted(chosen, key=lambda number: -done[number][0])
    figures = {name: json.loads(text) for name, text in html.having("data-figure")}
    assert figures["importances"]["data"][0]["y"] == ["margin"]
    pareto = figures["pareto"]
    assert sum(len(points["x"]) for points in pareto["data"]) == len(done)
    assert pareto["layout"]["xaxis"]["title"]["text"] == "validation MAP × 100"
    assert pareto["layout"]["yaxis"]["title"]["text"] == "latency ms"


def of_values(*values: tuple[float, ...]) -> optuna.Study:
    names = ("valid/map", "latency_ms", "embedding_dim")[: len(values[0])]
    study = new_study(*names, directions=("maximize", *("minimize" for _ in names[1:])))
    for number, one in enumerate(values):
        given = {"params": {"margin": 0.1 * (number + 1)}, "distributions": {"margin": MARGIN}}
        study.add_trial(create_trial(values=one, user_attrs=attributes("done", [[1, one[0]]]), **given))
    return study


def test_the_front_is_optunas() -> None:
    study = of_two()
    assert {trial.number for trial in front_of(trials_in(study))} == {trial.number for trial in study.best_trials}


BENT = [(0.5, 9.0, 512), (0.48, 4.0, 128), (0.2, 3.0, 64), (0.1, 9.0, 512)]
STRAIGHT = [(0.5, 9.0), (0.3, 8.0), (0.2, 3.0)]
"""Bends the other way."""


@pytest.mark.parametrize(
    ("values", "places"),
    [
        # farthest from the line: 1 is 0.64 of the width below it, 2 is 0.43
        (
            [(0.5, 9.0), (0.48, 4.0), (0.3, 3.5), (0.2, 3.0), (0.1, 9.0)],
            ["front", "front, knee", "front", "front", None],
        ),
        (STRAIGHT, ["front", "front", "front"]),
        ([(0.5, 9.0), (0.2, 3.0)], ["front", "front"]),
        (BENT, ["front", "front, knee", "front", None]),
    ],
)
def test_the_knee_is_where_the_front_bends(values: list[tuple[float, ...]], places: list[str | None]) -> None:
    trials = trials_in(of_values(*values))
    assert [places_of(trials).get(trial.number) for trial in trials] == places


@pytest.mark.parametrize("values", [BENT, STRAIGHT])
def test_the_knee_is_marked_on_the_page_and_in_the_table(values: list[tuple[float, ...]], tmp_path: Path) -> None:
    study = of_values(*values)
    places = places_of(trials_in(study))
    write_study_report(study, tmp_path / "report", {})
    column = pq.read_table(tmp_path / "report" / "trials.parquet")["front"].to_pylist()
    assert column == [places.get(number) for number in range(len(values))]
    marked = [text for text in Html(tmp_path / "report" / "report.html").texts("h3") if text.endswith("(knee)")]
    knees = list(places.values()).count("front, knee")
    assert [text.startswith("Trial 1: ") and "latency ms 4" in text for text in marked] == [True] * knees
    assert (tmp_path / "report" / "pareto.png").is_file()


def with_scores(*values: float) -> optuna.Study:
    study = new_study()
    for number, value in enumerate(values):
        given = attributes("done", [[1, value]], number=number)
        study.add_trial(create_trial(value=value, params={"lr": 1e-3}, distributions={"lr": LR}, user_attrs=given))
    return study


def failed(*reasons: str) -> optuna.Study:
    study = new_study()
    for reason in reasons:
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=attributes("failed", [], reason)))
    return study


def not_a_number() -> optuna.Study:
    study = new_study()
    given = attributes("pruned", [[1, 0.2], [2, float("nan")]])
    study.add_trial(
        create_trial(state=TrialState.PRUNED, params={"lr": 1e-3}, distributions={"lr": LR}, user_attrs=given)
    )
    return study


@pytest.mark.parametrize(
    ("make", "rows", "charts", "said"),
    [
        (new_study, 0, 0, "No trial was validated: there is no best setting."),
        (lambda: failed("the worker died", LONG, ""), 3, 0, "1 × no reason was recorded trial 2"),
        (lambda: with_scores(*[0.25] * 7), 7, 4, "best MAP × 100 25.00"),
        (lambda: of_two(0), 0, 0, "No trial was trained to its end: there is no front."),
        (lambda: of_two(1), 1, 5, "better than one of these in one objective without being worse"),
        (not_a_number, 1, 4, "No trial was trained to its end. This is the best so far."),
    ],
)
def test_studies_with_little_in_them(
    make: Callable[[], optuna.Study], rows: int, charts: int, said: str, tmp_path: Path
) -> None:
    study = make()
    write_study_report(study, tmp_path / "report", {})
    with (tmp_path / "report" / "trials.csv").open() as file:
        assert len(list(csv.reader(file))) == rows + 1
    html = Html(tmp_path / "report" / "report.html")
    assert said in html.texts("main")[0]
    assert ("Too few trials were validated to draw the other charts." in html.texts("main")[0]) == (charts < 5)
    assert len(html.having("data-figure")) == charts and len(html.having("data-trial")) == rows


def test_the_folder_appears_complete_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new" / "report"
    monkeypatch.setattr(page_module, "draw", lambda study: [])

    def fails() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(page_module, "render", lambda *given: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                write_study_report(of_two(3), folder, {})

    fails()
    assert list(tmp_path.iterdir()) == []
    first = {file: file.read_bytes() for file in write_study_report(of_two(3), folder, {})}
    fails()
    assert {file: file.read_bytes() for file in folder.iterdir()} == first
    (folder / "pareto.png").write_bytes(b"of an older report")
    write_study_report(made_study(2), folder, {})
    assert not (folder / "pareto.png").exists() and list(folder.parent.iterdir()) == [folder]
    folder.rename(folder.with_name(".report.replaced-0123abcd"))  # as a kill between the two renames leaves it
    fails()
    assert (folder / "report.html").exists() and list(folder.parent.iterdir()) == [folder]


def test_other_peoples_files_stay(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    (tmp_path / "thesis.tex").write_text("mine")
    for folder, message in (
        (tmp_path, r"has other files in it \(thesis.tex\)"),
        (tmp_path / "thesis.tex", "is a file"),
        (tmp_path / "thesis.tex" / "report", "cannot be written"),
    ):
        with pytest.raises(InputError, match=message):
            write_study_report(of_two(2), folder, {})
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"report.html": "mine", "thesis.tex": "mine"}
