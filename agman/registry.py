"""Models by name: one line here, and configurations, checkpoints and the command line know the model."""

import difflib
import inspect
from os import PathLike
from typing import Any

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
"""What every model is given, beside its own options."""


def build(
    name: str = "agman",
    *,
    n_attributes: int,
    embedding_dim: int | None = None,
    backbone: str = "resnet50",
    weights: str | PathLike[str] | None = None,
    **options: Any,
) -> RetrievalModel:
    """A new model; its class explains the arguments and which further `options` it has.

    embedding_dim None is the model's published width. ValueError for an unknown name or option, or for sizes
    that cannot be.
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


def options_of(name: str) -> dict[str, Any]:
    """What model `name` takes beside attributes and backbone, with its defaults. ValueError for an unknown name."""
    if name not in MODELS:
        near = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.0)
        raise ValueError(f"unknown model {name!r}; did you mean {near[0]!r}? known: {', '.join(MODELS)}")
    parameters = inspect.signature(MODELS[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in SHARED}
