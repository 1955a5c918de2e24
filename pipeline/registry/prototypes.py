"""Prototypes for a trained model that is about to be registered, so that they travel with its weights."""

from __future__ import annotations

from pathlib import Path

from agman.tagger import TAGGER
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline.common.console import progress_bar, say
from pipeline.evaluation.tagging import make_tagger, naming_metrics
from pipeline.evaluation.validation import SPLIT
from pipeline.registry.loading import load
from pipeline.tracking.runs import Run


def add_prototypes(checkpoint: Path, dataset: Dataset, run: Run, origin: Storage | None = None) -> None:
    """Write the prototypes into a checkpoint's folder, and log what they name on validation to its run.

    `origin` is where the folder is a copy of. A dataset without labels gives no prototypes, and a note says so. Raises
    MlflowException or OSError.
    """
    network, description = load(str(checkpoint), dataset.info.attribute_names)
    try:
        tagger, scores = make_tagger(network, description, dataset, progress=progress_bar)
    except InputError as error:
        return say(f"note: no prototypes, so the model cannot name values ({error})")
    for folder in {str(one): one for one in (Storage(checkpoint), origin) if one}.values():
        (folder / TAGGER).write_bytes(tagger.to_bytes())
    metrics = {f"{SPLIT}/{name}": value for name, value in naming_metrics(scores).items()}
    run.log_points([(description.get("step", 0), metrics)])
    names = dataset.info.attribute_names
    if without := [name for name in names if name not in tagger.namers]:
        say(f"note: the model cannot name values of {', '.join(without)}: the training split has no labels of them")
    if unsure := [name for name, namer in tagger.namers.items() if namer.temperature is None]:
        say(f"note: no calibrated probabilities of {', '.join(unsure)}: the validation split has no labels of them")
