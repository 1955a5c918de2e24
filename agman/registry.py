"""Models by name: one line here, and configurations, checkpoints and the command line know the model."""

import difflib
from os import PathLike

from agman.base import RetrievalModel
from agman.model import AGMAN

MODELS: dict[str, type[RetrievalModel]] = {
    "agman": AGMAN,
}


def build(
    name: str = "agman",
    *,
    n_attributes: int,
    embedding_dim: int = 512,
    backbone: str = "resnet50",
    weights: str | PathLike[str] | None = None,
    classify: bool = True,
    sa_kernel: int = 7,
) -> RetrievalModel:
    """A new model; `AGMAN` explains the arguments. ValueError for an unknown name or impossible sizes."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.0)
        raise ValueError(f"unknown model {name!r}; did you mean {near[0]!r}? known: {', '.join(MODELS)}")
    return MODELS[name](
        n_attributes=n_attributes,
        embedding_dim=embedding_dim,
        backbone=backbone,
        weights=weights,
        classify=classify,
        sa_kernel=sa_kernel,
    )
