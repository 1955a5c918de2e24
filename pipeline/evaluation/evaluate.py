"""`agman evaluate`: attribute-specific retrieval (MAP, MAP@R, P@k, R@k) and triplet relation prediction on one split.

On drawn datasets, whose regions are known, the attention maps are measured too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

import agman
import agman.bootstrap
from agman.bootstrap import Interval
from agman.memory import keep_freed_memory
from agman.metrics import Retrieval
from agman.tagger import Tagger
from agman.triplet_metrics import TripletScores, score_conditions, summarise_triplets
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError
from data_prep.progress import Progress, silent
from data_prep.tables import SPLITS
from data_prep.triplets import Triplets
from data_prep.words import counted
from pipeline.common.errors import JobFailed
from pipeline.evaluation.attention import attention_metrics, measure_attention
from pipeline.evaluation.chance import (
    Evidence,
    Scores,
    above_chance,
    evidence,
    evidence_in,
    retrieval_scores,
    triplet_scores,
)
from pipeline.evaluation.published_results import Benchmark, benchmark_of
from pipeline.evaluation.tagging import LabelledSplit, NamingScores, naming_metrics, score_names

PUBLISHED_MARGIN = 0.2
"""Margin of the papers' triplet losses, for models whose description has none."""

NO_PAIRS = pd.DataFrame({"role": [], "image_id": [], "attribute": [], "value": []}).astype(
    {"role": "str", "image_id": "int64", "attribute": "int16", "value": "int32"}
)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on one split, and the data that they were computed from."""

    split: str
    metrics: dict[str, float]
    """Metric name (split/name) -> value in [0, 1], or a count."""
    pairs: pd.DataFrame
    """Queries and candidates: role, image_id, attribute, value."""
    embeddings: torch.Tensor
    """Embeddings K×D of the pairs, in the same order."""
    results: dict[str, Retrieval]
    """Attribute name -> scores of every query."""
    attention: pd.DataFrame | None = None
    """Columns attribute, mass, hits, area for the measured pairs; None without true regions."""
    intervals: dict[str, Interval] = field(default_factory=dict)
    """Attribute name -> MAP with its 95 % interval over queries; over all queries under ""."""
    triplets: dict[str, TripletScores] = field(default_factory=dict)
    """Attribute name -> scores of every triplet."""
    margin: float = PUBLISHED_MARGIN
    """Margin of the triplet loss."""
    margin_known: bool = True
    """Whether the margin is the model's own; otherwise it is PUBLISHED_MARGIN."""
    precision: str = "fp32"
    fit: str = "crop"
    """How the model's pictures became square."""
    benchmark: Benchmark | None = None
    """Published results on datasets of this layout."""
    difference: str | None = None
    """Reason why the published results cannot be compared with these; None if they can."""
    naming: dict[str, NamingScores] = field(default_factory=dict)
    """Attribute -> scores of the values that the model's prototypes name."""

    @property
    def scores(self) -> Scores:
        """Scores that the model is judged by: of its queries; of its triplets if the dataset has no queries."""
        return retrieval_scores(self.results) if self.results else triplet_scores(self.triplets)

    @property
    def queries(self) -> dict[str, int]:
        """Number of queries of every attribute that has some."""
        return {name: len(one.relevant) for name, one in self.results.items()}

    @property
    def evidence(self) -> Evidence | None:
        """Comparison with chance; None if the metrics hold none."""
        return evidence_in(self.metrics, self.split, sum(map(len, self.scores.of.values())))


def evaluate(
    model: agman.RetrievalModel,
    config: dict[str, Any],
    dataset: Dataset,
    split: str = "test",
    *,
    tagger: Tagger | None = None,
    precision: str = "fp32",
    threads: int = os.cpu_count() or 1,
    progress: Progress = silent,
) -> Evaluation:
    """Score a model on the queries, candidates and triplets of a split.

    AP of a query = (1/R) Σ over relevant ranks r of (relevant up to r)/r, where R is the number of relevant
    candidates. MAP is the mean over all queries, `map_macro` the mean of the attributes' MAPs; docs/metrics.md has
    the formula of every metric. If the dataset has ready-made triplets and no queries, only the triplets are scored.
    The triplet loss uses the margin of the model's training. If true regions are known, `attention_*` are measured on
    at most attention.MEASURED pairs.

    Raises InputError if the split has nothing to score, and JobFailed if the model returns NaN.

    Args:
        model: model; it is moved to a GPU if there is one.
        config: description of the model.
        dataset: dataset to score on.
        split: valid or test.
        tagger: the model's prototypes; with them, the values that they name are scored too.
        precision: precision of the embeddings, fp32 or bf16.
        threads: CPU threads.
        progress: callback for progress bars.
    """
    pairs, triplets = _to_score(dataset, split)
    labels = dataset.labels_of(split) if tagger else NO_PAIRS
    # One pass over the images serves all tasks: the pairs of the ranking, those of the triplets, those of the labels.
    of_task = [pairs[["image_id", "attribute"]], _pairs_of(triplets), labels[["image_id", "attribute"]]]
    asked = pd.concat(of_task, ignore_index=True)
    torch.set_num_threads(threads)
    keep_freed_memory()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    fit, interpolation = config.get("fit", "crop"), model.pixels.interpolation
    images = ImageStore(dataset, split, config["image_size"], threads=threads, fit=fit, interpolation=interpolation)
    embedded, row_of = _embedded(model, dataset, images, asked, precision, progress)
    rows = torch.from_numpy(row_of.copy())

    embeddings = embedded[rows[: len(pairs)]]
    attributes, values, roles = (pairs[name].to_numpy() for name in ("attribute", "value", "role"))
    names = dataset.info.attribute_names
    results = agman.rank_candidates(embeddings, attributes, values, roles == "query", names)
    intervals = (
        agman.bootstrap.intervals({name: one.average_precision for name, one in results.items()}) if results else {}
    )
    summary = (agman.summarise(results) | _bounds(intervals)) if results else {}

    margin = config.get("training", {}).get("margin")
    known, margin = margin is not None, PUBLISHED_MARGIN if margin is None else margin
    of_triplets = {}
    if len(triplets):
        of_pairs = rows[len(pairs) : len(asked) - len(labels)]
        index, conditions = of_pairs.reshape(3, -1), torch.from_numpy(triplets.attribute.astype(np.int64))
        of_triplets = score_conditions(embedded, index, conditions, names, margin)
        summary |= summarise_triplets(of_triplets) | {"triplet_margin": margin}

    attention = measure_attention(model, images, dataset, pairs)
    if attention is not None:
        summary |= attention_metrics(attention, names)
    naming = {}
    if tagger:
        of_labels = row_of[len(asked) - len(labels) :]
        naming = score_names(tagger, dataset, LabelledSplit(dataset, labels, of_labels, embedded))
        summary |= naming_metrics(naming)

    benchmark = benchmark_of(dataset.info)
    scores = retrieval_scores(results) if results else triplet_scores(of_triplets)
    summary |= above_chance(evidence(scores))
    return Evaluation(
        split=split,
        metrics={f"{split}/{name}": value for name, value in summary.items()},
        pairs=pairs,
        embeddings=embeddings,
        results=results,
        attention=attention,
        intervals=intervals,
        triplets=of_triplets,
        margin=margin,
        margin_known=known,
        precision=precision,
        fit=fit,
        benchmark=benchmark,
        difference=benchmark.difference_to(dataset.info, split, dataset.drawn) if benchmark else None,
        naming=naming,
    )


def _to_score(dataset: Dataset, split: str) -> tuple[pd.DataFrame, Triplets]:
    """Return the queries and candidates of a split, and its triplets.

    Raises InputError if the split is neither valid nor test, or has none of them.
    """
    if split not in SPLITS[1:]:
        raise InputError(f"--split {split}: one of valid, test")
    others = [other for other in SPLITS[1:] if other != split and dataset.info.images[other]]
    instead = f"; it has images in another: --split {others[0]}" if others else ""
    if not dataset.info.images[split]:
        raise InputError(f"{dataset.path}: no images in split {split!r}{instead}")
    pairs = dataset.retrieval(split) if dataset.info.queries[split] else NO_PAIRS
    triplets = dataset.triplets(split)
    if pairs.empty and not len(triplets):
        raise InputError(f"{dataset.path}: neither queries nor triplets in split {split!r}{instead}")
    return pairs, triplets


def _embedded(
    model: agman.RetrievalModel,
    dataset: Dataset,
    images: ImageStore,
    asked: pd.DataFrame,
    precision: str,
    progress: Progress,
) -> tuple[torch.Tensor, np.ndarray]:
    """Return the embeddings of the distinct pairs, and for each row of `asked` the index of its embedding."""
    distinct = asked.drop_duplicates(ignore_index=True)
    advance = progress("images embedded", distinct["image_id"].nunique())
    ids, attributes = (distinct[name].to_numpy() for name in ("image_id", "attribute"))
    device = next(model.parameters()).device.type
    embedded = agman.embed_dataset(
        model, ids, attributes, images.read, device=device, precision=precision, advance=advance
    )
    _refuse_nan(embedded, distinct, dataset)
    return embedded, distinct.reset_index().merge(asked, on=["image_id", "attribute"], how="right")["index"].to_numpy()


def _pairs_of(triplets: Triplets) -> pd.DataFrame:
    """Return the (image, attribute) pairs of triplets: all anchors, then all positives, then all negatives."""
    return pd.DataFrame(
        {
            "image_id": np.concatenate([triplets.anchor, triplets.positive, triplets.negative]),
            "attribute": np.tile(triplets.attribute, 3),
        }
    )


def _refuse_nan(embedded: torch.Tensor, pairs: pd.DataFrame, dataset: Dataset) -> None:
    """Raise JobFailed if an embedding is not finite."""
    broken = torch.nonzero(~torch.isfinite(embedded).all(1)).flatten().tolist()
    if not broken:
        return
    first = pairs.iloc[broken[0]]
    path = dataset.images.set_index("image_id").loc[first["image_id"], "path"]
    raise JobFailed(
        f"the model gives NaN or infinity for {len(broken):,} of {counted(len(pairs), 'pair')}, first for {path} under "
        f"{dataset.info.attribute_names[first['attribute']]}: its training diverged, or its weights are damaged"
    )


def _bounds(intervals: dict[str, Interval]) -> dict[str, float]:
    """Return the metrics map_low, map_high, and for every attribute map_low/<attribute>, map_high/<attribute>."""
    return {
        f"map_{bound}/{name}".rstrip("/"): getattr(interval, bound)
        for name, interval in intervals.items()
        for bound in ("low", "high")
    }
