"""Tuning on Ray Tune against a plain Optuna loop, and 200 trials in a row: `agman bench tune`.

On drawn garments: ResNet-18 from random weights, 32 px; one CPU thread a trial, two at a time. What a search finds is
measured by `agman bench replay` and `agman bench searches`.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.state import list_placement_groups
from torch.multiprocessing.spawn import spawn

from benchmarks.common import SMALL, descendants, drawn_dataset, table, write_table
from benchmarks.train import SAME_PRIORITY
from data_prep.cluster import ray_session
from data_prep.dataset import Dataset
from data_prep.storage import Storage
from pipeline.common.console import say
from pipeline.config.schema import TrainConfig, make_config
from pipeline.reports.study.page import write_study_report
from pipeline.training.trainer import Training, WorkerContext
from pipeline.tuning.spaces import find_space
from pipeline.tuning.study import Plan, StudyRecord
from pipeline.tuning.tune import StudyResult, tune

SIZE, IMAGES, TRIPLETS = 32, 1_200, 640
TRIALS, EPOCHS, CONCURRENT = 20, 1, 2
"""Size of the comparison with a plain loop."""
MANY = 200


def config(epochs: int, triplets: int) -> TrainConfig:
    """Return small settings, made small."""
    small = {"epochs": epochs, "max_triplets": triplets, "threads": 1, "batch_size": 16, "embedding_dim": 32}
    return make_config(SMALL | small)


def search(
    dataset: Dataset, folder: Path, settings: TrainConfig, trials: int, name: str, **options: Any
) -> StudyResult:
    """Run a study of `trials` trials."""
    return tune(
        dataset,
        settings,
        space=find_space("margins"),
        trials=trials,
        concurrent=CONCURRENT,
        final_seeds=0,
        storage=folder / "runs",
        name=name,
        write_report=write_study_report,
        **options,
    )


def plain(dataset: Dataset, folder: Path, settings: TrainConfig, trials: int) -> tuple[float, float]:
    """Run trials one after another in this process; return the seconds in all and those of the trainings."""
    space = find_space("margins")
    record = StudyRecord(folder / "plain.db", "plain", space, Plan("margins", settings.model_dump(), scheduler="none"))
    started, trained = time.perf_counter(), 0.0
    for _ in range(trials):
        trial = record.ask()
        began = time.perf_counter()
        training = Training(make_config(settings.model_dump() | trial.setting), dataset, WorkerContext())
        training.run(epoch_end=lambda end: record.epoch(trial.number, end.epoch, end.metrics["valid/map"]))  # noqa: B023
        trained += time.perf_counter() - began
        record.end(trial.number, "done", "all epochs")
    return time.perf_counter() - started, trained


def plain_at_once(dataset: Dataset, folder: Path, settings: TrainConfig, trials: int) -> tuple[float, float]:
    """Run CONCURRENT plain loops at once, each with its part of the trials: what these cores can do at most."""
    together = torch.multiprocessing.get_context("spawn").Barrier(CONCURRENT)
    arguments = (together, dataset.storage, folder, settings, trials // CONCURRENT)
    spawn(_part, args=arguments, nprocs=CONCURRENT)
    parts = [torch.load(folder / f"part-{rank}.pt") for rank in range(CONCURRENT)]
    return max(seconds for seconds, _ in parts), sum(trained for _, trained in parts)


def _part(rank: int, together: Any, data: Storage, folder: Path, settings: TrainConfig, trials: int) -> None:
    torch.set_num_threads(1)
    own = folder / f"part-{rank}"
    own.mkdir()
    plain(Dataset(data), own, settings, 1)  # memory and caches are warm then, as in Ray's processes
    (own / "plain.db").unlink()
    together.wait()
    torch.save(plain(Dataset(data), own, settings, trials), folder / f"part-{rank}.pt")


def against_a_plain_loop(dataset: Dataset, folder: Path) -> list[list[str]]:
    """Return the rows of the comparison with a plain loop."""
    settings = config(EPOCHS, TRIPLETS)
    search(dataset, folder, settings, CONCURRENT, "warm-up", scheduler="none")  # Ray's processes, and their imports
    alone, trained_alone = plain(dataset, folder, settings, TRIALS)
    started = time.perf_counter()
    study = search(dataset, folder, settings, TRIALS, "compared", scheduler="none")
    seconds = time.perf_counter() - started
    trained = sum(trial.seconds for trial in study.trials)
    overhead = (CONCURRENT * seconds - trained) / TRIALS
    say(f"overhead {overhead:.2f} s a trial")
    most, trained_at_once = plain_at_once(dataset, folder, settings, TRIALS)
    ways = (
        ("plain Optuna loop", alone, trained_alone, ""),
        (f"{CONCURRENT} plain loops at once, nothing shared", most, trained_at_once, ""),
        (f"agman tune, {CONCURRENT} at a time", seconds, trained, f"{overhead:.2f}"),
    )
    rows = []
    for name, all_of, part, more in ways:
        rates = [f"{all_of:.1f}", f"{60 * TRIALS / all_of:.1f}", f"{part / TRIALS:.2f}", more]
        rows.append([name, *rates, f"{alone / all_of:.2f}", f"{most / all_of:.2f}"])
    return rows


@dataclass(frozen=True)
class Holding:
    """Resources that a study might leave behind."""

    processes: int
    files: int
    groups: int
    mib: float

    @classmethod
    def now(cls) -> Holding:
        """Count what this driver holds."""
        here = ray.get_runtime_context()
        known = list_placement_groups(address=here.gcs_address, limit=10_000)  # another Ray may run on this machine
        groups = [one for one in known if one.creator_job_id == here.get_job_id()]
        status = Path("/proc/self/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        return cls(
            processes=sum(1 for _ in descendants(os.getpid())),
            files=sum(1 for _ in Path("/proc/self/fd").iterdir()),
            groups=sum(one.state != "REMOVED" for one in groups),
            mib=resident / 1024,
        )


def many(dataset: Dataset, folder: Path) -> list[list[str]]:
    """Return what is held after a tenth of MANY trials and after all of them."""
    settings = config(1, 16)
    rows = []
    for trials in (MANY // 10, MANY):
        study = search(dataset, folder, settings, trials, "many", scheduler="none", resume=trials == MANY)
        time.sleep(5)  # stopped processes may still be ending
        held = Holding.now()
        ended = {trial.state for trial in study.trials}
        rows.append([str(trials), ", ".join(sorted(ended)), str(held.processes), str(held.files), str(held.groups)])
        rows[-1].append(f"{held.mib:.0f}")
    return rows


def main() -> None:
    """Run all comparisons; write the tables."""
    os.environ |= SAME_PRIORITY
    with tempfile.TemporaryDirectory() as name, ray_session():
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        dataset = drawn_dataset(folder, images=IMAGES, size=SIZE, triplets=TRIPLETS)
        before = Holding.now()
        loops = against_a_plain_loop(dataset, folder)
        held = many(dataset, folder)
    held.insert(0, ["0", "", *map(str, (before.processes, before.files, before.groups)), f"{before.mib:.0f}"])
    header = ["way", "s", "trials/min", "s of training a trial", "overhead, s a trial", "speed", "of the ceiling"]
    notes = "\n".join(
        [
            f"{TRIALS} trials of {EPOCHS} epochs of {TRIPLETS} triplets each; overhead: {CONCURRENT} × the seconds, "
            "minus the seconds that trials were training, per trial. The plain loop calls the same training function. "
            f"Ceiling: {CONCURRENT} plain loops at once.",
            "",
            f"{MANY} trials of one step each in a row; figures of the driver's process:",
            "",
            table(["trials", "ended", "processes below it", "open files", "placement groups", "MiB"], held),
        ]
    )
    write_table("tune", header, loops, notes)
