"""The model card: data, recipe, scores and limits of a registered version, as Markdown.

It is stored beside the model's weights as MODEL_CARD.md, and as the version's description.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from agman.bootstrap import Interval
from agman.pixels import IMAGENET, Pixels
from data_prep.tables import SPLITS
from data_prep.words import counted
from pipeline.common.errors import without_credentials
from pipeline.common.markdown import code, plain
from pipeline.evaluation.chance import chance_beside
from pipeline.evaluation.few import marked, meaning_for, validation_queries
from pipeline.evaluation.validation import SPLIT

FILE = "MODEL_CARD.md"
DESCRIPTION_LENGTH = 5_000
"""Longest description that MLflow's databases hold, in characters."""
PRETRAINED = "The backbone started from the weights {} and keeps the bias of their training pictures."
RANDOM = "The backbone started from random weights, not from ImageNet's: it has seen only its training pictures."
DRAWN = (
    "A program drew the pictures: garments in plain colours on plain grounds. The scores show that the software works; "
    "they do not apply to photographs."
)
PHOTOGRAPHS = "All photographs are from {}. Other shops, cameras, poses and people were never measured."
UNKNOWN_PICTURES = "The checkpoint does not say whether its pictures are photographs or drawn."


@dataclass(frozen=True)
class Tested:
    """Scores that `agman promote` measured."""

    metric: str
    """MAP, or triplet accuracy."""
    intervals: Mapping[str, Interval]
    """Attribute -> score with its 95 % interval; over all queries (or triplets) under ""."""
    chance: Mapping[str, float]
    """Chance in the same form."""
    dataset: str
    digest: str
    split: str
    date: str


def write_card(
    name: str,
    build: Mapping[str, Any],
    description: Mapping[str, Any],
    valid: Mapping[str, float],
    tags: Mapping[str, str],
    tested: Tested | None = None,
) -> str:
    """Return the card of a version, as Markdown.

    Args:
        name: name of the registered model.
        build: arguments of `agman.build`.
        description: description in the checkpoint.
        valid: validation metrics, as `validation_of` returns them.
        tags: tags of the version; they name who trained it, and the study that the settings come from.
        tested: scores on another split, if measured.
    """
    attributes = description["attributes"]
    pixels = Pixels.of(build["pixels"]) if "pixels" in build else IMAGENET
    title = f"# {plain(name)}: {build['name']} on {build['backbone']}"
    about = (
        f"Pictures in, one embedding of {build['embedding_dim']} numbers (unit length) for each of "
        f"{counted(len(attributes), 'attribute')} out; the cosine of two is the similarity of the pictures under that "
        "attribute. Written by "
        f"agman-pipeline {version('agman-pipeline')}."
    )
    sections = [
        f"{title}\n\n{about}",
        f"## Data\n\n{_data(description, pixels)}",
        f"## Recipe\n\n{_recipe(description, tags)}",
        f"## Scores\n\n{_scores(description, valid, tested)}",
        *([f"## Naming values\n\n{naming}"] if (naming := _naming(description, valid)) else []),
        f"## Limits\n\n{_limits(description, tags, tested)}",
    ]
    return without_credentials("\n\n".join(sections)) + "\n"


def as_description(card: str) -> str:
    """Return the card, cut at the end of a line if it is too long for the registry's databases."""
    if len(card) <= DESCRIPTION_LENGTH:
        return card
    rest = f"\n\n… cut here; {FILE} beside the model has the card as it was registered."
    return card[: DESCRIPTION_LENGTH - len(rest)].rpartition("\n")[0] + rest


def _data(description: Mapping[str, Any], pixels: Pixels) -> str:
    facts = description.get("data", {})
    pictures = {True: "drawn by a program", False: "photographs", None: "unknown"}[facts.get("drawn")]
    rows = {
        "dataset": description.get("dataset", "unknown"),
        "digest": description.get("dataset_digest") or "unknown",
        "layout": facts.get("layout", "unknown"),
        "pictures": f"{pictures}, {description['image_size']} px, made square by {description.get('fit', 'crop')}",
        "pixels": pixels.words,
    }
    if facts.get("split"):
        rows["split"] = facts["split"]
    for what in ("images", "queries"):
        if what in facts:
            rows[what] = ", ".join(f"{split} {facts[what][split]:,}" for split in SPLITS)
    if "triplets" in facts:
        rows["triplets an epoch"] = f"{facts['triplets']:,}"
    return _table(["", ""], [[key, str(value)] for key, value in rows.items()])


def _recipe(description: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    settings = {key: value for key, value in description.get("training", {}).items() if value is not None}
    lines = [" ".join(code(f"{key}={value}") for key, value in settings.items()) or "Settings unknown."]
    if description.get("run_id"):
        lines.append(f"Checkpoint of step {description.get('step', 0):,}, MLflow run {code(description['run_id'])}.")
    if "trained_by" in tags:
        how = f" with {code(tags['command'])}" if "command" in tags else ""
        commit = f", git commit {code(tags['git_commit'])}" if "git_commit" in tags else ""
        lines.append(f"Trained by {plain(tags['trained_by'])}{how}{commit}.")
    if "search_run_id" in tags:
        study, run_id = (code(tags.get(key, "")) for key in ("search", "search_run_id"))
        lines.append(f"The settings come from the study {study}, MLflow run {run_id}.")
    return "\n\n".join(lines)


def _scores(description: Mapping[str, Any], valid: Mapping[str, float], tested: Tested | None) -> str:
    metric = tested.metric if tested else "triplet accuracy" if f"{SPLIT}/triplet_accuracy" in valid else "MAP"
    key = f"{SPLIT}/triplet_accuracy" if metric == "triplet accuracy" else f"{SPLIT}/map"
    counts = description.get("data", {}).get("values")
    queries = validation_queries(description["attributes"], description.get("data", {}).get("queries_of", {}))
    header = ["attribute", *(["values"] if counts else []), "validation", "chance"]
    header += [f"{plain(tested.split)} [95 % interval]", "chance"] if tested else []
    rows = []
    for number, name in [*enumerate(description["attributes"]), (None, "")]:
        row = [marked(name, queries.get(name)) or "all"]
        if counts:
            row.append("" if number is None else str(counts[number]))
        metric_name = f"{key}/{name}" if name else key
        row += [_percent(valid.get(metric_name)), _percent(chance_beside(metric_name, valid))]
        if tested:
            row += [_interval(tested.intervals.get(name)), _percent(tested.chance.get(name))]
        rows.append(row)
    said = f"{metric}, times 100. "
    if tested:
        same = tested.digest == description.get("dataset_digest")
        where = "the dataset of its training" if same else "not the dataset of its training"
        said += (
            f"Measured on {plain(tested.split)} of {plain(tested.dataset)} ({where}), digest "
            f"{code(tested.digest)}, {tested.date}."
        )
    else:
        said += "Not measured on test yet; `agman promote` does that."
    notes = "".join(f"\n\n{line}" for line in meaning_for(queries.values()))
    return f"{said}\n\n{_table(header, rows)}{notes}"


def _naming(description: Mapping[str, Any], valid: Mapping[str, float]) -> str:
    """Return the scores of the values that the prototypes name on validation; empty without prototypes."""
    keys = ("accuracy", "chance", "macro_f1", "calibration_error", "coverage", "value_map", "value_chance")
    queries = validation_queries(description["attributes"], description.get("data", {}).get("queries_of", {}))
    rows = [
        [
            marked(name, queries.get(name)) or "mean",
            *(_percent(valid.get(f"{SPLIT}/tag_{key}/{name}".rstrip("/"))) for key in keys),
        ]
        for name in (*description["attributes"], "")
    ]
    if not any("".join(row[1:]) for row in rows):
        return ""
    header = ["attribute", "accuracy", "chance", "macro F1", "calibration error", "coverage"]
    return (
        "Scores of the nearest prototype on validation, times 100, where temperature and threshold were chosen: "
        "optimistic. Chance is the most frequent value; coverage is at a precision of 95; value MAP is of searches "
        "by a value's name. `agman tag` names values, `agman search --value` finds them.\n\n"
        + _table([*header, "value MAP", "its chance"], rows)
    )


def _limits(description: Mapping[str, Any], tags: Mapping[str, str], tested: Tested | None) -> str:
    drawn = description.get("data", {}).get("drawn")
    dataset = plain(str(description.get("dataset", "the dataset")))
    lines = [UNKNOWN_PICTURES if drawn is None else DRAWN if drawn else PHOTOGRAPHS.format(dataset)]
    training = description.get("training", {})
    if "weights" in training:
        weights = description.get("initial_weights", training["weights"])
        lines.append(PRETRAINED.format(code(str(weights))) if weights else RANDOM)
    lines.append(
        f"It knows {counted(len(description['attributes']), 'attribute')}: "
        f"{', '.join(map(plain, description['attributes']))}. "
        "Embeddings under different attributes cannot be compared."
    )
    if "doubt" in tags:
        lines.append(f"Nothing shows that it beats chance: {plain(tags['doubt'])}.")
    lines.append("One training, one seed, one split. The intervals cover other queries, not other trainings.")
    lines.append("The checkpoint was selected by its validation score, which is therefore optimistic.")
    if tested:
        lines.append("Models are promoted by their score on this split: with every promotion it gets more optimistic.")
    return "\n".join(f"- {line}" for line in lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{_percent(interval.mean)} [{_percent(interval.low)}, {_percent(interval.high)}]"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
