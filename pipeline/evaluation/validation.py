"""Validation after every epoch: MAP on the validation queries, or accuracy on given triplets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import agman
from agman.metrics import mean_cosine
from agman.triplet_metrics import score_triplets
from data_prep.dataset import Dataset, ImageStore
from pipeline.evaluation.chance import above_chance, chance_beside, evidence, retrieval_scores, triplet_scores

SPLIT = "valid"
METRIC, MEAN_COSINE = f"{SPLIT}/map", f"{SPLIT}/mean_cosine"


def score_name(dataset: Dataset) -> str | None:
    """Return the metric that selects the best checkpoint, or None if the dataset has no validation split.

    It is `valid/map` if there are queries, `valid/triplet_accuracy` if the dataset has triplets only.
    """
    if dataset.info.queries[SPLIT]:
        return METRIC
    return f"{SPLIT}/triplet_accuracy" if dataset.info.images[SPLIT] else None


def score_words(metrics: Mapping[str, float]) -> str:
    """Return the validation score beside chance in words; empty if there is none."""
    for name, title in ((METRIC, "MAP"), (f"{SPLIT}/triplet_accuracy", "triplet accuracy")):
        if name in metrics:
            chance = chance_beside(name, metrics)
            beside = "" if chance is None else f", chance {100 * chance:.2f}"
            return f"{title} {100 * metrics[name]:.2f}{beside}, on validation, times 100"
    return ""


class Validation:
    """Validation on several workers: each embeds some of the images, and rank 0 scores all embeddings."""

    def __init__(
        self,
        dataset: Dataset,
        image_size: int,
        rank: int,
        workers: int,
        device: str,
        threads: int,
        interpolation: str,
    ):
        self.rank, self.workers, self.device = rank, workers, device
        self.names = dataset.info.attribute_names
        self.pairs = dataset.retrieval(SPLIT) if dataset.info.queries[SPLIT] else None
        if self.pairs is not None:
            self.image_ids, self.attributes = (self.pairs[name].to_numpy() for name in ("image_id", "attribute"))
        else:
            triplets = dataset.triplets(SPLIT)
            self.image_ids = np.concatenate([triplets.anchor, triplets.positive, triplets.negative])
            self.attributes = np.tile(triplets.attribute, 3)
        mine = np.array_split(np.unique(self.image_ids), workers)[rank]
        self.rows = np.flatnonzero(np.isin(self.image_ids, mine))
        self.images = ImageStore(dataset, SPLIT, image_size, mine, threads, interpolation=interpolation)

    def metrics(self, model: agman.RetrievalModel, precision: str) -> dict[str, float]:
        """Return the validation metrics, the same on every worker.

        They are `valid/map` (query-weighted), `valid/map_macro`, `valid/map/<attribute>` and so on, and the same of
        `valid/chance`; or `valid/triplet_accuracy`. `valid/above_chance_low` and `…_high` bound the score minus chance.
        `valid/mean_cosine` is that of two embeddings under one attribute.
        """
        embeddings = self._embedded(model, precision)
        found = [self._scored(embeddings) | self._spread(embeddings) if self.rank == 0 else None]
        if self.workers > 1:
            dist.broadcast_object_list(found)  # from rank 0: other rounding could stop workers at other epochs
        assert found[0] is not None
        return found[0]

    def _spread(self, embeddings: torch.Tensor) -> dict[str, float]:
        return {MEAN_COSINE: mean_cosine(embeddings, torch.from_numpy(self.attributes.astype(np.int64)))}

    def _scored(self, embeddings: torch.Tensor) -> dict[str, float]:
        if self.pairs is None:
            anchors, positives, negatives = embeddings.chunk(3)
            found = evidence(triplet_scores({"all": score_triplets(anchors, positives, negatives)}))
            return _of_split({"triplet_accuracy": found.score} | above_chance(found))
        is_query = (self.pairs["role"] == "query").to_numpy()
        ranked = agman.rank_candidates(
            embeddings, self.attributes, self.pairs["value"].to_numpy(), is_query, self.names
        )
        summary = agman.summarise(ranked)
        kept = {name: value for name, value in summary.items() if name.startswith(("map", "chance"))}
        return _of_split(kept | above_chance(evidence(retrieval_scores(ranked))))

    def _embedded(self, model: agman.RetrievalModel, precision: str) -> torch.Tensor:
        mine = agman.embed_dataset(
            model,
            self.image_ids[self.rows],
            self.attributes[self.rows],
            self.images.read,
            device=self.device,
            precision=precision,
        )
        gathered: list[Any] = [(self.rows, mine)]
        if self.workers > 1:
            gathered = [None] * self.workers
            dist.all_gather_object(gathered, (self.rows, mine))
        embeddings = torch.empty(len(self.image_ids), mine.shape[1])
        for rows, embedded in gathered:
            embeddings[torch.from_numpy(rows)] = embedded
        return embeddings


def _of_split(metrics: dict[str, float]) -> dict[str, float]:
    return {f"{SPLIT}/{name}": value for name, value in metrics.items()}
