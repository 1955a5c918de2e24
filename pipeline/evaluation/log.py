"""Logging of an evaluation to the MLflow run of the model. `evaluate.py` itself needs no MLflow."""

from __future__ import annotations

from typing import Any

from mlflow.exceptions import MlflowException

from data_prep.dataset import Dataset
from pipeline.common.console import say
from pipeline.common.errors import JobFailed, reason
from pipeline.evaluation.evaluate import Evaluation
from pipeline.tracking.runs import ELSEWHERE, find_run, shown_store


def log_evaluation(evaluation: Evaluation, description: dict[str, Any], dataset: Dataset) -> None:
    """Log the metrics to the run that trained the model, at the step of its checkpoint.

    They are not logged, and a note says so, in three cases: the tracking store has no such run; the dataset is not
    the one of the training, so one name would mean two things; the precision is bf16, while the run's metrics are
    fp32. Raises InputError if the store does not answer, and JobFailed if it refuses the metrics.
    """
    run_id = description.get("run_id")
    if run_id is None:
        return None  # a model without a run, such as a published checkpoint
    if dataset.info.digest != description.get("dataset_digest"):
        return say("note: another dataset than the model's own, so the metrics are not logged to its run")
    if evaluation.precision != "fp32":
        return say(f"note: metrics of {evaluation.precision} are not logged; those of the model's run are of fp32")
    try:
        run = find_run(run_id)
        if not run:
            return say(f"note: the metrics are not logged: {shown_store()} has no run {run_id}; {ELSEWHERE}")
        run.log_dataset(dataset)
        # Metrics that the training logged from its own validation at this step stay.
        run.log_points([(description["step"], evaluation.metrics)])
    except MlflowException as error:
        raise JobFailed(f"the metrics could not be logged to run {run_id} ({reason(error)})") from None
