"""A trained model as a folder of two files: `model.safetensors` and `model.json`. Nothing is pickled."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from agman.base import RetrievalModel
from agman.registry import build
from agman.state import first_difference, read_tensors

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
SCHEMA = 1


class CheckpointError(ValueError):
    """A folder that holds no model, or another one than wanted."""


def save_model(folder: str | PathLike[str], model: RetrievalModel, config: dict[str, Any] | None = None) -> Path:
    """Write `model` and the caller's `config` (JSON values, e.g. {"attributes": [names]}) to `folder`.

    The folder is written beside its path and renamed: it appears complete or not at all, and replaces an older model.
    Raises CheckpointError if there are not as many names as attributes, or if `folder` holds something else.
    """
    folder = Path(folder)
    config = config or {}
    if folder.exists() and not (folder / DESCRIPTION).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and holds no {DESCRIPTION}, so it is not a model and is not replaced")
    _check_attributes(folder, config, model.config["n_attributes"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
        write_model(staging, tensors, model.config, config)
        staging.chmod(0o755)  # mkdtemp gives access to the owner only
        _move_into_place(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return folder


def write_model(folder: Path, tensors: dict[str, Tensor], build: dict[str, Any], config: dict[str, Any]) -> None:
    """Write the two files into an existing folder: contiguous CPU tensors, `agman.build`'s arguments, `config`.

    The description is written last, so that a folder with one is complete. Raises OSError.
    """
    try:
        save_file(tensors, folder / WEIGHTS)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if not number:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder / WEIGHTS)) from error
    (folder / WEIGHTS).chmod(0o644)  # safetensors gives access to the owner only
    description = {"schema": SCHEMA, "build": build, "config": config}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_model(
    folder: str | PathLike[str], *, attributes: Sequence[str] | None = None
) -> tuple[RetrievalModel, dict[str, Any]]:
    """Return the model, on the CPU and in evaluation mode, and the config that `save_model` was given.

    If `attributes` is given, the model must have been trained for these names in this order. Raises CheckpointError
    if anything is missing, damaged or different.
    """
    folder = Path(folder)
    description = _read_description(folder)
    config = description["config"]
    try:
        model = build(**description["build"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / DESCRIPTION}: cannot build this model: {error}") from error
    _check_attributes(folder, config, model.config["n_attributes"])
    if attributes is not None and list(attributes) != config.get("attributes"):
        named = _other_attributes(list(attributes), config.get("attributes"))
        raise CheckpointError(f"{folder}: trained for other attributes: {named}")

    try:
        tensors = read_tensors(folder / WEIGHTS)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    difference = first_difference(model.state_dict(), tensors)
    if difference:
        raise CheckpointError(f"{folder / WEIGHTS} does not fit {DESCRIPTION}: {difference}")
    model.load_state_dict(tensors)
    return model.eval(), config


def _read_description(folder: Path) -> dict[str, Any]:
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} holds no model: {name} is missing")
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{folder / DESCRIPTION}: not JSON ({error})") from error
    if not isinstance(description, dict) or description.get("schema") != SCHEMA:
        raise CheckpointError(f"{folder / DESCRIPTION}: not a description of schema {SCHEMA}")
    if not isinstance(description.get("build"), dict) or not isinstance(description.get("config"), dict):
        raise CheckpointError(f"{folder / DESCRIPTION}: 'build' or 'config' is missing")
    return description


def _check_attributes(folder: Path, config: dict[str, Any], n_attributes: int) -> None:
    names = config.get("attributes")
    if names is not None and len(names) != n_attributes:
        raise CheckpointError(f"{folder}: the model has {n_attributes} attributes, but {len(names)} names: {names}")


def _other_attributes(wanted: list[str], known: list[str] | None) -> str:
    """Describe how the wanted attributes differ from those that the model knows."""
    if known is None:
        return f"wanted are {', '.join(wanted)}, and the model names none"
    missing, extra = ([name for name in one if name not in other] for one, other in ((wanted, known), (known, wanted)))
    parts = [
        f"{what} {', '.join(names)}" for what, names in (("it lacks", missing), ("it has besides", extra)) if names
    ]
    return "; ".join(parts) or f"the same in another order, {', '.join(known)}; wanted are {', '.join(wanted)}"


def _move_into_place(staging: Path, folder: Path) -> None:
    if not folder.exists():
        staging.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(old / folder.name)
    try:
        staging.rename(folder)
    except BaseException:
        (old / folder.name).rename(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
