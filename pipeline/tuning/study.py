"""The durable record of a study: one Optuna study on disk, written by the driver alone. Knows nothing of Ray.

Every decision is written at the moment that it is made: settings when they are suggested, MAP after every epoch, and
how a trial ended. A driver that is killed at any moment therefore loses no trial and repeats none.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from pipeline.common.errors import JobFailed
from pipeline.evaluation.validation import METRIC, SPLIT
from pipeline.tuning.samplers import UNBEATEN, Scheduler, Search, pruner_of, sampler_of
from pipeline.tuning.spaces import Space

RUNNING, DONE, PRUNED, FAILED = "running", "done", "pruned", "failed"
"""States of a trial. Pruned trials were stopped by the scheduler."""
ENDED, REASON, RUN_ID, SECONDS, HISTORY, KILLS = "ended", "reason", "run_id", "seconds", "history", "kills"
STOPPED = "stopped"
"""User attributes of a trial in the Optuna study."""
PRIOR = "prior"
"""User attribute of an earlier study's trial, which is knowledge here and not one of the study's own: its origin."""
REPEATS = "repeats"
"""User attribute of the Optuna study: (number of a repeated trial, its MAP with every seed) pairs."""
OBJECTIVES, EPOCHS, CHANCE, BEGUN = "objectives", "epochs", f"{SPLIT}/chance", "begun"
"""User attributes of the Optuna study: its objectives' names, a trial's full budget, the MAP of a random ranking, and
whether it has all that it begins with."""
AGAINST = ("embedding_dim", "latency_ms")
"""Further objectives, to be minimised. The latency is in milliseconds an image, measured in the trial's process."""
_STATES = {DONE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}

History = list[tuple[int, float]]
"""(epoch, validation MAP) pairs."""


@dataclass(frozen=True)
class Plan:
    """Identity of a study: another plan is another study."""

    space: str
    settings: dict[str, Any]
    """Settings that do not vary; `epochs` is the budget of a trial."""
    search: Search = "tpe"
    scheduler: Scheduler = "asha"
    against: tuple[str, ...] = ()
    """Objectives beside MAP, of AGAINST."""
    seed: int = 0
    workers: int = 1
    """Workers of each trial."""
    source: dict[str, str] | None = None
    """Name and digest of the study that this one begins with."""

    @property
    def objectives(self) -> list[str]:
        """Names of the objectives, MAP first."""
        return [METRIC, *self.against]


@dataclass(frozen=True)
class Trial:
    """State of one trial."""

    number: int
    setting: dict[str, Any]
    """Settings that vary; conditional ones are present only if their condition was met."""
    state: str
    history: History
    run_id: str | None = None
    reason: str = ""
    """Reason why it ended, in one line."""
    seconds: float = 0.0
    """Seconds of its training since the start of its last attempt."""
    objectives: tuple[float, ...] = ()
    """Best MAP and the other objectives of a trial that is done."""

    @property
    def best(self) -> float:
        """Best MAP after any epoch, or 0 before the first."""
        return max((value for _, value in self.history), default=0.0)


class StudyRecord:
    """Optuna study in the sqlite database `file`. Opening it again continues the study.

    Trial 0 is always the space's starting point. The `settings` of an earlier study are tried next; its `trials` are
    knowledge for the sampler and the pruner, and nothing else.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        space: Space,
        plan: Plan,
        settings: Iterable[dict[str, Any]] = (),
        trials: Iterable[FrozenTrial] = (),
    ):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.plan, self.space = plan, space
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=name,
            directions=[StudyDirection.MAXIMIZE, *(StudyDirection.MINIMIZE for _ in plan.against)],
            pruner=pruner_of(plan.scheduler, plan.settings["epochs"]),
            load_if_exists=True,
        )
        if BEGUN not in self._study.user_attrs:
            self._study.set_user_attr(OBJECTIVES, plan.objectives)
            self._study.set_user_attr(EPOCHS, plan.settings["epochs"])
            self.queue((space.start, *settings))
            known = {trial.user_attrs.get(PRIOR) for trial in self._study.get_trials(deepcopy=False)}
            self._study.add_trials([trial for trial in trials if trial.user_attrs[PRIOR] not in known])
            self._study.set_user_attr(BEGUN, True)
        self._asked: dict[int, optuna.Trial] = {}
        self._stops: dict[int, str] = {}
        """Known answers of `why_stopped`."""

    @property
    def study(self) -> optuna.Study:
        """The Optuna study."""
        return self._study

    @property
    def trials(self) -> list[Trial]:
        """The study's own trials by number, without those that are only queued."""
        return trials_in(self._study)

    def queue(self, settings: Iterable[dict[str, Any]]) -> None:
        """Have these settings tried next, but none twice."""
        for setting in settings:
            self._study.enqueue_trial(setting, skip_if_exists=True)

    def note_chance(self, chance: float) -> None:
        """Note the validation MAP of a random ranking."""
        self._study.set_user_attr(CHANCE, chance)

    @property
    def chance(self) -> float:
        """Validation MAP of a random ranking."""
        return float(self._study.user_attrs[CHANCE])

    def interrupted(self) -> list[Trial]:
        """Return the trials that have begun and not ended, with complete settings; they run before new ones."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in self._asked:
                self._seed_sampler(trial.number)
                study_id = self._storage.get_study_id_from_name(self._study.study_name)
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
                self._define(optuna.Trial(self._study, trial_id))  # values that it has been given already stay
        return [self[number] for number in sorted(self._asked)]

    def ask(self) -> Trial:
        """Return a new trial. Its setting depends on the seed, its number, and the trials before it."""
        trials = self._study.get_trials(deepcopy=False)
        queued = [trial.number for trial in trials if trial.state is TrialState.WAITING]
        self._seed_sampler(min(queued, default=len(trials)))
        asked = self._study.ask()
        self._define(asked)
        return self[asked.number]

    def _define(self, asked: optuna.Trial) -> None:
        """Have the space suggest the trial's values. If the space fails, fails the trial and raises JobFailed."""
        self._asked[asked.number] = asked
        try:
            self.space.define(asked)
        except Exception as error:
            reason = f"--space {self.space.name} failed: {type(error).__name__}: {error}"
            self.end(asked.number, FAILED, reason)
            raise JobFailed(f"trial {asked.number}: {reason}") from error

    def _seed_sampler(self, number: int) -> None:
        """Take a sampler with a seed of the trial's own, so that resuming needs no generator state."""
        self._study.sampler = sampler_of(self.plan.search, 1_000_003 * self.plan.seed + number)

    def __getitem__(self, number: int) -> Trial:
        return _read(self._frozen(number))

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def ran(self, number: int, run_id: str) -> None:
        """Note the trial's MLflow run. Optuna refuses this for an ended trial; the run has the trial's number, too."""
        if number in self._asked:
            self._asked[number].set_user_attr(RUN_ID, run_id)

    def epoch(self, number: int, epoch: int, value: float) -> None:
        """Note the trial's MAP after an epoch; `why_stopped` then tells whether the trial is to be stopped.

        If an epoch is reported again, the first value stays, and so does the decision.
        """
        asked, trial = self._asked[number], self._frozen(number)
        history = _read(trial).history
        if epoch in dict(history):
            return
        if len(self.plan.objectives) == 1:
            half_written = epoch in trial.intermediate_values
            value = trial.intermediate_values.get(epoch, value)
            if not half_written:
                asked.report(value, epoch)
            judged = copy.copy(trial)
            judged.intermediate_values = trial.intermediate_values | {epoch: value}
            if half_written:  # Optuna's pruners write the values that they have judged to the trial, and judge none
                # twice. The driver was killed just then, and nobody heard of the decision: hide the value.
                judged.system_attrs = {key: known for key, known in trial.system_attrs.items() if known != value}
            self._stops[number] = ""
            if epoch < self.plan.settings["epochs"] and self._study.pruner.prune(self._study, judged):
                shown = f"{value:.4f} (chance {self.chance:.4f})"
                self._stops[number] = UNBEATEN[self.plan.scheduler].format(value=shown, epoch=epoch)
                asked.set_user_attr(STOPPED, self._stops[number])
        asked.set_user_attr(HISTORY, [*history, (epoch, value)])

    def why_stopped(self, number: int) -> str:
        """Return the reason why the scheduler stops the trial, or nothing if it does not."""
        if number not in self._stops:
            self._stops[number] = str(self._frozen(number).user_attrs.get(STOPPED, ""))
        return self._stops[number]

    def count_kill(self, number: int) -> int:
        """Note that the trial's process was killed for memory, and return how often that has happened."""
        kills = int(self._frozen(number).user_attrs.get(KILLS, 0)) + 1
        self._asked[number].set_user_attr(KILLS, kills)
        return kills

    def end(self, number: int, state: str, reason: str, against: Sequence[float] = (), seconds: float = 0.0) -> Trial:
        """Note the end of a trial, and return it. Optuna learns a pruned trial's last MAP, and no MAP of a failed one.

        Args:
            number: number of the trial.
            state: DONE, PRUNED or FAILED.
            reason: reason in one line.
            against: values of the objectives beside MAP.
            seconds: seconds of training in the last attempt.
        """
        asked, trial = self._asked[number], self[number]
        if state == DONE and (not trial.history or len(against) < len(self.plan.against)):
            state, reason = FAILED, "it ended without a result"
        asked.set_user_attr(ENDED, state)
        asked.set_user_attr(REASON, reason)
        asked.set_user_attr(SECONDS, seconds)
        values = None
        if state == DONE:
            values = [trial.best, *against]
        self._study.tell(asked, values, _STATES[state])
        del self._asked[number]
        return self[number]

    @property
    def best(self) -> Trial | None:
        """Best trial, as `best_of` returns it."""
        return best_in(self._study)


def best_in(study: optuna.Study) -> Trial | None:
    """Return the study's best trial: by the mean over seeds if trials were repeated, otherwise as `best_of` does."""
    trials, repeats = trials_in(study), study.user_attrs.get(REPEATS)
    if not repeats:
        return best_of(trials)
    number, _ = max(repeats, key=lambda one: fmean(one[1]))
    return next(trial for trial in trials if trial.number == number)


def best_of(trials: list[Trial]) -> Trial | None:
    """Return the trial of the highest MAP among those that are done; if none is, among all that were validated."""
    scored = [t for t in trials if t.state == DONE] or [t for t in trials if t.history and t.state != FAILED]
    return max(scored, key=lambda trial: trial.best, default=None)


def front_of(trials: list[Trial]) -> list[Trial]:
    """Return the Pareto front, the highest MAP first: no other trial is better in one objective and worse in none."""
    ended = [trial for trial in trials if trial.objectives and all(map(math.isfinite, trial.objectives))]

    def beats(one: Trial, other: Trial) -> bool:
        return _costs(one) != _costs(other) and all(a <= b for a, b in zip(_costs(one), _costs(other), strict=True))

    front = [trial for trial in ended if not any(beats(other, trial) for other in ended)]
    return sorted(front, key=lambda trial: -trial.objectives[0])


def knee_of(front: list[Trial]) -> Trial | None:
    """Return the front's trial with the smallest sum of its objectives, each scaled from 0 (best there) to 1 (worst).

    For two objectives it lies farthest below the line through the ends. A front that does not bend below it, where all
    sums are at least 1, has no knee.
    """
    if not front:
        return None
    low, high = (list(map(bound, zip(*map(_costs, front), strict=True))) for bound in (min, max))

    def total(trial: Trial) -> float:
        return sum((cost - a) / ((b - a) or 1) for cost, a, b in zip(_costs(trial), low, high, strict=True))

    knee = min(front, key=total)
    return knee if len(front) > 2 and total(knee) < 1 else None


def places_of(trials: list[Trial]) -> dict[int, str]:
    """Return "front", or "front, knee", by number of the trials of the Pareto front."""
    front = front_of(trials)
    knee = knee_of(front)
    return {trial.number: "front, knee" if trial is knee else "front" for trial in front}


def _costs(trial: Trial) -> tuple[float, ...]:
    """Return the objectives as values of which less is better."""
    return (-trial.objectives[0], *trial.objectives[1:])


def trials_in(study: optuna.Study) -> list[Trial]:
    """Return the study's own trials by number, without those that are only queued."""
    trials = study.get_trials(deepcopy=False)
    return [_read(one) for one in trials if one.state is not TrialState.WAITING and PRIOR not in one.user_attrs]


def as_prior(trial: FrozenTrial, origin: str, with_rungs: bool) -> FrozenTrial:
    """Return an ended trial of another study as knowledge; `with_rungs` keeps what the pruner judged it by."""
    return create_trial(
        state=trial.state,
        values=trial.values,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={PRIOR: f"{origin}/{trial.number}"},
        system_attrs=trial.system_attrs if with_rungs else {},
        intermediate_values=trial.intermediate_values,
    )


def _read(trial: FrozenTrial) -> Trial:
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
