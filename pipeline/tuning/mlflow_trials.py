"""MLflow runs of a study's trials: children of the study's run, written by the driver alone.

A tracking store that does not answer for a while must not end a study: what could not be written is kept and tried
again.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline.common.console import say_above
from pipeline.tracking import runs as tracking
from pipeline.tracking.watchdog import end_all_runs, end_run, take_over
from pipeline.tuning.study import FAILED, METRIC, RUNNING, StudyRecord, Trial

TRIAL, REPEAT = "trial", "repeat"
"""Tags with the number of a trial, and of a repeat of one of the best."""
PAUSE = 30.0
"""Seconds between two attempts to write while the store does not answer."""


@dataclass
class _Pending:
    """Data of a trial that are not in the store yet."""

    begun: Trial | None = None
    points: tracking.Points = field(default_factory=list)
    ended: Trial | None = None


class MlflowTrials:
    """Writer of one run for every trial, however often the trial and the study are resumed."""

    def __init__(
        self,
        dataset: Dataset,
        parent: tracking.OpenRun,
        record: StudyRecord,
        base: dict[str, Any],
        kind: str = TRIAL,
    ):
        """`kind` is TRIAL or REPEAT: the tag with the number, and the job."""
        self.dataset, self.parent, self.record, self.base, self.kind = dataset, parent, record, base, kind
        self._runs: dict[int, tracking.Run] = {}
        self._pending: dict[int, _Pending] = {}
        self._logged: dict[int, dict[str, set[int]]] = {}
        self._not_before = 0.0
        self._unsure = False
        self._known: dict[int, str] = {}
        """Run ids by trial number of runs that an earlier driver began, even if it did not note their ids."""
        self._catch_up()

    def begin(self, trial: Trial) -> None:
        """Note that the trial runs, for the first time or again."""
        if trial.number not in self._runs and trial.number not in self._pending:
            self._pending_of(trial.number).begun = trial
            self._pending_of(trial.number).points = _points(trial)
            self.write()

    def log(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        """Note a trial's metrics after an epoch."""
        self._pending_of(number).points.append((epoch, metrics))
        self.write()

    def end(self, trial: Trial) -> None:
        """Note that the trial has ended."""
        self._pending_of(trial.number).ended = trial
        self.write()

    def write(self, now: bool = False) -> None:
        """Write what is pending, unless the store did not answer less than PAUSE seconds ago and not `now`."""
        if not now and time.monotonic() < self._not_before:
            return
        for number in list(self._pending):
            try:
                self._write(number, self._pending[number])
            except (MlflowException, InputError, OSError) as error:
                if not self._not_before:
                    say_above(
                        f"note: the tracking store does not answer, the study continues ({tracking.reason(error)})"
                    )
                self._not_before, self._unsure = time.monotonic() + PAUSE, True
                return
            del self._pending[number]
        self._not_before = 0.0

    def close(self) -> None:
        """End the runs of trials that still run: their driver ends."""
        self.write(now=True)
        with suppress(MlflowException, OSError):  # the watchdog ends them then
            client = MlflowClient(self.parent.uri)
            end_all_runs(
                client,
                client.get_run(self.parent.run_id).info.experiment_id,
                self.parent.token,
                "KILLED",
                but=self.parent.run_id,
            )

    def _pending_of(self, number: int) -> _Pending:
        return self._pending.setdefault(number, _Pending())

    def _write(self, number: int, pending: _Pending) -> None:
        run = self._runs.get(number)
        if not run:
            run = self._runs[number] = self._open(pending.begun or self.record[number])
            self.record.ran(number, run.run_id)
        run.log_points(pending.points, self._logged.setdefault(number, {}))
        pending.points = []
        if pending.ended:
            trial = pending.ended
            run.tag({"ended": trial.state, "reason": trial.reason})
            end_run(MlflowClient(run.uri), run.run_id, self.parent.token, _status(trial))

    def _open(self, trial: Trial) -> tracking.Run:
        """Return the trial's run: the one that this or an earlier driver began, or a new one."""
        params = self.base | trial.setting
        if self._unsure:  # whether the last attempt began a run
            self._find_runs()
        if run_id := self._known.get(trial.number):
            client = MlflowClient(self.parent.uri)
            take_over(client, run_id, self.parent.token)
            stored = client.get_run(run_id).data.params
            client.log_batch(
                run_id, params=[Param(key, str(value)) for key, value in params.items() if key not in stored]
            )
            return tracking.Run(self.parent.uri, run_id)
        tags = {"job": self.kind, self.kind: str(trial.number)}
        begun = tracking.start_run(self.dataset.info, f"{self.kind} {trial.number}", params, self.parent, **tags)
        begun.log_dataset(self.dataset)
        return begun

    def _find_runs(self) -> dict[int, Any]:
        """Return MLflow's own runs by trial number."""
        children = tracking.child_runs(self.parent)
        runs = {int(run.data.tags[self.kind]): run for run in children if self.kind in run.data.tags}
        self._known, self._unsure = {number: run.info.run_id for number, run in runs.items()}, False
        return runs

    def _catch_up(self) -> None:
        """Write what an earlier driver did not write of trials that have ended."""
        runs = self._find_runs()
        for trial in self.record.trials:
            run = runs.get(trial.number)
            if trial.state != RUNNING and not (run and run.info.status == _status(trial)):
                self._pending[trial.number] = _Pending(trial, _points(trial), trial)
        self.write()


def _points(trial: Trial) -> tracking.Points:
    """Return the points that the study has; the run logs no point twice."""
    return [(epoch, {METRIC: value}) for epoch, value in trial.history]


def _status(trial: Trial) -> str:
    return "FAILED" if trial.state == FAILED else "FINISHED"
