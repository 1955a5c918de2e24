"""A study's record: what it keeps when drivers are killed, and what Optuna learns from it."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args
from zlib import crc32

import optuna
import pytest
from optuna.trial import TrialState
from support.studies import no_waiting_for_the_disk  # noqa: F401

from pipeline.common.errors import JobFailed
from pipeline.tuning import samplers, study
from pipeline.tuning.samplers import sampler_of
from pipeline.tuning.spaces import Space, find_space
from pipeline.tuning.study import DONE, FAILED, PRUNED, RUNNING, Plan, StudyRecord, Trial

TRIALS = 9
START = {"margin": 0.2, "lr": 1e-4, "class_weight": 1.0}


def plan(space: str = "margins", epochs: int = 9, **options: object) -> Plan:
    return Plan(space, {"epochs": epochs}, **options)  # type: ignore[arg-type]


found = cache(find_space)
"""Trying a space out takes longer than opening a study."""


def opened(folder: Path, of: Plan | None = None) -> StudyRecord:
    """A driver of its own."""
    of = of or plan()
    record = StudyRecord(folder / "study.db", "search", found(of.space), of)
    record.note_chance(0.1)
    return record


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


def test_kills_are_counted_over_drivers(tmp_path: Path) -> None:
    killed = opened(tmp_path).ask()
    for driver in (1, 2):
        record = opened(tmp_path)
        record.interrupted()
        assert record.count_kill(killed.number) == driver


def test_a_setting_that_was_only_half_written_is_completed(tmp_path: Path) -> None:
    record = opened(tmp_path)
    run(record, 0.5)
    half = record.study.ask()
    margin = half.suggest_float("margin", 0.05, 0.6)
    (trial,) = opened(tmp_path).interrupted()
    assert trial.setting.keys() == START.keys()
    assert trial.setting["margin"] == margin


def curve(trial: Trial, epoch: int) -> float:
    """Return a MAP that number and setting decide, so that another setting would be judged otherwise."""
    return (crc32(repr((trial.number, trial.setting)).encode()) % 97 + epoch) / 200


class Driver:
    """Runs a study's trials one after another, as Ray Tune does."""

    def __init__(self, folder: Path, of: Plan):
        folder.mkdir(exist_ok=True)
        self.folder, self.plan = folder, of
        self.record = opened(folder, of)

    def die(self) -> None:
        self.record = opened(self.folder, self.plan)

    def run(self, trials: int, deaths: Collection[tuple[int, int]] = ()) -> list[Trial]:
        """Run the study, and die after these (trial, epoch)."""
        for number in range(len(self.record.trials), trials):
            trial = self.record.ask()
            for epoch in range(1, self.plan.settings["epochs"] + 1):
                self.record.epoch(number, epoch, curve(trial, epoch))
                stop = self.record.why_stopped(number)
                if (number, epoch) in deaths:
                    self.die()
                    assert [number] == [one.number for one in self.record.interrupted()]
                    self.record.epoch(number, epoch, 0.0)  # reported again from a checkpoint
                    assert stop == self.record.why_stopped(number)
                if stop:
                    break
            self.record.end(number, PRUNED if stop else DONE, stop)
            if (number, 0) in deaths:
                self.die()
        return self.record.trials


SEARCHES, SCHEDULERS = get_args(samplers.Search), get_args(samplers.Scheduler)
EVERY = [
    pytest.param(search, scheduler, marks=() if search == "tpe" or scheduler == "asha" else pytest.mark.slow)
    for search in SEARCHES
    for scheduler in SCHEDULERS
]
"""Every sampler with ASHA, and every scheduler with TPE; the other pairs are slow tests."""


@pytest.mark.parametrize(("search", "scheduler"), EVERY)
def test_a_killed_and_resumed_study_suggests_and_stops_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: str, scheduler: str
) -> None:
    monkeypatch.setattr(study, "sampler_of", partial(sampler_of, startup_trials=2))
    of = plan("losses", epochs=5, search=search, scheduler=scheduler, seed=5)  # a space with a condition
    undisturbed = Driver(tmp_path / "undisturbed", of).run(TRIALS)
    pruned = [trial for trial in undisturbed if trial.state == PRUNED]
    assert bool(pruned) == (scheduler != "none")
    for trial in pruned:
        assert re.match(r"(ASHA|Hyperband|median): MAP 0\.\d{4} \(chance 0\.1000\)", trial.reason)
    stop = (pruned[-1].number, len(pruned[-1].history)) if pruned else (7, 2)
    assert Driver(tmp_path / "killed", of).run(TRIALS, {(1, 3), (5, 0), stop}) == undisturbed


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_a_decision_that_a_killed_driver_did_not_note_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    """The driver dies after the pruner has written what it judged, and before the decision is written."""
    of = plan(epochs=9, search="random", scheduler=scheduler, seed=3)
    driver = Driver(tmp_path, of)
    driver.run(7)
    trial = driver.record.ask()

    judge = type(driver.record.study.pruner)
    prune = judge.prune

    def killed(*given: Any) -> bool:
        prune(*given)
        raise KeyboardInterrupt

    for epoch in (1, 2, 3, 4):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(judge, "prune", killed)
            driver.record.epoch(trial.number, epoch, 0.0)
        driver.die()
        driver.record.interrupted()
        driver.record.epoch(trial.number, epoch, 0.9)
        if driver.record.why_stopped(trial.number):
            break
    assert driver.record.why_stopped(trial.number), "the worst of all is stopped"
    assert dict(driver.record[trial.number].history)[1] == 0.0, "what was reported first"


def test_studies_of_two_objectives_have_every_sampler_and_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "sampler_of", partial(sampler_of, startup_trials=2))
    for search in SEARCHES:
        (tmp_path / search).mkdir()
        of = plan(search=search, scheduler="none", against=("embedding_dim",))
        record = opened(tmp_path / search, of)
        for number in range(6):
            trial = record.ask()
            record.epoch(trial.number, 1, 0.01 * number)
            assert not record.why_stopped(trial.number)
            record.end(trial.number, DONE, "all epochs", against=[number % 4])
        assert len(record.study.best_trials) > 1


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
    record = opened(tmp_path, plan("embedding", against=("embedding_dim",), scheduler="none"))
    for value, width in ((0.5, 512), (0.4, 64), (0.3, 128)):
        trial = record.ask()
        record.epoch(trial.number, 9, value)
        record.end(trial.number, DONE, "all 9 epochs", against=[width])
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
    assert run(again, 0.6).number == 2


def test_optuna_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = opened(tmp_path)
    run(record, 0.3)
    assert capsys.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING
