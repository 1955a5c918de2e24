"""MLflow: one experiment per dataset, one run per training, metrics from rank 0."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.time import get_current_time_millis

from data_prep.errors import InputError
from data_prep.tables import DatasetInfo

SQLITE = "sqlite:///"

# MLflow tells of every table it creates and every file it copies; our own lines say what matters.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# Its seven retries with doubling pauses would keep a user of a wrong address waiting for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or `mlflow.db` in the working folder; sqlite paths made absolute.

    Absolute, because Ray's workers run in a folder of their own.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if uri.startswith(SQLITE):
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())
    return uri


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
        reason = str(error).splitlines()[0]
        raise InputError(f"MLFLOW_TRACKING_URI={uri}: the tracking store does not answer ({reason})") from error
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
        now = get_current_time_millis()
        values = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        MlflowClient(self.uri).log_batch(self.run_id, metrics=values)

    def tag(self, tags: dict[str, str]) -> None:
        MlflowClient(self.uri).log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])


def start(dataset: DatasetInfo, name: str, params: dict[str, Any], parent: Run | None = None, **tags: str) -> Run:
    """Start a run in the dataset's experiment; the caller ends it."""
    client = connect()
    tags |= {"dataset": dataset.name, "dataset_digest": dataset.digest}
    if parent:
        tags[MLFLOW_PARENT_RUN_ID] = parent.run_id
    created = client.create_run(experiment_of(client, dataset), run_name=name, tags=tags)
    this = Run(tracking_uri(), created.info.run_id)
    try:
        client.log_batch(this.run_id, params=[Param(key, str(value)) for key, value in params.items()])
    except MlflowException:
        client.set_terminated(this.run_id, status="FAILED")
        raise
    return this


@contextmanager
def run(dataset: DatasetInfo, name: str, params: dict[str, Any], **tags: str) -> Iterator[Run]:
    """A run for the length of the block; it ends FINISHED, FAILED (error) or KILLED (Ctrl-C)."""
    this = start(dataset, name, params, parent=None, **tags)
    status = "FAILED"
    try:
        yield this
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        MlflowClient(this.uri).set_terminated(this.run_id, status=status)


def history(run: Run, metric: str) -> list[tuple[int, float]]:
    """(step, value) of one metric, in order of steps."""
    points = MlflowClient(run.uri).get_metric_history(run.run_id, metric)
    return sorted((point.step, point.value) for point in points)


def existing(run_id: str | None) -> Run | None:
    """The run of this id, if the tracking store has it."""
    if not run_id:
        return None
    try:
        connect().get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return Run(tracking_uri(), run_id)
