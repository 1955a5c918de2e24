"""Range of MAP on a dataset: the score of a random ranking, and the highest score of any ranking.

chance  = mean over the queries of E[AP], the exact expectation of agman.metrics.chance_average_precision
ceiling = queries with a relevant candidate / queries; the others score 0 whatever the ranking
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pandas as pd
import torch

from agman.metrics import chance_average_precision
from data_prep.dataset import Dataset


@dataclass(frozen=True)
class Expectation:
    """Chance and ceiling of one attribute, or of all."""

    name: str
    queries: int
    candidates: int
    unanswerable: int
    """Number of queries without a relevant candidate."""
    chance: float
    ceiling: float


@dataclass(frozen=True)
class Expectations:
    """Chance and ceiling of one split."""

    split: str
    attributes: list[Expectation]
    """Rows of the attributes that have queries."""
    over_all: Expectation
    """Means over the queries, as MAP is a mean over queries."""
    macro: Expectation
    """Means over the attributes."""
    unasked: list[str]
    """Attributes without queries."""


def expectations(dataset: Dataset, split: str) -> Expectations | None:
    """Compute chance and ceiling of every attribute in `split`; return None if it has no queries."""
    if not dataset.info.queries[split]:
        return None
    pairs = dataset.retrieval(split)
    attributes = [
        _of_attribute(name, pairs[pairs["attribute"] == number])
        for number, name in enumerate(dataset.info.attribute_names)
    ]
    asked = [one for one in attributes if one.queries]
    queries, candidates, unanswerable = (
        sum(getattr(one, name) for one in asked) for name in ("queries", "candidates", "unanswerable")
    )
    return Expectations(
        split,
        asked,
        Expectation(
            "all, query-weighted",
            queries,
            candidates,
            unanswerable,
            chance=sum(one.chance * one.queries for one in asked) / queries,
            ceiling=(queries - unanswerable) / queries,
        ),
        Expectation(
            "all, macro",
            queries,
            candidates,
            unanswerable,
            chance=fmean(one.chance for one in asked),
            ceiling=fmean(one.ceiling for one in asked),
        ),
        unasked=[one.name for one in attributes if not one.queries],
    )


def _of_attribute(name: str, pairs: pd.DataFrame) -> Expectation:
    queries, candidates = (
        pairs.loc[pairs["role"] == role, "value"].to_numpy(np.int64) for role in ("query", "candidate")
    )
    if not len(queries):
        return Expectation(name, 0, len(candidates), 0, 0.0, 0.0)
    relevant = np.bincount(candidates, minlength=int(queries.max()) + 1)[queries]
    chance = chance_average_precision(torch.from_numpy(relevant), len(candidates))
    unanswerable = int((relevant == 0).sum())
    return Expectation(
        name,
        len(queries),
        len(candidates),
        unanswerable,
        float(chance.mean()),
        (len(queries) - unanswerable) / len(queries),
    )
