"""Real searches of the space `full` on photographs: `AGMAN_PHOTOS=FOLDER agman bench searches`.

What `agman bench replay` found on its surrogate, on real trainings: SEEDS searches of each of the FINALISTS, each for
as many epochs as BUDGET full trainings have, beside as many random searches, for which the first curves of
`agman bench curves` stand (its settings are random too, and trained in the same way). What a search has chosen is
trained again with other seeds, because the MAP by which it was chosen is the luckiest of many.

Trials are asked one after the other, as with `--concurrent 1`, and trial 0 is drawn like the others. Searches that have
ended are kept in `work/curves`, so a stopped run goes on.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import TrialState

from benchmarks.common import write_table
from benchmarks.curves import CURVES, POINTS, SIDE, WORK, curve, data, settings
from data_prep.errors import InputError
from pipeline.common.console import bar_of
from pipeline.evaluation.expectations import expectations
from pipeline.tuning.samplers import pruner_of, sampler_of
from pipeline.tuning.spaces import find_space

FINALISTS = (("tpe", "asha"), ("tpe", "hyperband"))
BUDGET, SEEDS = 20, 5
OTHER_SEEDS = (11, 12)
"""Seeds with which a search's choice is trained again."""
ENDED = WORK / "searches.jsonl"


def course(curves: list[list[float]]) -> tuple[list[float], int]:
    """Return the MAP of what a search with these trials would choose after every epoch, and its last choice.

    It chooses the best of the trials that were trained to their end, as `agman tune` does; before there is one, of all.
    """
    leading, done = (0.0, 0), (0.0, 0)
    best: list[float] = []
    for number, maps in enumerate(curves):
        for point, value in enumerate(maps, 1):
            leading = max(leading, (value, number))
            if point == POINTS:
                done = max(done, (max(maps), number))
            best.append((done if done[0] else leading)[0])
    return best, (done if done[0] else leading)[1]


def real_search(search: str, scheduler: str, seed: int) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """Search for BUDGET × POINTS epochs; return the settings and the curves of its trials."""
    define = find_space("full").define
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize", sampler=sampler_of(search, seed), pruner=pruner_of(scheduler, POINTS)
    )
    curves: list[list[float]] = []
    while (left := BUDGET * POINTS - sum(map(len, curves))) > 0:
        trial = study.ask()
        define(trial)

        def enough(maps: list[float], trial: optuna.Trial = trial, left: int = left) -> bool:
            trial.report(maps[-1], len(maps))
            return len(maps) == left or (len(maps) < POINTS and trial.should_prune())

        curves.append(curve(trial.params, SIDE, seed, enough)["map"])
        if len(curves[-1]) == POINTS:
            study.tell(trial, max(curves[-1]))
        else:
            study.tell(trial, state=TrialState.PRUNED if curves[-1] else TrialState.FAIL)
    return [trial.params for trial in study.trials], curves


def random_search(seed: int) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """Return BUDGET of the curves that are kept, in their order, as a random search without a scheduler."""
    numbers = range(1 + seed * BUDGET, 1 + (seed + 1) * BUDGET)
    table = pd.read_parquet(CURVES)
    own = table[(table["side"] == SIDE) & (table["seed"] == 0) & table["number"].isin(numbers)]
    if len(own) < BUDGET:
        raise InputError(f"{CURVES} has {len(own)} of the settings {numbers}; `agman bench curves` trains them")
    return [settings()[number] for number in numbers], own["map"].map(list).tolist()


def run(search: str, scheduler: str, seed: int) -> dict[str, Any]:
    """Run one search, and train its choice again with other seeds."""
    tried, curves = random_search(seed) if search == "random" else real_search(search, scheduler, seed)
    best, number = course(curves)
    again = [max(curve(tried[number], SIDE, other)["map"]) for other in OTHER_SEEDS]
    found = {"best": best, "trials": len(tried), "chosen": tried[number], "again": again}
    return {"search": search, "scheduler": scheduler, "seed": seed} | found


def rows_of(found: list[dict[str, Any]]) -> list[list[str]]:
    """Return the table: what was chosen, by its own MAP and by repeats, and when a search had random search's end."""
    random_end = float(np.median([one["best"][-1] for one in found if one["search"] == "random"]))
    rows = []
    for search, scheduler in (("random", "none"), *FINALISTS):
        own = sorted(
            (one for one in found if (one["search"], one["scheduler"]) == (search, scheduler)), key=lambda o: o["seed"]
        )
        ends = [100 * one["best"][-1] for one in own]
        again = [100 * float(np.mean(one["again"])) for one in own]
        length = min(len(one["best"]) for one in own)
        median = np.median([one["best"][:length] for one in own], axis=0)
        (reached,) = np.nonzero(median >= random_end)
        when = f"{reached[0] + 1} of {BUDGET * POINTS}" if len(reached) else "never"
        trials = ", ".join(str(one["trials"]) for one in own)
        rows.append([search, scheduler, trials, _all_of(ends), _all_of(again), when])
    return rows


def _all_of(values: list[float]) -> str:
    return f"{np.median(values):.2f} ({', '.join(f'{value:.1f}' for value in values)})"


def main() -> None:
    """Run the searches that are not there yet, as many at a time as there are cores; write the table."""
    if not CURVES.exists():
        raise InputError(f"{CURVES} is not there; `agman bench curves` makes it")
    expected = expectations(data(), "valid")
    assert expected, "the photographs have a validation split"
    found = [json.loads(line) for line in ENDED.read_text().splitlines()] if ENDED.exists() else []
    there = {(one["search"], one["scheduler"], one["seed"]) for one in found}
    wanted = [(*way, seed) for way in (("random", "none"), *FINALISTS) for seed in range(SEEDS)]
    bar = bar_of("searches", len(wanted))
    bar.update(len(there & set(wanted)))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool, ENDED.open("a") as file:
        for job in as_completed([pool.submit(run, *way) for way in wanted if way not in there]):
            one = job.result()
            found.append(one)
            file.write(json.dumps(one) + "\n")
            file.flush()
            bar.update(1)
    bar.close()
    header = ["search", "scheduler", "trials", "best MAP of validation", "the choice again", "random's end after"]
    notes = (
        f"Median (and each of {SEEDS} searches), MAP × 100, chance {100 * expected.over_all.chance:.2f}. "
        f"{BUDGET} × {POINTS} epochs a search; the choice trained again with {len(OTHER_SEEDS)} other seeds. "
        "“Random's end after”: epochs until the median of the best so far has what random search's has at its end."
    )
    write_table("searches", header, rows_of(found), notes)


if __name__ == "__main__":
    main()
