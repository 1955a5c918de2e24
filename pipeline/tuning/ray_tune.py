"""Trials of a study on Ray Tune: the driver suggests settings, prunes trials, and records what becomes of them.

`pipeline.tuning.trainable` has what a trial runs. Ray's own record of the experiment is not used for resuming: the
study (`pipeline.tuning.study`) holds all that the next driver needs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune as ray_tune
from ray.exceptions import OutOfMemoryError, RayError
from ray.tune.error import TuneError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from pipeline.common.console import say_above
from pipeline.tuning.mlflow_trials import MlflowTrials
from pipeline.tuning.study import DONE, FAILED, METRIC, PRUNED, StudyRecord, Trial
from pipeline.tuning.trainable import CHECKPOINTS, TrialJob, run_trial, worker_of

MAX_KILLS = 3
"""Number of times that a trial whose process was killed continues from its checkpoint; the next kill fails it."""

Watch = Callable[[], None]
"""Callback after every event of a trial."""


def run_trials(
    job: TrialJob, record: StudyRecord, runs: MlflowTrials, watch: Watch, total: int, concurrent: int
) -> int:
    """Run the interrupted trials, then new ones until there are `total`; return how many processes ran out of memory.

    Returns early after Ctrl-C, and when Ray's memory monitor has killed a trial's process: Ray Tune then stops all
    trials, and the next call continues them.
    """
    again = [trial.number for trial in record.interrupted()]
    left = len(again) + max(0, total - len(record.trials))
    if not left:
        return 0
    if job.workers > 1:
        # The trial's own process only waits for its workers; a thousandth of the head node keeps it off the CPUs.
        resources = {"cpu": 0.0, "node:__internal_head__": 0.001}
    else:
        resources = {"cpu": float(job.cpus)} | ({"gpu": job.gpus} if job.gpus else {})
    logger = _TrialLogger(job, record, runs, watch)
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(ray_tune.with_parameters(run_trial, job=job), resources),
        tune_config=ray_tune.TuneConfig(
            num_samples=left,
            max_concurrent_trials=concurrent,
            reuse_actors=job.workers == 1,  # a stopped trial's remaining workers end with its process
            search_alg=_Suggester(record, again, total),
            scheduler=_Pruner(record),
        ),
        run_config=ray_tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(job.folder / "ray"),
            callbacks=[logger],
            failure_config=ray_tune.FailureConfig(max_failures=MAX_KILLS),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
        return 0
    except (TuneError, RayError, RuntimeError) as error:
        # Ray Tune expects processes that die and tasks that fail. It gives the experiment up for any other error, and
        # the memory monitor's kills are reported by an error of their own.
        message = str(_memory_error(error) or "")  # names the Ray worker
        workers = {trial.number: worker_of(job, trial.number) for trial in record.interrupted()}
        killed = [number for number, worker in workers.items() if worker and worker in message]
        if not killed:
            raise
        for number in killed:
            logger.killed_for_memory(number)
        return len(killed)


def _memory_error(error: BaseException | None) -> OutOfMemoryError | None:
    """Return the first error in the chain of causes that says that a process was killed for memory."""
    while error and not isinstance(error, OutOfMemoryError):
        error = error.__cause__ or error.__context__
    return error


class _NotPickled:
    """Base of what is excluded from Ray's own experiment state, which is not used for resuming."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Pruner(_NotPickled, FIFOScheduler):
    """Stops the trials that the study's pruner stops."""

    def __init__(self, record: StudyRecord):
        super().__init__()
        self.record = record

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        if METRIC not in result or "failed" in result:
            return str(self.CONTINUE)
        self.record.epoch(trial.config["trial"], result["epoch"], result[METRIC])
        return str(self.STOP if self.record.why_stopped(trial.config["trial"]) else self.CONTINUE)


class _Suggester(_NotPickled, Searcher):
    """Settings for Ray Tune: those of interrupted trials first, then the study's new suggestions."""

    def __init__(self, record: StudyRecord, again: list[int], total: int):
        super().__init__(metric=METRIC, mode="max")
        self.record, self.again, self.total = record, list(again), total

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        if self.again:
            trial = self.record[self.again.pop(0)]
        elif len(self.record.trials) < self.total:
            trial = self.record.ask()
        else:
            return str(Searcher.FINISHED)
        return {"trial": trial.number, "setting": trial.setting}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass  # the trial logger is told as well, and with the reason

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # Ray moves the file into place

    def restore(self, checkpoint_path: str) -> None:
        pass


class _TrialLogger(_NotPickled, ray_tune.Callback):
    """Writer of everything that happens to trials: to the study and to MLflow. Removes ended trials' checkpoints."""

    def __init__(self, job: TrialJob, record: StudyRecord, runs: MlflowTrials, watch: Watch):
        self.job, self.record, self.runs, self.watch = job, record, runs, watch
        self.failures: dict[int, str] = {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.runs.begin(self.record[trial.config["trial"]])
        self.watch()

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        number = trial.config["trial"]
        if "failed" in result:
            self.failures[number] = result["failed"]
            return
        metrics = {key: value for key, value in result.items() if key.startswith(("train/", "valid/"))}
        self.runs.log(number, result["epoch"], metrics)
        self.watch()

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        number, last = trial.config["trial"], trial.last_result or {}
        if number in self.failures:
            self._end(number, FAILED, self.failures.pop(number), last)
        elif last.get("ended"):
            self._end(number, DONE, last["ended"], last)
        elif stopped := self.record.why_stopped(number):
            self._end(number, PRUNED, stopped, last)
        else:
            self._end(number, FAILED, "it ended without a result", last)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        if trial.num_failures <= MAX_KILLS:  # its process died before it began, and Ray gives such a trial up
            return  # the study has the trial as running, so the next round continues it
        reason = f"its process was killed {trial.num_failures} times"
        self._end(trial.config["trial"], FAILED, reason, trial.last_result or {})

    def killed_for_memory(self, number: int) -> None:
        """Count a kill by Ray's memory monitor; after too many, the trial has failed."""
        kills = self.record.count_kill(number)
        by = "Ray's memory monitor: its machine ran out of memory"
        if kills > MAX_KILLS:
            self._end(number, FAILED, f"its process was killed {kills} times by {by}", {})
        else:
            say_above(f"trial {number}: its process was killed by {by}; it goes on from its last checkpoint")

    def _end(self, number: int, state: str, reason: str, last: dict[str, Any]) -> None:
        against = last.get(self.job.against) if self.job.against else None
        ended = self.record.end(number, state, reason, against, last.get("seconds", 0.0))
        self.runs.end(ended)
        tidy(self.job, ended)
        self.watch()


def tidy(job: TrialJob, ended: Trial) -> None:
    """Remove an ended trial's checkpoints, which nothing continues from; a failed trial's other files stay."""
    folder = job.trial_folder(ended.number).local
    assert folder
    shutil.rmtree(folder / CHECKPOINTS if ended.state == FAILED else folder, ignore_errors=True)
