"""Comparison of a score with chance: whether a model is better than a random ranking, beyond noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from agman.bootstrap import paired_differences
from agman.metrics import Retrieval
from agman.triplet_metrics import TripletScores

GUESSING = 0.5
"""Triplet accuracy of a random embedding."""
FEWEST = 50
"""Fewest queries or triplets from which a model is judged.

The bootstrap's percentile interval of n scores is narrower than Student's, which is exact for normal scores, by
1 − z·√((n−1)/n)/t(n−1): 6 % at 30, 3.4 % at 50, 1.7 % at 100 (Hesterberg, "What Teachers Should Know About the
Bootstrap", 2015). Below FEWEST, noise passes for a difference too often.
"""


@dataclass(frozen=True)
class Scores:
    """Scores of one model's queries (AP) or triplets (1 if right), with the score that chance gives each."""

    metric: str
    """MAP, or triplet accuracy: the mean of the scores."""
    of: Mapping[str, Tensor]
    """Attribute -> score of each of its queries or triplets."""
    chance: Mapping[str, Tensor]

    @property
    def mean_chance(self) -> dict[str, float]:
        """Chance of every attribute, and over all queries under ""."""
        known = {name: chance for name, chance in self.chance.items() if len(chance)}
        means = {name: float(chance.mean()) for name, chance in known.items()}
        return means | {"": float(torch.cat(list(known.values())).mean())}


@dataclass(frozen=True)
class Evidence:
    """Difference between a score and chance, with its interval."""

    metric: str
    count: int
    """Number of queries or triplets."""
    score: float
    chance: float
    low: float
    high: float
    """Bounds of the 95 % interval of score − chance."""

    @property
    def doubt(self) -> str:
        """Reason why this does not show that the model beats chance; empty if it does."""
        said = f"{self.metric} {100 * self.score:.2f}, chance {100 * self.chance:.2f}"
        if self.count < FEWEST:
            what = "queries" if self.metric == "MAP" else "triplets"
            return (
                f"too few {what} to tell a difference from noise: {self.count:,}, at least {FEWEST} are needed; {said}"
            )
        if self.low <= 0:
            interval = f"[{100 * self.low:+.2f}, {100 * self.high:+.2f}]"
            return f"at chance: {said}, and the difference {interval} is not beyond noise"
        return ""


def retrieval_scores(results: Mapping[str, Retrieval]) -> Scores:
    """Return the APs of rankings."""
    of = {name: one.average_precision for name, one in results.items()}
    return Scores("MAP", of, {name: one.chance for name, one in results.items()})


def triplet_scores(triplets: Mapping[str, TripletScores]) -> Scores:
    """Return which triplets are right."""
    of = {name: one.correct.double() for name, one in triplets.items()}
    return Scores("triplet accuracy", of, {name: torch.full_like(right, GUESSING) for name, right in of.items()})


def evidence(scores: Scores) -> Evidence:
    """Compare a model with chance by the paired bootstrap over queries. Raises ValueError if there are none."""
    over = paired_differences(scores.chance, scores.of)[""]
    chance = scores.mean_chance[""]
    count = sum(map(len, scores.of.values()))
    return Evidence(scores.metric, count, chance + over.mean, chance, over.low, over.high)


def above_chance(found: Evidence) -> dict[str, float]:
    """Return the metrics above_chance_low and above_chance_high."""
    return {"above_chance_low": found.low, "above_chance_high": found.high}


def evidence_in(metrics: Mapping[str, float], split: str, count: int) -> Evidence | None:
    """Return the evidence that a split's metrics hold, from `count` queries or triplets; None if they hold none."""
    bounds = [metrics.get(f"{split}/above_chance_{end}") for end in ("low", "high")]
    named = next((name for name in ("map", "triplet_accuracy") if f"{split}/{name}" in metrics), None)
    if named is None or bounds[0] is None or bounds[1] is None:
        return None
    score, chance = metrics[f"{split}/{named}"], chance_beside(f"{split}/{named}", metrics)
    assert chance is not None
    return Evidence("MAP" if named == "map" else "triplet accuracy", count, score, chance, bounds[0], bounds[1])


def chance_beside(name: str, metrics: Mapping[str, float]) -> float | None:
    """Return the chance of a metric such as `test/map` or `test/map/<attribute>`; None if it has or needs none."""
    split, _, rest = name.partition("/")
    kind, _, attribute = rest.partition("/")
    if kind == "triplet_accuracy":
        return GUESSING
    if kind == "map_macro":
        chances = [value for key, value in metrics.items() if key.startswith(f"{split}/chance/")]
        return fmean(chances) if chances else None
    return metrics.get(f"{split}/chance/{attribute}" if attribute else f"{split}/chance") if kind == "map" else None
