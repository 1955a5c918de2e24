"""Section on a study: its trials, and their scores over their settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from data_prep.words import counted
from pipeline.reports.charts import Chart, Theme, chart, marker_of, show_chance, times_100

if TYPE_CHECKING:
    from pipeline.tuning.tune import StudyResult

UNFOLDED = 12
"""Largest number of trials whose table is open; a longer table is folded."""


@dataclass(frozen=True)
class TrialRow:
    """One trial of the study."""

    number: int
    settings: list[str]
    best: float | None
    epochs: int
    state: str
    is_best: bool


@dataclass(frozen=True)
class StudySection:
    """Content of the section."""

    space: str
    seconds: float
    chance: float
    """MAP of a random ranking."""
    keys: list[str]
    trials: list[TrialRow]
    charts: list[Chart]
    folded: bool


def study_section(study: StudyResult) -> StudySection:
    """Return the trials, the best first, and a chart for every setting."""
    keys = list(dict.fromkeys(key for trial in study.trials for key in trial.setting))
    ranked = sorted(study.trials, key=lambda trial: -trial.best)
    rows = [
        TrialRow(
            number=trial.number,
            settings=[_short(trial.setting.get(key, "–")) for key in keys],
            best=trial.best if trial.history else None,
            epochs=trial.history[-1][0] if trial.history else 0,
            state=trial.state,
            is_best=trial is study.best,
        )
        for trial in ranked
    ]
    tried = dict.fromkeys(key for trial in study.trials if trial.history for key in trial.setting)
    drawn = [_trials(study), *(_setting(study, key) for key in tried)]
    return StudySection(study.space, study.seconds, study.chance, keys, rows, drawn, folded=len(rows) > UNFOLDED)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _trials(study: StudyResult) -> Chart:
    """Draw the validation MAP of every trial over its epochs, and highlight the best trial."""

    def draw(axes: Axes, theme: Theme) -> None:
        for trial in study.trials:
            if trial.history:
                axes.plot(
                    *times_100(trial.history),
                    color=theme.ink,
                    alpha=0.45,
                    linewidth=1.2,
                    **marker_of(trial.history),
                )
        best = study.best
        label = f"best: trial {best.number}"
        axes.plot(*times_100(best.history), color=theme.series[1], linewidth=2.6, marker="o", label=label)
        show_chance(axes, theme, study.chance)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel="valid MAP × 100")
        axes.legend()

    alt = f"Validation MAP over epochs of {counted(len(study.trials), 'trial')}; best {100 * study.best.best:.2f}"
    return chart("Trials over their epochs", alt, draw)


def _setting(study: StudyResult, key: str) -> Chart:
    """Draw the best validation MAP of every trial over its value of one setting; the best trial is a star."""
    scored = [trial for trial in study.trials if trial.history and key in trial.setting]
    values = [trial.setting[key] for trial in scored]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)

    def draw(axes: Axes, theme: Theme) -> None:
        for trial, value in zip(scored, values, strict=True):
            look = _look(theme, trial is study.best)
            axes.scatter([value if numbers else str(value)], [100 * trial.best], linewidths=0, **look)
        if numbers and min(values) > 0 and max(values) > 10 * min(values):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        show_chance(axes, theme, study.chance)
        axes.set(xlabel=key, ylabel="valid MAP × 100")

    return chart(f"MAP over {key}", f"Best validation MAP of {counted(len(scored), 'trial')} over their {key}", draw)


def _look(theme: Theme, best: bool) -> dict[str, Any]:
    if best:
        return {"s": 150, "marker": "*", "color": theme.series[1], "zorder": 3}
    return {"s": 42, "marker": "o", "color": theme.series[0], "alpha": 0.75}
