"""MLflow tracking: one experiment for each dataset, one run for each training, even if the training restarts."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from mlflow import entities
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from data_prep.tables import REPORT, DatasetInfo
from data_prep.words import counted
from pipeline.common.console import say
from pipeline.common.errors import JobFailed, reason, without_credentials
from pipeline.common.markdown import with_rows
from pipeline.tracking.origin import NOTE, SWEEP, describe_run, labels_of, origin_tags
from pipeline.tracking.watchdog import OWNER, Watchdog, end_run, take_over

SQLITE = "sqlite:///"
DATABASE = "mlflow.db"
"""Name of the default tracking store."""
ELSEWHERE = "MLFLOW_TRACKING_URI names a store elsewhere"
METRICS_A_BATCH = 1000
"""Metrics in one request; MLflow's limit."""
PATIENCE, PAUSE = 120.0, 5.0
"""Seconds that a finished job waits for a silent store, and seconds between two attempts."""
DIGEST = 36
"""Characters of a dataset's digest; MLflow's limit."""
PARENT = "mlflow.parentRunId"
"""MLflow's documented system tag of a child run: the parent's id."""
PAGE_BYTES = 32 << 20
"""Largest page that is logged as an artifact."""
RESUMED = "resumed."
"""Prefix of the tags that hold the new values of params that changed when the training was resumed."""
Points = list[tuple[int, dict[str, float]]]
"""(step, metrics) pairs."""

# MLflow logs every table that it creates and every file that it copies.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# At the end of a run, MLflow prints the server's address with its password on stdout, which is for results only.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# The default of seven retries with doubling pauses keeps a user of a wrong address waiting for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")


def _milliseconds() -> int:
    """Return the time since the epoch, the unit of MLflow's timestamps."""
    return time.time_ns() // 1_000_000


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or by default the URI of the nearest `mlflow.db`.

    That is the one in the working folder or, if there is none, in a folder above; a new one is in the working folder.
    Paths of sqlite files are made absolute, because Ray's workers run in another folder.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute()) if uri.startswith(SQLITE) else uri
    here = Path.cwd()
    found = (folder / DATABASE for folder in (here, *here.parents) if (folder / DATABASE).is_file())
    return SQLITE + str(next(found, here / DATABASE))


def shown_store() -> str:
    """Return the tracking store's address for messages, without credentials."""
    return without_credentials(tracking_uri())


def store_exists() -> bool:
    """Return whether there is a tracking store; True for a server, which only an answer can tell."""
    uri = tracking_uri()
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE).partition("?")[0]).exists()


def connect(create: bool = False) -> MlflowClient:
    """Return a client of the tracking store.

    Raises InputError if the store does not answer, or does not exist, unless it shall be created. Create it once
    before several processes use a new sqlite store, because two migrations at a time fail.
    """
    uri = tracking_uri()
    if not create and not store_exists():
        raise InputError(f"{shown_store()}: no tracking store there or in a folder above; {ELSEWHERE}")
    mlflow.set_tracking_uri(uri)
    try:
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        raise InputError(
            f"MLFLOW_TRACKING_URI={shown_store()}: the tracking store does not answer ({reason(error)})"
        ) from error
    return client


def experiment_of(client: MlflowClient, dataset: DatasetInfo) -> str:
    """Return the id of the dataset's experiment, and create the experiment if it does not exist.

    With a sqlite store, artifacts are in the folder `mlartifacts/` beside the database.
    """
    found = client.get_experiment_by_name(dataset.name)
    if found:
        return found.experiment_id
    uri = tracking_uri()
    location = None
    if uri.startswith(SQLITE):
        location = (Path(uri.removeprefix(SQLITE)).parent / "mlartifacts" / dataset.name).as_uri()
    model = f"agman-{dataset.name}"  # MLflow shows one line
    about = f"[{model}](#/models/{model}) says which version is champion, and why."
    return client.create_experiment(dataset.name, artifact_location=location, tags={NOTE: about})


@dataclass(frozen=True)
class Run:
    """An MLflow run, by its names only, so that it can be sent to workers."""

    uri: str
    run_id: str

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log these metrics, even if the run has them already. Raises MlflowException."""
        now = _milliseconds()
        values = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        MlflowClient(self.uri).log_batch(self.run_id, metrics=values)

    def log_points(self, points: Points, logged: dict[str, set[int]] | None = None) -> None:
        """Log those (metric, step) that the run does not have yet; of several values for one, the first is kept.

        `logged` carries from call to call which steps the run has of each metric; for other metrics the store is
        asked. Only one writer at a time: what others log meanwhile is not seen. NaN is logged as it is, for it shows
        that a training diverges; MLflow's SQL stores turn an infinity into the largest float. Raises MlflowException;
        some of the points are logged then, and the same call may be repeated.
        """
        logged = {} if logged is None else logged
        client = MlflowClient(self.uri)
        now = _milliseconds()
        try:
            unknown = {name for _, metrics in points for name in metrics} - logged.keys()
            begun = client.get_run(self.run_id).data.metrics if unknown else {}
            new = []
            for step, metrics in points:
                for name, value in metrics.items():
                    if name not in logged:
                        before = client.get_metric_history(self.run_id, name) if name in begun else ()
                        logged[name] = {point.step for point in before}
                    if step not in logged[name]:
                        logged[name].add(step)
                        new.append(Metric(name, float(value), now, step))
            for first in range(0, len(new), METRICS_A_BATCH):
                client.log_batch(self.run_id, metrics=new[first : first + METRICS_A_BATCH])
        except BaseException:
            logged.clear()  # an answer may have been lost after the store had written: ask it again
            raise

    def log_text(self, text: str, name: str) -> None:
        """Write a small text artifact, and replace an existing one of this name. Raises MlflowException or OSError."""
        MlflowClient(self.uri).log_text(self.run_id, text, name)

    def tag(self, tags: dict[str, str]) -> None:
        """Set these tags. Raises MlflowException."""
        MlflowClient(self.uri).log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    def log_dataset_page(self, dataset: Dataset) -> None:
        """Log the page that `agman prep` wrote about the dataset, if there is one. Raises nothing."""
        self.log_page(dataset.storage / REPORT, f"dataset/{REPORT}")

    def log_page(self, page: Storage, name: str) -> None:
        """Log an HTML page as the artifact `name`, if it exists and has at most PAGE_BYTES. Raises nothing."""
        try:
            if not 0 < page.size() <= PAGE_BYTES:
                return
            self.log_text(page.read_bytes().decode(), name)
        except Exception as error:  # every artifact store has its own
            say(f"note: {page} is not logged to run {self.run_id} ({reason(error)})")

    def describe(self, rows: dict[str, str]) -> None:
        """Put rows (name -> Markdown) on top of the run's description. Raises MlflowException."""
        client = MlflowClient(self.uri)
        now = client.get_run(self.run_id).data.tags.get(NOTE, "")
        client.set_tag(self.run_id, NOTE, with_rows(now, rows))

    def log_dataset(self, dataset: Dataset) -> None:
        """Log the dataset as an input of the run; only once, however often it is called. Raises nothing.

        The name is that of the experiment, and the digest is the first part of the tag `dataset_digest`.
        """
        where = dataset.path.absolute() if isinstance(dataset.path, Path) else dataset.path
        info, place = dataset.info, without_credentials(str(where))
        described = entities.Dataset(
            name=info.name,
            digest=info.digest[:DIGEST],
            source_type=place.partition("://")[0] if "://" in place else "local",
            source=json.dumps({"uri": place}),
            profile=json.dumps({"num_rows": sum(info.images.values()), "images": info.images}),
        )
        try:
            MlflowClient(self.uri).log_inputs(self.run_id, [entities.DatasetInput(described)])
        except MlflowException as error:  # servers before MLflow 2.4 have no inputs; the tags name the dataset, too
            say(f"note: the dataset is not logged as an input of run {self.run_id} ({reason(error)})")


@dataclass(frozen=True)
class OpenRun(Run):
    """The run of a block `with open_run(...)`, as the driver has it."""

    token: str = field(compare=False, repr=False)
    """Name of this driver as the run's owner; see watchdog.py."""
    sweep: str = ""
    """Name of the study, if this is the run of one; runs below it have it as a tag."""


class PointLog:
    """Logging of a list of points, in the order of their steps, through a tracking server's absence.

    What is logged is removed from the front of the list; what could not be logged stays there for the next try. A try
    takes as long as MLflow's own retries; after a failed one of more than a second nothing is tried until nine times
    as long has passed, so that a silent server slows a training by a tenth at most. Threads may share a log.
    """

    def __init__(self, run: Run, points: Points):
        self.run, self.points = run, points
        self._lock = threading.Lock()
        self._logged: dict[str, set[int]] = {}
        self._pause_until = 0.0
        self._failing = False

    def send(self, until: float = math.inf, patient: bool = True) -> None:
        """Try to log the points up to step `until`, unless a pause is on and the caller is patient. Never raises."""
        with self._lock:
            due = [point for point in self.points if point[0] <= until]
            started = time.monotonic()
            if not due or (patient and started < self._pause_until):
                return
            try:
                self.run.log_points(due, self._logged)
            except Exception as error:
                now = time.monotonic()
                self._pause_until = now + 9 * (now - started) if now - started > 1 else 0.0
                if not self._failing:
                    say(f"note: the metrics could not be logged, and wait for the tracking store ({reason(error)})")
                self._failing = True
                return
            if self._failing:
                late = counted(len(dict(due)), "step")
                say(f"note: the tracking store answers again, the metrics of {late} are logged")
            self._failing = False
            del self.points[: len(due)]


def start_run(dataset: DatasetInfo, name: str, params: dict[str, Any], parent: Run | None = None, **tags: str) -> Run:
    """Start a run in the dataset's experiment; the caller ends it.

    The run's tags and description say who began it, with which command, on which code and data; see origin.py. If this
    process is killed, the watchdog of an open parent ends the run too. Raises InputError or MlflowException.
    """
    client = connect(create=True)
    tags = origin_tags() | labels_of(params, dataset) | tags
    if parent:
        tags[PARENT] = parent.run_id
    if isinstance(parent, OpenRun):
        tags.setdefault(OWNER, parent.token)
        if parent.sweep:
            tags.setdefault(SWEEP, parent.sweep)
    tags[NOTE] = describe_run(dataset, tags)
    created = client.create_run(experiment_of(client, dataset), run_name=name, tags=tags)
    started = Run(tracking_uri(), created.info.run_id)
    try:
        client.log_batch(started.run_id, params=[Param(key, str(value)) for key, value in params.items()])
    except MlflowException:
        client.set_terminated(started.run_id, status="FAILED")
        raise
    return started


@contextmanager
def answering(otherwise: str = "") -> Iterator[None]:
    """Turn a MlflowException in the block into JobFailed, with one line that holds no credentials.

    Args:
        otherwise: end of the line: the consequence for the user.
    """
    try:
        yield
    except MlflowException as error:
        end = f"; {otherwise}" if otherwise else ""
        raise JobFailed(f"the tracking store does not answer ({reason(error)}){end}") from None


def wait_for_store(run: Run) -> None:
    """Wait until the store answers for this run. Raises MlflowException after PATIENCE seconds."""
    client = MlflowClient(run.uri)
    deadline = time.monotonic() + PATIENCE
    noted = False
    while True:
        try:
            client.get_run(run.run_id)
            return
        except MlflowException as error:
            if time.monotonic() > deadline:
                raise
            if not noted:
                say(f"note: waiting for the tracking store, {PATIENCE:.0f} s at most ({reason(error)})")
            noted = True
        time.sleep(PAUSE)


@contextmanager
def open_run(
    dataset: DatasetInfo,
    name: str,
    params: dict[str, Any],
    resume: str | None = None,
    parent: Run | None = None,
    **tags: str,
) -> Iterator[OpenRun]:
    """Keep a run open for the length of the block: the run of id `resume` if the store has it, otherwise a new one.

    The run ends as FINISHED, or as FAILED after an error, or as KILLED after Ctrl-C and SystemExit; if this process is
    killed, the watchdog process ends the run as KILLED. A resumed run keeps its params; changed ones become tags
    (`resumed.workers`). If a newer driver has taken over the run, that driver ends it.

    Raises InputError or MlflowException at the start of the block, and nothing at its end: if the store does not
    answer then, the watchdog tries again for an hour.
    """
    client = connect(create=True)
    before = _stored(client, resume)
    if before and before.info.lifecycle_stage != "active":
        before = None
    experiment = before.info.experiment_id if before else experiment_of(client, dataset)
    token = uuid.uuid4().hex
    watchdog = Watchdog.start(tracking_uri(), experiment, token, name)
    opened: OpenRun | None = None
    status = "FAILED"
    try:
        if before:
            take_over(client, before.info.run_id, token)
            _update(client, before, params, tags)
            run_id = before.info.run_id
        else:
            run_id = start_run(dataset, name, params, parent, **tags, **{OWNER: token}).run_id
        opened = OpenRun(tracking_uri(), run_id, token, tags.get(SWEEP, ""))
        yield opened
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        _end(opened, watchdog, status)


def _update(client: MlflowClient, before: Any, params: dict[str, Any], tags: dict[str, str]) -> None:
    """Log the params of a resumed run: new ones as params; changed ones, which MLflow refuses, as tags."""
    stored = before.data.params
    now = {key: str(value) for key, value in params.items()}
    # A param that an earlier resumption changed needs its tag again, even if it has the first value now.
    changed = {k for k in stored.keys() & now.keys() if stored[k] != now[k] or RESUMED + k in before.data.tags}
    tags = tags | {RESUMED + key: now[key] for key in sorted(changed)}
    client.log_batch(
        before.info.run_id,
        params=[Param(key, value) for key, value in now.items() if key not in stored],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )


def _end(opened: OpenRun | None, watchdog: Watchdog, status: str) -> None:
    """Write the run's final status, or let the watchdog do it if the store does not answer or the run is unknown."""
    if not opened:
        watchdog.entrust(status)
        return
    try:
        if not end_run(MlflowClient(opened.uri), opened.run_id, opened.token, status):
            say(f"note: run {opened.run_id} was taken over by another process, and is left to it")
        watchdog.dismiss()
    except KeyboardInterrupt:  # a second Ctrl-C, while the store did not answer
        watchdog.entrust(status)
        raise
    except Exception as error:
        now = "is written as soon as it answers" if watchdog.entrust(status) else "could not be written"
        say(f"note: the tracking store does not answer ({reason(error)}): the run's status {status} {now}")


def metric_history(run: Run, metric: str) -> list[tuple[int, float]]:
    """Return the (step, value) pairs of a metric, ordered by step."""
    points = MlflowClient(run.uri).get_metric_history(run.run_id, metric)
    return sorted((point.step, point.value) for point in points)


def child_runs(parent: Run) -> list[Any]:
    """Return MLflow's records of the runs below a parent, such as a study's trials. Raises MlflowException."""
    client = MlflowClient(parent.uri)
    experiment = client.get_run(parent.run_id).info.experiment_id
    return list(client.search_runs([experiment], f"tags.`{PARENT}` = '{parent.run_id}'", max_results=50_000))


def find_run(run_id: str | None) -> Run | None:
    """Return the run of this id, or None if the tracking store has none. Raises InputError or MlflowException."""
    found = _stored(connect(), run_id) if run_id and store_exists() else None
    return Run(tracking_uri(), found.info.run_id) if found else None


def _stored(client: MlflowClient, run_id: str | None) -> Any:
    """Return MLflow's record of the run, or None."""
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
    """Log this machine's load to the run while the block runs, as `system/cpu_utilization_percentage` and so on.

    A sample is logged every ten seconds, or every MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL seconds. Enter this inside
    the run's block: MLflow's thread stops as soon as the run is not RUNNING or the store does not answer. Raises
    nothing of its own.

    Args:
        run: run to log to.
        node: name of this machine among several (`system/NODE/...`).
    """
    monitor = None
    try:
        # Not in MLflow's documentation, whose own switch works only for the process's active run. Inside the block,
        # so that a version without this module costs only these metrics.
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run.run_id, resume_logging=True, node_id=node, tracking_uri=run.uri)
        monitor.start()
    except Exception as error:
        say(f"note: no system metrics ({reason(error)})")
    try:
        yield
    finally:
        if monitor:
            # `finish` waits for the last request; a training does not wait for a silent store.
            last = threading.Thread(target=monitor.finish, daemon=True)
            last.start()
            last.join(timeout=10)
