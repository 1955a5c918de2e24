"""What a model finds: per attribute the best, a typical and the worst query with their first candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

import agman
from data_prep.dataset import Dataset, ImageStore
from data_prep.tables import Attribute
from pipeline.evaluation import Evaluation
from pipeline.report import figures

SHOWN = 10
SIDE = 128
"""Pixels of a picture in a gallery."""


@dataclass(frozen=True)
class Candidate:
    """A picture at one rank."""

    picture: str
    image_id: int
    value: str
    right: bool
    score: float


@dataclass(frozen=True)
class Query:
    """A query and what came first."""

    title: str
    picture: str
    image_id: int
    value: str
    average_precision: float
    relevant: int
    candidates: list[Candidate]


@dataclass(frozen=True)
class Gallery:
    """One attribute's queries."""

    attribute: str
    map: float
    queries: list[Query]


class Pictures:
    """Pictures of one split as data: URIs; only the wanted ones are held."""

    def __init__(self, dataset: Dataset, split: str, image_ids: np.ndarray):
        self._images = ImageStore(dataset, split, dataset.info.image_size, wanted=image_ids)

    def array(self, image_id: int) -> np.ndarray:
        """uint8 S×S×3."""
        return self._images.read(np.array([image_id]))[0].permute(1, 2, 0).numpy()

    def uri(self, image_id: int, side: int) -> str:
        return figures.jpeg(self.array(image_id), side)


@dataclass(frozen=True)
class _Ranking:
    """A query to show; places are rows of the evaluation's pairs."""

    title: str
    query: int
    average_precision: float
    relevant: int
    candidates: list[int]
    scores: list[float]


def galleries(evaluation: Evaluation, dataset: Dataset) -> list[Gallery]:
    """A gallery for every attribute with queries, in the dataset's order."""
    pairs = evaluation.pairs.reset_index(drop=True)
    rankings = {
        attribute: _rankings(evaluation, pairs[pairs["attribute"] == number], attribute.name)
        for number, attribute in enumerate(dataset.info.attributes)
        if attribute.name in evaluation.results
    }
    shown = [place for found in rankings.values() for one in found for place in (one.query, *one.candidates)]
    pictures = Pictures(dataset, evaluation.split, pairs["image_id"].to_numpy()[shown])
    return [
        Gallery(
            attribute.name,
            evaluation.figures[f"{evaluation.split}/map/{attribute.name}"],
            [_query(ranking, pairs, attribute, pictures) for ranking in found],
        )
        for attribute, found in rankings.items()
    ]


def _rankings(evaluation: Evaluation, pairs: pd.DataFrame, attribute: str) -> list[_Ranking]:
    """The chosen queries among one attribute's pairs, with their first candidates."""
    queries, candidates = (pairs.index[pairs["role"] == role].tolist() for role in ("query", "candidate"))
    result = evaluation.results[attribute]
    rankings = []
    for title, number in chosen(result.average_precision, result.relevant).items():
        scores, order = ranked(evaluation.embeddings[queries[number]], evaluation.embeddings[candidates])
        rankings.append(
            _Ranking(
                title,
                queries[number],
                float(result.average_precision[number]),
                int(result.relevant[number]),
                [candidates[place] for place in order[:SHOWN].tolist()],
                scores[:SHOWN].tolist(),
            )
        )
    return rankings


def _query(ranking: _Ranking, pairs: pd.DataFrame, attribute: Attribute, pictures: Pictures) -> Query:
    image_ids, values = pairs["image_id"].tolist(), pairs["value"].tolist()
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
                picture=pictures.uri(image_ids[place], SIDE),
                image_id=image_ids[place],
                value=attribute.values[values[place]],
                right=values[place] == asked,
                score=score,
            )
            for place, score in zip(ranking.candidates, ranking.scores, strict=True)
        ],
    )


def chosen(average_precision: torch.Tensor, relevant: torch.Tensor) -> dict[str, int]:
    """Which queries to show: title -> place. Only those that have a relevant candidate, where there are any.

    The typical one is the median by AP; equal APs stand in the queries' order.
    """
    answerable = (relevant > 0).nonzero()[:, 0] if (relevant > 0).any() else torch.arange(len(relevant))
    falling = average_precision[answerable].sort(descending=True, stable=True).indices
    ordered = answerable[falling].tolist()
    titles = {len(ordered) // 2: "typical", len(ordered) - 1: "worst", 0: "best"}
    return {titles[place]: ordered[place] for place in sorted(titles)}


def ranked(query: torch.Tensor, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of C candidates (C×D) for one query (D), falling, and their order: as agman.retrieval ranks."""
    ordered = agman.similarities(query[None], candidates)[0].sort(descending=True, stable=True)
    return ordered.values, ordered.indices
