"""Studies that are killed with -9, interrupted, or pruned on workers of their own: no trial is lost or doubled."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import ray
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from ray.util import placement_group_table
from ray.util.state import list_placement_groups
from support.trainings import SETTINGS, Command, processes

from data_prep.dataset import Dataset
from pipeline.config.schema import make_config
from pipeline.tuning.spaces import Space, find_space
from pipeline.tuning.study import DONE, FAILED, PRUNED, Trial, trials_in
from pipeline.tuning.tune import tune

pytestmark = pytest.mark.slow

TRIALS, EPOCHS = 3, 2
OPTIONS = ("--name", "search", "--search", "random", "--scheduler", "none", "--final-seeds", "0")
CONFIG = make_config(SETTINGS | {"epochs": EPOCHS, "log_every": 50, "checkpoint_every": 500})


def trials_of(folder: Path) -> list[Trial]:
    """Return the study's trials; none before there is a study."""
    file = folder / "runs" / "search" / "study.db"
    if not _is_made(file):  # Optuna would create the database at the same time as the command
        return []
    return trials_in(optuna.load_study(study_name="search", storage=f"sqlite:///{file}"))


def _is_made(file: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            return bool(connection.execute("select count(*) from trials").fetchone()[0])
    except sqlite3.OperationalError:
        return False


def searched(command: Callable[..., Command], *options: str) -> Command:
    more = ["--space", "margins", "--trials", str(TRIALS), "--concurrent", "2", "--seed", "4"]
    return command(*OPTIONS, *more, *options, without=("lr",), job="tune")


@pytest.fixture(scope="module")
def undisturbed_trials(ray_started: None, store: Path, longer: Dataset) -> list[Trial]:
    """Trials of a study that nothing disturbs."""
    options = {"search": "random", "scheduler": "none", "final_seeds": 0, "concurrent": 2, "seed": 4}
    result = tune(longer, CONFIG, space=find_space("margins"), trials=TRIALS, storage=store / "runs", **options)  # type: ignore[arg-type]
    assert [trial.state for trial in result.trials] == [DONE] * TRIALS
    return result.trials


def check(folder: Path, undisturbed_trials: list[Trial]) -> None:
    """The same trials with the same scores; one run each, with every epoch once; nothing left RUNNING."""
    trials = trials_of(folder)
    assert [trial.setting for trial in trials] == [trial.setting for trial in undisturbed_trials]
    for trial, undisturbed in zip(trials, undisturbed_trials, strict=True):
        assert [epoch for epoch, _ in trial.history] == list(range(1, EPOCHS + 1))
        assert dict(trial.history) == pytest.approx(dict(undisturbed.history), abs=1e-6)
    runs = all_runs(folder)
    numbers = [run.data.tags["trial"] for run in runs if "trial" in run.data.tags]
    assert sorted(numbers) == [str(trial.number) for trial in trials]
    assert len(runs) == len(trials) + 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    for run in runs:
        if "trial" in run.data.tags:
            points = client.get_metric_history(run.info.run_id, "valid/map")
            assert [point.step for point in points] == list(range(1, EPOCHS + 1))


def all_runs(folder: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return [run for one in client.search_experiments() for run in client.search_runs([one.experiment_id])]


def under_way(folder: Path) -> bool:
    """One trial has ended, and another one has had its first epoch."""
    trials = trials_of(folder)
    return any(t.state == DONE for t in trials) and any(t.state != DONE and t.history for t in trials)


def test_a_killed_driver_is_resumed(
    command: Callable[..., Command], tmp_path: Path, undisturbed_trials: list[Trial]
) -> None:
    first = searched(command)
    first.wait(lambda: under_way(tmp_path))
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    first.wait_for_the_end()
    ended = {t.number: t for t in trials_of(tmp_path) if t.state == DONE}
    checkpoints = list((tmp_path / "runs" / "search").glob("trial-*/checkpoints/*/checkpoint.json"))
    assert checkpoints, "an interrupted trial has something to go on from"
    assert {run.info.status for run in all_runs(tmp_path)} <= {"FINISHED", "KILLED"}
    assert "did not finish; --resume continues it" in searched(command).finish(2)
    searched(command, "--resume").finish()
    check(tmp_path, undisturbed_trials)
    again = {t.number: t for t in trials_of(tmp_path)}
    assert all(again[number] == trial for number, trial in ended.items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_study_says_how_to_resume(
    command: Callable[..., Command], tmp_path: Path, undisturbed_trials: list[Trial], number: signal.Signals
) -> None:
    first = searched(command)
    first.wait(lambda: under_way(tmp_path))
    os.kill(first.process.pid, number)
    said = first.finish(130)
    assert said.strip().splitlines()[-1].endswith("are left; the same command with --resume goes on")
    assert {run.info.status for run in all_runs(tmp_path)} == {"FINISHED", "KILLED"}
    searched(command, "--resume").finish()
    check(tmp_path, undisturbed_trials)


def test_sigterm_after_the_final_training_says_how_to_resume(command: Callable[..., Command], tmp_path: Path) -> None:
    """While the best setting's model is scored or registered; each of it is then done once."""

    def trained() -> bool:
        return bool(list((tmp_path / "runs" / "search" / "final").glob("*.json")))

    more = ("--trials", "1", "--final-seeds", "1")
    first = searched(command, *more)
    first.wait(trained)
    os.kill(first.process.pid, signal.SIGTERM)
    said = first.finish(130).strip().splitlines()[-1]
    assert said == "agman: interrupted: the same command with --resume goes on"
    assert {run.info.status for run in all_runs(tmp_path)} == {"FINISHED", "KILLED"}
    searched(command, *more, "--resume").finish()
    runs = all_runs(tmp_path)
    assert [run.info.status for run in runs] == ["FINISHED"] * 3  # the search, its trial, the final training
    (version,) = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_model_versions("name='agman-tiny'")
    assert version.tags["search"] == "search"


def test_a_killed_trial_goes_on_by_itself(
    command: Callable[..., Command], tmp_path: Path, undisturbed_trials: list[Trial]
) -> None:
    search = searched(command)
    search.wait(lambda: any(trial.history for trial in trials_of(tmp_path)))
    (victim, *_) = processes("ray::ImplicitFunc", search.process.pid)
    os.kill(victim, signal.SIGKILL)
    search.finish()
    check(tmp_path, undisturbed_trials)


WIDE = 6144
"""An embedding that takes 0.8 GB, and four times as much while it is trained."""
OWN_SPACE = f"""
START = {{"embedding_dim": {WIDE}}}
def widths(trial):
    trial.suggest_categorical("embedding_dim", [16, {WIDE}])
"""


def test_a_trial_that_rays_memory_monitor_kills_has_failed_and_the_study_goes_on(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN_SPACE)
    memory = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    allowed = memory["MemTotal"] - memory["MemAvailable"] + 4_000_000  # kB: room for Ray, the driver, a small trial
    variables = {
        "RAY_memory_usage_threshold": f"{allowed / memory['MemTotal']:.4f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    options = ("--space", "own:widths", "--trials", "3", "--concurrent", "1", "--seed", "1", "max_triplets=24")
    left_out = ("embedding_dim", "epochs")
    said = command(*OPTIONS, *options, "epochs=1", without=left_out, variables=variables, job="tune").finish()
    assert "Ray Tune gave up" not in said
    trials = trials_of(tmp_path)
    assert len(trials) == 3
    for trial in trials:
        wide = trial.setting["embedding_dim"] == WIDE
        assert trial.state == (FAILED if wide else DONE)
        if wide:
            why = "its process was killed 4 times by Ray's memory monitor: its machine ran out of memory"
            assert trial.reason == why
    assert {DONE, FAILED} == {trial.state for trial in trials}
    runs = {run.data.tags["trial"]: run for run in all_runs(tmp_path) if "trial" in run.data.tags}
    for trial in trials:
        run = runs[str(trial.number)]
        assert (run.info.status == "FAILED", run.data.tags["reason"]) == (trial.state == FAILED, trial.reason)


def test_a_trial_for_which_there_is_no_memory_is_recorded_with_the_reason(
    ray_started: None, store: Path, longer: Dataset
) -> None:
    """The first trial's process, which is kept for the others, is given a limit as soon as it trains."""
    over = threading.Event()

    def limit() -> None:
        while not over.wait(0.05):
            trial = processes("ray::ImplicitFunc", os.getpid())
            if trial and list((store / "runs" / "memory").glob("trial-0000/checkpoints/step-*")):
                status = dict(line.split(":", 1) for line in Path(f"/proc/{trial[0]}/status").read_text().splitlines())
                allowed = (
                    1024 * int(status["VmData"].split()[0]) + 2_000_000_000
                )  # the threads of later trials want some, too
                resource.prlimit(trial[0], resource.RLIMIT_DATA, (allowed, allowed))
                return

    def define(trial: optuna.Trial) -> None:
        trial.suggest_categorical("embedding_dim", [16, WIDE])

    own = Space("own", define, {"embedding_dim": 16}, frozenset(["embedding_dim"]), "")
    config = CONFIG.model_copy(update={"checkpoint_every": 1})
    options = {"scheduler": "none", "search": "random", "final_seeds": 0, "name": "memory", "seed": 2}
    thread = threading.Thread(target=limit)
    thread.start()
    try:
        result = tune(longer, config, space=own, trials=5, storage=store / "runs", **options)  # type: ignore[arg-type]
    finally:
        over.set()
        thread.join()
    wide = [trial for trial in result.trials if trial.setting["embedding_dim"] == WIDE]
    assert wide and [trial for trial in result.trials if trial.state == FAILED] == wide
    for trial in wide:
        assert "memory" in trial.reason.lower()
    assert result.trials[-1].state == DONE


def test_trials_with_workers_of_their_own_are_pruned_while_they_run_and_hold_nothing_afterwards(
    ray_started: None, store: Path, longer: Dataset
) -> None:
    def define(trial: optuna.Trial) -> None:
        trial.suggest_categorical("lr", [1e-3, 1e-9])

    own = Space("own", define, {"lr": 1e-3}, frozenset(["lr"]), "")
    config = CONFIG.model_copy(update={"epochs": 6, "max_triplets": 24})
    options = {"workers": 2, "search": "random", "final_seeds": 0, "name": "workers", "seed": 2}
    result = tune(longer, config, space=own, trials=5, storage=store / "runs", **options)  # type: ignore[arg-type]
    states = [trial.state for trial in result.trials]
    assert states.count(PRUNED) >= 1
    assert set(states) == {DONE, PRUNED}
    here = ray.get_runtime_context()
    deadline = time.monotonic() + 60
    while [
        group
        for group in list_placement_groups(address=here.gcs_address, limit=1000)  # another Ray may run on this machine
        if group.creator_job_id == here.get_job_id() and group.state != "REMOVED"
    ]:
        assert time.monotonic() < deadline, placement_group_table()
        time.sleep(1)
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]


def test_a_killed_process_of_a_trial_with_workers_leaves_nothing_held(
    ray_started: None, store: Path, longer: Dataset
) -> None:
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.2):
            workers, drivers = (processes(name, os.getpid()) for name in ("ray::RayTrainWorker", "ray::ImplicitFunc"))
            if workers and drivers and (store / "runs" / "leader" / "trial-0000" / "checkpoints").is_dir():
                killed.append(drivers[0])
                return os.kill(drivers[0], signal.SIGKILL)

    config = CONFIG.model_copy(update={"max_triplets": 24})
    options = {"workers": 2, "scheduler": "none", "final_seeds": 0, "name": "leader"}
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        result = tune(longer, config, space=find_space("margins"), trials=2, storage=store / "runs", **options)  # type: ignore[arg-type]
    finally:
        over.set()
        thread.join()
    assert killed
    assert [trial.state for trial in result.trials] == [DONE, DONE]
    assert [epoch for epoch, _ in result.trials[0].history] == [1, 2]
