"""`agman tune`: a study from its search space to a registered model, which can be resumed after any interruption.

Optuna suggests settings and stops trials early, and its study on disk is the record of everything. Ray Tune runs the
trials. MLflow has one run for the study and one for every trial. The best setting is trained again with the full budget
and becomes challenger.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from ray.exceptions import RayError
from ray.tune.error import TuneError
from tqdm import tqdm

from data_prep.cluster import ray_session
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from data_prep.words import counted
from pipeline.cluster.orphans import orphans_removed
from pipeline.cluster.resources import cpus_for, gpu_share, gpus_for
from pipeline.common.console import bar_of, say, say_above
from pipeline.common.errors import JobFailed
from pipeline.common.files import read_json, write_json
from pipeline.common.markdown import code
from pipeline.common.signals import saying_how_to_go_on
from pipeline.config.schema import TrainConfig, make_config
from pipeline.evaluation import evaluate as evaluation
from pipeline.evaluation.expectations import expectations
from pipeline.evaluation.few import meaning_for, query_count, validation_queries
from pipeline.evaluation.validation import SPLIT
from pipeline.registry import models as registry
from pipeline.registry.loading import load_with_tagger
from pipeline.registry.prototypes import add_prototypes
from pipeline.tracking import runs as tracking
from pipeline.tracking.origin import LABELS, SWEEP
from pipeline.training.build import NOT_DECISIVE, check, fitted, resolved
from pipeline.training.train import train
from pipeline.tuning.folders import DESCRIPTION, STUDY, claimed, find_study, identity_of
from pipeline.tuning.mlflow_trials import REPEAT, MlflowTrials
from pipeline.tuning.prior import Prior, opened, prior_of
from pipeline.tuning.ray_tune import run_trials, tidy
from pipeline.tuning.repeats import SETTINGS, Standing, note_repeats, repeats_of, standings_in
from pipeline.tuning.spaces import DRAWS, Space, draw
from pipeline.tuning.study import (
    CHANCE,
    DONE,
    FAILED,
    METRIC,
    PRUNED,
    REPEATS,
    RUNNING,
    Plan,
    StudyRecord,
    Trial,
    best_of,
    front_of,
    trials_in,
)
from pipeline.tuning.trainable import TrialJob

WriteReport = Callable[[optuna.Study, Path, dict[str, str]], object]
"""Writer of a report on the study to a folder; the dictionary has facts to show on its page."""

REPORT, FINAL = "report", "final"
"""Folders in a study's folder."""
GO_ON = "the same command with --resume goes on"
FRUITLESS_ROUNDS = 3
"""Number of rounds of Ray Tune in a row without the end of a trial after which the study has failed."""


@dataclass(frozen=True)
class FinalTraining:
    """Trainings of the best or the chosen setting with the full budget, one for each seed."""

    trial: int
    """Number of the trial that has the setting."""
    valid: list[float]
    """Validation MAP of each."""
    test: dict[str, float]
    """Test metrics of the training that is best on validation."""
    model_uri: str
    alias: str


@dataclass(frozen=True)
class StudyResult:
    """Result of a finished study."""

    run: tracking.Run
    space: str
    trials: list[Trial]
    best: Trial
    chance: float
    """Validation MAP of a random ranking."""
    seconds: float
    """Duration of this command; earlier commands of a resumed study do not count."""
    page: Path | None
    """Page of the report, if one was written."""
    final: FinalTraining | None
    against: tuple[str, ...] = ()
    """Objectives beside MAP."""
    repeated: list[Standing] = field(default_factory=list)
    """Settings that were repeated with other seeds, the best mean first."""

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics for `--json`."""
        states = Counter(trial.state for trial in self.trials)
        metrics: dict[str, Any] = {
            "trials": len(self.trials),
            **{state: states[state] for state in (DONE, PRUNED, FAILED)},
            METRIC: self.best.best,
            CHANCE: self.chance,
            "best": self.best.setting,
            **({"front": [trial.number for trial in front_of(self.trials)]} if self.against else {}),
            "run_id": self.run.run_id,
            "page": str(self.page) if self.page else None,
            "seconds": round(self.seconds, 1),
        }
        if self.repeated:
            kept = ("number", "values", "half", "beaten")
            metrics["repeated"] = [{key: getattr(one, key) for key in kept} for one in self.repeated]
        if self.final:
            metrics |= self.final.test | {"model_uri": self.final.model_uri, "alias": self.final.alias}
            metrics |= {"final/valid/map": self.final.valid}
        return metrics


def tune(
    dataset: Dataset,
    config: TrainConfig,
    *,
    space: Space,
    trials: int,
    concurrent: int = 1,
    workers: int = 1,
    trial_epochs: int | None = None,
    search: str = "tpe",
    scheduler: str | None = None,
    against: tuple[str, ...] = (),
    repeats: int | None = None,
    final_seeds: int = 3,
    storage: Path = Path("runs"),
    name: str | None = None,
    resume: bool = False,
    seed: int = 0,
    source: str | None = None,
    final_trial: int | None = None,
    write_report: WriteReport | None = None,
) -> StudyResult:
    """Run `trials` trials of `trial_epochs` epochs, `concurrent` at a time on `workers` workers each.

    The space's starting point is trial 0. The best setting is then trained for all `config.epochs` with `final_seeds`
    seeds (0: not at all). The best of these on validation is scored on test, once, and registered as challenger. With
    `against` the study has a Pareto front, and the best setting is that of the highest MAP. `final_trial` is the number
    of a trial of a study to resume, whose setting is taken instead of the best.

    Before that, the best three settings are trained at the trials' budget with `repeats` other seeds (2 unless given; 0
    without final trainings), and the best is the one of the highest mean.

    `source` names a study in `storage`, or is the path of one, whose best settings come next, and whose trials are
    knowledge if dataset, space and fixed settings are the same.

    `write_report` is called when the trials have ended, before the best setting is trained. The report is also sent to
    the study's MLflow run.

    A study is identified by its plan and lies in `storage / name`. `resume` continues it, possibly to more trials.
    Raises InputError for mistakes that a user can correct, JobFailed if the study fails, and KeyboardInterrupt after
    Ctrl-C or SIGTERM.
    """
    scheduler = scheduler or ("none" if against else "asha")
    config = fitted(config, dataset, config.micro_batches or workers)
    budget = trial_epochs or config.epochs
    base = config.model_copy(update={"epochs": budget, "max_steps": None if trial_epochs else config.max_steps})
    _check(dataset, base, space, workers, scheduler, against)
    if final_trial is not None and not (resume and final_seeds):
        raise InputError("--final-trial takes a trial of a study that is resumed; give --resume, not --final-seeds 0")
    settings = base.model_dump(exclude=set(NOT_DECISIVE))
    earlier = find_study(storage, source) if source else None
    origin = {"study": earlier.name, "digest": read_json(Storage(earlier / DESCRIPTION))["digest"]} if earlier else None
    plan = Plan(space.name, settings, search, scheduler, against, seed, workers, origin)  # type: ignore[arg-type]
    prior = prior_of(earlier, identity_of(plan, space), space, dataset.info.digest) if earlier else Prior([], [], "")
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(ray_session())
        stack.enter_context(orphans_removed())
        cpus, gpus = _resources(concurrent, workers)
        folder, begun = claimed(stack, storage.absolute(), name, resume, dataset, plan, space)
        chosen = _chosen(folder, final_trial) if begun and final_trial is not None else None
        base = resolved(base, "cuda" if gpus else "cpu", workers, cpus)
        params = _params(plan, base) | {"trials": trials, "trial_epochs": budget, "final_epochs": config.epochs}
        labels: dict[str, Any] = {SWEEP: folder.name} | {key: "varied" for key in LABELS if key in space.varied}
        stack.enter_context(tracking.answering())
        parent = stack.enter_context(
            tracking.open_run(dataset.info, folder.name, params, begun.get("run_id"), job="tune", **labels)
        )
        parent.log_dataset(dataset)
        parent.log_dataset_page(dataset)
        begun |= {"run_id": parent.run_id, "finished": False}
        write_json(Storage(folder / DESCRIPTION), begun)
        stack.enter_context(saying_how_to_go_on(GO_ON))
        if prior.said:
            say(prior.said)
        record = StudyRecord(folder / STUDY, folder.name, space, plan, prior.settings, prior.trials)
        record.note_chance(_chance(dataset))
        job = TrialJob(dataset.storage, base.model_dump(), folder, cpus, gpus, workers, against)
        if repeats is None:
            repeats = 2 if final_seeds and not chosen else 0
        say(_costs(trials, budget, repeats, final_seeds, config.epochs))
        _run(job, record, MlflowTrials(dataset, parent, record, job.base), trials, concurrent)
        if not chosen:
            _repeat(job, record, dataset, parent, repeats, concurrent)
        report = folder / REPORT
        if write_report:
            write_report(record.study, report, _facts(dataset, plan, parent))
            _send(parent, report)
        if record.best is None:
            reason, times = Counter(trial.reason for trial in record.trials).most_common(1)[0]
            see = f", see {report}" if write_report else ""
            raise JobFailed(f"all {len(record.trials)} trials failed{see}; {times} of them: {reason}")
        final = None
        if final_seeds:
            seeds = range(seed, seed + final_seeds)
            final = _final(dataset, config, chosen or record.best, folder, parent, seeds, workers)
        _log(parent, record, final)
        _tidy(job, record)
        write_json(Storage(folder / DESCRIPTION), begun | {"finished": True})
    seconds = time.perf_counter() - started
    page = report / "report.html" if write_report else None
    by_number = {trial.number: trial for trial in record.trials}
    best, repeated = by_number[record.best.number], standings_in(record.study)
    ended = list(by_number.values())
    return StudyResult(parent, space.name, ended, best, record.chance, seconds, page, final, against, repeated)


def _params(plan: Plan, base: TrainConfig) -> dict[str, Any]:
    """Return the parameters of the study's MLflow run: those of the search, and those that all trials share."""
    params = {f"search/{key}": value for key, value in asdict(plan).items() if key != "settings"}
    params["search/source"] = plan.source["study"] if plan.source else None
    params["search/against"] = ",".join(plan.against) or None
    return params | base.model_dump()


def _facts(dataset: Dataset, plan: Plan, parent: tracking.Run) -> dict[str, str]:
    """Return the facts that the report shows."""
    return {
        "space": plan.space,
        "dataset": f"{dataset.info.name} ({dataset.info.digest[:12]})",
        "search": f"{plan.search}, seed {plan.seed}",
        "scheduler": plan.scheduler,
        "epochs of a trial": str(plan.settings["epochs"]),
        "validation queries": _queries(dataset) or f"{dataset.info.queries[SPLIT]:,}",
        "run": parent.run_id,
    }


def _queries(dataset: Dataset) -> str:
    """Return the number of validation queries of every attribute, marked if they are few."""
    counts = validation_queries(dataset.info.attribute_names, dataset.info.queries_of)
    said = ", ".join(f"{name} {query_count(count)}" for name, count in counts.items() if count)
    return "; ".join([said, *meaning_for(counts.values())])


def _chance(dataset: Dataset) -> float:
    expected = expectations(dataset, SPLIT)
    assert expected, "a study's dataset has validation queries"
    return expected.over_all.chance


def _check(
    dataset: Dataset, base: TrainConfig, space: Space, workers: int, scheduler: str, against: tuple[str, ...]
) -> None:
    """Raise InputError for mistakes that a user can correct, before anything starts.

    `check` builds models on the meta device, once for each distinct architecture.
    """
    if not dataset.info.queries["valid"]:
        raise InputError(f"{dataset.path}: a study needs a validation split with queries, the dataset has none")
    for key in ("epochs", "max_triplets", "seed"):
        if key in space.varied:
            raise InputError(f"--space {space.name}: varies {key}, but trials are compared at equal budget and seed")
    if against and scheduler != "none":
        others = ",".join(against)
        raise InputError(f"--scheduler {scheduler} judges by MAP alone; with --against {others} take --scheduler none")
    for setting in (space.start, *draw(space, DRAWS)):
        try:
            check(make_config(base.model_dump() | setting), dataset, workers)
        except InputError as error:
            shown = " ".join(f"{key}={value}" for key, value in setting.items())
            raise InputError(f"--space {space.name}: with {shown}: {error}") from error


def _chosen(folder: Path, number: int) -> Trial:
    """Return the trial of --final-trial. Raises InputError if it has not ended with a score."""
    study = opened(folder / STUDY)
    scored = {trial.number: trial for trial in trials_in(study) if trial.state in (DONE, PRUNED)} if study else {}
    if number not in scored:
        numbers = ", ".join(map(str, scored)) or "none"
        raise InputError(f"--final-trial {number}: this study has no trial {number} with a score; it has {numbers}")
    return scored[number]


def _resources(concurrent: int, workers: int) -> tuple[int, float]:
    """Return the CPUs and GPUs of each worker. Raises InputError if the cluster has too few."""
    option = f"--concurrent {concurrent} × --workers-per-trial {workers} =" if workers > 1 else "--concurrent"
    cpus = cpus_for(concurrent * workers, option)
    if workers > 1:
        return cpus, float(gpus_for(concurrent * workers, option))
    return cpus, gpu_share(concurrent)


def _costs(trials: int, budget: int, repeats: int, final_seeds: int, epochs: int) -> str:
    """Return in one line what a study trains."""
    parts = [f"{counted(trials, 'trial')} of at most {counted(budget, 'epoch')}"]
    if repeats:
        parts.append(f"the best {SETTINGS} settings × {counted(repeats, 'other seed')} of {counted(budget, 'epoch')}")
    if final_seeds:
        parts.append(f"the best setting × {counted(final_seeds, 'seed')} of {counted(epochs, 'epoch')}")
    return f"to train: {', then '.join(parts)}"


def _repeat(
    job: TrialJob, record: StudyRecord, dataset: Dataset, parent: tracking.OpenRun, count: int, concurrent: int
) -> None:
    """Repeat the best trials with `count` other seeds, which decides the best one; 0 forgets earlier repeats."""
    folder, repeats = job.folder / REPEATS, None
    if count:
        folder.mkdir(exist_ok=True)
        repeats = repeats_of(record, folder / STUDY, count)
    if repeats:
        total = len(repeats.study.trials)
        runs = MlflowTrials(dataset, parent, repeats, job.base, REPEAT)
        _run(replace(job, folder=folder, against=()), repeats, runs, total, concurrent, "repeats")
    note_repeats(record, repeats)


def _run(
    job: TrialJob, record: StudyRecord, runs: MlflowTrials, trials: int, concurrent: int, noun: str = "trials"
) -> None:
    """Run trials until `trials` have ended. Raises KeyboardInterrupt after Ctrl-C, JobFailed if no trial ends."""

    def ended() -> int:
        return sum(trial.state != RUNNING for trial in record.trials)

    def watch() -> None:
        _show_progress(bar, record)
        if stopped.is_set():  # Ray may not have listened yet when the signal came
            os.kill(os.getpid(), signal.SIGUSR1)

    bar = bar_of(noun, max(trials, ended()))
    bar.initial = bar.n = ended()
    fruitless = 0
    with _signals_for_ray() as stopped:
        try:
            while (before := ended()) < trials:
                kills = 0
                try:
                    kills = run_trials(job, record, runs, watch, trials, concurrent)
                except JobFailed:
                    raise
                except (TuneError, RayError, RuntimeError) as error:
                    # The next round continues the trials that were running.
                    say_above(f"Ray Tune gave up: {(str(error).strip().splitlines() or [''])[-1]}")
                if stopped.is_set():
                    left = f"{trials - ended()} of {trials} {noun} are left"
                    raise KeyboardInterrupt(f"{left}; {GO_ON}")
                fruitless = fruitless + 1 if ended() == before and not kills else 0
                if fruitless >= FRUITLESS_ROUNDS:
                    raise JobFailed(f"no trial ends any more on Ray Tune; {GO_ON}")
        finally:
            bar.close()
            runs.close()
            _tidy(job, record)


def _tidy(job: TrialJob, record: StudyRecord) -> None:
    """Remove ended trials' checkpoints once more: a trial may have been saving while its folder was removed."""
    for trial in record.trials:
        if trial.state != RUNNING:
            tidy(job, trial)


def _show_progress(bar: tqdm, record: StudyRecord) -> None:
    trials = record.trials
    best = best_of(trials)
    states = Counter(trial.state for trial in trials)
    note = ", ".join(f"{states[state]} {state}" for state in (RUNNING, DONE, PRUNED, FAILED) if states[state])
    if best:
        setting = " ".join(f"{key}={short(value)}" for key, value in best.setting.items())
        note += f"; best MAP {best.best:.4f}, chance {record.chance:.4f} (trial {best.number}: {setting})"
    bar.set_postfix_str(note, refresh=False)
    bar.update(len(trials) - states[RUNNING] - bar.n)
    if sys.stderr.isatty():  # a log file gets a line every ten seconds
        bar.refresh()


@contextmanager
def _signals_for_ray() -> Iterator[threading.Event]:
    """Set the event and let Ray Tune stop its trials at the first Ctrl-C or SIGTERM; interrupt at the second."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def handle(number: int, frame: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt(GO_ON)
        stopped.set()
        say_above("stopping the trials; once more stops at once")
        os.kill(os.getpid(), signal.SIGUSR1)  # the signal at which Ray Tune stops

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _final(
    dataset: Dataset,
    config: TrainConfig,
    best: Trial,
    folder: Path,
    parent: tracking.Run,
    seeds: range,
    workers: int,
) -> FinalTraining:
    """Train the best setting with the full budget, score the best of the seeds on test, and register it.

    Each step is done once. If a driver was killed before it noted a step, the step is found by the training's name or
    by the registered version's run.
    """
    notes = Storage(folder / FINAL) / f"trial-{best.number}-{config.epochs}-epochs.json"
    done: dict[str, Any] = read_json(notes)
    for seed in seeds:
        if str(seed) in done:
            continue
        full = make_config(config.model_dump() | best.setting | {"seed": seed})
        say(f"trial {best.number}'s setting, {counted(config.epochs, 'epoch')}, seed {seed}")
        name = f"trial-{best.number}-{config.epochs}-epochs-seed-{seed}"
        try:
            trained = train(dataset, full, workers=workers, storage=str(folder / FINAL), name=name, parent=parent)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"all trials have ended; {GO_ON}") from stop
        done[str(seed)] = {
            "run_id": trained.run.run_id,
            "checkpoint": str(trained.checkpoint),
            METRIC: trained.metrics[METRIC],
        }
        write_json(notes, done)
    of_seeds = [done[str(seed)] for seed in seeds]
    winner = max(of_seeds, key=lambda one: float(one[METRIC]))
    run = tracking.Run(parent.uri, winner["run_id"])
    if done.get("test", {}).get("run_id") != winner["run_id"]:
        add_prototypes(Path(winner["checkpoint"]), dataset, run)
        network, description, tagger = load_with_tagger(winner["checkpoint"], dataset.info.attribute_names)
        scored = evaluation.evaluate(network, description, dataset, tagger=tagger)
        done["test"] = {"run_id": winner["run_id"], "step": description["step"], "figures": scored.metrics}
        write_json(notes, done)
    if done.get("registered", {}).get("run_id") != winner["run_id"]:
        run.log_points([(done["test"]["step"], done["test"]["figures"])])
        made = registry.register(
            Path(winner["checkpoint"]),
            dataset.info.name,
            run,
            registry.CHALLENGER,
            search_run_id=parent.run_id,
            search=folder.name,
        )
        if made.note:
            say(f"note: {made.note}")
        done["registered"] = {"run_id": winner["run_id"], "uri": made.uri, "alias": made.alias}
        write_json(notes, done)
    noted = done["registered"]
    return FinalTraining(
        best.number, [one[METRIC] for one in of_seeds], done["test"]["figures"], noted["uri"], noted["alias"]
    )


def _send(parent: tracking.Run, report: Path) -> None:
    """Send the report to the study's run. If that fails, only say so: the folder has the report."""
    try:
        MlflowClient(parent.uri).log_artifacts(parent.run_id, str(report), "search")
    except (MlflowException, OSError) as error:
        say(f"note: the report could not be sent to MLflow ({tracking.reason(error)}); it is in {report}")


def _log(parent: tracking.Run, record: StudyRecord, final: FinalTraining | None) -> None:
    """Log the study's outcome to its run. The caller reports a store that does not answer."""
    best = record.best
    assert best
    tags = {"best_trial": str(best.number), "best_setting": json.dumps(best.setting)}
    if best.run_id:
        tags["best_run_id"] = best.run_id
    metrics: dict[str, float] = {METRIC: best.best, CHANCE: record.chance, "trials": float(len(record.trials))}
    if final:
        tags |= {"model_uri": final.model_uri, "final_trial": str(final.trial)}
        metrics |= final.test | {"final/valid/map": statistics.mean(final.valid)}
        if len(final.valid) > 1:
            metrics["final/valid/map_spread"] = statistics.stdev(final.valid)
    parent.tag(tags)
    parent.log(metrics, step=len(record.trials))
    setting = " ".join(f"{key}={short(value)}" for key, value in best.setting.items())
    rows = {"result": f"{100 * best.best:.2f}, chance {100 * record.chance:.2f} (MAP on validation, times 100)"}
    rows["best"] = f"trial {best.number}: {code(setting)}"
    parent.describe(rows | ({"registered": code(final.model_uri)} if final else {}))


def short(value: Any) -> str:
    """Return a setting's value with at most three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
