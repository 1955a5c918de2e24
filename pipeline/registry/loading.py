"""Loading the model that a user names. MLflow is imported only for the address of a registered model or a run."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import agman
from agman.checkpoint import DESCRIPTION, WEIGHTS
from agman.state import weights_digest
from agman.tagger import TAGGER, Tagger, read_tagger
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline.registry.names import FORMS, PUBLISHED, check_model


def load(model: str, attributes: list[str] | None = None) -> tuple[agman.RetrievalModel, dict[str, Any]]:
    """Load a model in evaluation mode, and its description.

    Raises InputError if there is no such model, or if it was trained for other attributes than `attributes`.
    """
    if model.endswith(PUBLISHED):
        return _load_published(Path(model), attributes)
    return _load_from(find_model(model), model, attributes)


def load_with_tagger(
    model: str, attributes: list[str] | None = None
) -> tuple[agman.RetrievalModel, dict[str, Any], Tagger | None]:
    """Load a model as `load` does, and its prototypes; None for a model without.

    Raises InputError, also for prototypes that are damaged or of other weights.
    """
    if model.endswith(PUBLISHED):
        return *_load_published(Path(model), attributes), None
    folder = find_model(model)
    network, description = _load_from(folder, model, attributes)
    try:
        tagger = read_tagger(folder, weights_digest(network.config, network.state_dict()))
    except agman.CheckpointError as error:
        raise InputError(str(error).replace(str(folder), shown(model))) from error
    return network, description, tagger


def _load_from(folder: Path, model: str, attributes: list[str] | None) -> tuple[agman.RetrievalModel, dict[str, Any]]:
    try:
        network, description = agman.load_model(folder, attributes=attributes)
    except agman.CheckpointError as error:  # it names the folder, which may be a copy that the user does not know
        raise InputError(str(error).replace(str(folder), shown(model))) from error
    for name in ("image_size", "attributes"):
        if name not in description:
            raise InputError(f"{shown(model)}: its {DESCRIPTION} has no {name}; a model of `agman train` has both")
    return network, description


def _load_published(path: Path, attributes: list[str] | None) -> tuple[agman.RetrievalModel, dict[str, Any]]:
    """Load a published checkpoint. It names no attributes, so it is taken to have the given ones in their order."""
    check_model(str(path))
    try:
        network = agman.load_published(path)
    except agman.CheckpointError as error:
        raise InputError(str(error)) from error
    attributes = attributes or [f"attribute_{number}" for number in range(network.n_attributes)]
    if network.n_attributes != len(attributes):
        wanted = f"{len(attributes)}: {', '.join(attributes)}"
        raise InputError(f"{path}: for {network.n_attributes} attributes, but the dataset has {wanted}")
    original_csn = (network.config["name"], network.config["backbone"]) == ("csn", "resnet18")
    return network, {
        "attributes": attributes,
        "image_size": 112 if original_csn else 224,
        "dataset_digest": None,
        "run_id": None,
        "training": {},
    }


def find_model(model: str) -> Path:
    """Return the folder with `model.safetensors` behind a registry URI, a run's URI, or a checkpoint's folder or URI.

    Raises InputError that names what is missing.
    """
    check_model(model)
    if model.startswith(("models:/", "runs:/")):
        with warnings.catch_warnings():  # in a notebook, MLflow imports progress bars that miss ipywidgets
            warnings.filterwarnings("ignore", "IProgress not found")
            from pipeline.registry.versions import folder_of  # MLflow takes seconds to import

        return folder_of(model, _temporary_folder())
    folder = _download_checkpoint(Storage(model)) if "://" in model else Path(model)
    if not (folder / DESCRIPTION).is_file():
        raise InputError(f"{shown(model)}: no model there (no {DESCRIPTION}); {FORMS}")
    return folder


def shown(model: str) -> str:
    """Return a model's name for pages and messages: the URI of a checkpoint without its credentials."""
    return str(Storage(model)) if "://" in model else model


def _temporary_folder() -> Path:
    """Return a new folder that is deleted when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="agman-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _download_checkpoint(checkpoint: Storage) -> Path:
    folder = _temporary_folder()
    for name in (WEIGHTS, DESCRIPTION, TAGGER):
        with suppress(FileNotFoundError):
            (checkpoint / name).download(folder / name)
    return folder
