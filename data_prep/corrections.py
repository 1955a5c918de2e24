"""Corrections of labels, one row of a CSV file each, as the page of `agman audit` writes them.

They are applied after the split is made, so that no picture moves to another split because a label was corrected.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from data_prep.annotation import Annotation, Reject, path_codes
from data_prep.blocks import bincount, blocks_of, take
from data_prep.errors import InputError
from data_prep.hints import nearest
from data_prep.words import counted

COLUMNS = ("dataset", "digest", "image", "attribute", "value", "action", "new_value")
"""`dataset` and `digest` are the name and `labels_digest` of the dataset; `action` is one of ACTIONS."""
KEEP, CHANGE, DROP = ACTIONS = ("keep", "change", "drop")
"""The label is right; has another value, `new_value`; is left out, while the picture's other labels stay."""
DROPPED = "dropped_by_correction"
"""Reason of the rejects."""


class Correction(NamedTuple):
    """A decision about one label."""

    line: int
    image: str
    attribute: str
    value: str
    action: str
    new_value: str

    @property
    def label(self) -> tuple[str, str, str]:
        """Picture, attribute and value that it is about."""
        return self.image, self.attribute, self.value

    @property
    def new_label(self) -> tuple[str, str, str]:
        """Key of the label after a change: picture, attribute and the new value."""
        return self.image, self.attribute, self.new_value


def labels_digest(annotation: Annotation) -> str:
    """Return the sha256 of the labels: path, attribute and value of each, whatever their order and split."""
    rows = annotation.rows
    codes, paths = path_codes(rows)
    used = np.flatnonzero(bincount(codes, len(paths)))
    order = used[paths[used].argsort()]
    rank = np.empty(len(paths), np.int32)
    rank[order] = np.arange(len(order))
    total = hashlib.sha256(repr([(one.name, one.values) for one in annotation.attributes]).encode())
    for name in paths[order]:
        total.update(f"{name}\n".encode("utf-8", "surrogateescape"))
    number = take(rank, codes)
    for own in blocks_of(number):
        columns = number[own], rows["attribute"].to_numpy()[own], rows["value"].to_numpy()[own]
        table = np.stack(columns, axis=1, dtype=np.int64)
        total.update(table[np.lexsort(table.T[::-1])].tobytes())
    return total.hexdigest()


@dataclass(frozen=True)
class CorrectionFile:
    """Corrections of one file, all for the same dataset."""

    path: Path
    digests: dict[str, int]
    """`labels_digest` of the dataset -> first line with it; a line with an empty cell states none."""
    corrections: tuple[Correction, ...]


def read_corrections(path: Path, name: str) -> CorrectionFile:
    """Read a file of corrections. Raises InputError if it is damaged or for another dataset than `name`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            header = next(reader, [])
            rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise InputError(f"--corrections {path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--corrections {path}: is not a CSV file in UTF-8 ({error})") from error
    if header != [*COLUMNS]:
        wanted = ",".join(COLUMNS)
        raise InputError(
            f"--corrections {path}: its first line is not {wanted}, as the page of `agman audit` writes it"
        )
    digests: dict[str, int] = {}
    found: dict[tuple[str, str, str], Correction] = {}
    for line, row in rows:
        where = f"--corrections {path} line {line}"
        if len(row) != len(COLUMNS):
            raise InputError(f"{where}: {counted(len(row), 'cell')} instead of {len(COLUMNS)}")
        dataset, digest, *cells = row
        if dataset != name:
            raise InputError(
                f"{where}: is for dataset {dataset!r}, and this one is {name!r}; give the file made for it"
            )
        digests.setdefault(digest, line)
        one = Correction(line, *cells)
        _check(one, where)
        if (other := found.setdefault(one.label, one)) is not one:
            raise InputError(f"{where}: line {other.line} is about the same label; keep one of them")
    return CorrectionFile(path, digests, tuple(found.values()))


def _check(one: Correction, where: str) -> None:
    if one.action not in ACTIONS:
        raise InputError(f"{where}: action {one.action!r} is none of {', '.join(ACTIONS)}")
    if (one.action == CHANGE) != bool(one.new_value) or one.new_value == one.value:
        wanted = "another value" if one.action == CHANGE else "nothing"
        raise InputError(f"{where}: {one.action} needs {wanted} in new_value, not {one.new_value!r}")


def correct(annotation: Annotation, files: Sequence[CorrectionFile], digest: str) -> tuple[Annotation, dict[str, int]]:
    """Apply corrections, file by file, to labels whose digest as they were read is `digest`.

    Returns the corrected annotation, and the number of corrections of each action. Raises InputError for a file that
    was made for other labels, and for a correction whose label is not there.
    """
    counts: Counter[str] = Counter()
    for file in files:
        for made_for, line in file.digests.items():
            if made_for not in ("", digest):
                raise InputError(
                    f"--corrections {file.path} line {line}: is for other labels of this dataset (digest "
                    f"{made_for[:12]}, these have {digest[:12]}): files or options differ; audit them again, or empty "
                    "the column digest to apply what still fits"
                )
        annotation = _apply(annotation, file)
        counts.update(one.action for one in file.corrections)
    if files:
        annotation = replace(annotation, reviewed=_reviewed(annotation, files))
    return annotation, {action: counts[action] for action in ACTIONS if counts[action]}


def _apply(annotation: Annotation, file: CorrectionFile) -> Annotation:
    row_of = _rows_of(annotation, {one.image for one in file.corrections})
    _check_fit(annotation, file, row_of.keys())
    rows, rejects, repeats = annotation.rows, list(annotation.rejects), annotation.repeats
    value, kept = rows["value"].to_numpy(np.int32).copy(), np.ones(len(rows), bool)
    changing = [one for one in file.corrections if one.action != KEEP]
    found = [row_of.pop(one.label) for one in changing]
    for one, row in zip(changing, found, strict=True):
        if one.action == DROP:
            kept[row] = False
            rejects.append(_dropped(rows.iloc[row], one, file.path.name))
        elif one.new_label in row_of:  # one of several values of the picture
            kept[row] = False
            repeats += 1
        else:
            row_of[one.new_label] = row
            value[row] = _values(annotation)[one.attribute].index(one.new_value)
    rows = rows.assign(value=value)[kept].reset_index(drop=True)
    return replace(annotation, rows=rows, rejects=rejects, repeats=repeats)


def _reviewed(annotation: Annotation, files: Sequence[CorrectionFile]) -> pd.DataFrame:
    """Return the labels that corrections have kept or given, and that no later ones have changed or dropped."""
    decided = [one for file in files for one in file.corrections]
    right = {one.new_label if one.action == CHANGE else one.label for one in decided if one.action != DROP}
    row_of = _rows_of(annotation, {one.image for one in decided})
    numbers = sorted(row for label, row in row_of.items() if label in right)
    return annotation.rows.iloc[numbers][["path", "attribute", "value"]]


def _values(annotation: Annotation) -> dict[str, tuple[str, ...]]:
    return {one.name: one.values for one in annotation.attributes}


def _rows_of(annotation: Annotation, images: set[str]) -> dict[tuple[str, str, str], int]:
    """Return the row of every label of some pictures: (path, attribute, value) -> number."""
    numbers = np.flatnonzero(annotation.rows["path"].isin(images).to_numpy())
    some = annotation.rows.iloc[numbers]
    labels = zip(some["path"], some["attribute"], some["value"], numbers.tolist(), strict=True)
    attributes = annotation.attributes
    return {(path, attributes[a].name, attributes[a].values[v]): number for path, a, v, number in labels}


def _check_fit(annotation: Annotation, file: CorrectionFile, labels: Collection[tuple[str, str, str]]) -> None:
    """Raise InputError for corrections whose label, or new value, is not there."""
    unfit = [one for one in file.corrections if one.label not in labels]
    if unfit:
        first, of = unfit[0], counted(len(file.corrections), "correction")
        raise InputError(
            f"--corrections {file.path}: {len(unfit):,} of {of} without their label, the first in line {first.line}: "
            f"{first.image} has no {first.attribute} {first.value!r}; take these lines out, or give several files in "
            "the order in which they were made"
        )
    for one in file.corrections:
        if one.action == CHANGE and one.new_value not in (values := _values(annotation)[one.attribute]):
            raise InputError(
                f"--corrections {file.path} line {one.line}: {one.attribute} has no value {one.new_value!r}; "
                f"{nearest(one.new_value, values)}"
            )


def _dropped(row: pd.Series, one: Correction, file: str) -> Reject:
    detail = f"{one.image}: {one.attribute} {one.value!r}, by {file} line {one.line}"
    return Reject(row["source"], int(row["line"]), DROPPED, detail, str(row["split"]), str(row["role"]))
