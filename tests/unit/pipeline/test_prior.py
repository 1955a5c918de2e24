"""A study that begins with what an earlier one has learnt: best settings first, and trials as knowledge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from support.studies import no_waiting_for_the_disk  # noqa: F401

from data_prep.errors import InputError
from pipeline.reports.study.page import write_study_report
from pipeline.tuning.folders import DESCRIPTION, STUDY, find_study, identity_of
from pipeline.tuning.prior import Prior, prior_of
from pipeline.tuning.spaces import Space, find_space
from pipeline.tuning.study import DONE, FAILED, PRIOR, PRUNED, Plan, StudyRecord

DIGEST = "d1"
PLAN = Plan("margins", {"epochs": 3, "seed": 0})
MARGINS = find_space("margins")
SCORES = {0: 0.3, 1: 0.5, 2: 0.6, 3: 0.2, 4: 0.55, 5: 0.9, 6: 0.1}
"""MAP of the earlier study's trials; 5 fails after it, 6 is pruned."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("original") / "earlier")


@pytest.fixture
def earlier(original: Path, tmp_path: Path) -> Path:
    """An earlier study of this test's own: a copy, which takes no time."""
    return Path(shutil.copytree(original, tmp_path / "runs" / "earlier"))


def made(folder: Path, plan: Plan = PLAN, scores: dict[int, float] = SCORES) -> Path:
    folder.mkdir(parents=True)
    identity = identity_of(plan, MARGINS)
    described = {"plan": identity, "digest": "plan", "dataset_digest": DIGEST, "finished": True}
    (folder / DESCRIPTION).write_text(json.dumps(described))
    record = StudyRecord(folder / STUDY, folder.name, MARGINS, plan)
    record.note_chance(0.1)
    for number, score in scores.items():
        trial = record.ask()
        record.epoch(trial.number, 1, score)
        record.end(trial.number, {5: FAILED, 6: PRUNED}.get(number, DONE), "why")
    record.ask()  # runs still
    return folder


def of(folder: Path, plan: Plan = PLAN, space: Space = MARGINS, digest: str = DIGEST) -> Prior:
    return prior_of(folder, identity_of(plan, space), space, digest)


def began(folder: Path, prior: Prior, name: str = "new", space: Space = MARGINS) -> StudyRecord:
    folder.mkdir(exist_ok=True)
    record = StudyRecord(folder / STUDY, name, space, PLAN, prior.settings, prior.trials)
    record.note_chance(0.1)
    return record


def test_the_best_settings_come_next_and_the_trials_are_knowledge_alone(earlier: Path, tmp_path: Path) -> None:
    prior = of(earlier)
    assert prior.said == "from earlier: 3 best settings to begin with, and 6 trials as knowledge"
    before = optuna.load_study(study_name="earlier", storage=f"sqlite:///{earlier / STUDY}").trials
    assert prior.settings == [before[number].params for number in (2, 4, 1)]
    record = began(tmp_path / "new", prior)
    assert record.trials == [] and record.best is None
    asked = [record.ask() for _ in range(5)]
    assert [trial.setting for trial in asked[:4]] == [MARGINS.start, *prior.settings]
    assert [trial.number for trial in asked] == [0, 1, 2, 3, 10]
    assert [trial.number for trial in record.trials] == [0, 1, 2, 3, 10]
    states = [trial.state for trial in record.study.trials if PRIOR in trial.user_attrs]
    assert states == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED]
    for trial in asked[:2]:
        record.epoch(trial.number, 1, 0.1)
        record.end(trial.number, DONE, "all epochs")
    assert record.best and record.best.number == 0, "no training of the earlier study is the best one here"
    write_study_report(record.study, tmp_path / "report", {})
    assert (tmp_path / "report" / "trials.csv").read_text().count("\n") == 1 + 5


@pytest.mark.parametrize("written", [0, 2, 5])
def test_a_driver_that_is_killed_while_it_begins_begins_nothing_twice(
    earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    prior = of(earlier)
    undisturbed = began(tmp_path / "undisturbed", prior).study.trials

    def killed(study: optuna.Study, trials: list) -> None:
        for trial in trials[:written]:
            study.add_trial(trial)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.Study, "add_trials", killed)
        began(tmp_path / "killed", prior)
    record = began(tmp_path / "killed", prior)
    assert [t.system_attrs or t.params for t in record.study.trials] == [
        t.system_attrs or t.params for t in undisturbed
    ]
    more = replace(prior, settings=[{"margin": 0.33, "lr": 1e-3, "class_weight": 2.0}])
    assert len(began(tmp_path / "killed", more).study.trials) == len(undisturbed), "the earlier study has gone on"


def test_the_next_suggestion_learns_from_them_and_is_the_same_after_a_kill(earlier: Path, tmp_path: Path) -> None:
    prior = of(earlier)

    def next_setting(name: str, prior: Prior, killed: bool) -> dict[str, Any]:
        record = began(tmp_path / name, prior)
        for _ in range(5):
            trial = record.ask()
            record.epoch(trial.number, 3, 0.5)
            record.end(trial.number, DONE, "all epochs")
            if killed:
                record = began(tmp_path / name, prior)
        return record.ask().setting

    learnt = next_setting("undisturbed", prior, killed=False)
    assert learnt == next_setting("killed", prior, killed=True)
    assert learnt != next_setting("ignorant", replace(prior, trials=[]), killed=False)


def narrow(trial: optuna.Trial) -> None:
    trial.suggest_float("margin", 0.05, 0.06)
    trial.suggest_categorical("class_weight", [1.0, 7.0])


def wider(trial: optuna.Trial) -> None:
    trial.suggest_float("margin", 0.05, 0.7)
    trial.suggest_float("lr", 1e-5, 1e-2, log=True)
    trial.suggest_float("class_weight", 0.1, 3.0, log=True)


def elsewhere(trial: optuna.Trial) -> None:
    trial.suggest_int("embedding_dim", 8, 16)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"digest": "d2"}, "another dataset"),
        ({"plan": replace(PLAN, settings={"epochs": 6, "seed": 0})}, "epochs: 3 there, 6 here"),
        (
            {"plan": replace(PLAN, space="own:wider"), "space": replace(MARGINS, name="own:wider")},
            "space: margins there",
        ),
        ({"space": replace(MARGINS, define=wider)}, "its space has other ranges"),
    ],
)
def test_trials_of_another_plan_are_no_knowledge_but_their_best_settings_are_taken(
    earlier: Path, change: dict[str, Any], why: str
) -> None:
    prior = of(earlier, **change)
    assert prior.trials == [] and prior.settings == of(earlier).settings
    assert prior.said.startswith(
        "from earlier: 3 best settings to begin with; its trials are no knowledge here (" + why
    )


def test_another_search_scheduler_or_seed_changes_nothing(earlier: Path) -> None:
    other = replace(PLAN, search="random", scheduler="median", seed=5, workers=2, source={"study": "earlier"})
    assert len(of(earlier, other).trials) == 6


def test_rungs_are_taken_only_where_they_mean_the_same_epochs(earlier: Path) -> None:
    def rungs(plan: Plan) -> bool:
        return any("completed_rung_0" in trial.system_attrs for trial in of(earlier, plan).trials)

    assert rungs(PLAN) and not rungs(replace(PLAN, scheduler="none"))
    described = json.loads((earlier / DESCRIPTION).read_text())
    described["plan"]["first_judged"] = 2
    (earlier / DESCRIPTION).write_text(json.dumps(described))
    assert len(of(earlier).trials) == 6 and not rungs(PLAN)


def test_values_that_the_space_does_not_allow_are_left_out(tmp_path: Path) -> None:
    folder = made(tmp_path / "earlier", scores={0: 0.5})
    space = Space("own", narrow, {}, frozenset(["margin", "class_weight"]), "")
    assert of(folder, space=space).settings == [{"class_weight": 1.0}], "0.2 is no margin there"


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda runs: find_study(runs, "earlie"), r"--from earlie: no such study in .*runs; did you mean 'earlier'\?"),
        (lambda runs: find_study(runs / "nowhere", "a"), "--from a: no such study in .*nowhere; there is none"),
        (lambda runs: of(made(runs / "empty", scores={})), "no trial of this study has ended with a score"),
        (
            lambda runs: of(runs / "earlier", space=Space("own", elsewhere, {}, frozenset(["embedding_dim"]), "")),
            r"--from earlier: its best settings have no value that the space 'own' allows \(embedding_dim\)",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(earlier: Path, mistake: Callable[[Path], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        mistake(earlier.parent)
    assert "\n" not in str(error.value)


def test_a_study_is_found_by_name_or_path_and_is_part_of_the_identity(earlier: Path) -> None:
    assert find_study(earlier.parent, "earlier") == find_study(Path("elsewhere"), str(earlier)) == earlier
    with_source = replace(PLAN, source={"study": "earlier", "digest": "plan"})
    assert identity_of(with_source, MARGINS) != identity_of(PLAN, MARGINS)
    assert asdict(with_source)["source"] == {"study": "earlier", "digest": "plan"}
