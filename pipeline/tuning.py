"""`agman tune`: a search space, Optuna's TPE, ASHA's early stopping, one MLflow run per trial.

A trial trains in its own process, on one worker. Everything about trials is logged here in the driver,
so that a trial that is stopped or killed can leave no run open.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import ray
from mlflow.tracking import MlflowClient
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from data_prep.cluster import ray_session
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline import tracking
from pipeline.cluster import cpus_for
from pipeline.config import TrainConfig, make_config
from pipeline.console import bar_of, show_table
from pipeline.errors import JobFailed
from pipeline.loop import EpochEnd, Share, Training, resolved
from pipeline.spaces import find_space
from pipeline.training import check

METRIC = "valid/map"
RUNNING, DONE, PRUNED, FAILED = "running", "done", "pruned", "failed"


@dataclass
class Trial:
    """One trial: what varied, its validation MAP after each epoch, and how it ended."""

    number: int
    """In the order in which they were suggested; trials start in about that order."""
    setting: dict[str, Any]
    run: tracking.Run
    history: list[tuple[int, float]] = field(default_factory=list)
    state: str = RUNNING

    @property
    def best(self) -> float:
        return max((value for _, value in self.history), default=0.0)


@dataclass(frozen=True)
class Sweep:
    """A finished search."""

    run: tracking.Run
    space: str
    trials: list[Trial]
    seconds: float

    @property
    def best(self) -> Trial:
        return max(self.trials, key=lambda trial: trial.best)

    @property
    def figures(self) -> dict[str, Any]:
        states = [trial.state for trial in self.trials]
        return {
            "trials": len(self.trials),
            **{state: states.count(state) for state in (DONE, PRUNED, FAILED)},
            METRIC: self.best.best,
            "best": self.best.setting,
            "run_id": self.run.run_id,
            "seconds": round(self.seconds, 1),
        }


def tune(
    dataset: Dataset,
    config: TrainConfig,
    *,
    space: str,
    trials: int,
    concurrent: int,
    storage: Path,
    seed: int = 0,
) -> Sweep:
    """Run `trials` trainings of `config.epochs` epochs, `concurrent` at a time, and log them under one run.

    The space's starting point is always trial 0. ASHA stops a trial that ranks low after a third of the epochs.
    """
    found = find_space(space)
    make_config(config.model_dump() | found.start)
    check(config, dataset, workers=1)
    if not dataset.info.queries["valid"]:
        raise InputError(f"{dataset.path}: a search needs a validation split with queries, the dataset has none")
    started = time.perf_counter()
    name = f"{dataset.info.name}-{space}-{time.strftime('%Y%m%d-%H%M%S')}"
    with ExitStack() as stack:
        stack.enter_context(ray_session())
        resources = _resources(concurrent)
        config = resolved(config, "cuda" if "gpu" in resources else "cpu", threads=int(resources["cpu"]))
        params = {"space": space, "trials": trials, "search_seed": seed, "scheduler": "asha"} | config.model_dump()
        parent = stack.enter_context(tracking.run(dataset.info, name, params, job="tune"))
        log = SweepLog(dataset, parent, config.epochs, trials)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(
                ray_tune.with_parameters(
                    _trial,
                    data=dataset.storage,
                    base=config.model_dump(),
                ),
                resources,
            ),
            tune_config=ray_tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=trials,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                search_alg=OptunaSearch(
                    space=found.define,
                    metric=METRIC,
                    mode="max",
                    points_to_evaluate=[found.start] if found.start else None,
                    sampler=optuna.samplers.TPESampler(seed=seed),
                    study_name=name,
                ),
                scheduler=ASHAScheduler(
                    time_attr="epoch", max_t=config.epochs, grace_period=max(1, config.epochs // 3)
                ),
            ),
            run_config=ray_tune.RunConfig(name=name, storage_path=str(storage.absolute()), callbacks=[log], verbose=0),
        )
        with log:
            tuner.fit()
            # Ray takes Ctrl-C for itself and comes back as if the search were done.
            if len(log.trials) < trials or any(trial.state == RUNNING for trial in log.trials):
                raise KeyboardInterrupt
        sweep = Sweep(parent, space, log.trials, time.perf_counter() - started)
        if not any(trial.history for trial in log.trials):
            raise JobFailed(f"all {len(log.trials)} trials failed; each run's tag `error` in MLflow says why")
        parent.log({METRIC: sweep.best.best}, step=config.epochs)
        parent.tag({"best_run_id": sweep.best.run.run_id, "best_setting": str(sweep.best.setting)})
    return sweep


def _resources(concurrent: int) -> dict[str, float]:
    gpus = ray.cluster_resources().get("GPU", 0)
    return {"cpu": cpus_for(concurrent, "--concurrent")} | ({"gpu": min(1, gpus / concurrent)} if gpus else {})


def _trial(setting: dict[str, Any], data: Storage, base: dict[str, Any]) -> None:
    """One training in this process; reports after every epoch."""
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    training = Training(make_config(base | setting), Dataset(data), Share(device=device))

    def epoch_end(end: EpochEnd) -> None:
        ray_tune.report(end.metrics | {"epoch": end.epoch})

    training.run(epoch_end=epoch_end)


class SweepLog(ray_tune.Callback):
    """Keeps a child run for every trial, and a bar: trials done, pruned, failed, and the best so far."""

    def __init__(self, dataset: Dataset, parent: tracking.Run, epochs: int, trials: int):
        self.dataset, self.parent, self.epochs, self.planned = dataset, parent, epochs, trials
        self.of_trial: dict[str, Trial] = {}

    @property
    def trials(self) -> list[Trial]:
        return sorted(self.of_trial.values(), key=lambda trial: trial.number)

    def __enter__(self) -> SweepLog:
        self.bar = bar_of("trials", self.planned)
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        for trial in self.trials:
            if trial.state == RUNNING:
                self._end(trial, "stopped", "KILLED")

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        if trial.trial_id not in self.of_trial:
            number = trials.index(trial)
            run = tracking.start(self.dataset.info, f"trial {number}", trial.config, self.parent, job="trial")
            self.of_trial[trial.trial_id] = Trial(number, dict(trial.config), run)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        this = self.of_trial[trial.trial_id]
        this.history.append((result["epoch"], result[METRIC]))
        this.run.log({k: v for k, v in result.items() if k.startswith(("train/", "valid/"))}, result["epoch"])
        best = max(self.trials, key=lambda t: t.best)
        self.bar.set_postfix_str(f"best {METRIC} {best.best:.4f}", refresh=False)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        this = self.of_trial[trial.trial_id]
        full = bool(this.history) and this.history[-1][0] >= self.epochs
        self._end(this, DONE if full else PRUNED, "FINISHED")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        this = self.of_trial[trial.trial_id]
        lines = str(trial.get_pickled_error() or "").strip().splitlines()
        this.run.tag({"error": lines[-1] if lines else "unknown"})
        self._end(this, FAILED, "FAILED")

    def _end(self, trial: Trial, state: str, status: str) -> None:
        trial.state = state
        trial.run.tag({"ended": state})
        MlflowClient(trial.run.uri).set_terminated(trial.run.run_id, status)
        self.bar.update(1)


def show(sweep: Sweep) -> None:
    """Every trial, best first."""
    keys = list(sweep.trials[0].setting)
    ranked = sorted(sweep.trials, key=lambda trial: -trial.best)
    rows = [[str(t.number), *(_short(t.setting.get(key)) for key in keys), f"{t.best:.4f}", t.state] for t in ranked]
    show_table(f"Search in {sweep.space}", ["trial", *keys, METRIC, "ended"], rows)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
