"""The forms in which users name a model, checked before anything heavy is imported."""

from __future__ import annotations

import re
from pathlib import Path

from data_prep.errors import InputError

PUBLISHED = ".pth.tar"
"""Suffix of the published code's checkpoints."""
DESCRIPTION = "model.json"
"""File that makes a folder a model; the same as agman.checkpoint.DESCRIPTION."""
FORMS = f"give models:/NAME@ALIAS, runs:/RUN_ID, a checkpoint folder or a published {PUBLISHED} file"


def check_model(model: str) -> None:
    """Raise InputError, with the right form, if `model` has no form of a model, or is a path without a model."""
    if model.startswith("models:/"):
        if not re.fullmatch(r"models:/([^/@]+[@/][^/@]+|m-[^/@]+)", model):
            raise InputError(f"{model}: not the form of a registered model; give models:/NAME@ALIAS or models:/NAME/3")
    elif "://" in model or model.startswith("runs:/"):
        return
    elif model.endswith(PUBLISHED):
        if not Path(model).is_file():
            raise InputError(f"{model}: no such file")
    elif not (Path(model) / DESCRIPTION).is_file():
        raise InputError(f"{model}: no model there (no {DESCRIPTION}); {_meant(model)}")


def _meant(model: str) -> str:
    """Return what the user probably meant by a path that has no model."""
    folder = Path(model)
    checkpoints = sorted(folder.glob(f"checkpoints/*/{DESCRIPTION}")) or sorted(folder.glob(f"*/{DESCRIPTION}"))
    if checkpoints:
        return f"a checkpoint is in {checkpoints[-1].parent}"
    if not folder.exists():
        if re.fullmatch(r"agman-[^/@]+|[^/@]+@[^/@]+", model):
            return f"a registered model is models:/{model if '@' in model else f'{model}@champion'}"
        if run := re.fullmatch(r"runs/([0-9a-f]{32})(/.*)?", model):
            return f"a run's model is runs:/{run[1]}"
        if named := re.fullmatch(r"models/([^/@]+[/@][^/@]+)", model):
            return f"a registered model is models:/{named[1]}"
    return FORMS
