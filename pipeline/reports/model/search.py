"""The section on a search: its trials, and what they scored over their settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.reports import charts as figures

if TYPE_CHECKING:
    from pipeline.tuning.tune import StudyResult

UNFOLDED = 12
"""A longer table of trials is folded."""


@dataclass(frozen=True)
class TrialRow:
    """One trial of the search."""

    number: int
    settings: list[str]
    best: float | None
    epochs: int
    state: str
    is_best: bool


@dataclass(frozen=True)
class Search:
    """The section on the search."""

    space: str
    seconds: float
    keys: list[str]
    trials: list[TrialRow]
    charts: list[figures.Chart]
    folded: bool


def search_section(sweep: StudyResult) -> Search:
    """The trials, best first, with a chart for every setting."""
    keys = list(dict.fromkeys(key for trial in sweep.trials for key in trial.setting))
    ranked = sorted(enumerate(sweep.trials), key=lambda numbered: -numbered[1].best)
    rows = [
        TrialRow(
            number=number,
            settings=[_short(trial.setting.get(key, "–")) for key in keys],
            best=trial.best if trial.history else None,
            epochs=trial.history[-1][0] if trial.history else 0,
            state=trial.state,
            is_best=trial is sweep.best,
        )
        for number, trial in ranked
    ]
    tried = dict.fromkeys(key for trial in sweep.trials if trial.history for key in trial.setting)
    charts = [figures.trials(sweep), *(figures.setting(sweep, key) for key in tried)]
    return Search(sweep.space, sweep.seconds, keys, rows, charts, folded=len(rows) > UNFOLDED)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
