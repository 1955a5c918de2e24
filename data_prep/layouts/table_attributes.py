"""Attributes of a table: which columns they are read from, and which text of a cell is which value.

    sleeve_length: {from: label, short: [T-Shirt, Polo], long: [Longsleeve, Hoodie]}
    price_level: {from: price, bins: {low: 20, middle: 50, high: }}

A bin ends before its number or date; the last one may have none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_prep.errors import InputError
from data_prep.hints import nearest
from data_prep.layouts.table_file import INNER, Column
from data_prep.request import TableOptions
from data_prep.tables import CHANGES, Change

NUMBERED_VALUES = 20
"""Largest number of distinct integers that are read as names of values."""
MISSING_WORDS = ("n/a", "na", "nan", "null", "none", "nil", "-", "--", "?", "unknown", "undefined", "#n/a")
"""Texts that often mean "no label"; proposed, never assumed."""
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\d.*)?")
NAMED = 5
"""Number of examples in a message."""


@dataclass(frozen=True)
class Definition:
    """Definition of an attribute by the user's options or file."""

    name: str
    column: str
    values: Mapping[str, tuple[str, ...]] | None = None
    """Value -> the texts that mean it; None if every text is a value."""
    bins: Mapping[str, Any] | None = None
    """Value -> number or date that it ends before, ascending; None for no end."""
    forbids: tuple[Change, ...] | None = None
    """Random changes of training pictures that would change the value; None: those that the name implies."""


def definitions(options: TableOptions, columns: Sequence[str] = ()) -> list[Definition]:
    """Return the attributes that the options ask for; by default one for each of `columns`. Raises InputError."""
    found = []
    for text in options.attributes:
        name, _, column = text.partition("=")
        if not name.strip():
            raise InputError(f"--attribute {text!r}: give NAME or NAME=COLUMN")
        found.append(Definition(name.strip(), column.strip() or name.strip()))
    if options.attributes_file:
        found += _from_file(options.attributes_file)
    found = found or [Definition(name, name) for name in columns]
    names = [one.name for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"attribute {twice[0]!r} is given twice; give the second another name: NAME=COLUMN")
    return found


def _from_file(file: Path) -> list[Definition]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{file}: is no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"{file}: should hold attributes, such as `sleeve: {{from: label, short: [T-Shirt, Polo]}}`")
    return [_defined(file, str(name), given) for name, given in content.items()]


def _defined(file: Path, name: str, given: Any) -> Definition:
    if isinstance(given, str):
        return Definition(name, given)
    if not isinstance(given, dict) or not isinstance(given.get("from"), str):
        raise InputError(f"{file}: {name}: should be {{from: COLUMN, VALUE: [TEXT, …], …}}")
    rest = {str(key): value for key, value in given.items() if key != "from"}
    forbids = _checked_forbids(f"{file}: {name}", rest.pop("forbids")) if "forbids" in rest else None
    if forbids is not None and not rest:
        return Definition(name, given["from"], forbids=forbids)
    if isinstance(bins := rest.pop("bins", None), dict) and not rest:
        return Definition(name, given["from"], bins=_checked_bins(f"{file}: {name}", bins), forbids=forbids)
    if bins is not None or not rest:
        raise InputError(f"{file}: {name}: give either values, VALUE: [TEXT, …], or bins: {{VALUE: END, …}}")
    values = {
        value: tuple(folded(str(text)) for text in (texts if isinstance(texts, list) else [texts]))
        for value, texts in rest.items()
    }
    every = [text for texts in values.values() for text in texts]
    if twice := [text for text in every if every.count(text) > 1]:
        raise InputError(f"{file}: {name}: {twice[0]!r} is named twice; one text means one value")
    return Definition(name, given["from"], values, forbids=forbids)


def _checked_forbids(where: str, forbids: Any) -> tuple[Change, ...]:
    if not isinstance(forbids, list) or not set(forbids) <= set(CHANGES):
        raise InputError(f"{where}: forbids: a list of random changes of pictures, of {', '.join(CHANGES)}")
    return tuple(forbids)


def _checked_bins(where: str, bins: dict[Any, Any]) -> dict[str, Any]:
    ends = [end for end in bins.values() if end is not None]
    plain = all(isinstance(end, int | float) for end in ends) or all(isinstance(end, date) for end in ends)
    if len(bins) < 2 or not plain or None in list(bins.values())[:-1] or any(b <= a for a, b in pairwise(ends)):
        raise InputError(f"{where}: bins: two or more, each with the number or date that it ends before, ascending")
    return {str(name): end for name, end in bins.items()}


def folded(text: str) -> str:
    """Return a text as it is compared: without blanks at its ends, in lower case."""
    return text.strip().casefold()


@dataclass(frozen=True)
class Labels:
    """The L labels of one attribute."""

    name: str
    values: tuple[str, ...]
    records: np.ndarray
    """L int32: index of the record of each label, ascending."""
    value: np.ndarray
    """L int32: index of each label's value."""
    several: bool
    """Whether a record can have several values."""
    notes: list[str] = field(default_factory=list)
    forbids: tuple[Change, ...] | None = None
    """Those of the definition."""


def labels_of(definition: Definition, column: Column, options: TableOptions) -> Labels:
    """Read the labels of an attribute. Raises InputError for numbers, dates and ids."""
    missing = {folded(word) for word in options.missing}
    cells = [parts_of(text, options.separator, missing) for text in column.texts.to_pylist()]
    counts = np.bincount(column.codes[column.codes >= 0], minlength=len(cells))
    frequency: dict[str, int] = {}
    for parts, count in zip(cells, counts.tolist(), strict=True):
        for part in parts:
            frequency[part] = frequency.get(part, 0) + count
    where = f"attribute {definition.name!r} (column {definition.column!r})"
    notes: list[str] = []
    if definition.bins:
        value_of, order = _binned(where, definition.bins, frequency), tuple(definition.bins)
    elif definition.values:
        value_of, order = _derived(where, definition.values, frequency, notes), tuple(definition.values)
    else:
        _check_texts(where, definition.column, frequency)
        notes = [f"{where}: {note}" for note in proposals(frequency, options.fold_case)]
        value_of = spelled(frequency) if options.fold_case else {text: text for text in frequency}
        order = tuple(sorted(set(value_of.values())))
    number = {value: index for index, value in enumerate(order)}
    of_cell = [list(dict.fromkeys(number[value_of[part]] for part in parts if part in value_of)) for parts in cells]
    several = bool(options.separator) or any(len(values) > 1 for values in of_cell)
    records, values = _spread(column.codes, of_cell)
    return Labels(definition.name, order, records, values, several, notes, definition.forbids)


def parts_of(text: str, separator: str | None, missing: set[str]) -> list[str]:
    """Return the values in a cell: trimmed, without empty ones and those that mean "no label"."""
    parts = text.split(INNER) if INNER in text else text.split(separator) if separator else [text]
    return [part for one in parts if (part := one.strip()) and part.casefold() not in missing]


def _spread(codes: np.ndarray, of_cell: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return record and value of every label: those of each record's text."""
    sizes = np.array([len(values) for values in of_cell] + [0], np.int32)  # the last for empty cells, code -1
    flat = np.array([value for values in of_cell for value in values] or [0], np.int32)
    starts = np.cumsum(sizes, dtype=np.int32) - sizes
    size = sizes[codes]
    records = np.repeat(np.arange(len(codes), dtype=np.int32), size)
    within = np.arange(len(records), dtype=np.int32) - np.repeat(np.cumsum(size, dtype=np.int32) - size, size)
    return records, flat[np.repeat(starts[codes], size) + within]


def _check_texts(where: str, column: str, frequency: Mapping[str, int]) -> None:
    kind = kind_of(frequency)
    examples = ", ".join(list(frequency)[:NAMED])
    if kind in ("numbers", "dates"):
        ends = quantiles(frequency)
        raise InputError(
            f"{where} holds {kind} ({examples}); bin them in --attributes-file: "
            f"{{NAME: {{from: {column}, bins: {{low: {ends[0]}, middle: {ends[1]}, high: }}}}}}"
        )
    if kind == "id":
        raise InputError(
            f"{where}: each of its {len(frequency):,} values has one row ({examples}): it is an id, not an attribute"
        )


def kind_of(frequency: Mapping[str, int]) -> str:
    """Return what a column's texts are: empty, one value, numbers, dates, id or values."""
    if len(frequency) < 2:
        return "one value" if frequency else "empty"
    if all(DATE.fullmatch(text) for text in frequency):
        return "dates"
    if all(_number(text) is not None for text in frequency):
        whole = all(text.lstrip("+-").isdecimal() for text in frequency)
        if not whole or len(frequency) > NUMBERED_VALUES:
            return "id" if whole and max(frequency.values()) == 1 else "numbers"
    return "id" if max(frequency.values()) == 1 and len(frequency) > 2 else "values"


def quantiles(frequency: Mapping[str, int]) -> tuple[str, str]:
    """Return two of the texts that divide them into three parts of about equal size."""
    ordered = sorted(frequency, key=lambda text: (_number(text) or 0.0, text))
    return ordered[len(ordered) // 3], ordered[2 * len(ordered) // 3]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if "_" in text or number != number else number


def proposals(frequency: Mapping[str, int], fold_case: bool = False) -> list[str]:
    """Return notes on texts that look like "no label", and on those that differ in case only."""
    notes = []
    if words := [text for text in frequency if text.casefold() in MISSING_WORDS]:
        notes.append(f"{_counted(words, frequency)} may mean that there is no label: --missing {','.join(words)!r}")
    if not fold_case:
        alike: dict[str, list[str]] = {}
        for text in frequency:
            alike.setdefault(text.casefold(), []).append(text)
        notes += [
            f"{_counted(texts, frequency)} differ in case only: --fold-case reads them as one value"
            for texts in alike.values()
            if len(texts) > 1
        ]
    return notes


def _counted(texts: Iterable[str], frequency: Mapping[str, int]) -> str:
    return ", ".join(f"{text!r} ({frequency[text]:,})" for text in texts)


def spelled(frequency: Mapping[str, int]) -> dict[str, str]:
    """Return text -> the most frequent text that differs in case only."""
    best: dict[str, str] = {}
    for text in sorted(frequency, key=lambda text: (-frequency[text], text)):
        best.setdefault(text.casefold(), text)
    return {text: best[text.casefold()] for text in frequency}


def _derived(
    where: str, values: Mapping[str, tuple[str, ...]], frequency: Mapping[str, int], notes: list[str]
) -> dict[str, str]:
    value_of = {text: value for value, texts in values.items() for text in texts}
    present = {text.casefold() for text in frequency}
    absent = [text for text in value_of if text not in present]
    if len(absent) == len(value_of):
        hint = nearest(absent[0], list(frequency)[:20])
        raise InputError(
            f"{where}: the column has none of the texts that its values are made of ({absent[0]!r}: {hint})"
        )
    notes += [f"{where}: no cell is {text!r}; {nearest(text, list(frequency)[:200])}" for text in absent]
    return {text: value_of[text.casefold()] for text in frequency if text.casefold() in value_of}


def _binned(where: str, bins: Mapping[str, Any], frequency: Mapping[str, int]) -> dict[str, str]:
    names, ends = list(bins), [end for end in bins.values() if end is not None]
    dated = isinstance(ends[0], date)
    read: Callable[[str], Any] = _moment if dated else _number
    limits = [_moment(str(end)) if dated else end for end in ends]
    value_of = {}
    for text in frequency:
        place = read(text)
        if place is None:
            raise InputError(
                f"{where}: {text!r} is no {'date (YYYY-MM-DD)' if dated else 'number'}; name it in --missing"
            )
        bin_number = sum(place >= limit for limit in limits)
        if bin_number < len(names):
            value_of[text] = names[bin_number]
    return value_of


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        return None
