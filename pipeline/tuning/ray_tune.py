"""A search's trials on Ray Tune: how the driver feeds, prunes and records them. What they run is in
`pipeline.tuning.trainable`.

What Ray knows of a search is thrown away with its driver: the study (`pipeline.tuning.study`) has all that a
next driver needs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune as ray_tune
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipeline.tuning.mlflow_trials import MlflowTrials
from pipeline.tuning.study import DONE, FAILED, METRIC, PRUNED, StudyRecord, Trial, past
from pipeline.tuning.trainable import CHECKPOINTS, TrialJob, run_trial

KILLED_AT_MOST = 3
"""So often a trial whose process was killed goes on from its checkpoint; then it has failed."""
REDUCTION = 2  # ASHA keeps a half at each rung


def run_trials(
    job: TrialJob, record: StudyRecord, runs: MlflowTrials, watch: Watch, total: int, concurrent: int
) -> None:
    """Run what was interrupted, then new trials until there are `total`. Comes back early after Ctrl-C."""
    again = [trial.number for trial in record.interrupted()]
    left = len(again) + max(0, total - len(record.trials))
    if not left:
        return
    scheduler = make_scheduler(record)
    if job.workers > 1:
        # The trial's own process only waits for its workers; a thousandth of the head node keeps it off the CPUs.
        resources = {"cpu": 0.0, "node:__internal_head__": 0.001}
    else:
        resources = {"cpu": float(job.cpus)} | ({"gpu": job.gpus} if job.gpus else {})
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(ray_tune.with_parameters(run_trial, job=job), resources),
        tune_config=ray_tune.TuneConfig(
            num_samples=left,
            max_concurrent_trials=concurrent,
            reuse_actors=job.workers == 1,  # what a stopped trial has left of its workers goes with its process
            search_alg=_Suggester(record, again, total),
            scheduler=scheduler,
        ),
        run_config=ray_tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(job.folder / "ray"),
            callbacks=[_TrialLogger(job, record, runs, watch)],
            failure_config=ray_tune.FailureConfig(max_failures=KILLED_AT_MOST),
            verbose=0,
        ),
    )
    with _kills_for_memory_as_kills():
        tuner.fit()


MEMORY = "Ray's memory monitor"


class _ActorManager(RayActorManager):
    """Ray Tune's, for which a process killed by the memory monitor is one that has died.

    Ray's own knows dead actors and errors; an actor that was killed for memory is neither to it, and ends the search.
    """

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=f"killed by {MEMORY}: {exception}")
        super()._actor_task_failed(tracked_actor_task, exception)


@contextmanager
def _kills_for_memory_as_kills() -> Iterator[None]:
    """There is no way to hand Ray Tune a manager of one's own."""
    rays, tune_controller.RayActorManager = tune_controller.RayActorManager, _ActorManager
    try:
        yield
    finally:
        tune_controller.RayActorManager = rays


def make_scheduler(record: StudyRecord) -> TrialScheduler:
    if record.plan.scheduler == "none":
        return FIFOScheduler()
    epochs = record.plan.settings["epochs"]
    asha = _Asha(
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        max_t=epochs,
        grace_period=max(1, epochs // 3),
        reduction_factor=REDUCTION,
    )
    for number, epoch, value in past(record.trials):
        asha.recall(number, {"epoch": epoch, METRIC: value})
    return asha


class _Asha(ASHAScheduler):
    """ASHA that knows trials by their number in the study, not by the id that one Ray session gives them."""

    def recall(self, number: int, result: dict[str, Any]) -> None:
        """What a trial reported to an earlier driver."""
        trial: Any = SimpleNamespace(config={"trial": number})
        self.on_trial_add(None, trial)
        self.on_trial_result(None, trial, result)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _numbered(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        return str(super().on_trial_result(tune_controller, _numbered(trial), result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        super().on_trial_complete(tune_controller, _numbered(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, _numbered(trial))


def _numbered(trial: Any) -> Any:
    return SimpleNamespace(trial_id=trial.config["trial"])


class _HereOnly:
    """Ray writes what it drives to disk, for a way of resuming that is not ours: nothing of these."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Suggester(_HereOnly, Searcher):
    """Hands the study's suggestions to Ray, those of interrupted trials first. Keeps nothing itself."""

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
        pass  # the ledger hears of it too, and of why

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # Ray moves it into place

    def restore(self, checkpoint_path: str) -> None:
        pass


Watch = Callable[[], None]
"""Called after everything that happens to a trial."""


class _TrialLogger(_HereOnly, ray_tune.Callback):
    """Writes down what happens to the trials: in the study, in MLflow; and cleans up behind them."""

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
        self.record.epoch(number, result["epoch"], result[METRIC])
        metrics = {key: value for key, value in result.items() if key.startswith(("train/", "valid/"))}
        self.runs.log(number, result["epoch"], metrics)
        self.watch()

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        number, last = trial.config["trial"], trial.last_result or {}
        if number in self.failures:
            self._end(trial, FAILED, self.failures.pop(number))
        elif last.get("ended"):
            self._end(trial, DONE, last["ended"])
        elif METRIC in last:
            kept = "not among the best half there"
            self._end(trial, PRUNED, f"ASHA: MAP {last[METRIC]:.4f} after epoch {last['epoch']} is {kept}")
        else:
            self._end(trial, FAILED, "it ended without a word")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        if trial.num_failures <= KILLED_AT_MOST:  # its process died before it began, and Ray gives such a trial up
            return  # the study has it as running: the next round takes it up
        self._end(trial, FAILED, _killed(trial))

    def _end(self, trial: Any, state: str, reason: str) -> None:
        number, last = trial.config["trial"], trial.last_result or {}
        against = last.get(self.job.against) if self.job.against else None
        ended = self.record.end(number, state, reason, against, last.get("seconds", 0.0))
        self.runs.end(ended)
        tidy(self.job, ended)
        self.watch()


def _killed(trial: Any) -> str:
    """Of a trial that was killed too often."""
    told = Path(trial.error_file).read_text() if trial.error_file else ""
    memory = told.count(f"killed by {MEMORY}")
    by = f", {memory} of them by {MEMORY}: its machine ran out of memory" if memory else ""
    return f"its process was killed {trial.num_failures} times{by}"


def tidy(job: TrialJob, ended: Trial) -> None:
    """Remove its checkpoints: nobody goes on from them."""
    place = job.trial_folder(ended.number).local
    assert place
    shutil.rmtree(place / CHECKPOINTS if ended.state == FAILED else place, ignore_errors=True)
