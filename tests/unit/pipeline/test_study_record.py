"""A study's record: what it keeps when drivers are killed, and what Optuna learns from it."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.common.errors import JobFailed
from pipeline.tuning import study
from pipeline.tuning.spaces import Space, find_space
from pipeline.tuning.study import DONE, FAILED, PRUNED, RUNNING, Plan, StudyRecord, Trial

START = {"margin": 0.2, "lr": 1e-4, "class_weight": 1.0}


def plan(space: str = "margins", epochs: int = 9, **options: object) -> Plan:
    return Plan(space, {"epochs": epochs}, **options)  # type: ignore[arg-type]


def opened(folder: Path, of: Plan | None = None) -> StudyRecord:
    """A driver of its own."""
    of = of or plan()
    return StudyRecord(folder / "study.db", "search", find_space(of.space), of)


def run(record: StudyRecord, value: float, epochs: int = 9, state: str = DONE) -> Trial:
    trial = record.ask()
    for epoch in range(1, epochs + 1):
        record.epoch(trial.number, epoch, value * epoch / 9)
    return record.end(trial.number, state, "why")


def test_the_papers_setting_is_trial_0_and_not_queued_again(tmp_path: Path) -> None:
    assert run(opened(tmp_path), 0.5).setting == START
    again = opened(tmp_path)
    assert [trial.setting for trial in again.trials] == [START]
    assert again.ask().setting != START


def test_a_killed_driver_loses_nothing(tmp_path: Path) -> None:
    first = opened(tmp_path)
    run(first, 0.5)
    killed = first.ask()
    first.ran(killed.number, "a run")
    first.epoch(killed.number, 1, 0.25)
    again = opened(tmp_path)
    (interrupted,) = again.interrupted()
    assert interrupted == Trial(1, killed.setting, RUNNING, [(1, 0.25)], "a run")
    again.epoch(1, 1, 0.99)  # repeated from a checkpoint: what was heard first stays
    again.epoch(1, 2, 0.3)
    assert again.end(1, DONE, "all epochs").history == [(1, 0.25), (2, 0.3)]
    assert again.interrupted() == []
    again.ran(1, "another run")  # too late, but no error: a run that was begun again to be ended properly
    assert [trial.number for trial in opened(tmp_path).trials] == [0, 1]


def test_a_setting_that_was_only_half_written_is_completed(tmp_path: Path) -> None:
    record = opened(tmp_path)
    run(record, 0.5)
    half = record.study.ask()
    margin = half.suggest_float("margin", 0.05, 0.6)
    (trial,) = opened(tmp_path).interrupted()
    assert trial.setting.keys() == START.keys()
    assert trial.setting["margin"] == margin


@pytest.mark.parametrize(("search", "trials", "cuts"), [("random", 3, [1]), ("tpe", 6, [1, 4])])
def test_a_resumed_study_suggests_the_same_settings_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: str, trials: int, cuts: list[int]
) -> None:
    monkeypatch.setattr(study, "STARTUP_TRIALS", 3)  # TPE models from the fourth trial on

    def settings(name: str, cuts: list[int]) -> list[dict]:
        folder = tmp_path / name
        folder.mkdir()
        record = opened(folder, plan(search=search, seed=3))
        for number in range(trials):
            run(record, 0.1 * (number % 5), epochs=1)
            if number in cuts:
                record = opened(folder, plan(search=search, seed=3))
        return [trial.setting for trial in record.trials]

    undisturbed = settings("undisturbed", [])
    assert undisturbed == settings("cut", cuts)
    assert len({tuple(setting.values()) for setting in undisturbed}) == len(undisturbed)


def test_optuna_learns_pruned_trials_as_pruned_and_failed_ones_without_a_value(tmp_path: Path) -> None:
    record = opened(tmp_path)
    run(record, 0.9)
    pruned = run(record, 0.45, epochs=2, state=PRUNED)
    failed = run(record, 0.9, epochs=1, state=FAILED)
    trials = record.study.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert trials[0].value == pytest.approx(0.9)
    assert trials[1].value == pytest.approx(0.1)  # its last
    assert trials[1].intermediate_values == pytest.approx({1: 0.05, 2: 0.1})
    assert trials[2].value is None
    assert (pruned.state, failed.state, failed.reason) == (PRUNED, FAILED, "why")
    assert record.best and record.best.number == 0


def test_the_best_epoch_counts(tmp_path: Path) -> None:
    record = opened(tmp_path)
    trial = record.ask()
    for epoch, value in ((1, 0.1), (2, 0.4), (3, 0.3)):
        record.epoch(trial.number, epoch, value)
    assert record.end(trial.number, DONE, "all 3 epochs").objectives == (0.4,)


def test_a_trial_that_ends_without_a_result_has_failed(tmp_path: Path) -> None:
    record = opened(tmp_path)
    record.ask()
    assert record.end(0, DONE, "all epochs").state == FAILED
    assert record.best is None


def test_two_objectives_make_a_front(tmp_path: Path) -> None:
    record = opened(tmp_path, plan("embedding", against="embedding_dim", scheduler="none"))
    for value, width in ((0.5, 512), (0.4, 64), (0.3, 128)):
        trial = record.ask()
        record.epoch(trial.number, 9, value)
        record.end(trial.number, DONE, "all 9 epochs", against=width)
    assert [trial.values for trial in record.study.best_trials] == [[0.5, 512], [0.4, 64]]
    assert record.best and record.best.number == 0


def test_a_space_that_fails_later_ends_the_search_and_not_the_next_one(tmp_path: Path) -> None:
    def define(trial: optuna.Trial) -> None:
        trial.suggest_float("lr", 1e-4, 1e-3)
        if trial.number == 1:
            raise KeyError("width")

    space = Space("own", define, {}, frozenset(["lr"]), "")
    record = StudyRecord(tmp_path / "study.db", "search", space, plan())
    run(record, 0.5)
    with pytest.raises(JobFailed, match="trial 1: --space own failed: KeyError: 'width'"):
        record.ask()
    again = StudyRecord(tmp_path / "study.db", "search", space, plan())
    assert again.interrupted() == []
    assert again[1].state == FAILED
    assert run(again, 0.4).number == 2


def test_optuna_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = opened(tmp_path)
    run(record, 0.3)
    assert capsys.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING
