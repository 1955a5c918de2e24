"""Table of scores: a row for each attribute, for all queries, and for the mean of the attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from agman.metrics import Retrieval
from pipeline.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Score:
    """One row; metrics are in [0, 1]."""

    name: str
    map: float
    chance: float
    queries: int
    candidates: int
    at_k: dict[str, float]
    """P@k of every k, and R@k of the largest k."""

    @property
    def ratio(self) -> float:
        """MAP divided by the chance level; 0 if that is 0."""
        return self.map / self.chance if self.chance else 0.0


@dataclass(frozen=True)
class ScoreTable:
    """Content of the table."""

    attributes: list[Score]
    over_all: Score
    macro: Score
    unasked: list[str]
    """Attributes without queries."""


def score_table(evaluation: Evaluation, names: Sequence[str]) -> ScoreTable:
    """Return the scores of an evaluation; `names` are the attributes of the dataset."""
    rows = [_score(name, result) for name, result in evaluation.results.items()]
    metrics = {key.split("/", 1)[1]: value for key, value in evaluation.metrics.items()}
    queries, candidates = sum(row.queries for row in rows), sum(row.candidates for row in rows)
    labels = list(rows[0].at_k)
    of_all = {label: metrics[label.lower().replace("@", "_at_")] for label in labels}
    of_mean = {label: fmean(row.at_k[label] for row in rows) for label in labels}
    macro_chance = fmean(row.chance for row in rows)
    return ScoreTable(
        attributes=rows,
        over_all=Score("all, query-weighted", metrics["map"], metrics["chance"], queries, candidates, of_all),
        macro=Score("all, macro", metrics["map_macro"], macro_chance, queries, candidates, of_mean),
        unasked=[name for name in names if name not in evaluation.results],
    )


def _score(name: str, result: Retrieval) -> Score:
    last = max(result.recall)
    return Score(
        name=name,
        map=float(result.average_precision.mean()),
        chance=float(result.chance.mean()),
        queries=len(result.relevant),
        candidates=result.candidates,
        at_k={f"P@{k}": float(value.mean()) for k, value in result.precision.items()}
        | {f"R@{last}": float(result.recall[last].mean())},
    )
