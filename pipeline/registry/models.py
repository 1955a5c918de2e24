"""Models by name: registering one, and finding the folder behind a name that a user gives."""

from __future__ import annotations

import atexit
import base64
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema
from mlflow.types.schema import AnyType, Array, ColSpec, DataType
from PIL import Image

import agman
from agman.checkpoint import DESCRIPTION, WEIGHTS
from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline.common.hints import nearest
from pipeline.registry import model_card
from pipeline.tracking import runs as tracking

PUBLISHED = ".pth.tar"
"""What the published code's checkpoints end in."""
CHAMPION, CHALLENGER = "champion", "challenger"
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "image"), ColSpec(AnyType(), "attribute", required=False)]),
    outputs=Schema(
        [ColSpec(Array(DataType.string), "attributes"), ColSpec(Array(Array(DataType.double)), "embeddings")]
    ),
)
"""A row of `pipeline.registry.pyfunc_model`. MLflow has no type for "bytes or text" nor
for "a name or names", and checks none:

image: `string` is base64 in JSON, and lets bytes through in a data frame. (`binary` would be decoded by the scoring
server for two of its four forms of JSON only, and without a word on what is no base64.)
attribute: any, and may be left out; the model itself says what is wrong with one. Rows out are always lists.
"""


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
    """Register the model of a checkpoint folder as `agman-<dataset>`, logged with its run, with these tags and a card.

    Without an alias of its own the first version becomes champion, a later one challenger. `once`: if the run has a
    version already, of a job that was killed before it could note it, that one is taken. The registered model
    carries safetensors weights and its code as a models-from-code pyfunc: loading it unpickles nothing. If anything
    fails, what was made until then is taken back. Raises InputError or MlflowException.
    """
    client = tracking.connect()
    name = f"agman-{dataset_name}"
    with _all_or_nothing() as undo:
        created = (_of_run(client, name, run) if once else None) or _made(client, name, checkpoint, run, tags, undo)
        champion = _version_of(client, name, CHAMPION)
        alias = alias or (CHAMPION if champion in (None, created) else CHALLENGER)
        client.set_registered_model_alias(name, alias, created)  # last, so that no name leads to half a version
    return Registered(f"models:/{name}/{created}", int(created), alias)


@contextmanager
def _all_or_nothing() -> Iterator[ExitStack]:
    """What the block pushes is called, last first, if it raises; a store that cannot even do that is left alone."""
    with ExitStack() as undo:
        yield undo
        undo.pop_all()


def _undoing(step: Callable[[], object]) -> Callable[[], None]:
    def undo() -> None:
        with suppress(Exception):  # the error that led here is the one to be seen
            step()

    return undo


def _of_run(client: mlflow.MlflowClient, name: str, run: tracking.Run) -> str | None:
    """The newest version that is of this run."""
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run.run_id}'")
    return max((str(version.version) for version in versions), key=int, default=None)


def _made(
    client: mlflow.MlflowClient, name: str, checkpoint: Path, run: tracking.Run, tags: dict[str, str], undo: ExitStack
) -> str:
    """A new version: weights, code and card first, then in one write the version with its tags and description."""
    with tempfile.TemporaryDirectory() as aside:
        model, card = Path(aside) / "model", Path(aside) / model_card.FILE
        model.mkdir()
        for file in (WEIGHTS, DESCRIPTION):
            shutil.copyfile(checkpoint / file, model / file)
        made = json.loads((model / DESCRIPTION).read_text())
        valid = model_card.validation_of(run, made["config"].get("step", 0))
        card.write_text(model_card.write_card(name, made["build"], made["config"], valid, tags))
        with mlflow.start_run(run_id=run.run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"model": str(model)},
                signature=SIGNATURE,
                input_example=_example(made["config"]),
                pip_requirements=[f"agman-pipeline=={version('agman-pipeline')}"],
            )
        undo.callback(_undoing(lambda: client.delete_logged_model(logged.model_id)))
        client.log_model_artifact(logged.model_id, str(card))
        description = model_card.as_description(card.read_text())
    # Through the client, because mlflow.register_model prints.
    with _unless_there():
        client.create_registered_model(name)
        undo.callback(_undoing(lambda: _drop_empty(client, name)))
    created = client.create_model_version(
        name, logged.model_uri, run_id=run.run_id, tags=tags, description=description, model_id=logged.model_id
    )
    undo.callback(_undoing(lambda: client.delete_model_version(name, created.version)))
    return str(created.version)


def write_card(client: mlflow.MlflowClient, name: str, version: str, tested: model_card.Tested) -> None:
    """Write a version's description anew, with what was measured. Raises InputError or MlflowException."""
    made = json.loads((find_model(f"models:/{name}/{version}") / DESCRIPTION).read_text())
    of_version = client.get_model_version(name, version)
    run = tracking.existing(of_version.run_id)
    valid = model_card.validation_of(run, made["config"].get("step", 0)) if run else {}
    card = model_card.write_card(name, made["build"], made["config"], valid, of_version.tags, tested)
    client.update_model_version(name, version, model_card.as_description(card))


def _drop_empty(client: mlflow.MlflowClient, name: str) -> None:
    """A name that has no version; another process may have registered one meanwhile."""
    if not client.search_model_versions(f"name = '{name}'"):
        client.delete_registered_model(name)


@contextmanager
def _unless_there() -> Iterator[None]:
    """Whatever was to be made and is there already."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _example(config: dict[str, Any]) -> pd.DataFrame:
    """A grey picture under the model's first attribute: the form of a request."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(picture, "PNG")
    encoded = base64.b64encode(picture.getvalue()).decode()
    return pd.DataFrame({"image": [encoded], "attribute": config["attributes"][:1]})


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


def _folder_of_this_process() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="agman-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _fetched(place: Storage) -> Path:
    """A copy that goes when this process ends."""
    folder = _folder_of_this_process()
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
        local = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(_folder_of_this_process())))
    except (MlflowException, OSError) as error:
        raise InputError(f"{uri}: {tracking.reason(error)}{there_is(client, uri)}") from error
    found = sorted(local.rglob(DESCRIPTION))
    if not found:
        raise InputError(f"{uri}: not an agman model (no {DESCRIPTION} in it)")
    return found[0].parent


def there_is(client: mlflow.MlflowClient, uri: str) -> str:
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
