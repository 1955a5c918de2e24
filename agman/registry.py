"""Models by name. A model listed here is known to configurations, checkpoints and the command line."""

import difflib
import inspect
from os import PathLike
from typing import Any

import torch

from agman.asenet import ASENet
from agman.asenet_v2 import ASENetV2
from agman.attnfashion import AttnFashion
from agman.base import RetrievalModel
from agman.csn import CSN
from agman.isln import ISLN
from agman.model import AGMAN

MODELS: dict[str, type[RetrievalModel]] = {
    "agman": AGMAN,
    "csn": CSN,
    "asenet": ASENet,
    "asenet_v2": ASENetV2,
    "attnfashion": AttnFashion,
    "isln": ISLN,
}


SHARED = ("n_attributes", "backbone", "weights")
"""Arguments that every model takes, beside its own options."""


def build(
    name: str = "agman",
    *,
    n_attributes: int,
    embedding_dim: int | None = None,
    backbone: str = "resnet50",
    weights: str | PathLike[str] | None = None,
    **options: Any,
) -> RetrievalModel:
    """Return a new model, in training mode. Its class documents the arguments and its further `options`.

    If embedding_dim is None, the model has its published width.

    Raises:
        ValueError: for an unknown name, option, backbone or weights, or for impossible sizes.
        OSError: if the weights cannot be fetched or read.
    """
    known = options_of(name)
    for option in options:
        if option not in known:
            every = (*SHARED, *known)
            near = difflib.get_close_matches(option, every, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"model {name!r} has no option {option!r}; {hint}it has: {', '.join(known)}")
    if embedding_dim is not None:
        options["embedding_dim"] = embedding_dim
    return MODELS[name](n_attributes=n_attributes, backbone=backbone, weights=weights, **options)


def check_build(name: str = "agman", **arguments: Any) -> None:
    """Raise what `build` raises for the same arguments.

    The model is built on the meta device: no weights are allocated, drawn or loaded. Named weights are fetched into
    torch's cache, and a file of weights is compared with the backbone.
    """
    with torch.device("meta"):
        build(name, **arguments)


def options_of(name: str) -> dict[str, Any]:
    """Return the options of model `name`, beside SHARED, with their defaults. Raises ValueError for an unknown name."""
    if name not in MODELS:
        near = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.0)
        raise ValueError(f"unknown model {name!r}; did you mean {near[0]!r}? known: {', '.join(MODELS)}")
    parameters = inspect.signature(MODELS[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in SHARED}
