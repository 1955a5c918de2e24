"""`agman evaluate`: attribute-specific retrieval (MAP, MAP@R, P@k, R@k) and triplet accuracy on one split.

On drawn datasets, whose regions are known, also how well the attention finds them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

import agman
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError
from data_prep.progress import Progress, silent
from data_prep.tables import SPLITS
from pipeline import tracking
from pipeline.console import say, show_table
from pipeline.looking import attention_figures, measure_attention

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


def evaluate(
    model: agman.RetrievalModel,
    config: dict[str, Any],
    dataset: Dataset,
    split: str = "test",
    *,
    threads: int = os.cpu_count() or 1,
    progress: Progress = silent,
) -> Evaluation:
    """Score `model` on the queries, candidates and triplets of `split`.

    AP of a query = (1/R) Σ over relevant ranks r of (relevant up to r)/r, with R all relevant candidates;
    MAP is the mean over all queries, `map_macro` the mean of the attributes' MAPs; docs/metrics.md has every figure's
    formula. A dataset of ready-made triplets has no queries; then the triplets alone are scored. Where true regions
    are known, `attention_*` are figures of at most looking.MEASURED pairs.
    """
    if split not in SPLITS[1:]:
        raise InputError(f"--split {split}: one of valid, test")
    pairs = dataset.retrieval(split) if dataset.info.queries[split] else NO_PAIRS
    triplets = dataset.triplets(split)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    agman.keep_freed_memory()
    model = model.to(device).eval()
    images = ImageStore(dataset, split, config["image_size"], threads=threads)

    # One pass over the images serves both tasks: the pairs of the ranking, then those of the triplets.
    asked = pd.concat([pairs[["image_id", "attribute"]], _pairs_of(triplets)], ignore_index=True)
    distinct = asked.drop_duplicates(ignore_index=True)
    advance = progress("images embedded", distinct["image_id"].nunique())
    ids, attributes = (distinct[name].to_numpy() for name in ("image_id", "attribute"))
    embedded = agman.embed_dataset(model, ids, attributes, images.read, device=device, advance=advance)
    row_of = distinct.reset_index().merge(asked, on=["image_id", "attribute"], how="right")["index"].to_numpy()
    embeddings = embedded[torch.from_numpy(row_of.copy())]

    of_pairs, of_triplets = embeddings[: len(pairs)], embeddings[len(pairs) :]
    attributes, values, roles = (pairs[name].to_numpy() for name in ("attribute", "value", "role"))
    results = agman.rank_candidates(of_pairs, attributes, values, roles == "query", dataset.info.attribute_names)
    summary = agman.summarise(results) if results else {}
    if len(triplets):
        summary["triplet_accuracy"] = agman.triplet_accuracy(*of_triplets.chunk(3))
    attention = measure_attention(model, images, dataset, pairs)
    if attention is not None:
        summary |= attention_figures(attention, dataset.info.attribute_names)
    figures = {f"{split}/{name}": value for name, value in summary.items()}
    return Evaluation(split, figures, pairs, of_pairs, results, attention)


def _pairs_of(triplets: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": np.concatenate([triplets.anchor, triplets.positive, triplets.negative]),
            "attribute": np.tile(triplets.attribute, 3),
        }
    )


def show(evaluation: Evaluation) -> None:
    """The figures as tables: a row for each attribute, then over all."""
    figures, split = evaluation.figures, evaluation.split
    if evaluation.results:
        _show_retrieval(evaluation)
    if evaluation.attention is not None:
        _show_attention(evaluation)
    if f"{split}/triplet_accuracy" in figures:
        say(f"triplet accuracy on {split}: {figures[f'{split}/triplet_accuracy']:.4f} (guessing: 0.5)")


AVERAGE_PRECISION = {"map": "MAP", "map_answerable": "MAP*", "chance": "chance", "ceiling": "ceiling"}
"""Keys of agman.summarise, and their headings."""


def _show_retrieval(evaluation: Evaluation) -> None:
    """Rows: attributes, their mean over queries, their mean over attributes. Two tables, so that 80 columns do."""
    figures = {name.split("/", 1)[1]: value for name, value in evaluation.figures.items()}
    ks = next(iter(evaluation.results.values())).precision
    at_k = {"map_at_r": "MAP@R"} | {f"p_at_{k}": f"P@{k}" for k in ks} | {f"r_at_{k}": f"R@{k}" for k in ks}
    columns = AVERAGE_PRECISION | at_k
    alone = {name: agman.summarise({name: result}) for name, result in evaluation.results.items()}
    macro = {key: sum(one[key] for one in alone.values()) / len(alone) for key in columns}
    macro["map_answerable"] = figures["map_macro_answerable"]  # an attribute of hopeless queries has no part in it
    counts = {name: [f"{len(one.relevant):,}", f"{one.candidates:,}"] for name, one in evaluation.results.items()}
    counts |= {"all": [f"{figures['queries']:,.0f}", ""], "macro": ["", ""]}
    lines = alone | {"all": figures, "macro": macro}
    header = ["attribute", *AVERAGE_PRECISION.values(), "queries", "cands"]
    rows = [[name, *_times_100(line, AVERAGE_PRECISION), *counts[name]] for name, line in lines.items()]
    show_table(
        f"Retrieval on {evaluation.split}, times 100 (all: mean over queries; macro: over attributes)", header, rows
    )
    rows = [[name, *_times_100(line, at_k)] for name, line in lines.items()]
    show_table(f"The first ranks on {evaluation.split}, times 100", ["attribute", *at_k.values()], rows)
    say(
        f"MAP*: without the {figures['unanswerable']:,.0f} queries that have no relevant candidate. They score 0; the "
        "ceiling is the share of the others"
    )


def _show_attention(evaluation: Evaluation) -> None:
    figures, split = evaluation.figures, evaluation.split
    ends = {name: f"/{name}" for name in evaluation.results} | {"all": ""}
    rows = [
        [name, *(f"{100 * figures[f'{split}/attention_{key}{end}']:.2f}" for key in ("mass", "hits", "area"))]
        for name, end in ends.items()
        if f"{split}/attention_mass{end}" in figures
    ]
    pairs = f"{figures[f'{split}/attention_pairs']:,.0f}"
    title = f"Attention in the true regions on {split}, times 100 ({pairs} pairs, evenly spaced)"
    show_table(title, ["attribute", "mass inside", "maximum inside", "area (chance)"], rows)


def _times_100(figures: dict[str, float], keys: Iterable[str]) -> list[str]:
    return [f"{100 * figures[key]:.2f}" for key in keys]


def log(evaluation: Evaluation, description: dict[str, Any], dataset: Dataset) -> None:
    """Log the figures to the run that trained the model, at the step of its checkpoint.

    Not if this tracking store has no such run, or if the dataset is not the one it was trained on: the run's
    figures would then be of different data under one name.
    """
    if description.get("run_id") is None:
        return None  # no run of ours: a published checkpoint, for one
    if dataset.info.digest != description.get("dataset_digest"):
        return say("note: another dataset than the model's own, so the figures are not logged to its run")
    run = tracking.existing(description.get("run_id"))
    if run:
        run.log(evaluation.figures, step=description["step"])
