"""Galleries: the best, a typical and the worst query of each attribute with their first candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data_prep.dataset import Dataset
from data_prep.tables import Attribute
from pipeline.evaluation.evaluate import Evaluation
from pipeline.reports.model.neighbours import neighbours
from pipeline.reports.model.pairs import of_attributes
from pipeline.reports.model.pictures import Pictures

SHOWN = 10
SIDE = 128
"""Side of an image in pixels."""


@dataclass(frozen=True)
class Candidate:
    """An image at one rank."""

    picture: str
    image_id: int
    value: str
    right: bool
    score: float


@dataclass(frozen=True)
class Query:
    """A query and its first candidates."""

    title: str
    picture: str
    image_id: int
    value: str
    average_precision: float
    relevant: int
    candidates: list[Candidate]


@dataclass(frozen=True)
class AttributeGallery:
    """Queries of one attribute."""

    attribute: str
    map: float
    chance: float
    count: int
    """Number of queries of the attribute."""
    queries: list[Query]


@dataclass(frozen=True)
class _Ranking:
    """A query to show; queries and candidates are rows of the evaluation's pairs."""

    title: str
    query: int
    average_precision: float
    relevant: int
    candidates: list[int]
    scores: list[float]


def galleries(evaluation: Evaluation, dataset: Dataset) -> list[AttributeGallery]:
    """Return a gallery for every attribute with queries, in the order of the dataset."""
    rankings = {
        attribute: _rankings(evaluation, attribute.name, queries, candidates)
        for attribute, queries, candidates in of_attributes(evaluation, dataset)
    }
    shown = [index for found in rankings.values() for one in found for index in (one.query, *one.candidates)]
    pictures = Pictures(dataset, evaluation.split, evaluation.pairs["image_id"].to_numpy()[shown])
    return [
        AttributeGallery(
            attribute.name,
            evaluation.metrics[f"{evaluation.split}/map/{attribute.name}"],
            float(evaluation.results[attribute.name].chance.mean()),
            evaluation.queries[attribute.name],
            [_query(ranking, evaluation, attribute, pictures) for ranking in found],
        )
        for attribute, found in rankings.items()
    ]


def _rankings(evaluation: Evaluation, attribute: str, queries: np.ndarray, candidates: np.ndarray) -> list[_Ranking]:
    """Choose queries among the pairs of one attribute, and rank their first candidates."""
    result = evaluation.results[attribute]
    titles = chosen(result.average_precision, result.relevant)
    asked = queries[list(titles.values())]
    scores, indices = neighbours(evaluation.embeddings[asked], evaluation.embeddings[candidates], SHOWN)
    return [
        _Ranking(
            title,
            query=int(queries[number]),
            average_precision=float(result.average_precision[number]),
            relevant=int(result.relevant[number]),
            candidates=candidates[found].tolist(),
            scores=scored.tolist(),
        )
        for (title, number), found, scored in zip(titles.items(), indices.numpy(), scores, strict=True)
    ]


def _query(ranking: _Ranking, evaluation: Evaluation, attribute: Attribute, pictures: Pictures) -> Query:
    image_ids, values = (evaluation.pairs[name].tolist() for name in ("image_id", "value"))
    asked = values[ranking.query]
    return Query(
        title=ranking.title,
        picture=pictures.uri(image_ids[ranking.query], SIDE),
        image_id=image_ids[ranking.query],
        value=attribute.values[asked],
        average_precision=ranking.average_precision,
        relevant=ranking.relevant,
        candidates=[
            Candidate(
                picture=pictures.uri(image_ids[index], SIDE),
                image_id=image_ids[index],
                value=attribute.values[values[index]],
                right=values[index] == asked,
                score=score,
            )
            for index, score in zip(ranking.candidates, ranking.scores, strict=True)
        ],
    )


def chosen(average_precision: torch.Tensor, relevant: torch.Tensor) -> dict[str, int]:
    """Choose the queries to show among those with a relevant candidate (among all, if none has one): title -> index.

    The typical query is the median by AP; queries of equal AP keep their order.
    """
    answerable = (relevant > 0).nonzero()[:, 0] if (relevant > 0).any() else torch.arange(len(relevant))
    falling = average_precision[answerable].sort(descending=True, stable=True).indices
    ordered = answerable[falling].tolist()
    titles = {len(ordered) // 2: "typical", len(ordered) - 1: "worst", 0: "best"}
    return {titles[index]: ordered[index] for index in sorted(titles)}
