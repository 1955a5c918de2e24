"""What a search leaves behind: every trial in the tables, every trial in the charts, and the page in a real browser."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image
from playwright.sync_api import Browser, Locator, Page
from support.pages import Opened, open_page

from data_prep.errors import InputError
from pipeline.config.schema import load_config
from pipeline.reports.sweep import page as page_module
from pipeline.reports.sweep.importance import importances
from pipeline.reports.sweep.page import write_sweep_report
from pipeline.reports.sweep.trials import ENDED, EPOCHS, HISTORY, OBJECTIVES, REASON, RUN_ID, SECONDS, read_study

HOSTILE = "</script><script>document.title='gone'</script><img src=x onerror=alert(1)>\x1b[31m\u202e,\"\n{{ 7*7 }}"
LONG = "torch.OutOfMemoryError: " + "CUDA out of memory. " * 12
FACTS = {"space": "losses", "dataset": HOSTILE, "seed": "7"}
LR, MARGIN = FloatDistribution(1e-5, 1e-2, log=True), FloatDistribution(0.05, 0.6)
MINING = CategoricalDistribution(["none", "hard", HOSTILE])
CLASSIFY = CategoricalDistribution([True, False, None])
FUSED, DECAY = CategoricalDistribution([True, False]), FloatDistribution(0.9, 0.9)
KERNEL, SIZE = IntDistribution(1, 2000), CategoricalDistribution([128, 224])
BUDGET = 6


def new_study(*objectives: str, directions: tuple[str, ...] = ("maximize",)) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=directions, study_name="fashionai-losses")
    study.set_user_attr(OBJECTIVES, list(objectives or ["valid/map"]))
    study.set_user_attr(EPOCHS, BUDGET)
    return study


def attributes(ended: str, history: list, reason: str = "trained all epochs", number: int = 0) -> dict:
    return {ENDED: ended, HISTORY: history, REASON: reason, RUN_ID: f"{number:032x}", SECONDS: 1.5 * len(history)}


def searched(n: int, seed: int = 3, pruned: float = 0.3, epochs: int = BUDGET) -> optuna.Study:
    """A search of `n` trials, of which lr decides; one in eight fails, and one is running still."""
    study, rng = new_study(), np.random.default_rng(seed)
    study.set_user_attr(EPOCHS, epochs)
    for number in range(n):
        lr, margin = 10 ** rng.uniform(-5, -2), float(rng.uniform(0.05, 0.6))
        params = {"lr": lr, "margin": margin, "mining": MINING.choices[number % 3], "decay": 0.9}
        distributions = {"lr": LR, "margin": MARGIN, "mining": MINING, "decay": DECAY}
        params |= {
            "classify": CLASSIFY.choices[number % 5 % 3],
            "compile": number % 2 == 0,
            "size": (128, 224)[number % 2],
        }
        distributions |= {"classify": CLASSIFY, "compile": FUSED, "size": SIZE}
        if number % 3 == 1:  # a condition
            params["kernel"], distributions["kernel"] = int(rng.integers(1, 2000)), KERNEL
        quality = 0.6 * math.exp(-((math.log10(lr) + 3.5) ** 2)) + 0.02 * rng.random()
        curve = [[epoch, quality * (1 - math.exp(-epoch / 3))] for epoch in range(1, epochs + 1)]
        if number % 8 == 5:
            reason = LONG if number % 16 == 5 else HOSTILE
            given = {"state": TrialState.FAIL, "user_attrs": attributes("failed", curve[: number % 3], reason, number)}
        elif rng.random() < pruned:
            given = {
                "state": TrialState.PRUNED,
                "user_attrs": attributes("pruned", curve[:2], "in the worst third", number),
            }
        else:
            given = {"value": curve[-1][1], "user_attrs": attributes("done", curve, number=number)}
        study.add_trial(create_trial(params=params, distributions=distributions, **given))
    asked = study.ask()
    asked.suggest_float("lr", 1e-5, 1e-2, log=True)
    asked.set_user_attr(HISTORY, [[1, 0.05], [2, 0.04]])
    return study


def of_two(n: int = 24) -> optuna.Study:
    study, rng = new_study("valid/map", "latency_ms", directions=("maximize", "minimize")), np.random.default_rng(5)
    for number in range(n):
        width = float(rng.uniform(0, 1))
        values = [round(0.2 + 0.3 * width + 0.1 * rng.random(), 2), round(2 + 5 * width + 2 * rng.random(), 1)]
        given = {"params": {"margin": 0.05 + 0.5 * width}, "distributions": {"margin": MARGIN}}
        if number % 6 == 2:
            given |= {"state": TrialState.PRUNED, "user_attrs": attributes("pruned", [[1, 0.9]])}
        else:
            given |= {"values": values, "user_attrs": attributes("done", [[1, 0.1], [BUDGET, values[0]]])}
        study.add_trial(create_trial(**given))
    return study


@dataclass
class Report:
    """A written report and its study."""

    study: optuna.Study
    folder: Path
    files: list[Path]

    @property
    def page(self) -> Path:
        return self.folder / "report.html"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    study, folder = searched(61), tmp_path_factory.mktemp("sweep") / "report"
    return Report(study, folder, write_sweep_report(study, folder, FACTS))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Report:
    study, folder = of_two(), tmp_path_factory.mktemp("sweep") / "report"
    return Report(study, folder, write_sweep_report(study, folder, FACTS))


@pytest.fixture
def opened(report: Report, browser: Browser):
    opened = open_page(browser, report.page)
    yield opened
    assert opened.console == []
    assert opened.asked_for == [report.page.as_uri()]
    opened.page.close()


def marks(page: Page, chart: str) -> Locator:
    return page.locator(f"[data-chart={chart}] [tabindex][data-trial]")


def shown_rows(page: Page) -> list[int]:
    rows = "all => all.filter(row => !row.hidden).map(row => +row.dataset.trial)"
    return page.eval_on_selector_all("#trials tbody tr", rows)


def scores(study: optuna.Study) -> dict[int, float | None]:
    of_trial = {t.number: [value for _, value in t.user_attrs.get(HISTORY, [])] for t in study.trials}
    return {number: max(values, default=None) for number, values in of_trial.items()}


def test_no_trial_is_lost_and_no_value_changed(report: Report) -> None:
    table = pq.read_table(report.folder / "trials.parquet").to_pylist()
    assert len(table) == len(report.study.trials) == 62
    best = scores(report.study)
    for row, trial in zip(table, report.study.trials, strict=True):
        given, history = trial.user_attrs, trial.user_attrs[HISTORY]
        assert row["number"] == trial.number and row["best_map"] == best[trial.number]
        assert row["ended"] == given.get(ENDED, "running") and row["reason"] == given.get(REASON, "")
        assert row["epochs"] == (history[-1][0] if history else 0)
        assert row["values_valid/map"] == (trial.value if trial.state is TrialState.COMPLETE else None)
        assert (row["seconds"], row["run_id"]) == (given.get(SECONDS), given.get(RUN_ID))
        for name in ("lr", "margin", "mining", "decay", "compile", "size", "kernel"):
            assert row[f"params_{name}"] == trial.params.get(name)
        if "classify" in trial.params:
            assert row["params_classify"] == str(trial.params["classify"]).lower()
    assert table[-1]["ended"] == "running" and table[-1]["params_margin"] is table[-1]["params_classify"] is None


def test_columns_are_typed_and_the_csv_says_the_same(report: Report) -> None:
    table = pq.read_table(report.folder / "trials.parquet")
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
    read = pa.csv.read_csv(report.folder / "trials.csv", convert_options=convert, parse_options=parse)
    assert read.to_pylist() == table.to_pylist()


def test_every_picture_is_one(report: Report, two: Report) -> None:
    names = ["curves.png", "history.png", "importances.png", "parallel.png"]
    for made, expected in ((report, names), (two, sorted([*names, "pareto.png"]))):
        assert [file.name for file in made.files if file.suffix == ".png"] == expected
        assert sorted(made.folder.iterdir()) == made.files
        for name in expected:
            pixels = np.asarray(Image.open(made.folder / name).convert("L"))
            assert min(pixels.shape) > 400 and pixels.std() > 5
            # Nothing is cut off: the rim is empty.
            assert all(rim.min() > 240 for rim in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))


def test_the_same_study_gives_the_same_files(two: Report, tmp_path: Path) -> None:
    for file in write_sweep_report(two.study, tmp_path / "again", FACTS):
        assert file.read_bytes() == (two.folder / file.name).read_bytes()


def test_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, study = tmp_path / "new" / "report", of_two(3)
    four = ["history.png", "curves.png", "importances.png", "parallel.png"]
    drawn = {1: four, 2: [*four, "pareto.png"]}
    monkeypatch.setattr(page_module, "pictures", lambda one, _: dict.fromkeys(drawn[len(one.objectives)], b"drawn"))
    with monkeypatch.context() as patch:
        patch.setattr(page_module, "render", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_sweep_report(study, folder, {})
        assert list(folder.parent.iterdir()) == []
    first = {file: file.read_bytes() for file in write_sweep_report(study, folder, {})}
    with monkeypatch.context() as patch:
        patch.setattr(page_module, "render", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_sweep_report(study, folder, {})
    assert {file: file.read_bytes() for file in folder.iterdir()} == first

    write_sweep_report(searched(2), folder, {})
    assert not (folder / "pareto.png").exists() and list(folder.parent.iterdir()) == [folder]
    # Killed between the two renames: the older report is there, under another name.
    folder.rename(folder.with_name(".report.old"))
    with monkeypatch.context() as patch:
        patch.setattr(page_module, "render", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_sweep_report(study, folder, {})
    assert (folder / "report.html").exists() and list(folder.parent.iterdir()) == [folder]


def test_other_peoples_files_stay(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"has other files in it \(thesis.tex\)"):
        write_sweep_report(of_two(2), tmp_path, {})
    with pytest.raises(InputError, match="is a file"):
        write_sweep_report(of_two(2), tmp_path / "thesis.tex", {})
    with pytest.raises(InputError, match="cannot be written"):
        write_sweep_report(of_two(2), tmp_path / "thesis.tex" / "report", {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "thesis.tex"]
    assert {file.read_text() for file in tmp_path.iterdir()} == {"mine"}


def test_charts_have_a_mark_for_every_trial(report: Report, opened: Opened) -> None:
    best = scores(report.study)
    validated = [number for number, score in best.items() if score is not None]
    assert marks(opened.page, "history").count() == marks(opened.page, "parallel").count() == 62
    assert marks(opened.page, "curves").count() == len(validated) < 62
    assert opened.page.locator("[data-chart=importances] rect.bar").count() == 8
    assert opened.page.locator("[data-chart=pareto]").count() == 0
    labels = opened.page.locator("[data-chart=history] [data-trial]").evaluate_all("all => all.map(m => m.ariaLabel)")
    for trial, label in zip(report.study.trials, labels, strict=True):
        score = best[trial.number]
        said = "not validated" if score is None else f"best MAP × 100: {100 * score:.2f}"
        assert label.startswith(f"Trial {trial.number}, {trial.user_attrs.get(ENDED, 'running')}, {said}; lr ")


def test_marks_stand_where_their_scores_are(report: Report, opened: Opened) -> None:
    best = {number: score for number, score in scores(report.study).items() if score is not None}
    boxes = marks(opened.page, "history").evaluate_all(
        "all => all.map(m => { const b = m.getBBox(); return [b.x + b.width / 2, b.y + b.height / 2]; })"
    )
    numbers, heights = list(best), [boxes[number][1] for number in best]
    assert np.corrcoef(list(best.values()), heights)[0, 1] < -0.99
    assert np.corrcoef(numbers, [boxes[number][0] for number in numbers])[0, 1] > 0.999


def test_counts_by_state_with_reasons(report: Report, opened: Opened) -> None:
    counts = Counter(trial.user_attrs.get(ENDED, "running") for trial in report.study.trials)
    tiles = opened.page.eval_on_selector_all(
        "[data-tile]", "all => all.map(t => [t.dataset.tile, t.children[1].innerText])"
    )
    assert {name: int(text) for name, text in tiles if name in counts} == counts
    assert sum(counts.values()) == 62 and {"done", "pruned", "failed", "running"} == set(counts)
    failures = opened.page.locator(".failures li")
    assert failures.count() == 2
    assert sum(int(text.split("×")[0]) for text in failures.all_inner_texts()) == counts["failed"]
    cut = failures.filter(has_text="torch.OutOfMemoryError")
    assert cut.locator("code").inner_text().endswith("…") and cut.get_attribute("title") == LONG


def test_the_best_setting_can_be_given_to_a_training(report: Report, opened: Opened) -> None:
    best = max((t for t in report.study.trials if t.state is TrialState.COMPLETE), key=lambda trial: trial.value)
    article = opened.page.locator("[data-chosen]")
    assert article.get_attribute("data-chosen") == str(best.number) == str(report.study.best_trial.number)
    setting = dict(one.split("=", 1) for one in shlex.split(article.locator("pre").inner_text()))
    assert float(setting["lr"]) == best.params["lr"] and setting["classify"] == str(best.params["classify"]).lower()
    known = [f"{key}={setting[key]}" for key in ("lr", "margin", "classify", "compile")]
    config = load_config(None, known)
    assert {key: getattr(config, key) for key in ("lr", "margin", "classify", "compile")} == {
        key: best.params[key] for key in ("lr", "margin", "classify", "compile")
    }
    opened.page.locator(".copy button").click()
    opened.page.wait_for_function("document.querySelector('.copy [role=status]').textContent !== ''")


def test_the_table_is_sorted_by_any_column(report: Report, opened: Opened) -> None:
    page, best = opened.page, scores(report.study)
    ranked = sorted(best, key=lambda n: (-best[n] if best[n] is not None else math.inf, n))
    top = report.study.best_trial.number
    assert shown_rows(page) == [top, *(number for number in ranked if number != top)]
    lr = {trial.number: trial.params["lr"] for trial in report.study.trials}
    page.get_by_role("button", name="lr", exact=True).click()
    assert shown_rows(page) == sorted(lr, key=lambda number: -lr[number])
    page.get_by_role("button", name="lr", exact=True).click()
    assert shown_rows(page) == sorted(lr, key=lambda number: lr[number])
    assert page.locator("th[aria-sort]").inner_text().startswith("lr")
    kernel = {trial.number: trial.params.get("kernel") for trial in report.study.trials}
    for _ in range(2):  # either way round, what a trial does not have goes last
        page.get_by_role("button", name="kernel").click()
        column = [kernel[number] for number in shown_rows(page)]
        assert None not in column[:20] and set(column[20:]) == {None} and len(column) == 62
    page.get_by_role("button", name="ended").click()
    ended = [report.study.trials[number].user_attrs.get(ENDED, "running") for number in shown_rows(page)]
    assert ended == sorted(ended)


def test_brushing_an_axis_filters_charts_and_table(report: Report, opened: Opened) -> None:
    page = opened.page
    names = page.locator("[data-chart=parallel] text.name").evaluate_all(
        "all => all.map(t => t.children[0].textContent)"
    )
    assert names == ["lr", "margin", "mining", "decay", "classify", "compile", "size", "kernel", "best MAP × 100"]
    axis = page.locator("[data-axis='0']")
    axis.scroll_into_view_if_needed()
    lines = page.locator("[data-chart=parallel] line.axis")
    ends = lines.first.evaluate("l => { const b = l.getBoundingClientRect(); return [b.x, b.y, b.height]; }")
    x, top, height = ends
    page.mouse.move(x, top + 0.3 * height)
    page.mouse.down()
    page.mouse.move(x, top + 0.5 * height, steps=3)
    page.mouse.move(x, top + 0.6 * height, steps=3)
    page.mouse.up()
    lr = {trial.number: trial.params["lr"] for trial in report.study.trials}
    low, high = math.log(min(lr.values())), math.log(max(lr.values()))
    at = {number: (math.log(value) - low) / (high - low) for number, value in lr.items()}
    surely = {number for number, position in at.items() if 0.41 < position < 0.69}
    perhaps = {number for number, position in at.items() if 0.38 < position < 0.72}
    kept = set(shown_rows(page))
    assert surely <= kept <= perhaps and 3 < len(kept) < 40
    assert page.inner_text("#kept") == f"{len(kept)} of 62 trials shown."
    for chart in ("history", "parallel"):
        assert page.locator(f"[data-chart={chart}] [tabindex].off").count() == 62 - len(kept)
    page.mouse.click(x, top + 0.1 * height)
    assert len(shown_rows(page)) == 62 and page.locator(".off").count() == 0

    # With keys, on the conditional parameter's axis: its upper half, then down to those that do not have it.
    kernel = page.locator("[data-axis='7']")
    kernel.focus()
    page.keyboard.press("ArrowUp")
    assert 0 < len(shown_rows(page)) < 21
    assert {report.study.trials[number].params["kernel"] > 900 for number in shown_rows(page)} == {True}
    for _ in range(14):
        page.keyboard.press("ArrowDown")
    without = {trial.number for trial in report.study.trials if "kernel" not in trial.params}
    assert without < set(shown_rows(page)) and kernel.get_attribute("aria-valuetext").startswith("from -14 ")
    page.get_by_role("button", name="Show all trials").click()
    assert len(shown_rows(page)) == 62 and kernel.get_attribute("aria-valuetext") == "all"


def test_a_trials_setting_shows_on_pointing_and_on_walking(report: Report, opened: Opened) -> None:
    page, best = opened.page, report.study.best_trial
    assert page.locator("[data-chart=history] [tabindex='0']").count() == 1  # one stop of the Tab key
    third = marks(page, "history").nth(3)
    third.scroll_into_view_if_needed()
    box = third.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("#tip")
    assert tip.locator("strong").inner_text().startswith("Trial 3 · ")
    assert f"{report.study.trials[3].params['lr']:.4g}" in tip.inner_text()
    # The same trial stands out everywhere.
    assert page.locator("[data-trial='3'].on").count() == page.locator("[data-trial='3']").count() >= 4
    page.mouse.move(5, 5)
    assert not tip.is_visible() and page.locator(".on").count() == 0

    page.locator("[data-chart=history] [tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    assert tip.locator("strong").inner_text().startswith(f"Trial {best.number + 1} · ")
    page.keyboard.press("Home")
    assert tip.locator("strong").inner_text() == f"Trial 0 · {report.study.trials[0].user_attrs[ENDED]}"
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_hostile_texts_are_text(report: Report, opened: Opened) -> None:
    assert opened.page.title() == "fashionai-losses · search · AG-MAN"
    assert opened.page.locator("img").count() == opened.page.locator("script").count() - 2 == 0
    html = report.page.read_text(encoding="utf-8")
    assert (
        html.count("<script") == 2
        and not set("\x1b\u202e") & set(html)
        and "49" not in opened.page.inner_text("#facts")
    )
    assert "<script>document.title='gone'</script>" in opened.page.inner_text("#facts")
    data = json.loads(opened.page.text_content("#sweep"))
    assert any(text.startswith("</script><script>") for trial in data["trials"] for _, text in trial["setting"])
    hostile = marks(opened.page, "history").nth(2)
    assert "mining </script><script>" in hostile.get_attribute("aria-label")
    # Even were a text to become markup, the page's policy lets no other script run.
    opened.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'gone = 1'}))")
    assert opened.page.evaluate("typeof gone") == "undefined" and opened.console
    opened.console.clear()


def test_nothing_overflows_on_a_phone(report: Report, two: Report, browser: Browser) -> None:
    for made in (report, two):
        opened = open_page(browser, made.page, width=390, color_scheme="dark")
        assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
        # A chart as wide as the screen, and one that scrolls by itself.
        assert opened.page.locator("[data-chart=history] svg").bounding_box()["width"] < 390
        wide = opened.page.locator("[data-chart=parallel]").evaluate("f => f.scrollWidth - f.clientWidth")
        assert wide > (100 if made is report else -1)
        assert opened.console == []
        opened.page.close()


def test_charts_follow_the_window(report: Report, opened: Opened) -> None:
    opened.page.set_viewport_size({"width": 700, "height": 800})
    opened.page.wait_for_function("document.querySelector('[data-chart=history] svg').clientWidth < 660")
    drawn = opened.page.get_attribute("[data-chart=history] svg", "viewBox").split()[2]
    assert float(drawn) == opened.page.evaluate("document.querySelector('[data-chart=history] svg').clientWidth")
    assert marks(opened.page, "history").count() == 62


def test_without_scripts_the_pictures_are_shown(report: Report, browser: Browser) -> None:
    opened = open_page(browser, report.page, java_script_enabled=False)
    stills = opened.page.locator("img.still")
    assert stills.count() == 4 and all(stills.nth(i).is_visible() for i in range(4))
    assert (
        opened.page.locator("#trials tbody tr").count() == 62 and not opened.page.locator(".drawn").first.is_visible()
    )
    assert {url.split(":")[0] for url in opened.requests} == {"file"}
    opened.page.close()


def test_the_front_of_two_objectives(two: Report, browser: Browser) -> None:
    done = {trial.number: trial.values for trial in two.study.trials if trial.values}
    front = {
        number
        for number, (a, b) in done.items()
        if not any(x >= a and y <= b and (x, y) != (a, b) for x, y in done.values())
    }
    assert {trial.number for trial in read_study(two.study).front} == front
    assert front == {trial.number for trial in two.study.best_trials} and 1 < len(front) < len(done) < 24
    opened = open_page(browser, two.page)
    chosen = opened.page.eval_on_selector_all("[data-chosen]", "all => all.map(one => +one.dataset.chosen)")
    assert set(chosen) == front and chosen == sorted(chosen, key=lambda number: -done[number][0])
    assert marks(opened.page, "pareto").count() == len(done)
    assert opened.page.locator("[data-chart=pareto] text").all_text_contents()[-2:] == [
        "latency (ms), lower is better",
        "validation MAP × 100, higher is better",
    ]
    assert opened.console == []
    opened.page.close()


def test_importances_are_optunas(two: Report) -> None:
    content = read_study(searched(61, pruned=0))
    found = importances(content)
    plain = optuna.importance.get_param_importances(searched(61, pruned=0))
    assert found.shares == pytest.approx(plain) and next(iter(found.shares)) == "lr" and found.shares["lr"] > 0.5
    assert list(found.shares.values()) == sorted(found.shares.values(), reverse=True)
    assert found.meaning.endswith("Rests on 54 trials.") and "the best 10 %" in found.meaning
    assert "Rests on 20 trials." in importances(read_study(two.study)).meaning


def test_pruned_trials_count_in_the_importances() -> None:
    study = searched(61, pruned=0.9)
    ended = Counter(trial.user_attrs.get(ENDED) for trial in study.trials)
    found = importances(read_study(study))
    assert ended["done"] < 10 and next(iter(found.shares)) == "lr"
    assert f"Rests on 54 trials, {ended['pruned']} of them pruned." in found.meaning


def with_scores(*values: float) -> optuna.Study:
    study = new_study()
    for number, value in enumerate(values):
        given = attributes("done", [[1, value]], number=number)
        trial = create_trial(value=value, params={"lr": 1e-3}, distributions={"lr": LR}, user_attrs=given)
        study.add_trial(trial)
    return study


def failed(*reasons: str) -> optuna.Study:
    study = new_study()
    for reason in reasons:
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=attributes("failed", [], reason)))
    return study


def one_waits() -> optuna.Study:
    study = new_study()
    study.enqueue_trial({"lr": 1e-4})
    return study


@pytest.mark.parametrize(
    ("study", "rows", "said"),
    [
        (new_study, 0, "Too few trials to say which parameters matter: 0, not 5."),
        (one_waits, 1, "No trial was validated: there is no best setting."),
        (lambda: failed("the worker died", LONG, ""), 3, "1 × no reason was recorded trial 2"),
        (lambda: with_scores(0.25), 1, "best MAP × 100 25.00"),
        (lambda: with_scores(*[0.25] * 7), 7, "All 7 trials score the same"),
        (lambda: with_scores(*np.linspace(0.1, 0.2, 7)), 7, "No parameter took more than one value"),
        (lambda: of_two(0), 0, "No trial was trained to its end: there is no front."),
        (lambda: of_two(1), 1, "better than one of these in one objective without being worse"),
    ],
)
def test_searches_with_little_in_them(study, rows: int, said: str, tmp_path: Path, browser: Browser) -> None:
    study = study()
    write_sweep_report(study, tmp_path / "report", {})
    assert pq.read_metadata(tmp_path / "report" / "trials.parquet").num_rows == rows == len(study.trials)
    opened = open_page(browser, tmp_path / "report" / "report.html", width=390)
    assert said in " ".join(opened.page.inner_text("main").split())
    assert opened.console == [] and marks(opened.page, "history").count() == rows
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    opened.page.close()


def test_where_none_is_done_the_best_so_far_is_shown(tmp_path: Path, browser: Browser) -> None:
    study = new_study()
    for number, (ended, value) in enumerate((("stopped", 0.2), ("pruned", 0.1))):
        given = attributes(ended, [[1, value]], "Ctrl-C", number)
        study.add_trial(
            create_trial(state=TrialState.PRUNED, params={"lr": 1e-3}, distributions={"lr": LR}, user_attrs=given)
        )
    write_sweep_report(study, tmp_path / "report", {})
    opened = open_page(browser, tmp_path / "report" / "report.html")
    text = opened.page.inner_text("#best")
    assert "No trial was trained to its end. This is the best so far." in text and "lr=0.001" in text
    assert opened.page.get_attribute("[data-chosen]", "data-chosen") == "0"
    opened.page.close()


def test_a_long_search(tmp_path: Path, browser: Browser) -> None:
    study = searched(499, epochs=30)
    write_sweep_report(study, tmp_path / "report", FACTS)
    assert (tmp_path / "report" / "report.html").stat().st_size < 3e6
    opened = open_page(browser, tmp_path / "report" / "report.html")
    assert marks(opened.page, "history").count() == len(shown_rows(opened.page)) == 500
    took = opened.page.evaluate(
        "() => { const from = performance.now(); document.querySelector(\"[data-axis='0']\")"
        ".dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowUp'})); return performance.now() - from; }"
    )
    assert took < 2000 and len(shown_rows(opened.page)) < 500 and opened.console == []
    opened.page.close()
