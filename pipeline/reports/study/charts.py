"""Charts of a study, drawn by `optuna.visualization`: interactive ones for the page, pictures for everywhere else."""

from __future__ import annotations

import html
import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import optuna
from optuna import visualization as interactive
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.visualization import matplotlib as pictures

from pipeline.common.console import printable
from pipeline.tuning.study import DONE, ENDED, HISTORY, METRIC, OBJECTIVES, PRIOR, PRUNED

FEWEST = 5
"""Fewest scored trials from which importances are computed."""
LONGEST_LEGEND, LONGEST = 12, 40
MOST_TICKS = 15
EPOCH = "epoch"
TITLES = {
    "pareto": "Pareto front",
    "history": "Trials of the study",
    "curves": "Trials over their epochs",
    "parallel": "Settings and their results",
    "slices": "Each setting and the result",
    "importances": "Importance of each setting (PED-ANOVA: how its values in the best trials differ from all)",
}


@dataclass(frozen=True)
class StudyChart:
    """One chart in two forms: for the page, and as a picture."""

    name: str
    title: str
    figure: str
    """Plotly figure as JSON."""
    png: bytes


def draw(study: optuna.Study) -> list[StudyChart]:
    """Return the charts that the study has enough trials for."""
    with _quiet():
        shown = _drawable(study, lambda text: html.escape(printable(text, LONGEST)))  # plotly reads markup
        printed = _drawable(study, lambda text: printable(text, LONGEST).replace("$", r"\$"))  # matplotlib reads TeX
        figures = {name: plot() for name, plot in _plots(shown, interactive).items()}
        return [
            StudyChart(name, TITLES[name], _json(figures[name], name), _png(plot, name))
            for name, plot in _plots(printed, pictures).items()
        ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's remarks on experimental functions and omitted trials, and changes of matplotlib's style, inside."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    plt.switch_backend("agg")
    try:
        with warnings.catch_warnings(), plt.rc_context():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _drawable(study: optuna.Study, readable: Callable[[str], str]) -> optuna.Study:
    """Return a copy in memory with readable texts and MAP times 100.

    Optuna draws complete trials alone. In a study of one objective a pruned trial is complete in the copy, with its
    best MAP: without them, the few that survived early stopping would be all there is to compare with.
    """
    objectives = study.user_attrs.get(OBJECTIVES, [METRIC])
    copy = optuna.create_study(directions=study.directions)
    copy.set_metric_names([label(name) for name in objectives])

    def text(value: Any) -> Any:
        return readable(value) if isinstance(value, str) else value

    def distribution(one: BaseDistribution) -> BaseDistribution:
        return (
            CategoricalDistribution(list(map(text, one.choices))) if isinstance(one, CategoricalDistribution) else one
        )

    for trial in study.get_trials(deepcopy=False):
        if PRIOR in trial.user_attrs:  # an earlier study's; a failed trial is drawn nowhere and keeps its number
            copy.add_trial(create_trial(state=TrialState.FAIL))
            continue
        history = {epoch: 100 * value for epoch, value in trial.user_attrs.get(HISTORY, []) if math.isfinite(value)}
        values: list[float] | None = None
        if len(objectives) == 1 and history and trial.user_attrs.get(ENDED) in (DONE, PRUNED):
            values = [max(history.values())]
        elif trial.state is TrialState.COMPLETE and all(map(math.isfinite, trial.values)):
            values = [shown(name, value) for name, value in zip(objectives, trial.values, strict=True)]
        state = TrialState.COMPLETE if values else TrialState.PRUNED if history else TrialState.FAIL
        copy.add_trial(
            create_trial(
                state=state,
                values=values,
                params={readable(name): text(value) for name, value in trial.params.items()},
                distributions={readable(name): distribution(one) for name, one in trial.distributions.items()},
                intermediate_values=history,
            )
        )
    return copy


def label(objective: str) -> str:
    """Return an objective's name on the charts and in the table."""
    return "validation MAP × 100" if objective == METRIC else objective.replace("_", " ")


def shown(objective: str, value: float) -> float:
    """Return an objective's value as it is shown: MAP times 100."""
    return 100 * value if objective == METRIC else value


def _plots(study: optuna.Study, by: Any) -> dict[str, Callable[[], Any]]:
    """Return the plots of one of Optuna's two modules, by name; none that have nothing to show."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    several = len(study.directions) > 1
    names = study.metric_names or []
    of_map: dict[str, Any] = {"target_name": names[0]} | ({"target": _map} if several else {})
    plots: dict[str, Callable[[], Any]] = {}
    if several and complete:
        plots["pareto"] = lambda: by.plot_pareto_front(study, target_names=names)
    if complete:
        plots["history"] = lambda: by.plot_optimization_history(study, **of_map)
    if any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        plots["curves"] = lambda: by.plot_intermediate_values(study)
    if any(trial.params for trial in complete):
        plots["parallel"] = lambda: by.plot_parallel_coordinate(study, target_name=names[0])
        plots["slices"] = lambda: by.plot_slice(study, **of_map)
        if len(complete) >= FEWEST and len({_map(trial) for trial in complete}) > 1:
            share = max(0.1, min(0.5, FEWEST / len(complete)))  # the best tenth; of a short study FEWEST trials
            higher_is_worse = {"target": lambda trial: -_map(trial)} if several else {}
            plots["importances"] = lambda: by.plot_param_importances(
                study, PedAnovaImportanceEvaluator(target_quantile=share), target_name=names[0], **higher_is_worse
            )
    return plots


def _map(trial: FrozenTrial) -> float:
    return float(trial.values[0])


def _json(figure: Any, name: str) -> str:
    above = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}  # beside it, half of a phone would be legend
    figure.update_layout(title=None, template="plotly_white", margin={"t": 40, "r": 30}, legend=above)
    if name == "parallel":
        columns = len(figure.layout.xaxis.ticktext or ())
        figure.update_layout(width=max(700, 110 * columns), margin={"r": 110})  # slanted names end right of their axis
    if name == "curves":
        figure.update_xaxes(title_text=EPOCH).update_yaxes(title_text=label(METRIC))
    if name in ("history", "curves") and max(max(line.x, default=0) for line in figure.data) <= MOST_TICKS:
        figure.update_xaxes(dtick=1)  # there is no half of a trial or of an epoch
    return str(figure.to_json()).replace("<", "\\u003c")  # the JSON stands in a script element


def _png(plot: Callable[[], Any], name: str) -> bytes:
    plot()
    figure, file = plt.gcf(), io.BytesIO()
    if name == "parallel":
        figure.set_size_inches(max(8.0, 1.3 * figure.axes[0].get_xlim()[1]), 5)
    if name == "curves":
        figure.axes[0].set(xlabel=EPOCH, ylabel=label(METRIC))
    for axes in figure.axes:
        if (legend := axes.get_legend()) and len(legend.texts) > LONGEST_LEGEND:
            legend.remove()
    figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return file.getvalue()
