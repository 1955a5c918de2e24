"""An evaluation as tables on the terminal: as the papers print them, beside published results, and in detail."""

from __future__ import annotations

import re
from collections.abc import Iterable

import agman
from data_prep.words import counted
from pipeline.common.console import line_width, say, show, show_table
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.few import marked, meaning_for, query_count
from pipeline.evaluation.published_results import Benchmark
from pipeline.evaluation.tagging import PRECISION
from pipeline.evaluation.validation import SPLIT

OVERALL = "overall"
THIS = "this model"
TABLE_3 = ["system", "average loss", "accuracy, %"]
"""Columns of the paper's Table 3."""
AVERAGE_PRECISION = {"map": "MAP", "map_answerable": "MAP*", "chance": "chance", "ceiling": "ceiling"}
"""Keys of agman.summarise and their headings."""
NAMING = {
    "accuracy": "accuracy",
    "chance": "chance",
    "macro_f1": "macro\nF1",
    "calibration_error": "calib.\nerror",
    "precision": "precision",
    "coverage": "coverage",
    "value_map": "value\nMAP",
    "value_chance": "its\nchance",
}
"""Fields of NamingScores and their headings."""


def show_evaluation(evaluation: Evaluation) -> None:
    """Show the tables of the papers, then the details.

    Published results are in the model's tables if they are of the same split, otherwise in a separate table.
    """
    if evaluation.results:
        _show_map(evaluation)
        _show_retrieval(evaluation)
    if evaluation.triplets:
        _show_triplets(evaluation)
    if evaluation.naming:
        show_table(*naming_table(evaluation))
    if evaluation.attention is not None:
        _show_attention(evaluation)
    if evaluation.benchmark:
        if evaluation.difference:
            _show_published(evaluation.benchmark, evaluation.difference)
        show(f"published: {evaluation.benchmark.sources}")
    if evaluation.evidence and evaluation.evidence.doubt:
        say(f"note: {evaluation.evidence.doubt}")
    for line in meaning_for(evaluation.queries.values()):
        say(line)


def _show_map(evaluation: Evaluation) -> None:
    _show_wide(*map_table(evaluation))


def map_table(evaluation: Evaluation) -> tuple[str, list[str], list[list[str]]]:
    """Return MAP with its interval as the paper's Tables 1 and 2: title, names of the attributes, rows.

    A row has a label, a cell for each attribute, and the overall value last.
    """
    intervals = evaluation.intervals
    names = [name for name in intervals if name]
    rows = [
        [label, *(f"{100 * getattr(intervals[name], bound):.2f}" for name in (*names, ""))]
        for label, bound in ((THIS, "mean"), ("95 %: from", "low"), ("95 %: to", "high"))
    ]
    chance = evaluation.scores.mean_chance
    rows.append(["chance", *(f"{100 * chance[name]:.2f}" for name in (*names, ""))])
    counts = evaluation.queries
    rows.append(["queries", *(query_count(counts[name]) for name in names), query_count(sum(counts.values()))])
    title = f"MAP on {evaluation.split}, times 100{_precision(evaluation)}"
    if _beside(evaluation, of_triplets=False):
        assert evaluation.benchmark
        title, rows = f"{title}; below it as published", rows + _published_map(evaluation.benchmark, names)
    return title, names, rows


def _show_triplets(evaluation: Evaluation) -> None:
    title, names, rows = triplet_table(evaluation)
    _show_wide(title, names, rows)
    if _beside(evaluation, of_triplets=True):
        assert evaluation.benchmark
        mine = [THIS, rows[1][-1], rows[0][-1]]
        title = f"Triplets on {evaluation.split}; below it as published"
        show_table(title, TABLE_3, [mine, *_published_triplets(evaluation.benchmark)])


def triplet_table(evaluation: Evaluation) -> tuple[str, list[str], list[list[str]]]:
    """Return accuracy and loss of the triplets in the form of `map_table`.

    The paper's Table 3 has the overall values only.
    """
    metrics = _metrics(evaluation)
    ends = [*(f"/{name}" for name in evaluation.triplets), ""]
    counts = [*(len(one.correct) for one in evaluation.triplets.values()), int(metrics["triplets"])]
    rows = [
        ["accuracy, %", *(f"{100 * metrics[f'triplet_accuracy{end}']:.2f}" for end in ends)],
        ["loss", *(f"{metrics[f'triplet_loss{end}']:.4f}" for end in ends)],
        ["triplets", *(f"{count:,}" for count in counts)],
    ]
    margin = f"margin {evaluation.margin:g}" + (
        "" if evaluation.margin_known else ", the papers', the model's is unknown"
    )
    title = f"Triplets on {evaluation.split} (guessing: 50 %; {margin}){_precision(evaluation)}"
    return title, list(evaluation.triplets), rows


def naming_table(evaluation: Evaluation) -> tuple[str, list[str], list[list[str]]]:
    """Return title, header and rows of what the model's prototypes name: a row for each attribute, and their mean."""
    metrics, pictures = _metrics(evaluation), {name: one.pictures for name, one in evaluation.naming.items()}
    rows = [
        [marked(name, pictures[name]) if name else "mean", *_named(metrics, name), f"{pictures.get(name, 0):,}"]
        for name in (*pictures, "")
    ]
    rows[-1][-1] = ""
    optimistic = ", which this is" if evaluation.split == SPLIT else ""
    title = (
        f"Values named on {evaluation.split}, times 100 (chance: always the most frequent value; precision and "
        f"coverage: with the threshold that gave {100 * PRECISION:.0f} on validation{optimistic}; value MAP: searches "
        "for each value)"
    )
    return title, ["attribute", *NAMING.values(), "pictures"], rows


def _named(metrics: dict[str, float], name: str) -> list[str]:
    found = [metrics.get(f"tag_{key}/{name}" if name else f"tag_{key}") for key in NAMING]
    return ["" if value is None else f"{100 * value:.1f}" for value in found]


def _beside(evaluation: Evaluation, of_triplets: bool) -> bool:
    """Return whether metrics of this kind are published on this very split."""
    benchmark = evaluation.benchmark
    return benchmark is not None and not evaluation.difference and benchmark.of_triplets == of_triplets


def _show_published(benchmark: Benchmark, difference: str) -> None:
    title = f"Published on {benchmark.name}, {difference}: not to be compared with the above"
    if benchmark.of_triplets:
        show_table(title, TABLE_3, _published_triplets(benchmark))
    else:
        _show_wide(title, benchmark.attributes, _published_map(benchmark, benchmark.attributes))


def _published_map(benchmark: Benchmark, names: Iterable[str]) -> list[list[str]]:
    """Return a row for each system: MAP of these attributes (empty if not published), and the overall MAP."""
    rows = []
    for one in benchmark.results:
        # Empty if only the overall MAP is published.
        known = dict(zip(benchmark.attributes, one.of_attributes, strict=False))
        of_attributes = [f"{known[name]:.2f}" if name in known else "" for name in names]
        rows.append([one.system, *of_attributes, f"{one.overall:.2f}"])
    return rows


def _published_triplets(benchmark: Benchmark) -> list[list[str]]:
    return [
        [one.system, "" if one.loss is None else f"{one.loss:.4f}", f"{one.overall:.2f}"] for one in benchmark.results
    ]


def _precision(evaluation: Evaluation) -> str:
    return "" if evaluation.precision == "fp32" else f", embedded in {evaluation.precision}"


def _metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return the metrics without the split in front of their names."""
    return {name.split("/", 1)[1]: value for name, value in evaluation.metrics.items()}


def _show_wide(title: str, names: Iterable[str], rows: list[list[str]]) -> None:
    """Show a column for each attribute and the overall value last, in several tables if the terminal is too narrow."""
    headings = [re.sub(r"[_ -]", "\n", name) for name in (*names, OVERALL)]
    first = max(len(row[0]) for row in rows)
    widths = [
        max(*map(len, heading.split("\n")), *(len(row[number]) for row in rows))
        for number, heading in enumerate(headings, start=1)
    ]
    start = 0
    while start < len(headings):
        end, needed = start, first + 4
        while end < len(headings) and (end == start or needed + widths[end] + 3 <= line_width()):
            needed += widths[end] + 3
            end += 1
        cut = [[row[0], *row[1 + start : 1 + end]] for row in rows]
        show_table(title if not start else "", ["", *headings[start:end]], cut)
        start = end


def _show_retrieval(evaluation: Evaluation) -> None:
    """Show a row for each attribute, the mean over queries and the mean over attributes.

    They are two tables, so that each fits into 80 columns.
    """
    metrics = _metrics(evaluation)
    ks = next(iter(evaluation.results.values())).precision
    at_k = {"map_at_r": "MAP@R"} | {f"p_at_{k}": f"P@{k}" for k in ks} | {f"r_at_{k}": f"R@{k}" for k in ks}
    columns = AVERAGE_PRECISION | at_k
    alone = {name: agman.summarise({name: result}) for name, result in evaluation.results.items()}
    macro = {key: sum(one[key] for one in alone.values()) / len(alone) for key in columns}
    macro["map_answerable"] = metrics["map_macro_answerable"]  # leaves out attributes without an answerable query
    queries = evaluation.queries
    counts = {name: [query_count(queries[name]), f"{one.candidates:,}"] for name, one in evaluation.results.items()}
    counts |= {"all": [query_count(int(metrics["queries"])), ""], "macro": ["", ""]}
    lines = alone | {"all": metrics, "macro": macro}
    header = ["attribute", *AVERAGE_PRECISION.values(), "queries", "cands"]
    rows = [[name, *_times_100(line, AVERAGE_PRECISION), *counts[name]] for name, line in lines.items()]
    show_table(
        f"Retrieval on {evaluation.split}, times 100 (all: mean over queries; macro: over attributes)", header, rows
    )
    rows = [[marked(name, queries.get(name)), *_times_100(line, at_k)] for name, line in lines.items()]
    show_table(f"The first ranks on {evaluation.split}, times 100", ["attribute", *at_k.values()], rows)
    show(
        f"MAP*: without queries that have no relevant candidate ({metrics['unanswerable']:,.0f}). Those score 0, so "
        "the ceiling is the share of the others"
    )


def _show_attention(evaluation: Evaluation) -> None:
    metrics, split = evaluation.metrics, evaluation.split
    ends = {name: f"/{name}" for name in evaluation.results} | {"all": ""}
    rows = [
        [
            marked(name, evaluation.queries.get(name)),
            *(f"{100 * metrics[f'{split}/attention_{key}{end}']:.2f}" for key in ("mass", "hits", "area")),
        ]
        for name, end in ends.items()
        if f"{split}/attention_mass{end}" in metrics
    ]
    pairs = counted(int(metrics[f"{split}/attention_pairs"]), "pair")
    title = f"Attention in the true regions on {split}, times 100 ({pairs}, evenly spaced)"
    show_table(title, ["attribute", "mass inside", "maximum inside", "area (chance)"], rows)


def _times_100(metrics: dict[str, float], keys: Iterable[str]) -> list[str]:
    return [f"{100 * metrics[key]:.2f}" for key in keys]
