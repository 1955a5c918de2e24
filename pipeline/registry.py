"""Models by name: registering one, and finding the folder behind a name that a user gives."""

from __future__ import annotations

import atexit
import base64
import io
import json
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema
from mlflow.types.schema import Array, ColSpec, DataType
from PIL import Image

import agman
from agman.checkpoint import DESCRIPTION, WEIGHTS
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline import tracking
from pipeline.presets import nearest

PUBLISHED = ".pth.tar"
"""What the published code's checkpoints end in."""
CHAMPION, CHALLENGER = "champion", "challenger"
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "image"), ColSpec(DataType.string, "attribute")]),
    outputs=Schema([ColSpec(Array(DataType.double), "embedding")]),
)
"""image: base64 of a JPEG or PNG; attribute: its name. One embedding a row."""


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    uri: str
    version: int
    alias: str


def register(
    checkpoint: Path,
    dataset_name: str,
    run: tracking.Run,
    alias: str | None = None,
    *,
    once: bool = False,
    **tags: str,
) -> Registered:
    """Register the model of a checkpoint folder as `agman-<dataset>`, logged with its run, with these tags.

    Without an alias of its own the first version becomes champion, a later one challenger. `once`: if the run has a
    version already, of a job that was killed before it could note it, that one is taken. The registered model
    carries safetensors weights and its code as a models-from-code pyfunc: loading it unpickles nothing.
    """
    client = tracking.connect()
    name = f"agman-{dataset_name}"
    created = (_of_run(client, name, run) if once else None) or _made(client, name, checkpoint, run)
    for key, value in tags.items():
        client.set_model_version_tag(name, created, key, value)
    champion = _version_of(client, name, CHAMPION)
    alias = alias or (CHAMPION if champion in (None, created) else CHALLENGER)
    client.set_registered_model_alias(name, alias, created)
    return Registered(f"models:/{name}/{created}", int(created), alias)


def _of_run(client: mlflow.MlflowClient, name: str, run: tracking.Run) -> str | None:
    """The newest version that is of this run."""
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run.run_id}'")
    return max((str(version.version) for version in versions), key=int, default=None)


def _made(client: mlflow.MlflowClient, name: str, checkpoint: Path, run: tracking.Run) -> str:
    """A new version."""
    with tempfile.TemporaryDirectory() as aside:
        model = Path(aside) / "model"
        model.mkdir()
        for file in (WEIGHTS, DESCRIPTION):
            shutil.copyfile(checkpoint / file, model / file)
        with mlflow.start_run(run_id=run.run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"model": str(model)},
                signature=SIGNATURE,
                input_example=_example(model),
                pip_requirements=[f"agman-pipeline=={version('agman-pipeline')}"],
            )
    return _new_version(client, name, logged.model_uri, run, logged.model_id)


def _example(model: Path) -> pd.DataFrame:
    """A grey picture under the model's first attribute: the form of a request."""
    config = json.loads((model / DESCRIPTION).read_text())["config"]
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(picture, "PNG")
    encoded = base64.b64encode(picture.getvalue()).decode()
    return pd.DataFrame({"image": [encoded], "attribute": config["attributes"][:1]})


def _new_version(client: mlflow.MlflowClient, name: str, source: str, run: tracking.Run, model_id: str) -> str:
    """Through the client, because mlflow.register_model prints."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return str(client.create_model_version(name, source, run_id=run.run_id, model_id=model_id).version)


def _version_of(client: mlflow.MlflowClient, name: str, alias: str) -> str | None:
    version = client.get_registered_model(name).aliases.get(alias)
    return None if version is None else str(version)


def find_model(model: str) -> Path:
    """The folder with `model.safetensors` behind a registry URI, a run's URI, or a checkpoint's folder or URI.

    Raises InputError naming what is not there.
    """
    if model.startswith(("models:/", "runs:/")):
        return _downloaded(model)
    folder = _fetched(Storage(model)) if "://" in model else Path(model)
    if not (folder / DESCRIPTION).is_file():
        raise InputError(
            f"{shown(model)}: no model there (no {DESCRIPTION}); give models:/NAME@ALIAS, runs:/RUN_ID, a checkpoint "
            f"folder or a published {PUBLISHED} file"
        )
    return folder


def shown(model: str) -> str:
    """As pages and messages may show it: a checkpoint's URI without its credentials."""
    return str(Storage(model)) if "://" in model else model


def _fetched(place: Storage) -> Path:
    """A copy that goes when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="agman-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in (WEIGHTS, DESCRIPTION):
        with suppress(FileNotFoundError):
            (place / name).download(folder / name)
    return folder


def _downloaded(uri: str) -> Path:
    client = tracking.connect()
    try:
        if uri.startswith("runs:/"):
            run_id = uri.removeprefix("runs:/").split("/")[0]
            outputs = client.get_run(run_id).outputs
            if not outputs or not outputs.model_outputs:
                raise InputError(f"{uri}: the run has no model")
            uri = f"models:/{outputs.model_outputs[-1].model_id}"
        local = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError) as error:
        raise InputError(f"{uri}: {tracking.reason(error)}{_there_is(client, uri)}") from error
    found = sorted(local.rglob(DESCRIPTION))
    if not found:
        raise InputError(f"{uri}: not an agman model (no {DESCRIPTION} in it)")
    return found[0].parent


def _there_is(client: mlflow.MlflowClient, uri: str) -> str:
    """Where a registered model's URI names what is not there: its aliases and versions, or the nearest name."""
    named = re.fullmatch(r"models:/([^/@]+)[/@](.+)", uri)
    if not named:
        return ""
    name, version = named.groups()
    try:
        names = [one.name for one in client.search_registered_models()]
        if name not in names:
            return f"; {nearest(name, names)}" if names else "; no model is registered in this store"
        aliases = sorted(client.get_registered_model(name).aliases)
        found = client.search_model_versions(f"name='{name}'")
        versions = sorted((str(one.version) for one in found), key=int)
    except MlflowException:
        return ""
    if version in (*aliases, *versions):
        return ""
    return f"; there are {', '.join([*(f'@{alias}' for alias in aliases), *versions])}"


def load(model: str, attributes: list[str] | None = None) -> tuple[agman.RetrievalModel, dict[str, Any]]:
    """A model in evaluation mode and its description. Raises InputError, also for other `attributes` than given."""
    folder = None if model.endswith(PUBLISHED) else find_model(model)
    try:
        if folder is None:
            return _load_published(Path(model), attributes)
        network, description = agman.load_model(folder, attributes=attributes)
    except agman.CheckpointError as error:  # it names the folder, which may be a copy that the user knows nothing of
        raise InputError(str(error).replace(str(folder), shown(model))) from error
    if "image_size" not in description:
        raise InputError(f"{shown(model)}: its {DESCRIPTION} has no image_size; a model of `agman train` has one")
    return network, description


def _load_published(path: Path, attributes: list[str] | None) -> tuple[agman.RetrievalModel, dict[str, Any]]:
    """A published checkpoint. It names no attributes: they are taken to be the given ones, in their order."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    network = agman.load_published(path)
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
