"""`--from STUDY`: a new study begins with the best settings of an earlier one, and with its trials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from data_prep.errors import InputError
from data_prep.storage import Storage
from data_prep.words import counted
from pipeline.common.files import read_json
from pipeline.tuning.folders import DESCRIPTION, STUDY, difference
from pipeline.tuning.spaces import Space, distributions
from pipeline.tuning.study import DONE, FAILED, RUNNING, Trial, as_prior, trials_in

BEST = 3
"""Number of an earlier study's best settings that a new study begins with."""
INDIFFERENT = ("search", "scheduler", "first_judged", "seed", "workers", "source", "start")
"""Parts of a plan that may differ where an earlier study's trials are knowledge for a new one."""


@dataclass(frozen=True)
class Prior:
    """Settings and trials that a new study takes from an earlier one."""

    settings: list[dict[str, Any]]
    """Its best settings as far as the new space varies and allows them, the best first."""
    trials: list[FrozenTrial]
    """Its trials, if they are knowledge here."""
    said: str
    """Description of what is taken and why not more, in one line."""


def prior_of(folder: Path, identity: dict[str, Any], space: Space, dataset_digest: str) -> Prior:
    """Return what a study of this identity takes from the study in `folder`.

    Raises InputError if no trial of it has ended with a score, or if none of its best values is one of the space's.
    """
    name, begun = folder.name, read_json(Storage(folder / DESCRIPTION))
    study = opened(folder / STUDY)
    scored = [t for t in trials_in(study) if t.history and t.state not in (RUNNING, FAILED)] if study else []
    if not study or not scored:
        raise InputError(
            f"--from {name}: no trial of this study has ended with a score; there is nothing to begin with"
        )
    allowed = distributions(space)
    ranked = sorted(scored, key=lambda trial: (trial.state != DONE, -trial.best))
    settings = [found for trial in ranked[:BEST] if (found := _allowed(trial, allowed))]
    if not settings:
        varied = ", ".join(sorted(allowed))
        raise InputError(
            f"--from {name}: its best settings have no value that the space {space.name!r} allows ({varied})"
        )
    said = f"from {name}: {counted(len(settings), 'best setting')} to begin with"
    trials = [
        trial for trial in study.get_trials(deepcopy=False) if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    ]
    if begun["dataset_digest"] != dataset_digest:
        why = "another dataset"
    elif not (why := difference(begun["plan"], identity, INDIFFERENT)):
        if all(one in allowed.get(key, []) for trial in trials for key, one in trial.distributions.items()):
            judged = [(plan["scheduler"], plan.get("first_judged")) for plan in (begun["plan"], identity)]
            with_rungs = judged[0] == judged[1] and identity["scheduler"] == "asha"  # the same for every trial
            trials = [as_prior(trial, name, with_rungs) for trial in trials]
            return Prior(settings, trials, f"{said}, and {counted(len(trials), 'trial')} as knowledge")
        why = "its space has other ranges"
    return Prior(settings, [], f"{said}; its trials are no knowledge here ({why})")


def opened(file: Path) -> optuna.Study | None:
    """Return the study in a database, or None if there is none."""
    if not file.is_file():  # sqlite would make it
        return None
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    names = optuna.get_all_study_names(storage)  # the folder may have been renamed
    return optuna.load_study(study_name=names[0], storage=storage) if names else None


def _allowed(trial: Trial, allowed: dict[str, list[BaseDistribution]]) -> dict[str, Any]:
    """Return the trial's values that one of the distributions has."""
    return {k: v for k, v in trial.setting.items() if any(_has(one, v) for one in allowed.get(k, []))}


def _has(distribution: BaseDistribution, value: Any) -> bool:
    try:
        create_trial(params={"": value}, distributions={"": distribution}, value=0.0)
    except (TypeError, ValueError):
        return False
    return True
