"""Searches replayed on a surrogate of the space `full`: `agman bench replay`.

A regressor learns from the curves of `agman bench curves` what a setting reaches after every sixth of a training. Asked
instead of a training, it replays a search in seconds, as HPOBench and YAHPO Gym do: hundreds of searches tell luck from
skill. An epoch is a sixth of a training here. What a trial shows is the guessed curve plus the noise that seeds have;
what counts is the guessed last value of the setting that looked best, below the best of all settings (the regret).

Trial 0 is drawn like the others, unlike in `agman tune`, whose trial 0 is the preset: that would hide the searches'
difference behind a good start. AGMAN_REPLAYS says how often a search is replayed (100; slow and long ones less often).
What is replayed is kept below work/replay: a run that was stopped goes on, and whoever changes the curves or the
surrogate deletes that folder.
"""

from __future__ import annotations

import heapq
import itertools
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from joblib import Memory
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats import spearmanr
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.common import table, write_table
from benchmarks.curves import CURVES, PICTURES, POINTS, SIDE
from data_prep.errors import InputError
from pipeline.common.console import bar_of
from pipeline.tuning.samplers import pruner_of, sampler_of
from pipeline.tuning.spaces import distributions, find_space

REPLAYS = int(os.environ.get("AGMAN_REPLAYS", "100"))
BUDGETS = {20: (1, 4, 16), 100: (1, 4, 16), 500: (16,)}
"""Full trainings that a search may cost, and the numbers of trials that run at a time with it."""
SEARCHES, SCHEDULERS = ("random", "tpe", "gp"), ("none", "asha", "hyperband", "median")
SLOW, SLOW_BUDGET = "gp", 20
"""Search that takes seconds a trial: replayed a tenth as often, with this budget only. It learns nothing from trials
that were stopped, so it is replayed without a scheduler."""
KEPT = Path("work/replay")
"""Folder of what has been replayed."""
LONG, LONG_SCHEDULERS = 500, ("none", "asha")
"""Budget that takes minutes a replay, and the schedulers that are replayed with it."""
LEVELS, MISSING = 5, -0.5
CONTENDERS, REPEATS = 3, (0, 1, 2, 4)
"""Number of the best trials that are repeated at the end, and numbers of other seeds that are tried."""
Seen = tuple[float, float]
"""MAP that a trial has shown, and what its setting is worth."""
SPACE = "full"
PICTURE, DRAWN = Path("docs/images/regret.svg"), 50
"""Picture, and the budget beyond which it shows some of the epochs only."""


def smooth() -> Pipeline:
    """Return the Gaussian process that guesses all values of a curve."""
    kernel = ConstantKernel() * RBF(3.0) + WhiteKernel()
    return make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True, random_state=0))


def trees() -> GradientBoostingRegressor:
    """Return the boosted trees that guess one value of a curve."""
    return GradientBoostingRegressor(n_estimators=200, learning_rate=0.05, subsample=0.7, random_state=0)


class Surrogate:
    """Learned function from a setting of the space to its learning curve, in MAP × 100.

    A Gaussian process, which is smooth, and boosted trees, which find steps, are averaged: on these curves they guess
    better together than either, and than forests.
    """

    def __init__(self, curves: pd.DataFrame):
        """Fit the curves of SIDE pixels; those of other seeds tell the noise."""
        own = curves[(curves["side"] == SIDE) & (curves["failed"] == "")]
        first = own[own["seed"] == 0].reset_index(drop=True)
        self.ranges = {key: one for key, (one, *_) in sorted(distributions(find_space(SPACE)).items())}
        self.chance = 100 * float(curves["chance"].iloc[0])
        self.curves = 100 * np.stack(first["map"].tolist())
        self.settings: list[dict[str, Any]] = first[list(self.ranges)].to_dict("records")  # type: ignore[assignment]
        inputs = self._inputs(self.settings)
        self.smooth = smooth().fit(inputs, self.curves)
        self.trees = [trees().fit(inputs, values) for values in self.curves.T]
        repeated = own.groupby("number").filter(lambda rows: len(rows) > 1).groupby("number")["map"]
        of_seeds = [100 * np.stack(rows.tolist()) for _, rows in repeated]
        self.noise = float(np.sqrt(np.mean([rows[:, -1].var(ddof=1) for rows in of_seeds])))

    def curve_of(self, settings: list[dict[str, Any]]) -> np.ndarray:
        """Return the curves of settings, n×POINTS, without noise."""
        inputs = self._inputs(settings)
        return (self.smooth.predict(inputs) + np.stack([one.predict(inputs) for one in self.trees], axis=1)) / 2

    def trust(self) -> tuple[float, float]:
        """Return the rank correlation and the error in MAP × 100 of its last values in tenfold cross-validation."""
        folds, inputs, last = KFold(10, shuffle=True, random_state=0), self._inputs(self.settings), self.curves[:, -1]
        guessed = cross_val_predict(trees(), inputs, last, cv=folds)
        guessed = (guessed + cross_val_predict(smooth(), inputs, self.curves, cv=folds)[:, -1]) / 2
        return float(spearmanr(guessed, last).statistic), float(np.sqrt(np.mean((guessed - last) ** 2)))

    def effects(self, key: str) -> dict[Any, float]:
        """Return the mean last value of all curves' settings if `key` had this value: value -> MAP × 100.

        Values are a setting's choices, or up to LEVELS quantiles of those that the curves have. Settings without `key`
        do not count. (Partial dependence: Friedman, Annals of Statistics 2001.)
        """
        kind = self.ranges[key]
        if isinstance(kind, CategoricalDistribution):
            own, values = self.settings, list(kind.choices)
        else:
            own = [setting for setting in self.settings if not _is_missing(setting[key])]
            of_own = [setting[key] for setting in own]
            levels = np.quantile(of_own, np.linspace(0.05, 0.95, LEVELS), method="nearest")
            values = np.unique(levels).tolist()
        return {value: float(self.curve_of([one | {key: value} for one in own])[:, -1].mean()) for value in values}

    def _inputs(self, settings: list[dict[str, Any]]) -> np.ndarray:
        columns = [[_columns(kind, one.get(key)) for one in settings] for key, kind in self.ranges.items()]
        return np.concatenate(columns, axis=1)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _columns(kind: BaseDistribution, value: Any) -> list[float]:
    """Return a choice as one column each, and a number as its place in its range, or MISSING."""
    if isinstance(kind, CategoricalDistribution):
        return [float(_is_missing(value) if one is None else value == one) for one in kind.choices]
    if _is_missing(value):
        return [MISSING]
    assert isinstance(kind, FloatDistribution | IntDistribution)
    low, high, here = (math.log(one) if kind.log else float(one) for one in (kind.low, kind.high, value))
    return [(here - low) / (high - low)]


@cache
def surrogate() -> Surrogate:
    """Return the surrogate of the curves that are kept; once a process. Raises InputError if there are none."""
    if not CURVES.exists():
        raise InputError(f"{CURVES} is not there; `agman bench curves` makes it")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Surrogate(pd.read_parquet(CURVES))


@dataclass(frozen=True)
class Way:
    """How a search goes about it."""

    search: str
    scheduler: str
    concurrent: int
    budget: int
    """Full trainings that it may cost."""


@dataclass(frozen=True)
class Replayed:
    """Outcome of a replayed search."""

    worths: list[float]
    """MAP of its choice after every epoch, without the noise."""
    chosen: dict[int, float]
    """MAP of its last choice without the noise, by the number of other seeds with which the best were repeated."""


@dataclass
class Running:
    """A trial that is being trained."""

    trial: optuna.Trial
    shown: np.ndarray
    """MAP that it shows at every point."""
    worth: float
    """Its last MAP without the noise."""
    pace: float
    """Time of an epoch: trainings do not take equally long."""
    points: int = 0
    """Epochs that are trained."""


def replay(way: Way, seed: int) -> Replayed:
    """Replay a search to the end of its budget.

    What the search would choose is the best of the trials that are done, or, before there is one, of all.
    """
    truth, rng = surrogate(), np.random.default_rng(seed)
    define = find_space_once()
    study = optuna.create_study(
        direction="maximize", sampler=sampler_of(way.search, seed), pruner=pruner_of(way.scheduler, POINTS)
    )
    done: list[Seen] = []
    leading: Seen = (-math.inf, 0.0)
    worths: list[float] = []
    running: dict[int, Running] = {}
    queue: list[tuple[float, int]] = []
    """When the next epoch of a trial ends, and its number."""
    now = 0.0
    while len(worths) < way.budget * POINTS:
        while len(running) < way.concurrent:
            trial = study.ask()
            define(trial)
            (curve,) = truth.curve_of([trial.params])
            pace = rng.uniform(0.8, 1.2)
            running[trial.number] = Running(trial, curve + rng.normal(0, truth.noise), curve[-1], pace)
            heapq.heappush(queue, (now + pace, trial.number))
        now, number = heapq.heappop(queue)
        one = running[number]
        one.points += 1
        value = one.shown[one.points - 1]
        one.trial.report(value, one.points)
        leading = max(leading, (value, one.worth))
        if one.points == POINTS:
            done.append((max(one.shown), one.worth))
            study.tell(one.trial, max(one.shown))
            del running[number]
        elif one.trial.should_prune():
            study.tell(one.trial, state=optuna.trial.TrialState.PRUNED)
            del running[number]
        else:
            heapq.heappush(queue, (now + one.pace, number))
        worths.append(max(done, default=leading)[1])
    chosen = {repeats: repeated(done or [leading], repeats, truth.noise, rng) for repeats in REPEATS}
    return Replayed(worths, chosen)


def repeated(done: list[Seen], repeats: int, noise: float, rng: np.random.Generator) -> float:
    """Return what the choice is worth if the best CONTENDERS are trained with `repeats` other seeds."""
    best = sorted(done, reverse=True)[:CONTENDERS]
    means = [(shown + sum(worth + rng.normal(0, noise, repeats))) / (1 + repeats) for shown, worth in best]
    return best[int(np.argmax(means))][1]


@cache
def find_space_once() -> Any:
    """Return the space's function; finding it tries it out, which takes time."""
    return find_space(SPACE).define


def ways() -> list[Way]:
    """Return all searches that are replayed."""
    return [
        Way(search, scheduler, concurrent, budget)
        for budget, at_a_time in BUDGETS.items()
        for search, scheduler, concurrent in itertools.product(SEARCHES, SCHEDULERS, at_a_time)
        if search != SLOW or (budget, scheduler) == (SLOW_BUDGET, "none")
        if budget != LONG or scheduler in LONG_SCHEDULERS
    ]


def replays_of(way: Way) -> int:
    """Return how often a search is replayed."""
    share = 10 if way.search == SLOW else 5 if way.budget == LONG else 1
    return max(3, REPLAYS // share)


def reaches(median: np.ndarray, regret: float) -> int | None:
    """Return the epochs after which a regret is reached."""
    (found,) = np.nonzero(median <= regret)
    return int(found[0]) + 1 if len(found) else None


def rows_of(results: dict[Way, np.ndarray]) -> list[list[str]]:
    """Return the table: what each way has after its budget, and when it had what random search has after all of its."""
    rows = []
    for way, regrets in results.items():
        plain = results[Way("random", "none", way.concurrent, way.budget)]
        low, middle, high = np.quantile(regrets[:, -1], (0.25, 0.5, 0.75))
        when = reaches(np.median(regrets, 0), float(np.median(plain[:, -1])))
        share = f"1/{way.budget * POINTS / when:.1f}" if when else "never"
        band = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        rows.append([str(way.budget), str(way.concurrent), way.search, way.scheduler, band, share])
    return sorted(rows, key=lambda row: (int(row[0]), int(row[1]), float(row[4].split()[0])))


def draw_regrets(results: dict[Way, np.ndarray]) -> Figure:
    """Draw the median regret over epochs by budget: random search, and every search with its best scheduler."""
    figure = Figure((12, 4), layout="constrained")
    for axes, (budget, at_a_time) in zip(figure.subplots(1, len(BUDGETS)), BUDGETS.items(), strict=True):
        concurrent = at_a_time[len(at_a_time) // 2]
        here = {way: found for way, found in results.items() if (way.budget, way.concurrent) == (budget, concurrent)}
        shown = [Way("random", "none", concurrent, budget)]
        for search in SEARCHES:
            own = {way: np.median(found[:, -1]) for way, found in here.items() if way.search == search}
            shown += [min(own, key=own.__getitem__)] if own else []
        for number, way in enumerate(dict.fromkeys(shown)):
            epochs = np.arange(1, here[way].shape[1] + 1)[:: max(1, budget // DRAWN)]
            low, middle, high = np.quantile(here[way][:, epochs - 1], (0.25, 0.5, 0.75), axis=0)
            axes.plot(epochs, middle, color=f"C{number}", label=f"{way.search}, {way.scheduler}")
            axes.fill_between(epochs, low, high, color=f"C{number}", alpha=0.15, lw=0)
        axes.set_title(f"{budget} trainings, {concurrent} at a time", fontsize=10)
        axes.set_xlabel("epochs of all trials")
        axes.set_yscale("log")
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("regret, MAP × 100")
    return figure


def fidelities(curves: pd.DataFrame) -> list[tuple[str, float, float]]:
    """Return (what, rank correlation with the full training, share of its seconds) of cheaper trainings."""
    own = curves[(curves["seed"] == 0) & (curves["failed"] == "")]
    full = own[own["side"] == SIDE].set_index("number")
    last = full["map"].map(lambda one: one[-1])
    found = []
    for point in range(1, POINTS):
        there = full["map"].map(lambda one, point=point: one[point - 1])
        found.append((f"{point}/{POINTS} of the steps", float(spearmanr(there, last).statistic), point / POINTS))
    for side, rows in own[own["side"] != SIDE].groupby("side"):
        small = rows.set_index("number")
        beside = full.loc[small.index]
        rank = spearmanr(small["map"].map(lambda one: one[-1]), beside["map"].map(lambda one: one[-1])).statistic
        found.append((f"{side} px", float(rank), float(small["seconds"].sum() / beside["seconds"].sum())))
    return found


def main() -> None:
    """Replay every way; write table and picture."""
    truth = surrogate()
    every = ways()
    bar = bar_of("searches", sum(map(replays_of, every)))
    worths: dict[Way, np.ndarray] = {}
    chosen: dict[Way, dict[int, float]] = {}
    remembered = Memory(KEPT, verbose=0).cache(replay)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool:
        for way in every:
            found = []
            for one in pool.map(remembered, itertools.repeat(way), range(replays_of(way))):
                found.append(one)
                bar.update(1)
            worths[way] = np.array([one.worths for one in found])
            chosen[way] = {n: float(np.mean([one.chosen[n] for one in found])) for n in REPEATS}
    bar.close()
    best = max(float(one.max()) for one in worths.values())
    results = {way: best - one for way, one in worths.items()}
    draw_regrets(results).savefig(PICTURE)
    header = ["trainings", "at a time", "search", "scheduler", "regret at the end", "random's end after"]
    write_table("replay", header, rows_of(results), notes(truth, best, chosen))


def effects_table(truth: Surrogate) -> str:
    """Return the table of what each setting changes, the largest range first."""
    preset = find_space(SPACE).start
    rows = []
    for key in truth.ranges:
        found = truth.effects(key)
        shown = ", ".join(
            f"{value:.3g}: {map_:.1f}" if isinstance(value, float) else f"{value}: {map_:.1f}"
            for value, map_ in found.items()
        )
        rows.append((max(found.values()) - min(found.values()), key, str(preset.get(key, "")), shown))
    rows.sort(reverse=True)
    header = ["setting", "range", "preset", "mean MAP at each value"]
    return table(header, [[key, f"{spread:.1f}", preset, shown] for spread, key, preset, shown in rows])


def notes(truth: Surrogate, best: float, chosen: dict[Way, dict[int, float]]) -> str:
    """Describe surrogate, noise, repeats, effects of the settings, and fidelities."""
    gains = {n: np.mean([one[n] - one[0] for one in chosen.values()]) for n in REPEATS[1:]}
    of_repeats = ", ".join(f"{gain:.2f} with {n}" for n, gain in gains.items())
    rank_correlation, error = truth.trust()
    cheaper = ", ".join(
        f"{what}: {rank:.2f} at {share:.2f}" for what, rank, share in fidelities(pd.read_parquet(CURVES))
    )
    spread = np.quantile(truth.curves[:, -1], (0.1, 0.5, 0.9))
    return "\n\n".join(
        [
            f"Median (and quartiles) of {REPLAYS} replays, {replays_of(Way(SLOW, 'none', 1, SLOW_BUDGET))} of {SLOW}, "
            f"{replays_of(Way('tpe', 'none', 16, LONG))} with {LONG} trainings; MAP × 100. "
            f"Surrogate: {len(truth.curves)} trainings of {PICTURES:,} pictures of {SIDE} px; validation MAP "
            f"{spread[0]:.1f}, {spread[1]:.1f}, {spread[2]:.1f} (10 %, median, 90 %), the best that any search found "
            f"{best:.1f}, chance {truth.chance:.1f}; noise between seeds {truth.noise:.2f}; in 10-fold validation "
            f"rank correlation {rank_correlation:.2f}, error {error:.2f}.",
            f"If the best {CONTENDERS} trials are repeated with other seeds, the choice is better by: {of_repeats} "
            f"(mean over all searches).",
            f"Rank correlation of cheaper trainings with the full one, at a share of its seconds: {cheaper}.",
            "Effect of each setting: the surrogate's mean last MAP × 100 over all settings of the curves, if this one "
            "had the value, and the range of these means.",
            effects_table(truth),
        ]
    )


if __name__ == "__main__":
    main()
