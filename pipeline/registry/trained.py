"""`pipeline.load`: any model that the commands take, for Python."""

from __future__ import annotations

from os import PathLike, fspath

from agman.embedder import Embedder
from agman.trained import TrainedModel
from pipeline.registry.loading import load_with_tagger


def load(model: str | PathLike[str], device: str | None = None) -> TrainedModel:
    """Open a model on `device`; by default a GPU if there is one.

    `model` is what `agman evaluate` takes: models:/NAME@ALIAS, models:/NAME/3, runs:/RUN_ID, the folder or URI of a
    checkpoint, or a published .pth.tar file. Raises InputError if there is no such model.
    """
    network, description, tagger = load_with_tagger(fspath(model))
    return TrainedModel(Embedder(network, description, device), tagger)
