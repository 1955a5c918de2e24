"""What a search says about which parameters mattered, and on how many trials that rests.

PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255; conditional parameters: arXiv 2601.20800), as Optuna computes it:
how differently a parameter's values are spread among the best trials and among all. It needs to know which trials
are the best, not by how much. So pruned trials count, with the best MAP that they reached: they are what the best
stand out from. Without them the few survivors of early stopping, alike as they are, would be all there is.
fANOVA would leave out conditional parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from pipeline.reports.sweep.trials import DONE, PRUNED, SweepContent, SweepTrial, as_setting

FEWEST = 5
"""Of fewer trials nothing is said."""
BEST_SHARE = 0.1
"""The best tenth is compared with all; of a short search FEWEST trials, but no more than half."""


@dataclass(frozen=True)
class Importances:
    """Shares that sum to 1, or why there are none."""

    shares: dict[str, float]
    """Parameter -> share, the largest first."""
    meaning: str
    """What the shares say and rest on, or why there are none."""


def importances(content: SweepContent) -> Importances:
    """The importance of every parameter that varied."""
    single = len(content.objectives) == 1
    rest_on = {trial: values for trial in content.trials if (values := _values(trial, single))}
    if len(rest_on) < FEWEST:
        return Importances({}, f"Too few trials to say which parameters matter: {len(rest_on)}, not {FEWEST}.")
    if len(set(map(tuple, rest_on.values()))) == 1:
        return Importances({}, f"All {len(rest_on)} trials score the same: nothing tells the parameters apart.")
    share = max(BEST_SHARE, min(0.5, FEWEST / len(rest_on)))
    raw = _computed(content, rest_on, share)
    # The method's prior gives a little even to what never varied.
    raw = {name: value if _varied(name, rest_on) else 0.0 for name, value in raw.items()}
    total = sum(raw.values())
    if not total:
        return Importances({}, "No parameter took more than one value.")
    pruned = sum(trial.ended == PRUNED for trial in rest_on)
    counted = f"{len(rest_on)} trials" + (f", {pruned} of them pruned" if pruned else "")
    best = f"the best {100 * share:.0f} %" + ("" if single else " (those nearest to the Pareto front)")
    return Importances(
        {name: raw[name] / total for name in sorted(raw, key=lambda name: (-raw[name], name))},
        f"How much a parameter's values among {best} differ from those in all trials, as shares of 1 (PED-ANOVA). "
        f"What the search settled on early seems to matter less than it does. Rests on {counted}.",
    )


def _values(trial: SweepTrial, single: bool) -> list[float] | None:
    if trial.ended == DONE:
        return trial.values
    return [trial.best] if single and trial.ended == PRUNED and trial.best is not None else None


def _varied(name: str, trials: Iterable[SweepTrial]) -> bool:
    return len({as_setting(trial.setting[name]) for trial in trials if name in trial.setting}) > 1


def _computed(content: SweepContent, rest_on: dict[SweepTrial, list[float]], share: float) -> dict[str, float]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(directions=["maximize" if o.maximise else "minimize" for o in content.objectives])
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials(
        create_trial(values=values, params=trial.setting, distributions=trial.distributions)
        for trial, values in rest_on.items()
    )
    with warnings.catch_warnings():
        # It warns of conditions that a single trial met, which then count for nothing.
        warnings.simplefilter("ignore")
        evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
        return get_param_importances(study, evaluator=evaluator, normalize=False)
