"""A search's durable record: one Optuna study on disk, written by the driver alone. Knows nothing of Ray.

What a search has decided is in the study the moment it is decided: settings when they are asked for, MAP after every
epoch, how a trial ended. So a driver killed at any moment loses no trial and repeats none.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from pipeline.common.errors import JobFailed
from pipeline.evaluation.validation import METRIC
from pipeline.tuning.spaces import Space

RUNNING, DONE, PRUNED, FAILED = "running", "done", "pruned", "failed"
"""How a trial stands. Pruned ones were stopped by the scheduler."""
ENDED, REASON, RUN_ID, SECONDS, HISTORY = "ended", "reason", "run_id", "seconds", "history"
"""What a trial has in the study beside its setting."""
OBJECTIVES, EPOCHS = "objectives", "epochs"
"""What the study has: the objectives' names, and a trial's full budget."""
AGAINST = ("embedding_dim", "latency_ms")
"""What a search may weigh MAP against; less is better. Latency: milliseconds an image, in the trial's own process."""
STARTUP_TRIALS = 10  # TPE's: so many are drawn at random before it models anything
DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
_STATES = {DONE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}

History = list[tuple[int, float]]
"""(epoch, validation MAP) pairs."""


@dataclass(frozen=True)
class Plan:
    """What a search is known by: another plan is another search."""

    space: str
    settings: dict[str, Any]
    """What does not vary; the epochs are a trial's budget."""
    search: Literal["tpe", "random"] = "tpe"
    scheduler: Literal["asha", "none"] = "asha"
    against: str | None = None
    """One of AGAINST, or None to search for MAP alone."""
    seed: int = 0
    workers: int = 1
    """Of each trial."""

    @property
    def objectives(self) -> list[str]:
        return [METRIC, self.against] if self.against else [METRIC]


@dataclass(frozen=True)
class Trial:
    """What is known of one trial."""

    number: int
    setting: dict[str, Any]
    """What varied; conditional settings are there only where they counted."""
    state: str
    history: History
    run_id: str | None = None
    reason: str = ""
    """Why it ended, in a line."""
    seconds: float = 0.0
    """Of its training, from the start of its last attempt."""
    objectives: tuple[float, ...] = ()
    """Of a trial that is done: the best MAP, and what it was weighed against."""

    @property
    def best(self) -> float:
        return max((value for _, value in self.history), default=0.0)


class StudyRecord:
    """The study of one search, in `file`; opened again, it goes on where it was.

    The space's starting point is always trial 0.
    """

    def __init__(self, file: Path, name: str, space: Space, plan: Plan):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.plan, self.space = plan, space
        self._study = optuna.create_study(
            storage=optuna.storages.RDBStorage(f"sqlite:///{file}"),
            study_name=name,
            directions=DIRECTIONS[: len(plan.objectives)],
            load_if_exists=True,
        )
        if not self._study.trials:
            self._study.set_user_attr(OBJECTIVES, plan.objectives)
            self._study.set_user_attr(EPOCHS, plan.settings["epochs"])
            self._study.enqueue_trial(space.start)
        self._asked: dict[int, optuna.Trial] = {}

    @property
    def study(self) -> optuna.Study:
        return self._study

    @property
    def trials(self) -> list[Trial]:
        """By number; those that were only queued are none yet."""
        return trials_in(self._study)

    def interrupted(self) -> list[Trial]:
        """Those that were running when the last driver ended, their settings complete; to be run before new ones."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in self._asked:
                self._study.sampler = self._sampler(trial.number)
                self._define(optuna.Trial(self._study, trial._trial_id))  # what it has been given already stays
        return [self[number] for number in sorted(self._asked)]

    def ask(self) -> Trial:
        """A new trial; its setting depends on the seed, its number, and the trials before it."""
        self._study.sampler = self._sampler(len(self.trials))
        asked = self._study.ask()
        self._define(asked)
        return self[asked.number]

    def _define(self, asked: optuna.Trial) -> None:
        """Raises JobFailed where the space fails; the trial has failed then."""
        self._asked[asked.number] = asked
        try:
            self.space.define(asked)
        except Exception as error:
            reason = f"--space {self.space.name} failed: {type(error).__name__}: {error}"
            self.end(asked.number, FAILED, reason)
            raise JobFailed(f"trial {asked.number}: {reason}") from error

    def _sampler(self, number: int) -> BaseSampler:
        seed = 1_000_003 * self.plan.seed + number  # of this trial's own: a continued search needs no generator's state
        if self.plan.search == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Trials that run count as bad ones, or two at a time would be nearly the same.
            return TPESampler(
                n_startup_trials=STARTUP_TRIALS, multivariate=True, group=True, constant_liar=True, seed=seed
            )

    def __getitem__(self, number: int) -> Trial:
        return _read(self._study.get_trials(deepcopy=False)[number])

    def ran(self, number: int, run_id: str) -> None:
        """The trial's run in MLflow. Of a trial that has ended Optuna takes it no more; MLflow has the number too."""
        if number in self._asked:
            self._asked[number].set_user_attr(RUN_ID, run_id)

    def epoch(self, number: int, epoch: int, value: float) -> None:
        """The trial's MAP after an epoch; of several for one epoch, the first stays."""
        history = self[number].history
        if epoch in dict(history):
            return
        if len(self.plan.objectives) == 1:
            self._asked[number].report(value, epoch)
        self._asked[number].set_user_attr(HISTORY, [*history, (epoch, value)])

    def end(self, number: int, state: str, reason: str, against: float | None = None, seconds: float = 0.0) -> Trial:
        """The trial has ended, after so many seconds of training in its last attempt.

        Optuna learns pruned ones as such, with their last MAP, and failed ones without one.
        """
        asked, trial = self._asked[number], self[number]
        if state == DONE and (not trial.history or (self.plan.against and against is None)):
            state, reason = FAILED, "it ended without a result"
        asked.set_user_attr(ENDED, state)
        asked.set_user_attr(REASON, reason)
        asked.set_user_attr(SECONDS, seconds)
        values = None
        if state == DONE:
            values = [trial.best] if against is None else [trial.best, against]
        self._study.tell(asked, values, _STATES[state])
        del self._asked[number]
        return self[number]

    @property
    def best(self) -> Trial | None:
        """The trial of the highest MAP among those that are done (of any, where none is)."""
        return best_of(self.trials)


def best_of(trials: list[Trial]) -> Trial | None:
    """Return the trial of the highest MAP among those that are done; if none is, among all that were validated."""
    scored = [t for t in trials if t.state == DONE] or [t for t in trials if t.history and t.state != FAILED]
    return max(scored, key=lambda trial: trial.best, default=None)


def trials_in(study: optuna.Study) -> list[Trial]:
    """By number; those that were only queued are none yet."""
    return [_read(trial) for trial in study.trials if trial.state is not TrialState.WAITING]


def _read(trial: optuna.trial.FrozenTrial) -> Trial:
    attrs = trial.user_attrs
    return Trial(
        number=trial.number,
        setting=dict(trial.params),
        state=attrs.get(ENDED, FAILED) if trial.state.is_finished() else RUNNING,
        history=[(int(epoch), float(value)) for epoch, value in attrs.get(HISTORY, [])],
        run_id=attrs.get(RUN_ID),
        reason=attrs.get(REASON, ""),
        seconds=attrs.get(SECONDS, 0.0),
        objectives=tuple(trial.values or ()) if trial.state is TrialState.COMPLETE else (),
    )


def past(trials: list[Trial]) -> Iterator[tuple[int, int, float]]:
    """(number, epoch, MAP) of all that was reported, trial by trial, for a scheduler that begins anew."""
    for trial in trials:
        # The scheduler may have stopped one that is still running at its last epoch, and nobody has heard of it: it
        # reports that epoch again, or the next one.
        known = sorted(trial.history)[: -1 if trial.state == RUNNING else None]
        for epoch, value in known:
            if math.isfinite(value):
                yield trial.number, epoch, value
