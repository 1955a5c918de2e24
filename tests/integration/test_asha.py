"""ASHA in a study, without a Ray session."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from pipeline.tuning.ray_tune import make_scheduler
from pipeline.tuning.spaces import find_space
from pipeline.tuning.study import DONE, PRUNED, Plan, StudyRecord

EPOCHS = 3


def study_record(folder: Path, **options: str) -> StudyRecord:
    plan = Plan("margins", {"epochs": EPOCHS}, **options)  # type: ignore[arg-type]
    return StudyRecord(folder / "study.db", "study", find_space("margins"), plan)


def test_asha_of_a_resumed_study_decides_as_in_one_go(tmp_path: Path) -> None:
    def decisions(cut: int | None) -> list[str]:
        folder = tmp_path / str(cut)
        folder.mkdir()
        record = study_record(folder)
        asha = make_scheduler(record)
        said = []
        for number in range(12):
            if number == cut:
                record = study_record(folder)
                asha = make_scheduler(record)
            trial = _ray_trial(record.ask().number)
            asha.on_trial_add(None, trial)
            for epoch in range(1, EPOCHS + 1):
                value = (number * 7 % 12) / 12 + epoch / 100
                record.epoch(number, epoch, value)
                action = asha.on_trial_result(None, trial, {"epoch": epoch, "valid/map": value})
                said.append(f"{number}:{epoch}:{action}")
                if action == "STOP":
                    break
            record.end(number, DONE if epoch == EPOCHS else PRUNED, "why")
        return said

    undisturbed = decisions(None)
    assert decisions(6) == undisturbed
    stopped_early = [said for said in undisturbed if said.endswith("STOP") and f":{EPOCHS}:" not in said]
    assert len(stopped_early) >= 3


def test_a_plan_without_pruning_lets_all_trials_run(tmp_path: Path) -> None:
    scheduler = make_scheduler(study_record(tmp_path, scheduler="none"))
    trial = _ray_trial(0)
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {"epoch": 1, "valid/map": 0.0}) == "CONTINUE"


def _ray_trial(number: int) -> SimpleNamespace:
    return SimpleNamespace(config={"trial": number}, trial_id=f"ray-{number}")
