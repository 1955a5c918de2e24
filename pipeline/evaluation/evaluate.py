"""`agman evaluate`: attribute-specific retrieval (MAP, MAP@R, P@k, R@k) and triplet relation prediction on one split.

On drawn datasets, whose regions are known, also how well the attention finds them. The tables are drawn by
`pipeline.reports.evaluation`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException

import agman
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError
from data_prep.progress import Progress, silent
from data_prep.tables import SPLITS
from pipeline.common.console import say
from pipeline.common.errors import JobFailed
from pipeline.evaluation.attention import attention_figures, measure_attention
from pipeline.evaluation.published_results import Benchmark, benchmark_of
from pipeline.tracking import runs as tracking

PUBLISHED_MARGIN = 0.2
"""Of the papers' triplet losses; taken where a model's description says nothing of its own."""

NO_PAIRS = pd.DataFrame({"role": [], "image_id": [], "attribute": [], "value": []}).astype(
    {"role": "str", "image_id": "int64", "attribute": "int16", "value": "int32"}
)


@dataclass(frozen=True)
class Evaluation:
    """What a model scored on one split, and what it was computed from."""

    split: str
    figures: dict[str, float]
    """Metric name (with the split before it) -> value in [0, 1], or a count."""
    pairs: pd.DataFrame
    """Queries and candidates: role, image_id, attribute, value."""
    embeddings: torch.Tensor
    """K×D, of the pairs in their order."""
    results: dict[str, agman.Retrieval]
    """Attribute name -> every query's scores."""
    attention: pd.DataFrame | None = None
    """attribute, mass, hits, area of the measured pairs; None without true regions."""
    intervals: dict[str, agman.Interval] = field(default_factory=dict)
    """Attribute name -> MAP with its 95 % interval over queries; of all queries under ""."""
    triplets: dict[str, agman.TripletScores] = field(default_factory=dict)
    """Attribute name -> every triplet's scores."""
    margin: float = PUBLISHED_MARGIN
    """Of the triplets' loss."""
    margin_known: bool = True
    """Whether it is the model's own; else PUBLISHED_MARGIN."""
    precision: str = "fp32"
    benchmark: Benchmark | None = None
    """What is published on datasets of this layout."""
    difference: str | None = None
    """Why its figures do not compare with these; None where they do."""


def evaluate(
    model: agman.RetrievalModel,
    config: dict[str, Any],
    dataset: Dataset,
    split: str = "test",
    *,
    precision: str = "fp32",
    threads: int = os.cpu_count() or 1,
    progress: Progress = silent,
) -> Evaluation:
    """Score `model`, described by `config`, on the queries, candidates and triplets of `split`.

    AP of a query = (1/R) Σ over relevant ranks r of (relevant up to r)/r, with R all relevant candidates;
    MAP is the mean over all queries, `map_macro` the mean of the attributes' MAPs; docs/metrics.md has every figure's
    formula. A dataset of ready-made triplets has no queries; then the triplets alone are scored, their loss by the
    margin that the model was trained with. Where true regions are known, `attention_*` are figures of at most
    looking.MEASURED pairs.

    precision: of the embeddings, fp32 or bf16. Raises InputError for a split with nothing to score, and JobFailed
    for a model that gives NaN.
    """
    if split not in SPLITS[1:]:
        raise InputError(f"--split {split}: one of valid, test")
    pairs = dataset.retrieval(split) if dataset.info.queries[split] else NO_PAIRS
    triplets = dataset.triplets(split)
    # One pass over the images serves both tasks: the pairs of the ranking, then those of the triplets.
    asked = pd.concat([pairs[["image_id", "attribute"]], _pairs_of(triplets)], ignore_index=True)
    if asked.empty:
        raise InputError(f"{dataset.path}: neither queries nor triplets in split {split!r}: nothing to score")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    agman.keep_freed_memory()
    model = model.to(device).eval()
    images = ImageStore(dataset, split, config["image_size"], threads=threads)
    distinct = asked.drop_duplicates(ignore_index=True)
    advance = progress("images embedded", distinct["image_id"].nunique())
    ids, attributes = (distinct[name].to_numpy() for name in ("image_id", "attribute"))
    embedded = agman.embed_dataset(
        model, ids, attributes, images.read, device=device, precision=precision, advance=advance
    )
    _refuse_nan(embedded, distinct, dataset)
    row_of = distinct.reset_index().merge(asked, on=["image_id", "attribute"], how="right")["index"].to_numpy()
    rows = torch.from_numpy(row_of.copy())

    embeddings = embedded[rows[: len(pairs)]]
    attributes, values, roles = (pairs[name].to_numpy() for name in ("attribute", "value", "role"))
    names = dataset.info.attribute_names
    results = agman.rank_candidates(embeddings, attributes, values, roles == "query", names)
    intervals = agman.intervals({name: one.average_precision for name, one in results.items()}) if results else {}
    summary = (agman.summarise(results) | _bounds(intervals)) if results else {}

    margin = config.get("training", {}).get("margin")
    known, margin = margin is not None, PUBLISHED_MARGIN if margin is None else margin
    of_triplets = {}
    if len(triplets):
        index, conditions = rows[len(pairs) :].reshape(3, -1), torch.from_numpy(triplets.attribute.astype(np.int64))
        of_triplets = agman.score_conditions(embedded, index, conditions, names, margin)
        summary |= agman.summarise_triplets(of_triplets) | {"triplet_margin": margin}

    attention = measure_attention(model, images, dataset, pairs)
    if attention is not None:
        summary |= attention_figures(attention, names)
    benchmark = benchmark_of(dataset.info)
    return Evaluation(
        split=split,
        figures={f"{split}/{name}": value for name, value in summary.items()},
        pairs=pairs,
        embeddings=embeddings,
        results=results,
        attention=attention,
        intervals=intervals,
        triplets=of_triplets,
        margin=margin,
        margin_known=known,
        precision=precision,
        benchmark=benchmark,
        difference=benchmark.difference_to(dataset.info, split, dataset.drawn) if benchmark else None,
    )


def _pairs_of(triplets: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": np.concatenate([triplets.anchor, triplets.positive, triplets.negative]),
            "attribute": np.tile(triplets.attribute, 3),
        }
    )


def _refuse_nan(embedded: torch.Tensor, pairs: pd.DataFrame, dataset: Dataset) -> None:
    broken = torch.nonzero(~torch.isfinite(embedded).all(1)).flatten().tolist()
    if not broken:
        return
    first = pairs.iloc[broken[0]]
    path = dataset.images.set_index("image_id").loc[first["image_id"], "path"]
    raise JobFailed(
        f"the model gives NaN or infinity for {len(broken):,} of {len(pairs):,} pairs, first for {path} under "
        f"{dataset.info.attribute_names[first['attribute']]}: its training diverged, or its weights are damaged"
    )


def _bounds(intervals: dict[str, agman.Interval]) -> dict[str, float]:
    """map_low, map_high, and of every attribute map_low/<attribute>, map_high/<attribute>."""
    ends = {name: f"/{name}" if name else "" for name in intervals}
    return {
        f"map_{bound}{ends[name]}": getattr(interval, bound)
        for name, interval in intervals.items()
        for bound in ("low", "high")
    }


def log(evaluation: Evaluation, description: dict[str, Any], dataset: Dataset) -> None:
    """Log the figures to the run that trained the model, at the step of its checkpoint.

    Not if this tracking store has no such run, or if the dataset is not the one it was trained on: the run's
    figures would then be of different data under one name; nor those of bf16, for the run's are of fp32. A note says
    so. Raises InputError where the store does not answer, and JobFailed where it takes no figures.
    """
    run_id = description.get("run_id")
    if run_id is None:
        return None  # no run of ours: a published checkpoint, for one
    if dataset.info.digest != description.get("dataset_digest"):
        return say("note: another dataset than the model's own, so the figures are not logged to its run")
    if evaluation.precision != "fp32":
        return say(f"note: figures of {evaluation.precision} are not logged; those of the model's run are of fp32")
    try:
        run = tracking.existing(run_id)
        if not run:
            return say(f"note: the tracking store has no run {run_id}, so the figures are not logged")
        # Not what the training has logged of its own validation at that step.
        run.log_points([(description["step"], evaluation.figures)])
    except MlflowException as error:
        raise JobFailed(f"the figures could not be logged to run {run_id} ({tracking.reason(error)})") from None
