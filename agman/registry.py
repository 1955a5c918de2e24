"""Models by name. A model listed here is known to configurations, checkpoints and the command line."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from agman.asenet import ASENet
from agman.asenet_v2 import ASENetV2
from agman.attnfashion import AttnFashion
from agman.base import RetrievalModel
from agman.csn import CSN
from agman.isln import ISLN
from agman.model import AGMAN
from agman.pixels import Pixels
from agman.weights import Weights

MODELS: dict[str, type[RetrievalModel]] = {
    "agman": AGMAN,
    "csn": CSN,
    "asenet": ASENet,
    "asenet_v2": ASENetV2,
    "attnfashion": AttnFashion,
    "isln": ISLN,
}


SHARED = ("n_attributes", "backbone", "weights", "stride")
"""Arguments that every model takes, beside its own options."""


def build(
    name: str = "agman",
    *,
    n_attributes: int,
    embedding_dim: int | None = None,
    backbone: str = "resnet50",
    weights: Weights = None,
    stride: int = 16,
    pixels: Mapping[str, Any] | None = None,
    **options: Any,
) -> RetrievalModel:
    """Return a new model, in training mode. Its class documents the arguments and its further `options`.

    On the meta device, no weights are allocated, drawn or loaded, but a file of weights is compared with the backbone.
    If embedding_dim is None, the model has its published width. `pixels`, from a model's `config`, says how its
    pictures are made; if None, as the backbone's weights have it.

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
    model = MODELS[name](n_attributes=n_attributes, backbone=backbone, weights=weights, stride=stride, **options)
    if pixels is not None:
        model.backbone.pixels = Pixels.of(pixels)
    return model


def options_of(name: str) -> dict[str, Any]:
    """Return the options of model `name`, beside SHARED, with their defaults. Raises ValueError for an unknown name."""
    if name not in MODELS:
        near = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.0)
        raise ValueError(f"unknown model {name!r}; did you mean {near[0]!r}? known: {', '.join(MODELS)}")
    parameters = inspect.signature(MODELS[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in SHARED}
