"""Proposals how to read each column of a table; shown if a command names no attributes."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from data_prep.layouts.folders import is_picture
from data_prep.layouts.table_attributes import folded, kind_of, parts_of, proposals, quantiles, spelled
from data_prep.layouts.table_file import INNER, Column, opened
from data_prep.layouts.text_files import files_below
from data_prep.request import TableOptions

EXAMPLES = 4
MANY_VALUES = 1_000
"""Largest number of values of a proposed attribute."""
LOOKED_UP = 500
"""Number of a column's texts that are looked for among the pictures."""
SEPARATORS = (";", "|", ",")


@dataclass(frozen=True)
class ColumnReading:
    """Proposed reading of one column."""

    name: str
    kind: str
    """pictures, values, several values, numbers, dates, id, one value or empty."""
    values: int
    """Number of distinct texts."""
    coverage: float
    """Fraction of the rows that have a text."""
    examples: str
    """The most frequent texts."""
    option: str
    """Option that uses the column; empty if it is of no use."""
    separator: str | None = None
    """Separator of several values in one cell."""
    notes: list[str] = field(default_factory=list)


def column_readings(root: Path, options: TableOptions) -> list[ColumnReading]:
    """Read every column of the table, and return how each would be read. Raises InputError."""
    assert options.table is not None
    pictures = [path for path in files_below(root) if is_picture(path)]
    with opened(options.table) as table:
        names = [name for name in table.columns if name]
        records = table.read(names)
    stems: dict[str, str] = {}
    for path in pictures:
        stems.setdefault(PurePosixPath(path).stem, path)
    known = set(pictures)
    return [_reading(name, records.columns[name], len(records), known, stems, options) for name in names]


def _reading(
    name: str, column: Column, rows: int, known: set[str], stems: dict[str, str], options: TableOptions
) -> ColumnReading:
    counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.texts)).tolist()
    texts = {text: count for text, count in zip(column.texts.to_pylist(), counts, strict=True) if text.strip()}
    separator = options.separator or _separator(list(texts))
    missing = {folded(word) for word in options.missing}
    cells = {text: parts_of(text, separator, missing) for text in texts}
    frequency: Counter[str] = Counter()
    for text, parts in cells.items():
        for part in parts:
            frequency[part] += texts[text]
    if options.fold_case:
        spelling, every = spelled(frequency), frequency
        frequency = Counter()
        for part, count in every.items():
            frequency[spelling[part]] += count
    coverage = sum(texts[text] for text, parts in cells.items() if parts) / max(rows, 1)
    examples = ", ".join(text for text, _ in frequency.most_common(EXAMPLES))
    kind, option = kind_of(frequency), ""
    notes: list[str] = []
    if pattern := _pattern(name, list(texts)[:LOOKED_UP], known, stems):
        kind, option = "pictures", f"--image {shlex.quote(pattern)}"
    elif kind == "values" and any(len(parts) > 1 for parts in cells.values()):
        kind, notes = "several values", proposals(frequency, options.fold_case)
        option = f"--attribute {shlex.quote(name)}"
    elif kind == "numbers" and name.lower().endswith("id"):
        option = f"--group {shlex.quote(name)}"
    elif kind in ("numbers", "dates"):
        low, middle = quantiles(frequency)
        option = f"in --attributes-file: {{from: {name}, bins: {{low: {low}, middle: {middle}, high: }}}}"
    elif kind == "values":
        option = f"--attribute {shlex.quote(name)}" if len(frequency) <= MANY_VALUES else f"--group {shlex.quote(name)}"
        notes = proposals(frequency, options.fold_case)
    between = separator if kind == "several values" and separator != INNER else None
    return ColumnReading(name, kind, len(frequency), coverage, examples, option, between, notes)


def _pattern(name: str, texts: list[str], known: set[str], stems: dict[str, str]) -> str | None:
    """Return the pattern that leads from most of the texts to pictures; None if there is none."""
    patterns: Counter[str] = Counter()
    for text in texts:
        path = text.replace("\\", "/").removeprefix("./")
        if path in known:
            patterns[name] += 1
            continue
        found = stems.get(PurePosixPath(path).stem) or stems.get(PurePosixPath(path).name)
        if found and path in found:
            patterns[found.replace(path, f"{{{name}}}")] += 1
    best = patterns.most_common(1)
    return best[0][0] if best and best[0][1] > len(texts) / 2 else None


def _separator(texts: Sequence[str]) -> str | None:
    """Return the separator of a column of which some texts are made of the same parts; None if there is none."""
    for separator in (INNER, *SEPARATORS):
        if not any(separator in text for text in texts):
            continue
        parts = Counter(part.strip() for text in texts for part in text.split(separator))
        if len(parts) <= len(texts) and max(parts.values()) > 1 and "" not in parts:
            return separator
    return None


def to_add(options: TableOptions, readings: Sequence[ColumnReading]) -> str:
    """Return what to add to the given options, so that every column that is an attribute is read."""
    pictures = [one.option for one in readings if one.kind == "pictures"]
    image = [] if options.image else pictures[:1] or ["--image COLUMN"]
    used = [one.option for one in readings if one.option.startswith("--attribute")]
    separators = Counter(one.separator for one in readings if one.separator)  # a command has one for all columns
    separator = [f"--separator {shlex.quote(one)}" for one, _ in separators.most_common(1) if not options.separator]
    return " ".join([*image, *(used or ["--attribute NAME"]), *separator])
