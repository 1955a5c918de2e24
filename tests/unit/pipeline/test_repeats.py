"""The best trials again with other seeds: which settings, which one wins, and what a kill changes (nothing)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from support.studies import no_waiting_for_the_disk  # noqa: F401

from pipeline.reports.study.page import write_study_report
from pipeline.tuning.repeats import described, note_repeats, repeats_of, standings, standings_in
from pipeline.tuning.spaces import find_space
from pipeline.tuning.study import DONE, FAILED, PRUNED, Plan, StudyRecord

SCORES = [0.5, 0.9, 0.6, 0.7, 0.8]
"""MAP of the trials; that of 1 was luck, and 4 is pruned."""
found = cache(find_space)
TRUE = {0: 0.5, 1: 0.55, 2: 0.61, 3: 0.69}


def searched(folder: Path, scores: list[float] = SCORES) -> StudyRecord:
    folder.mkdir(exist_ok=True)
    record = StudyRecord(folder / "study.db", "search", found("margins"), Plan("margins", {"epochs": 1, "seed": 7}))
    record.note_chance(0.1)
    for score in scores:
        trial = record.ask()
        record.epoch(trial.number, 1, score)
        record.end(trial.number, PRUNED if score == 0.8 else DONE, "why")
    return record


def repeated(record: StudyRecord, folder: Path, count: int = 2, killed_after: int = -1) -> StudyRecord:
    """Run the repeats; die once after so many of them, within the next one."""
    again = repeats_of(record, folder / "repeats.db", count)
    assert again
    while pending := again.interrupted() or len(again.trials) < len(again.study.trials):
        trial = pending[0] if isinstance(pending, list) else again.ask()
        if len(again.trials) == killed_after + 1 and not trial.history:
            again.epoch(trial.number, 1, score(record, trial.setting))
            again = repeats_of(record, folder / "repeats.db", count)
            assert again and [one.number for one in again.interrupted()] == [trial.number]
        again.epoch(trial.number, 1, score(record, trial.setting))
        again.end(trial.number, DONE, "all epochs")
    return again


def score(record: StudyRecord, setting: dict) -> float:
    own = {key: value for key, value in setting.items() if key != "seed"}
    (number,) = (trial.number for trial in record.trials if trial.setting == own)
    return TRUE[number] + 0.01 * (setting["seed"] % 2)


@pytest.mark.parametrize("killed_after", [-1, 3])
def test_the_best_is_chosen_by_the_mean_of_its_seeds(tmp_path: Path, killed_after: int) -> None:
    record = searched(tmp_path)
    assert record.best and record.best.number == 1
    again = repeated(record, tmp_path, killed_after=killed_after)
    assert [one.setting["seed"] for one in again.trials] == [8, 8, 8, 9, 9, 9], "the trials' seed is 7"
    note_repeats(record, again)
    means = {one.number: one.values for one in standings_in(record.study)}
    assert means == {
        1: pytest.approx([0.9, 0.55, 0.56]),
        3: pytest.approx([0.7, 0.69, 0.7]),
        2: pytest.approx([0.6, 0.61, 0.62]),
    }
    assert list(means) == [3, 1, 2] and record.best.number == 3
    note_repeats(record, None)
    assert standings_in(record.study) == [] and record.best.number == 1


def test_more_trials_or_seeds_repeat_only_what_is_new(tmp_path: Path) -> None:
    record = searched(tmp_path)
    before = repeated(record, tmp_path).trials
    more = searched(tmp_path, [0.95])
    TRUE[5] = 0.9
    again = repeated(more, tmp_path)
    assert again.trials[: len(before)] == before
    assert [score(more, one.setting) for one in again.trials[len(before) :]] == pytest.approx([0.9, 0.91])
    count = len(again.trials)
    assert len(repeated(more, tmp_path, count=3).trials) == count + 3


def test_fewer_than_two_finished_trials_are_not_repeated(tmp_path: Path) -> None:
    assert repeats_of(searched(tmp_path, [0.5, 0.8, 0.8]), tmp_path / "repeats.db", 2) is None
    assert not (tmp_path / "repeats.db").exists()


def test_a_failed_repeat_is_one_value_less(tmp_path: Path) -> None:
    record = searched(tmp_path)
    again = repeats_of(record, tmp_path / "repeats.db", 1)
    assert again
    for _ in range(3):
        again.end(again.ask().number, FAILED, "out of memory")
    note_repeats(record, again)
    assert {one.number: one.half for one in standings_in(record.study)} == {1: None, 2: None, 3: None}
    assert record.best and record.best.number == 1


def test_intervals_share_one_deviation_and_tell_who_is_beaten() -> None:
    first, second, third = standings([(7, [0.50, 0.52]), (4, [0.59, 0.61]), (9, [0.60, 0.58])])
    assert [first.number, second.number, third.number] == [4, 9, 7]
    # the pooled variance is (3 · 2 · 0.01²) / 3, Student's t of 3 degrees of freedom 3.1824
    assert first.half == second.half == pytest.approx(3.1824 * 0.0141421 / 2**0.5, rel=1e-4)
    assert (first.beaten, second.beaten, third.beaten) == (False, False, True)  # 0.09 > 3.1824 · 0.0141421 > 0.01
    assert described(first, best=True) == "0.6000 ± 0.0318, best"
    assert described(second, best=False) == "0.5900 ± 0.0318, not beaten"
    assert described(third, best=False) == "0.5100 ± 0.0318, beaten"


def test_the_page_and_the_table_have_the_means(tmp_path: Path) -> None:
    record = searched(tmp_path)
    note_repeats(record, repeated(record, tmp_path))
    write_study_report(record.study, tmp_path / "report", {})
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert 'data-repeated="3"' in page and "trial 1: 67.00 ± " in page and "not beaten by the best" in page
    assert page.index('data-chosen="3"') and 'data-chosen="1"' not in page
    header, *rows = (tmp_path / "report" / "trials.csv").read_text().splitlines()
    assert '"seeds","mean_map","interval"' in header and len(rows) == 5
