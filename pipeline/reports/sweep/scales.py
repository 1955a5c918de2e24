"""Where values stand on the charts' axes; the pictures and the page have the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from pipeline.reports.sweep.trials import Parameter, SweepContent, as_setting, shown

NOT_SET = -0.14
"""Where a trial crosses the axis of a parameter that it does not have; values are from 0 to 1."""
MOST_TICKS = 12


@dataclass(frozen=True)
class Scale:
    """The range of an axis and its labelled ticks."""

    low: float
    high: float
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class ParallelAxis:
    """One upright axis of the parallel coordinates: a parameter, or what came of it."""

    label: str
    ticks: list[tuple[float, str]]
    """(position, text), positions from 0 (below) to 1."""
    positions: list[float | None]
    """Of every trial; None where it has no value."""


def scale(values: Sequence[float], *, whole: bool = False) -> Scale:
    """Just beyond the values, with round ticks; `whole`: ticks at whole numbers."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.04 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    ticks = MaxNLocator(6, integer=whole, min_n_ticks=1).tick_values(low, high)
    return Scale(low, high, [(float(t), f"{round(t, 9):g}") for t in ticks if low <= t <= high])


def parallel_axes(content: SweepContent) -> list[ParallelAxis]:
    """The parameters, then the other objectives, then the best MAP."""
    axes = [_of_parameter(parameter, content) for parameter in content.parameters]
    for i, objective in content.shown_objectives():
        values = [objective.factor * trial.values[i] if trial.values else None for trial in content.trials]
        axes.append(_of_numbers(objective.label, values, log=False))
    best = [None if trial.best is None else 100 * trial.best for trial in content.trials]
    return [*axes, _of_numbers("best MAP × 100", best, log=False)]


def _of_parameter(parameter: Parameter, content: SweepContent) -> ParallelAxis:
    name = parameter.name
    values = [trial.setting.get(name) for trial in content.trials]
    if parameter.choices is None:
        return _of_numbers(name, values, parameter.log)
    # Those of a space that changed may have values that no list of choices has.
    texts = [as_setting(trial.setting[name]) if name in trial.setting else None for trial in content.trials]
    names = list(dict.fromkeys([*map(as_setting, parameter.choices), *(text for text in texts if text is not None)]))
    place = {text: i / (len(names) - 1) if len(names) > 1 else 0.5 for i, text in enumerate(names)}
    step = -(-len(names) // MOST_TICKS)
    ticks = [(place[text], text) for text in names[::step]]
    return ParallelAxis(name, ticks, [None if text is None else place[text] for text in texts])


def _of_numbers(label: str, values: list[Any], log: bool) -> ParallelAxis:
    present = [value for value in values if value is not None]
    if not present or min(present) == max(present):
        ticks = [(0.5, shown(present[0]))] if present else []
        return ParallelAxis(label, ticks, [None if value is None else 0.5 for value in values])
    low, high = min(present), max(present)
    log = log and low > 0

    def position(value: float) -> float:
        if log:
            return float(np.log(value / low) / np.log(high / low))
        return (value - low) / (high - low)

    marks = LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)) if log else MaxNLocator(5)
    inside = [t for t in map(float, marks.tick_values(low, high)) if low <= t <= high]
    # The ends are named in any case, and no tick stands in their way.
    between = [(position(t), f"{round(t, 12):g}") for t in inside if 0.08 < position(t) < 0.92]
    ticks = [(0.0, _end(low)), *between, (1.0, _end(high))]
    return ParallelAxis(label, ticks, [None if value is None else round(position(value), 5) for value in values])


def _end(value: float) -> str:
    return f"{value:g}" if float(value).is_integer() else f"{value:.3g}"
