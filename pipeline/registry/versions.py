"""Versions of registered models: which one an address means, and the folder with its files."""

from __future__ import annotations

import re
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from agman.checkpoint import DESCRIPTION
from data_prep.errors import InputError
from data_prep.hints import nearest
from data_prep.storage import Storage
from pipeline.common.errors import reason
from pipeline.tracking.runs import ELSEWHERE, connect, shown_store

MODEL_URI = "model_uri"
"""Tag of a run: its registered version, if another run had registered equal weights or, for a study, a trial's run."""
ALIAS = re.compile(r"models:/([^/@]+)@([^/@]+)")
VERSION = re.compile(r"models:/([^/@]+)/(\d+)")
LOGGED = re.compile(r"models:/(m-[^/@]+)")


def pinned(model: str) -> str:
    """Return `models:/NAME/VERSION` for `models:/NAME@ALIAS`, and any other address as it is.

    Raises InputError if there is no such alias.
    """
    named = ALIAS.fullmatch(model)
    if not named:
        return model
    client = connect()
    try:
        return f"models:/{named[1]}/{client.get_model_version_by_alias(*named.groups()).version}"
    except MlflowException as error:
        raise InputError(f"{model}: {reason(error)}{alternatives(client, model)}") from error


def versions_of(model: str) -> list[str]:
    """Return the addresses of all versions of the model that `models:/NAME@ALIAS` names, newest first.

    Other addresses name one model for ever, so the list is empty. Raises InputError if the store does not answer.
    """
    named = ALIAS.fullmatch(model)
    found = connect().search_model_versions(f"name='{named[1]}'") if named else []
    return [f"models:/{one.name}/{one.version}" for one in sorted(found, key=lambda one: -int(one.version))]


def folder_of(uri: str, copies: Path) -> Path:
    """Return the folder with `model.safetensors` behind the URI of a registered model or of a run.

    Files of a remote store are copied into the folder `copies`. Raises InputError that names what is missing.
    """
    client = connect()
    try:
        if uri.startswith("runs:/"):
            run_id = uri.removeprefix("runs:/").split("/")[0]
            run = client.get_run(run_id)
            outputs = run.outputs.model_outputs if run.outputs else []
            if MODEL_URI not in run.data.tags and not outputs:
                raise InputError(f"{uri}: the run has no model")
            uri = run.data.tags.get(MODEL_URI) or f"models:/{outputs[-1].model_id}"
        uri = pinned(uri)
        if folder := local_folder(uri):
            return folder
        local = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(copies)))
    except (MlflowException, OSError) as error:
        raise InputError(f"{uri}: {reason(error)}{alternatives(client, uri)}") from error
    if not (folder := _model_in(local)):
        raise InputError(f"{uri}: not an agman model (no {DESCRIPTION} in it)")
    return folder


def local_folder(uri: str) -> Path | None:
    """Return the folder with `model.safetensors` of `models:/…` if the store keeps it on this machine, else None.

    Raises MlflowException if there is no such version.
    """
    client = connect()
    if logged := LOGGED.fullmatch(uri):
        where = client.get_logged_model(logged[1]).artifact_location
    elif version := VERSION.fullmatch(uri):
        where = client.get_model_version_download_uri(*version.groups())
    else:
        return None
    folder = Storage(where).local if where.startswith(("/", "file://")) else None
    return _model_in(folder) if folder else None


def _model_in(folder: Path) -> Path | None:
    """Return the first folder below with a model's description."""
    return next((file.parent for file in sorted(folder.rglob(DESCRIPTION))), None)


def alternatives(client: MlflowClient, uri: str) -> str:
    """Return the end of a message about a registry URI that names nothing: what there is, or the nearest name."""
    named = re.fullmatch(r"models:/([^/@]+)[/@](.+)", uri)
    if not named:
        return f"; looked in {shown_store()}; {ELSEWHERE}"
    name, version = named.groups()
    try:
        names = [one.name for one in client.search_registered_models()]
        if name not in names:
            there = f"{shown_store()}; {ELSEWHERE}"
            return f"; {nearest(name, names)} in {there}" if names else f"; no model is registered in {there}"
        aliases = sorted(client.get_registered_model(name).aliases)
        found = client.search_model_versions(f"name='{name}'")
        versions = sorted((str(one.version) for one in found), key=int)
    except MlflowException:
        return ""
    if version in (*aliases, *versions):
        return ""
    return f"; there are {', '.join([*(f'@{alias}' for alias in aliases), *versions])}"
