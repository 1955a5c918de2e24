"""Tuning on Ray Tune against a plain Optuna loop, and 200 trials in a row: `agman bench tune`.

On drawn garments: ResNet-18 from random weights, 32 px; one CPU thread a trial, two at a time. What a search finds is
measured by `agman bench replay` and `agman bench searches`.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import ray
import torch
from ray.util.state import list_placement_groups
from torch.multiprocessing.spawn import spawn

from benchmarks.common import SMALL, descendants, drawn_dataset, table, write_table
from benchmarks.train import SAME_PRIORITY
from data_prep.cluster import ray_session
from data_prep.dataset import Dataset
from data_prep.storage import Storage
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
TRIALS_OWN, DRIVER, RAYS_OWN = "trials", "driver", "Ray's processes"
"""Users of processor time."""


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


@dataclass(frozen=True)
class Measured:
    """Some trials that one way ran."""

    seconds: float
    """Wall-clock seconds of all trials; for a study those of its trials once processes are started."""
    trained: float
    """Seconds of training, summed over the trials."""
    processors: dict[str, float]
    """Processor seconds, by what used them."""
    beside: float = 0.0
    """Seconds of a study beside its trials: its start, the start of its processes, and its report."""


def plain(dataset: Dataset, folder: Path, settings: TrainConfig, trials: int) -> Measured:
    """Run trials one after another in this process."""
    space = find_space("margins")
    record = StudyRecord(folder / "plain.db", "plain", space, Plan("margins", settings.model_dump(), scheduler="none"))
    started, used, trained = time.perf_counter(), time.process_time(), 0.0
    for _ in range(trials):
        trial = record.ask()
        began = time.perf_counter()
        training = Training(make_config(settings.model_dump() | trial.setting), dataset, WorkerContext())
        training.run(epoch_end=lambda end: record.epoch(trial.number, end.epoch, end.metrics["valid/map"]))  # noqa: B023
        trained += time.perf_counter() - began
        record.end(trial.number, "done", "all epochs")
    return Measured(time.perf_counter() - started, trained, {TRIALS_OWN: time.process_time() - used})


def plain_at_once(dataset: Dataset, folder: Path, settings: TrainConfig, trials: int) -> Measured:
    """Run CONCURRENT plain loops at once, each with its part of the trials: what these cores can do at most."""
    together = torch.multiprocessing.get_context("spawn").Barrier(CONCURRENT)
    arguments = (together, dataset.storage, folder, settings, trials // CONCURRENT)
    spawn(_part, args=arguments, nprocs=CONCURRENT)
    parts = [torch.load(folder / f"part-{rank}.pt") for rank in range(CONCURRENT)]
    seconds, trained, used = zip(*parts, strict=True)
    return Measured(max(seconds), sum(trained), {TRIALS_OWN: sum(used)})


def _part(rank: int, together: Any, data: Storage, folder: Path, settings: TrainConfig, trials: int) -> None:
    torch.set_num_threads(1)
    own = folder / f"part-{rank}"
    own.mkdir()
    plain(Dataset(data), own, settings, 1)  # memory and caches are warm then, as in Ray's processes
    (own / "plain.db").unlink()
    together.wait()
    done = plain(Dataset(data), own, settings, trials)
    torch.save((done.seconds, done.trained, done.processors[TRIALS_OWN]), folder / f"part-{rank}.pt")


def on_ray(dataset: Dataset, folder: Path, settings: TrainConfig, trials: int) -> Measured:
    """Run a study. The first CONCURRENT trials, which wait for the start of their processes, are not counted."""
    with processor_time() as used:
        started = time.perf_counter()
        study = search(dataset, folder, settings, trials, "compared", scheduler="none")
        seconds = time.perf_counter() - started
    file = folder / "runs" / "compared" / "study.db"
    told = optuna.load_study(study_name="compared", storage=f"sqlite:///{file}").trials
    ends = sorted(one.datetime_complete.timestamp() for one in told if one.datetime_complete)
    counted = (trials - CONCURRENT) / trials
    of_trials = (ends[-1] - fmean(ends[:CONCURRENT])) / counted
    trained = sum(trial.seconds for trial in study.trials[CONCURRENT:]) / counted
    return Measured(of_trials, trained, dict(used), seconds - of_trials)


@contextmanager
def processor_time() -> Iterator[dict[str, float]]:
    """Count the processor seconds of this process and of those below it during the block."""
    used: dict[str, float] = defaultdict(float)
    before = _processors()
    latest = dict(before)
    over = threading.Event()

    def look() -> None:
        while not over.wait(1.0):  # processes end before the block does
            latest.update(_processors())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield used
    finally:
        over.set()
        thread.join()
        latest.update(_processors())
        for process, (name, seconds) in latest.items():
            used[name] += seconds - before.get(process, (name, 0.0))[1]


def _processors() -> dict[int, tuple[str, float]]:
    """Return who each process is and its processor seconds, by its id."""
    found = {}
    for process in (os.getpid(), *descendants(os.getpid())):
        with suppress(OSError):  # it may have just ended
            folder = Path("/proc", str(process))
            user, system = map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:13])
            name = RAYS_OWN
            if process == os.getpid():
                name = DRIVER
            elif b"ImplicitFunc" in (folder / "cmdline").read_bytes():  # a trial's actor
                name = TRIALS_OWN
            found[process] = (name, (user + system) / os.sysconf("SC_CLK_TCK"))
    return found


def against_a_plain_loop(dataset: Dataset, folder: Path) -> list[list[str]]:
    """Return the rows of the comparison with a plain loop."""
    settings = config(EPOCHS, TRIPLETS)
    search(dataset, folder, settings, CONCURRENT, "warm-up", scheduler="none")  # Ray's processes, and their imports
    alone = plain(dataset, folder, settings, TRIALS)
    tuned = on_ray(dataset, folder, settings, TRIALS)
    most = plain_at_once(dataset, folder, settings, TRIALS)
    ways = {
        "plain Optuna loop": alone,
        f"{CONCURRENT} plain loops at once, nothing shared": most,
        f"agman tune, {CONCURRENT} at a time": tuned,
    }
    rows = []
    for name, way in ways.items():
        overhead = f"{(CONCURRENT * way.seconds - way.trained) / TRIALS:.2f}" if way is tuned else ""
        used = ", ".join(f"{who} {seconds / TRIALS:.2f}" for who, seconds in way.processors.items())
        times = [f"{way.seconds:.1f}", f"{way.beside:.1f}", f"{60 * TRIALS / way.seconds:.1f}"]
        speeds = [f"{alone.seconds / way.seconds:.2f}", f"{most.seconds / way.seconds:.2f}"]
        rows.append([name, *times, f"{way.trained / TRIALS:.2f}", overhead, *speeds, used])
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
    header = ["way", "s", "s beside", "trials/min", "s of training a trial", "overhead, s a trial", "speed"]
    header += ["of the ceiling", "processor s a trial"]
    notes = "\n".join(
        [
            f"{TRIALS} trials of {EPOCHS} epochs of {TRIPLETS} triplets each. The plain loop calls the same training "
            f"function. Ceiling: {CONCURRENT} plain loops at once. A study's seconds are those of its trials, from the "
            f"mean end of the first {CONCURRENT} to that of the last, × {TRIALS} / {TRIALS - CONCURRENT}. Beside them "
            "are, once a study, its start, the start of its processes with their imports, and its report; the seconds "
            f"of plain loops exclude their start, too. Overhead: {CONCURRENT} × the seconds, minus those that trials "
            "were training, per trial. Processor time is that of the whole study.",
            "",
            f"{MANY} trials of one step each in a row; figures of the driver's process:",
            "",
            table(["trials", "ended", "processes below it", "open files", "placement groups", "MiB"], held),
        ]
    )
    write_table("tune", header, loops, notes)
