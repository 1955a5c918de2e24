"""Bootstrap over queries: intervals of a MAP, and whether one model beats another on the same queries.

Shape suffixes: N attributes, Q queries of one attribute, R resamples.

A resample draws, within every attribute, as many queries as there are, with replacement (Efron & Tibshirani 1993,
chapters 13 and 16). It is stratified because the number of queries of an attribute is the benchmark's choice and not
chance. Intervals are percentiles. They tell how the metric would change with other queries; those of
`differences_of_trainings` with other seeds of the trainings too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 2_000
CONFIDENCE = 0.95
WORKING_DRAWS = 4_000_000
"""Drawn indices held at a time: 32 MB."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the bounds of its interval of CONFIDENCE."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference(Interval):
    """The mean of the second minus the first, and its interval."""

    p_not_better: float
    """Fraction of the resamples in which the second is not better: one-sided p value."""

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0


def resampled_means(scores: Mapping[str, Tensor], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Tensor]:
    """Return the mean score of every resample: attribute -> R float64, and under "" the mean over all queries.

    `scores` maps attributes to the Q scores of their queries (AP, say). For equal numbers of queries, the same seed
    draws the same queries. Raises ValueError if there are no queries, or if `resamples` is below 1.
    """
    scores = {name: score_q.double().cpu() for name, score_q in scores.items() if len(score_q)}
    if not scores:
        raise ValueError("no queries: nothing to resample")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    generator = torch.Generator().manual_seed(seed)
    means, total_r, queries = {}, torch.zeros(resamples, dtype=torch.float64), 0
    for name, score_q in scores.items():
        n = len(score_q)
        rows = max(1, WORKING_DRAWS // n)
        of_rows = [
            score_q[torch.randint(n, (min(rows, resamples - start), n), generator=generator)].mean(1)
            for start in range(0, resamples, rows)
        ]
        means[name] = torch.cat(of_rows)
        total_r += n * means[name]
        queries += n
    return means | {"": total_r / queries}


def intervals(scores: Mapping[str, Tensor], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Interval]:
    """Return the mean of every attribute's scores with its interval, and under "" of all queries.

    Raises ValueError as `resampled_means` does.
    """
    scores = {name: score_q for name, score_q in scores.items() if len(score_q)}
    means = resampled_means(scores, seed, resamples)
    observed = _observed(scores)
    return {name: Interval(observed[name], *_bounds(mean_r)) for name, mean_r in means.items()}


def paired_differences(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Difference]:
    """Return second minus first on the same queries in the same order: for every attribute, and under "" for all.

    A resample draws the same queries for both, so the difficulty that a query has for both cancels. Raises ValueError
    if the two have different numbers of queries.
    """
    sizes = [{name: len(score_q) for name, score_q in one.items() if len(score_q)} for one in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"scores of the same queries are needed, not of {sizes[0]} and {sizes[1]}")
    gains = {name: second[name].double().cpu() - first[name].double().cpu() for name in sizes[0]}
    means = resampled_means(gains, seed, resamples)
    observed = _observed(gains)
    return {
        name: Difference(observed[name], *_bounds(mean_r), float((mean_r <= 0).double().mean()))
        for name, mean_r in means.items()
    }


def differences_of_trainings(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Difference]:
    """Return the mean of second minus that of first as `paired_differences` does, of several trainings of each.

    Scores are T×Q: one row for each training (seed), the same queries in the same order. A resample draws the trainings
    of both with replacement, and then the same queries for both, so the interval tells how the difference would change
    with other seeds and other queries. Of T trainings the spread between seeds comes out too small by √((T-1)/T).
    """
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for scores in (first, second):
        trainings = len(next(iter(scores.values())))
        drawn = torch.randint(trainings, (resamples, trainings), generator=generator)
        weights.append(torch.nn.functional.one_hot(drawn, trainings).double().mean(1))
    means, total_r, observed, queries = {}, torch.zeros(resamples, dtype=torch.float64), {}, 0
    for name in first:
        scores_tq = (first[name].double().cpu(), second[name].double().cpu())
        n = scores_tq[0].shape[1]
        if not n:
            continue
        if scores_tq[1].shape[1] != n:
            raise ValueError(f"scores of the same queries are needed, not of {n} and {scores_tq[1].shape[1]}")
        counts_rq = torch.zeros(resamples, n, dtype=torch.float64)
        drawn = torch.randint(n, (resamples, n), generator=generator)
        counts_rq.scatter_add_(1, drawn, torch.ones_like(counts_rq))
        mean_r = [(w * (counts_rq @ s.T / n)).sum(1) for w, s in zip(weights, scores_tq, strict=True)]
        means[name], observed[name] = mean_r[1] - mean_r[0], float(scores_tq[1].mean() - scores_tq[0].mean())
        total_r, queries = total_r + n * means[name], queries + n
    means[""] = total_r / queries
    observed[""] = sum(observed[name] * first[name].shape[1] for name in observed) / queries
    return {
        name: Difference(observed[name], *_bounds(mean_r), float((mean_r <= 0).double().mean()))
        for name, mean_r in means.items()
    }


def _observed(scores: Mapping[str, Tensor]) -> dict[str, float]:
    every = torch.cat([score_q.double().cpu() for score_q in scores.values()])
    return {name: float(score_q.double().mean()) for name, score_q in scores.items()} | {"": float(every.mean())}


def _bounds(mean_r: Tensor) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(mean_r, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
