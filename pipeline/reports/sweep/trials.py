"""A study's trials as plain values, under the names that the search gives to what it keeps in the study."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from pipeline.tuning.study import (
    DONE,
    ENDED,
    EPOCHS,
    FAILED,
    HISTORY,
    METRIC,
    OBJECTIVES,
    PRUNED,
    REASON,
    RUN_ID,
    RUNNING,
    SECONDS,
)

MAP = METRIC
STOPPED, WAITING = "stopped", "waiting"
STATES = (DONE, PRUNED, FAILED, STOPPED, RUNNING, WAITING)
OF_STATE = {
    TrialState.COMPLETE: DONE,
    TrialState.PRUNED: PRUNED,
    TrialState.FAIL: FAILED,
    TrialState.RUNNING: RUNNING,
    TrialState.WAITING: WAITING,
}
"""How a trial ended that has not got as far as to say it itself."""


@dataclass(frozen=True, eq=False)
class SweepTrial:
    """One trial."""

    number: int
    ended: str
    reason: str
    run_id: str | None
    seconds: float | None
    history: list[tuple[int, float]]
    """(epoch, validation MAP), in order of epochs."""
    values: list[float] | None
    """The final objectives, where Optuna was told of any."""
    setting: dict[str, Any]
    distributions: dict[str, BaseDistribution]

    @property
    def epochs(self) -> int:
        return self.history[-1][0] if self.history else 0

    @property
    def best(self) -> float | None:
        """The highest validation MAP after any epoch."""
        return max((value for _, value in self.history), default=None)


@dataclass(frozen=True)
class Parameter:
    """What varies; conditional ones are missing in some trials' settings."""

    name: str
    choices: list[Any] | None
    """In the space's order; None: a number."""
    log: bool


@dataclass(frozen=True)
class Objective:
    """What the search seeks to raise or lower."""

    name: str
    maximise: bool

    @property
    def factor(self) -> int:
        """MAP is shown times 100."""
        return 100 if self.name == MAP else 1

    @property
    def label(self) -> str:
        if self.name == MAP:
            return "validation MAP × 100"
        return re.sub(r" (ms|s|mb|gb)$", r" (\1)", plain(self.name).replace("_", " "))


@dataclass(frozen=True)
class SweepContent:
    """All that the tables, the pictures and the page are made from."""

    name: str
    objectives: list[Objective]
    epochs: int
    """The full budget of a trial."""
    trials: list[SweepTrial]
    """All of them, by number."""
    front: list[SweepTrial]
    """Trials that no other one beats in every objective, the first objective's best first."""

    @property
    def best(self) -> SweepTrial | None:
        """The best by the first objective; where none is done, the best so far."""
        return self.front[0] if self.front else max(self.scored, key=lambda trial: trial.best or 0.0, default=None)

    @property
    def scored(self) -> list[SweepTrial]:
        """Those that were validated at least once."""
        return [trial for trial in self.trials if trial.history]

    @property
    def counts(self) -> dict[str, int]:
        """How many ended in each way that occurs."""
        ended = [trial.ended for trial in self.trials]
        return {state: ended.count(state) for state in dict.fromkeys((*STATES, *ended)) if state in ended}

    @cached_property
    def parameters(self) -> list[Parameter]:
        """In the order in which trials first had them."""
        found: dict[str, list[BaseDistribution]] = {}
        for trial in self.trials:
            for name, distribution in trial.distributions.items():
                of_name = found.setdefault(name, [])
                if distribution not in of_name:
                    of_name.append(distribution)
        return [_parameter(name, distributions) for name, distributions in found.items()]

    def shown_objectives(self) -> list[tuple[int, Objective]]:
        """Those that say more than the trials' best MAP, with their place among the objectives."""
        done = [trial for trial in self.trials if trial.values]
        return [
            (i, objective)
            for i, objective in enumerate(self.objectives)
            if objective.name != MAP or any(trial.values and trial.values[i] != trial.best for trial in done)
        ]


def read_study(study: optuna.Study) -> SweepContent:
    """Every trial of `study`, whatever became of it."""
    trials = [_trial(trial) for trial in study.get_trials(deepcopy=False)]
    names = study.user_attrs.get(OBJECTIVES) or [MAP, *(f"objective {i}" for i in range(1, len(study.directions)))]
    objectives = [
        Objective(name, direction is not StudyDirection.MINIMIZE)
        for name, direction in zip(names, study.directions, strict=True)
    ]
    longest = max((trial.epochs for trial in trials), default=1)
    return SweepContent(
        study.study_name, objectives, int(study.user_attrs.get(EPOCHS, longest)), trials, _front(trials, objectives)
    )


def _trial(trial: FrozenTrial) -> SweepTrial:
    attributes = trial.user_attrs
    finite = trial.state is TrialState.COMPLETE and all(map(math.isfinite, trial.values))
    return SweepTrial(
        number=trial.number,
        ended=attributes.get(ENDED) or OF_STATE[trial.state],
        reason=plain(str(attributes.get(REASON) or "")),
        run_id=attributes.get(RUN_ID),
        seconds=attributes.get(SECONDS),
        history=[(int(epoch), float(v)) for epoch, v in attributes.get(HISTORY) or () if math.isfinite(v)],
        values=trial.values if finite else None,
        setting=trial.params,
        distributions=trial.distributions,
    )


def _front(trials: list[SweepTrial], objectives: list[Objective]) -> list[SweepTrial]:
    """Trials that are done and not dominated; of one objective the best alone, the earliest of equals."""

    def losses(trial: SweepTrial) -> list[float]:
        return [-v if o.maximise else v for v, o in zip(trial.values or (), objectives, strict=True)]

    done = sorted((losses(trial), trial.number, trial) for trial in trials if trial.ended == DONE and trial.values)
    if len(objectives) == 1:
        return [trial for *_, trial in done[:1]]
    return [
        trial
        for mine, _, trial in done
        if not any(theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True)) for theirs, *_ in done)
    ]


def _parameter(name: str, distributions: list[BaseDistribution]) -> Parameter:
    if all(isinstance(one, FloatDistribution | IntDistribution) for one in distributions):
        return Parameter(name, None, any(one.log for one in distributions))  # type: ignore[attr-defined]
    # A space may offer other choices under other conditions, and even a number.
    choices: dict[tuple[type, str], Any] = {}
    for one in distributions:
        for choice in one.choices if isinstance(one, CategoricalDistribution) else ():
            choices.setdefault((type(choice), as_setting(choice)), choice)
    return Parameter(name, list(choices.values()), False)


def as_setting(value: Any) -> str:
    """As in KEY=VALUE, which `agman train` reads back as the same value."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else plain(str(value))


def shown(value: Any) -> str:
    """For people: four digits of a number."""
    return f"{value:.4g}" if isinstance(value, float) else as_setting(value)


def plain(text: str) -> str:
    """Without what UTF-8 has no bytes for: half characters, from file names in an error, say."""
    return text.encode("utf-8", "backslashreplace").decode()
