"""Made-up scores of queries."""

from __future__ import annotations

import torch

from pipeline.evaluation.chance import Scores

CHANCE = 0.1


def scores(gain: float = 0.0, fall: float = 0.0, noise: float = 0.0, chance: float = CHANCE) -> Scores:
    """Return scores of 200 and 50 queries; all gain `gain`, the second attribute loses `fall`, both have `noise`.

    Without these their mean is about 0.25.
    """
    generator = torch.Generator().manual_seed(0)
    base = [torch.rand(size, generator=generator, dtype=torch.float64) * 0.5 for size in (200, 50)]
    drawn = [torch.randn(size, generator=generator, dtype=torch.float64) for size in (200, 50)]
    first, second = (gain + noise * (one - one.mean()) for one in drawn)
    of = {"collar": base[0] + first, "skirt": base[1] + second - fall}
    return Scores("MAP", of, {name: torch.full_like(one, chance) for name, one in of.items()})


def first_of(scores: Scores, count: int) -> Scores:
    """Return the scores of the first `count` queries of each attribute."""
    cut = [{name: one[:count] for name, one in of.items()} for of in (scores.of, scores.chance)]
    return Scores(scores.metric, *cut)
