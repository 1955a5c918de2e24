"""The MLflow runs of a search's trials: children of the search's run, written by the driver alone.

A tracking store that is away for a while must not end a search: what could not be written waits for the next occasion.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from data_prep.errors import InputError
from data_prep.tables import DatasetInfo
from pipeline.common.console import say_above
from pipeline.tracking import runs as tracking
from pipeline.tracking.watchdog import end_all_runs, end_run, take_over
from pipeline.tuning.study import FAILED, METRIC, RUNNING, StudyRecord, Trial

TRIAL = "trial"
"""Tag: the trial's number."""
PAUSE = 30.0  # seconds between two tries


@dataclass
class _Pending:
    """What of a trial is not in the store yet."""

    begun: Trial | None = None
    points: tracking.Points = field(default_factory=list)
    ended: Trial | None = None


class MlflowTrials:
    """One run for every trial of the study, however often trial and search are taken up again."""

    def __init__(self, dataset: DatasetInfo, parent: tracking.OpenRun, record: StudyRecord, base: dict[str, Any]):
        self.dataset, self.parent, self.record, self.base = dataset, parent, record, base
        self._runs: dict[int, tracking.Run] = {}
        self._waiting: dict[int, _Pending] = {}
        self._logged: dict[int, dict[str, set[int]]] = {}
        self._not_before = 0.0
        self._unsure = False
        self._known: dict[int, str] = {}
        """Trial number -> run that an earlier driver began, even if it had no time to note its id."""
        self._catch_up()

    def begin(self, trial: Trial) -> None:
        """The trial runs, maybe again."""
        if trial.number not in self._runs and trial.number not in self._waiting:
            self._of(trial.number).begun = trial
            self._of(trial.number).points = _points(trial)
            self.write()

    def log(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        self._of(number).points.append((epoch, metrics))
        self.write()

    def end(self, trial: Trial) -> None:
        self._of(trial.number).ended = trial
        self.write()

    def write(self, now: bool = False) -> None:
        """Write what waits, if it is time (or `now`)."""
        if not now and time.monotonic() < self._not_before:
            return
        for number in list(self._waiting):
            try:
                self._write(number, self._waiting[number])
            except (MlflowException, InputError, OSError) as error:
                if not self._not_before:
                    say_above(
                        f"note: the tracking store does not answer, the search goes on ({tracking.reason(error)})"
                    )
                self._not_before, self._unsure = time.monotonic() + PAUSE, True
                return
            del self._waiting[number]
        self._not_before = 0.0

    def close(self) -> None:
        """End the runs of trials that are still running: their driver ends."""
        self.write(now=True)
        with suppress(MlflowException, OSError):  # else the guard ends them
            client = MlflowClient(self.parent.uri)
            end_all_runs(
                client,
                client.get_run(self.parent.run_id).info.experiment_id,
                self.parent.token,
                "KILLED",
                but=self.parent.run_id,
            )

    def _of(self, number: int) -> _Pending:
        return self._waiting.setdefault(number, _Pending())

    def _write(self, number: int, waiting: _Pending) -> None:
        run = self._runs.get(number)
        if not run:
            run = self._runs[number] = self._open(waiting.begun or self.record[number])
            self.record.ran(number, run.run_id)
        run.log_points(waiting.points, self._logged.setdefault(number, {}))
        waiting.points = []
        if waiting.ended:
            trial = waiting.ended
            run.tag({"ended": trial.state, "reason": trial.reason})
            end_run(MlflowClient(run.uri), run.run_id, self.parent.token, _status(trial))

    def _open(self, trial: Trial) -> tracking.Run:
        """The trial's run: taken up again if there is one, made by this driver or one before."""
        params = self.base | trial.setting
        if self._unsure:  # of whether the last try has begun a run
            self._look()
        if run_id := self._known.get(trial.number):
            client = MlflowClient(self.parent.uri)
            take_over(client, run_id, self.parent.token)
            stored = client.get_run(run_id).data.params
            client.log_batch(
                run_id, params=[Param(key, str(value)) for key, value in params.items() if key not in stored]
            )
            return tracking.Run(self.parent.uri, run_id)
        tags = {"job": "trial", TRIAL: str(trial.number)}
        return tracking.start_run(self.dataset, f"trial {trial.number}", params, self.parent, **tags)

    def _look(self) -> dict[int, Any]:
        """Trial number -> MLflow's own run."""
        runs = {int(run.data.tags[TRIAL]): run for run in tracking.child_runs(self.parent) if TRIAL in run.data.tags}
        self._known, self._unsure = {number: run.info.run_id for number, run in runs.items()}, False
        return runs

    def _catch_up(self) -> None:
        """What an earlier driver had no time to write of trials that have ended."""
        runs = self._look()
        for trial in self.record.trials:
            run = runs.get(trial.number)
            if trial.state != RUNNING and not (run and run.info.status == _status(trial)):
                self._waiting[trial.number] = _Pending(trial, _points(trial), trial)
        self.write()


def _points(trial: Trial) -> tracking.Points:
    """Those that the study has too; the run takes none twice."""
    return [(epoch, {METRIC: value}) for epoch, value in trial.history]


def _status(trial: Trial) -> str:
    return "FAILED" if trial.state == FAILED else "FINISHED"
