"""The best trials again with other seeds: the best of many noisy trials is chosen by its mean, not by luck.

Repeats are a small Optuna study of their own, so they survive kills as trials do. Its settings are those of the best
trials, each with a `seed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import optuna
from scipy import stats

from pipeline.tuning.spaces import Space
from pipeline.tuning.study import DONE, REPEATS, StudyRecord, Trial

SETTINGS = 3
"""Number of the best settings that are repeated."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Standing:
    """A repeated setting among the others."""

    number: int
    """Number of the trial that has the setting."""
    values: list[float]
    """MAP of every seed; the trial's own is the first."""
    half: float | None
    """Half the width of the mean's interval of CONFIDENCE; None without two values of one setting."""
    beaten: bool
    """Whether the best mean is higher beyond the noise of the seeds."""

    @property
    def mean(self) -> float:
        """Mean MAP over the seeds."""
        return fmean(self.values)


def standings(repeats: Sequence[tuple[int, list[float]]]) -> list[Standing]:
    """Return how the repeated settings stand, the best mean first.

    All share one deviation between seeds, pooled over the settings: few seeds of one setting tell little about it.
    Intervals are Student's t. The best beats another one if the interval of their difference lies above 0.
    """
    ranked = sorted(repeats, key=lambda one: -fmean(one[1]))
    freedom = sum(len(values) - 1 for _, values in ranked)
    if not freedom:
        return [Standing(number, values, None, False) for number, values in ranked]
    squares = sum((value - fmean(values)) ** 2 for _, values in ranked for value in values)
    width = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(squares / freedom)
    best = ranked[0][1]

    def beaten(values: list[float]) -> bool:
        return fmean(best) - fmean(values) > width * math.sqrt(1 / len(best) + 1 / len(values))

    return [Standing(number, values, width / math.sqrt(len(values)), beaten(values)) for number, values in ranked]


def described(standing: Standing | None, best: bool) -> str:
    """Return the mean with its interval, and whether the best setting beats this one; nothing if not repeated."""
    if not standing:
        return ""
    interval = f" ± {standing.half:.4f}" if standing.half is not None else ""
    return f"{standing.mean:.4f}{interval}" + (", best" if best else ", beaten" if standing.beaten else ", not beaten")


def standings_in(study: optuna.Study) -> list[Standing]:
    """Return how the settings stand that a study has repeated; empty if it has repeated none."""
    return standings([(number, values) for number, values in study.user_attrs.get(REPEATS, [])])


def repeats_of(record: StudyRecord, file: Path, count: int) -> StudyRecord | None:
    """Return the study, in the database `file`, of the best trials' settings with `count` other seeds each.

    Returns None if fewer than two trials were trained to their end: there is nothing to choose from.
    """
    best = _best(record)
    if len(best) < 2:
        return None
    first = int(record.plan.settings["seed"]) + 1
    settings = [trial.setting | {"seed": first + i} for i in range(count) for trial in best]

    def define(trial: optuna.Trial) -> None:
        record.space.define(trial)
        trial.suggest_int("seed", 0, 2**31 - 1)

    space = Space("repeats", define, settings[0], record.space.varied | {"seed"}, "")
    plan = replace(record.plan, search="random", scheduler="none", against=())
    repeats = StudyRecord(file, "repeats", space, plan)
    repeats.queue(settings)
    repeats.note_chance(record.chance)
    return repeats


def note_repeats(record: StudyRecord, repeats: StudyRecord | None) -> None:
    """Note the MAP of every seed in the study, which then has its best trial by the mean."""
    found = []
    for trial in _best(record) if repeats else []:
        others = [one for one in repeats.trials if one.state == DONE] if repeats else []
        same = [one.best for one in others if {k: v for k, v in one.setting.items() if k != "seed"} == trial.setting]
        found.append((trial.number, [trial.best, *same]))
    record.study.set_user_attr(REPEATS, found)


def _best(record: StudyRecord) -> list[Trial]:
    done = [trial for trial in record.trials if trial.state == DONE]
    return sorted(done, key=lambda trial: -trial.best)[:SETTINGS]
