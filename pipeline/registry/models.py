"""The model registry: registering a trained model as a version."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema
from mlflow.types.schema import AnyType, Array, ColSpec, DataType
from PIL import Image

from agman.checkpoint import DESCRIPTION, WEIGHTS
from agman.tagger import TAGGER
from pipeline.common.markdown import with_sections_of
from pipeline.evaluation.validation import SPLIT, score_words
from pipeline.registry import model_card
from pipeline.registry.loading import find_model
from pipeline.registry.standing import BECAUSE, CHAMPION, SINCE, describe_champion, now
from pipeline.registry.versions import MODEL_URI
from pipeline.tracking.origin import version_tags
from pipeline.tracking.runs import Run, connect, find_run, metric_history

CHALLENGER = "challenger"
DIGEST, DOUBT = "weights_digest", "doubt"
"""Tags of a version: the digest of its weights, and why nothing shows that it beats chance."""
CARD_METRICS = ("map", "chance", "triplet_accuracy", "tag_")
"""Beginnings of the names of the validation metrics that a model card shows."""
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "image"), ColSpec(AnyType(), "attribute", required=False)]),
    outputs=Schema(
        [
            ColSpec(Array(DataType.string), "attributes"),
            ColSpec(Array(Array(DataType.double)), "embeddings"),
            ColSpec(Array(DataType.string), "values"),
            ColSpec(Array(DataType.double), "probabilities"),
        ]
    ),
)
"""Columns of `pipeline.registry.pyfunc_model`. MLflow has no type for "bytes or text" nor for "a name or names".

image: `string` is base64 in JSON, and lets bytes through in a data frame. With `binary` the scoring server would
decode only two of its four forms of JSON, and would accept text that is not base64.
attribute: any type, may be missing; the model itself checks it. Output rows always hold lists.
"""


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    uri: str
    version: int
    alias: str
    note: str = ""
    """Note for the user if the version existed before, or did not become champion; else empty."""


def register(
    checkpoint: Path, dataset_name: str, run: Run, alias: str | None = None, *, doubt: str = "", **tags: str
) -> Registered:
    """Register the model of a checkpoint folder as a version of `agman-<dataset>`, with a model card.

    Equal weights are one version: if they are registered already, that version is returned, and the run names it. The
    version holds safetensors weights and its code as a models-from-code pyfunc, so loading it unpickles nothing.
    If a step fails, the earlier ones are undone. Raises InputError or MlflowException.

    Args:
        checkpoint: folder with weights and description, and with prototypes if it has some.
        dataset_name: name of the dataset that the model was trained on.
        run: run that trained the model.
        alias: alias of the version, unless it is the champion; by default champion if there is none and there is no
            doubt, otherwise challenger.
        doubt: reason why nothing shows that the model beats chance; it becomes a tag of the version.
        tags: other tags of the version.
    """
    client = connect()
    name = f"agman-{dataset_name}"
    digest = _digest(checkpoint)
    tags |= {DIGEST: digest} | ({DOUBT: doubt} if doubt else {})
    notes = []
    with ExitStack() as undo:
        known = _version_of_weights(client, name, digest)
        created = known or _create_version(client, name, checkpoint, run, tags, undo)
        champion = champion_of(client, name)
        if champion is None and doubt:
            notes.append(f"not made champion, {doubt}; `agman promote {name} --data OUT` judges it on test")
        if created == champion:
            alias = CHAMPION
        else:
            alias = alias or (CHALLENGER if champion or doubt else CHAMPION)
            if alias == CHAMPION:
                _note_first(client, name, created, checkpoint, run)
            client.set_registered_model_alias(name, alias, created)  # last, so that no alias points to half a version
        undo.pop_all()
    describe_champion(client, name)
    uri = f"models:/{name}/{created}"
    if known:
        run.tag({MODEL_URI: uri})
        notes.insert(0, f"equal weights are registered already, as version {known}")
    return Registered(uri, int(created), alias, "; ".join(notes))


def champion_of(client: MlflowClient, name: str) -> str | None:
    """Return the version that is the registered model's champion, or None. Raises MlflowException."""
    number = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if number is None else str(number)


def _note_first(client: MlflowClient, name: str, version: str, checkpoint: Path, run: Run) -> None:
    """Tag a version that becomes champion because there was none."""
    step = json.loads((checkpoint / DESCRIPTION).read_text())["config"].get("step", 0)
    score = score_words(validation_of(run, step))
    because = f"the first version that beats chance{f': {score}' if score else ''}"
    for key, value in {SINCE: now(), BECAUSE: because}.items():
        client.set_model_version_tag(name, version, key, value)


def _digest(checkpoint: Path) -> str:
    """Return a digest of the weights, and of what else decides the embeddings of a picture."""
    made = json.loads((checkpoint / DESCRIPTION).read_text())
    decisive = [made["build"], made["config"].get("attributes"), made["config"].get("image_size")]
    with (checkpoint / WEIGHTS).open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256")
    digest.update(json.dumps(decisive, sort_keys=True).encode())
    return digest.hexdigest()


def _version_of_weights(client: MlflowClient, name: str, digest: str) -> str | None:
    """Return the first version of these weights, or None."""
    versions = client.search_model_versions(f"name = '{name}' and tag.`{DIGEST}` = '{digest}'")
    return min((str(one.version) for one in versions), key=int, default=None)


def _create_version(
    client: MlflowClient, name: str, checkpoint: Path, run: Run, tags: dict[str, str], undo: ExitStack
) -> str:
    """Log weights, code and card, then create the version with its tags and description in one request."""
    with tempfile.TemporaryDirectory() as staging:
        model, card = Path(staging) / "model", Path(staging) / model_card.FILE
        model.mkdir()
        for file in (WEIGHTS, DESCRIPTION, TAGGER):
            if (checkpoint / file).exists():  # not every model has prototypes
                shutil.copyfile(checkpoint / file, model / file)
        made = json.loads((model / DESCRIPTION).read_text())
        built = {"model": made["build"]["name"], "backbone": made["build"]["backbone"]}
        tags = version_tags(client.get_run(run.run_id).data.tags) | built | tags
        valid = validation_of(run, made["config"].get("step", 0))
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
        undo.callback(_try, client.delete_logged_model, logged.model_id)
        client.log_model_artifact(logged.model_id, str(card))
        description = model_card.as_description(card.read_text())
    # With the client, because mlflow.register_model prints.
    try:
        client.create_registered_model(name, tags={"dataset": name.removeprefix("agman-")})
        undo.callback(_try, _delete_if_empty, client, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(
        name, logged.model_uri, run_id=run.run_id, tags=tags, description=description, model_id=logged.model_id
    )
    undo.callback(_try, client.delete_model_version, name, created.version)
    return str(created.version)


def _try(step: Callable[..., object], *arguments: Any) -> None:
    """Call an undo step and ignore its errors: the user has to see the error that made it necessary."""
    with suppress(Exception):
        step(*arguments)


def _delete_if_empty(client: MlflowClient, name: str) -> None:
    """Delete a registered model without versions; another process may have registered one meanwhile."""
    if not client.search_model_versions(f"name = '{name}'"):
        client.delete_registered_model(name)


def _example(config: dict[str, Any]) -> pd.DataFrame:
    """Return a request with a grey image under the model's first attribute."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(picture, "PNG")
    encoded = base64.b64encode(picture.getvalue()).decode()
    return pd.DataFrame({"image": [encoded], "attribute": config["attributes"][:1]})


def validation_of(run: Run, step: int) -> dict[str, float]:
    """Return the validation metrics of a run at a checkpoint's step: MAP and chance, or triplet accuracy.

    Raises MlflowException.
    """
    logged = MlflowClient(run.uri).get_run(run.run_id).data.metrics
    wanted = [name for name in logged if name.startswith(tuple(f"{SPLIT}/{one}" for one in CARD_METRICS))]
    found = {name: dict(metric_history(run, name)).get(step) for name in wanted}
    return {name: value for name, value in found.items() if value is not None}


def update_card(client: MlflowClient, name: str, version: str, tested: model_card.Tested) -> None:
    """Rewrite a version's description with what was measured. Raises InputError or MlflowException."""
    made = json.loads((find_model(f"models:/{name}/{version}") / DESCRIPTION).read_text())
    of_version = client.get_model_version(name, version)
    run = find_run(of_version.run_id)
    valid = validation_of(run, made["config"].get("step", 0)) if run else {}
    card = model_card.write_card(name, made["build"], made["config"], valid, of_version.tags, tested)
    text = with_sections_of(card, of_version.description or "")
    client.update_model_version(name, version, model_card.as_description(text))
