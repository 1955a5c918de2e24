"""Learning curves of random settings of the space `full`: `AGMAN_PHOTOS=FOLDER agman bench curves`.

`agman bench replay` learns from them what any setting would reach, and replays searches in seconds. Every setting
trains the preset `strong` on small photographs (SIDE px), one thread each, and is validated after every sixth of
PICTURES. Some are trained with other seeds, which shows the noise, and some on smaller pictures, which shows how well
cheaper trainings rank them.

AGMAN_SETTINGS says how many (250). Curves are kept in `work/curves` as they end, so a stopped run goes on; all of them
become `benchmarks/results/curves.parquet`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.fit import photographs, prepared
from benchmarks.quality import Judge
from data_prep.dataset import Dataset
from data_prep.splits import SplitFractions
from pipeline.common.console import bar_of
from pipeline.config.presets import PRESETS
from pipeline.config.schema import make_config
from pipeline.evaluation.expectations import expectations
from pipeline.training.trainer import NonFiniteBatch, StepEnd, Training, WorkerContext
from pipeline.tuning.spaces import draw, find_space

SETTINGS = int(os.environ.get("AGMAN_SETTINGS", "250"))
PICTURES, POINTS = 2_304, 6
"""Pictures that a training sees, and the number of times that it is validated."""
SIDE, SMALLER, OTHER_SEEDS = 64, (48, 32), (1, 2)
REPEATED = 24
"""Number of settings that are trained with other seeds, and on smaller pictures."""
WORK = Path("work/curves")
CURVES = Path("benchmarks/results/curves.parquet")
SAME = {"precision": "fp32", "threads": 1, "micro_batches": 1, "patience": None}


def settings() -> list[dict[str, Any]]:
    """Return the settings: the preset's, then random ones."""
    space = find_space("full")
    return [space.start, *draw(space, SETTINGS - 1, seed=1)]


def wanted() -> Iterator[tuple[int, int, int]]:
    """Yield the number of a setting, the side of its pictures and the seed of every training, in a useful order."""
    for number in range(SETTINGS):
        yield number, SIDE, 0
        if number < REPEATED:
            yield from ((number, SIDE, seed) for seed in OTHER_SEEDS)
            yield from ((number, side, 0) for side in SMALLER)


def data() -> Dataset:
    """Return the photographs at SIDE px, prepared if need be."""
    folder = WORK / "data"
    fractions = SplitFractions(valid=0.1, test=0.2, query=0.5)
    options = {"image_size": SIDE, "triplets": 100, "epochs": 1}
    return Dataset(folder) if folder.exists() else prepared(photographs(), folder, fractions, **options)


def curve(
    setting: dict[str, Any], side: int, seed: int, enough: Callable[[list[float]], bool] = lambda maps: False
) -> dict[str, Any]:
    """Train in this process; return the validation MAP at every point, and seconds of CPU without validation.

    `enough` is asked after every point with all MAPs so far, and ends the training if it returns True.
    """
    torch.set_num_threads(1)
    dataset = Dataset(WORK / "data")
    steps = PICTURES // setting["batch_size"]
    own = {"image_size": side, "max_steps": steps, "seed": seed}
    training = Training(make_config(PRESETS["strong"].settings | SAME | setting | own), dataset, WorkerContext())
    judge = Judge(dataset, training.judged.pixels, "valid", side)
    points = [round(steps * point / POINTS) for point in range(1, POINTS + 1)]
    maps: list[float] = []
    judging, ended = 0.0, False

    def step_end(end: StepEnd) -> None:
        nonlocal judging, ended
        if end.step in points:
            began = time.process_time()
            maps.append(judge(training.judged))
            judging += time.process_time() - began
            ended = enough(maps)

    began = time.process_time()
    failed = ""
    try:
        training.run(step_end=step_end, stop=lambda: ended)
    except NonFiniteBatch as error:
        failed = str(error)
    seconds = time.process_time() - began - judging
    return {"side": side, "seed": seed, "map": maps, "seconds": seconds, "failed": failed}


def read() -> list[dict[str, Any]]:
    """Return the curves that have ended."""
    file = WORK / "curves.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def write(found: list[dict[str, Any]], chance: float) -> None:
    """Write all curves as one table: a row for each training, with what chance reaches."""
    all_settings = settings()
    rows = [{"number": one["number"], **one, "chance": chance} | all_settings[one["number"]] for one in found]
    table = pd.DataFrame(rows).sort_values(["number", "side", "seed"], ascending=[True, False, True])
    table.to_parquet(CURVES, index=False)


def main() -> None:
    """Train whatever is not there yet, as many at a time as there are cores."""
    expected = expectations(data(), "valid")
    assert expected, "the photographs have a validation split"
    all_settings, found = settings(), read()
    there = {(one["number"], one["side"], one["seed"]) for one in found}
    left = [one for one in wanted() if one not in there]
    bar = bar_of("trainings", len(there) + len(left))
    bar.update(len(there))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool, (WORK / "curves.jsonl").open("a") as file:
        jobs = {pool.submit(curve, all_settings[number], side, seed): number for number, side, seed in left}
        for job in as_completed(jobs):
            found.append({"number": jobs[job]} | job.result())
            file.write(json.dumps(found[-1]) + "\n")
            file.flush()
            bar.update(1)
    bar.close()
    write(found, expected.over_all.chance)


if __name__ == "__main__":
    main()
