"""`agman evaluate`: attribute-specific retrieval (MAP, P@k, R@k) and triplet accuracy on one split."""

from __future__ import annotations

import os
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
from pipeline.loop import embed, rank_candidates

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
    MAP is the mean over all queries, `map_macro` the mean of the attributes' MAPs. A dataset of ready-made triplets
    has no queries; then the triplets alone are scored.
    """
    if split not in SPLITS[1:]:
        raise InputError(f"--split {split}: one of valid, test")
    pairs = dataset.retrieval(split) if dataset.info.queries[split] else NO_PAIRS
    triplets = dataset.triplets(split)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    model = model.to(device)
    images = ImageStore(dataset, split, config["image_size"], threads=threads)

    # One pass over the images serves both tasks: the pairs of the ranking, then those of the triplets.
    asked = pd.concat([pairs[["image_id", "attribute"]], _pairs_of(triplets)], ignore_index=True)
    distinct = asked.drop_duplicates(ignore_index=True)
    advance = progress("images embedded", distinct["image_id"].nunique())
    embedded = embed(model, distinct, images, device, "fp32", advance=advance)
    row_of = distinct.reset_index().merge(asked, on=["image_id", "attribute"], how="right")["index"].to_numpy()
    embeddings = embedded[torch.from_numpy(row_of.copy())]

    of_pairs, of_triplets = embeddings[: len(pairs)], embeddings[len(pairs) :]
    results = rank_candidates(pairs, of_pairs, dataset.info.attribute_names)
    summary = agman.summarise(results) if results else {}
    if len(triplets):
        summary["triplet_accuracy"] = agman.triplet_accuracy(*of_triplets.chunk(3))
    figures = {f"{split}/{name}": value for name, value in summary.items()}
    return Evaluation(split, figures, pairs, of_pairs, results)


def _pairs_of(triplets: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": np.concatenate([triplets.anchor, triplets.positive, triplets.negative]),
            "attribute": np.tile(triplets.attribute, 3),
        }
    )


def show(evaluation: Evaluation) -> None:
    """The figures as a table: a row for each attribute, then over all."""
    figures, split = evaluation.figures, evaluation.split
    if evaluation.results:
        _show_retrieval(evaluation)
    if f"{split}/triplet_accuracy" in figures:
        say(f"triplet accuracy on {split}: {figures[f'{split}/triplet_accuracy']:.4f}")


def _show_retrieval(evaluation: Evaluation) -> None:
    figures, split = evaluation.figures, evaluation.split
    rows = []
    for name, result in evaluation.results.items():
        chance = float(agman.chance_average_precision(result.relevant, result.candidates).mean())
        rows.append(
            [
                name,
                f"{figures[f'{split}/map/{name}']:.4f}",
                f"{chance:.4f}",
                str(len(result.relevant)),
                str(result.candidates),
            ]
        )
    over_all = [f"{figures[f'{split}/{key}']:.4f}" for key in ("map", "chance")]
    queries = int(figures[f"{split}/queries"])
    rows.append(["all (query-weighted)", *over_all, str(queries), ""])
    rows.append(["all (macro)", f"{figures[f'{split}/map_macro']:.4f}", "", "", ""])
    show_table(f"Retrieval on {split}", ["attribute", "MAP", "chance", "queries", "candidates"], rows)
    ks = [key.rsplit("_", 1)[1] for key in figures if key.startswith(f"{split}/p_at_")]
    others = [[f"P@{k}", f"{figures[f'{split}/p_at_{k}']:.4f}"] for k in ks]
    others += [[f"R@{k}", f"{figures[f'{split}/r_at_{k}']:.4f}"] for k in ks]
    others += [
        ["MAP without hopeless queries", f"{figures[f'{split}/map_answerable']:.4f}"],
        ["queries without a relevant candidate", str(int(figures[f"{split}/unanswerable"]))],
    ]
    show_table("", ["", split], others)


def log(evaluation: Evaluation, description: dict[str, Any], dataset: Dataset) -> None:
    """Log the figures to the run that trained the model, at the step of its checkpoint.

    Not if this tracking store has no such run, or if the dataset is not the one it was trained on: the run's
    figures would then be of different data under one name.
    """
    if dataset.info.digest != description.get("dataset_digest"):
        return say("note: another dataset than the model's own, so the figures are not logged to its run")
    run = tracking.existing(description.get("run_id"))
    if run:
        run.log(evaluation.figures, step=description["step"])
