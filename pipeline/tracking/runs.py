"""MLflow: one experiment per dataset, one run per training however often it restarts, metrics from rank 0."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from data_prep.errors import InputError
from data_prep.tables import DatasetInfo
from pipeline.common.console import say
from pipeline.common.errors import JobFailed
from pipeline.tracking import watchdog as run_guard

SQLITE = "sqlite:///"
METRICS_A_BATCH = 1000  # MLflow's limit
PATIENCE, PAUSE = 120.0, 5.0
"""Seconds that a finished job waits for a silent store, and between two looks at it."""
PARENT = "mlflow.parentRunId"
"""MLflow's documented system tag of a child run: the parent's id."""
RESUMED = "resumed."  # a tag of this prefix: what a param is since the training was resumed
Points = list[tuple[int, dict[str, float]]]
"""(step, metrics) pairs."""

# MLflow tells of every table it creates and every file it copies; our own lines say what matters.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# At a run's end it prints the server's address on stdout, password and all; stdout is for figures.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# Its seven retries with doubling pauses would keep a user of a wrong address waiting for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")


def _milliseconds() -> int:
    """Return the time since the epoch, as MLflow's metrics want it."""
    return time.time_ns() // 1_000_000


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or `mlflow.db` in the working folder; sqlite paths made absolute.

    Absolute, because Ray's workers run in a folder of their own.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if uri.startswith(SQLITE):
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())
    return uri


def reason(error: Exception) -> str:
    """The first line of what it says."""
    return public((str(error).splitlines() or [type(error).__name__])[0])


def public(text: str) -> str:
    """Without the user names and passwords of addresses: MLflow repeats them in its errors.

    SQLAlchemy takes a password with any sign in it but `@`; up to the last `@` goes, should there be one in it too.
    """
    return re.sub(r"://[^:/\s]*(:\S*)?@", "://", text)


def connect() -> MlflowClient:
    """A client on the tracking store, which is created if it is not there yet.

    Call it once before several processes use a new sqlite store: its migration cannot run twice at a time.
    Raises InputError where the store does not answer.
    """
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        raise InputError(
            f"MLFLOW_TRACKING_URI={public(uri)}: the tracking store does not answer ({reason(error)})"
        ) from error
    return client


def experiment_of(client: MlflowClient, dataset: DatasetInfo) -> str:
    """The id of the dataset's experiment; artifacts of a sqlite store lie beside it in `mlartifacts/`."""
    found = client.get_experiment_by_name(dataset.name)
    if found:
        return found.experiment_id
    uri = tracking_uri()
    location = None
    if uri.startswith(SQLITE):
        location = (Path(uri.removeprefix(SQLITE)).parent / "mlartifacts" / dataset.name).as_uri()
    return client.create_experiment(dataset.name, artifact_location=location)


@dataclass(frozen=True)
class Run:
    """One MLflow run, to be sent to workers as it is: it holds only names."""

    uri: str
    run_id: str

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log these metrics, again if the run has them. Raises MlflowException."""
        now = _milliseconds()
        values = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        MlflowClient(self.uri).log_batch(self.run_id, metrics=values)

    def log_points(self, points: Points) -> None:
        """Log those (metric, step) that the run does not have yet; of several values for one, the first stays.

        For one writer at a time: what others log meanwhile is not seen. NaN is logged as it is, for it is how a
        training diverges; of an infinity MLflow's SQL stores make the largest float. Raises MlflowException; some
        of the points are logged then, and the same call may be repeated.
        """
        logged = _logged.setdefault((self.uri, self.run_id), _Logged())
        client = MlflowClient(self.uri)
        now = _milliseconds()
        with logged.lock:
            try:
                new = [
                    Metric(name, float(value), now, step)
                    for step, metrics in points
                    for name, value in metrics.items()
                    if logged.adds(client, self.run_id, name, step)
                ]
                for first in range(0, len(new), METRICS_A_BATCH):
                    client.log_batch(self.run_id, metrics=new[first : first + METRICS_A_BATCH])
            except BaseException:
                logged.steps.clear()  # an answer may have been lost after the store had written: ask it again
                raise

    def log_text(self, text: str, name: str) -> None:
        """A small text artifact of this name, replaced if it exists. Raises MlflowException or OSError."""
        MlflowClient(self.uri).log_text(self.run_id, text, name)

    def tag(self, tags: dict[str, str]) -> None:
        """Set these tags. Raises MlflowException."""
        MlflowClient(self.uri).log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])


@dataclass(frozen=True)
class OpenRun(Run):
    """The run of a block `with run(...)`, as the driver has it."""

    token: str = field(compare=False, repr=False)


@dataclass
class _Logged:
    """Which (metric, step) a run has. The store is asked for a metric's history once in a process."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    steps: dict[str, set[int]] = field(default_factory=dict)

    def adds(self, client: MlflowClient, run_id: str, name: str, step: int) -> bool:
        """False if the run has it; else it is taken down as had."""
        if name not in self.steps:
            self.steps[name] = {point.step for point in client.get_metric_history(run_id, name)}
        if step in self.steps[name]:
            return False
        self.steps[name].add(step)
        return True


_logged: dict[tuple[str, str], _Logged] = {}


class PointLog:
    """Log points through a tracking server's absence: what could not be logged waits for the next try.

    For several threads. A try takes as long as MLflow's own retries; after one of more than a second, points are
    only collected until nine times as long has passed, so that a silent server slows a training by a tenth at most.
    """

    def __init__(self, run: Run):
        self.run = run
        self._lock = threading.Lock()
        self._waiting: dict[int, dict[str, float]] = {}
        """By steps: the caller may hand over the same points again."""
        self._pause_until = 0.0
        self._failing = False

    def add(self, points: Points) -> None:
        """Log these points and those that wait. Never raises."""
        with self._lock:
            for step, metrics in points:
                self._waiting.setdefault(step, {}).update(metrics)
            if time.monotonic() >= self._pause_until:
                self._try()

    @property
    def waiting(self) -> bool:
        """Whether points are left that could not be logged."""
        with self._lock:
            return bool(self._waiting)

    def close(self) -> Points:
        """Try a last time; gives what still could not be logged. Never raises; it may be called again."""
        with self._lock:
            self._try()
            return sorted(self._waiting.items())

    def _try(self) -> Exception | None:
        if not self._waiting:
            return None
        started = time.monotonic()
        try:
            self.run.log_points(sorted(self._waiting.items()))
        except Exception as error:
            now = time.monotonic()
            self._pause_until = now + 9 * (now - started) if now - started > 1 else 0.0
            if not self._failing:
                say(f"note: the metrics could not be logged, and wait for the tracking store ({reason(error)})")
            self._failing = True
            return error
        if self._failing:
            say(f"note: the tracking store answers again, {len(self._waiting)} steps' metrics are logged")
        self._waiting, self._failing = {}, False
        return None


def start(dataset: DatasetInfo, name: str, params: dict[str, Any], parent: Run | None = None, **tags: str) -> Run:
    """Start a run in the dataset's experiment; the caller ends it.

    A parent's guard ends it too, should this process be killed. Raises InputError or MlflowException.
    """
    client = connect()
    tags |= {"dataset": dataset.name, "dataset_digest": dataset.digest}
    if parent:
        tags[PARENT] = parent.run_id
    if isinstance(parent, OpenRun):
        tags.setdefault(run_guard.OWNER, parent.token)
    created = client.create_run(experiment_of(client, dataset), run_name=name, tags=tags)
    this = Run(tracking_uri(), created.info.run_id)
    try:
        client.log_batch(this.run_id, params=[Param(key, str(value)) for key, value in params.items()])
    except MlflowException:
        client.set_terminated(this.run_id, status="FAILED")
        raise
    return this


@contextmanager
def answering(otherwise: str = "") -> Iterator[None]:
    """Raises JobFailed, in one line without credentials, where the tracking store stops answering in the block.

    `otherwise` says what that means to the user.
    """
    try:
        yield
    except MlflowException as error:
        end = f"; {otherwise}" if otherwise else ""
        raise JobFailed(f"the tracking store does not answer ({reason(error)}){end}") from None


def wait_for_store(run: Run) -> None:
    """Return as soon as the store answers for this run. Raises MlflowException after PATIENCE seconds."""
    client = MlflowClient(run.uri)
    deadline = time.monotonic() + PATIENCE
    told = False
    while True:
        try:
            client.get_run(run.run_id)
            return
        except MlflowException as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                say(f"note: waiting for the tracking store, {PATIENCE:.0f} s at most ({reason(error)})")
            told = True
        time.sleep(PAUSE)


@contextmanager
def run(
    dataset: DatasetInfo,
    name: str,
    params: dict[str, Any],
    resume: str | None = None,
    parent: Run | None = None,
    **tags: str,
) -> Iterator[OpenRun]:
    """A run for the length of the block: the run of id `resume` if the store has it, or else a new one.

    It ends FINISHED; FAILED by an error; KILLED by Ctrl-C, by SystemExit, and, through a guard process, where this
    process is killed. A resumed run keeps its params; those that are different now become tags (`resumed.workers`).
    If a newer driver has taken the run over, its end is that one's.

    Raises InputError or MlflowException at the block's start. At its end, never: if the store does not answer then,
    the guard goes on trying for an hour.
    """
    client = connect()
    before = _stored(client, resume)
    if before and before.info.lifecycle_stage != "active":
        before = None
    experiment = before.info.experiment_id if before else experiment_of(client, dataset)
    token = uuid.uuid4().hex
    guard = run_guard.Guard.start(tracking_uri(), experiment, token, name)
    this: OpenRun | None = None
    status = "FAILED"
    try:
        if before:
            run_guard.take_over(client, before.info.run_id, token)
            _log_again(client, before, params, tags)
            run_id = before.info.run_id
        else:
            run_id = start(dataset, name, params, parent, **tags, **{run_guard.OWNER: token}).run_id
        this = OpenRun(tracking_uri(), run_id, token)
        _logged.pop((this.uri, this.run_id), None)  # another process may have logged to it since
        yield this
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        _end(this, guard, status)


def _log_again(client: MlflowClient, before: Any, params: dict[str, Any], tags: dict[str, str]) -> None:
    """Params of a resumed run: new ones as params, changed ones, which MLflow refuses, as tags."""
    stored = before.data.params
    now = {key: str(value) for key, value in params.items()}
    # Also what a resumption changed and this one changed back: the tag must not go on saying otherwise.
    changed = {k for k in stored.keys() & now.keys() if stored[k] != now[k] or RESUMED + k in before.data.tags}
    tags = tags | {RESUMED + key: now[key] for key in sorted(changed)}
    client.log_batch(
        before.info.run_id,
        params=[Param(key, value) for key, value in now.items() if key not in stored],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )


def _end(this: OpenRun | None, guard: run_guard.Guard, status: str) -> None:
    """Write the last status, or leave that to the guard: where the store does not answer, or the run is not known."""
    if not this:
        guard.entrust(status)
        return
    try:
        if not run_guard.end(MlflowClient(this.uri), this.run_id, this.token, status):
            say(f"note: run {this.run_id} was taken over by another process, and is left to it")
        guard.dismiss()
    except KeyboardInterrupt:  # the second Ctrl-C, while the store kept us waiting
        guard.entrust(status)
        raise
    except Exception as error:
        now = "is written as soon as it answers" if guard.entrust(status) else "could not be written"
        say(f"note: the tracking store does not answer ({reason(error)}): the run's status {status} {now}")


def history(run: Run, metric: str) -> list[tuple[int, float]]:
    """(step, value) of one metric, in order of steps."""
    points = MlflowClient(run.uri).get_metric_history(run.run_id, metric)
    return sorted((point.step, point.value) for point in points)


def children(parent: Run) -> list[Any]:
    """MLflow's own runs of a sweep's trials. Raises MlflowException."""
    client = MlflowClient(parent.uri)
    experiment = client.get_run(parent.run_id).info.experiment_id
    mine = f"tags.`{PARENT}` = '{parent.run_id}'"
    found: list[Any] = []
    token = None
    while token != "":
        page = client.search_runs([experiment], mine, page_token=token)
        found, token = [*found, *page], page.token or ""
    return found


def existing(run_id: str | None) -> Run | None:
    """The run of this id, if the tracking store has it. Raises InputError or MlflowException."""
    found = _stored(connect(), run_id) if run_id else None
    return Run(tracking_uri(), found.info.run_id) if found else None


def _stored(client: MlflowClient, run_id: str | None) -> Any:
    """MLflow's own run of this id, or None."""
    if not run_id:
        return None
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


@contextmanager
def system_metrics(run: Run, node: str | None = None) -> Iterator[None]:
    """Log this machine's load to the run while the block runs: `system/cpu_utilization_percentage` and the like.

    `node` tells machines apart (`system/NODE/...`). Every ten seconds, or MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.
    To be entered inside the run's block: MLflow's thread stops where the run is not RUNNING, and for good where the
    store does not answer once. Raises nothing of its own.
    """
    monitor = None
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run.run_id, resume_logging=True, node_id=node, tracking_uri=run.uri)
        monitor.start()
    except Exception as error:
        say(f"note: no system metrics ({reason(error)})")
    try:
        yield
    finally:
        if monitor:
            # Its end waits for its last request; a training does not wait for that with a store that is silent.
            last = threading.Thread(target=monitor.finish, daemon=True)
            last.start()
            last.join(timeout=10)
