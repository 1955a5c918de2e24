"""FashionAI: raw `label.csv` files, ASEN's split files, or both, checked against each other.

    {train1|train2|...}/Annotations/label.csv    Images/neck_design_labels/ab12.jpg,neck_design_labels,nnnyn

The string has one letter for each value: exactly one `y`, whose place is the value; `m` means maybe.
"""

from __future__ import annotations

import csv
from pathlib import Path

from data_prep.annotation import Annotation, Reject, Row, read_lines
from data_prep.asen_split import assign_splits, find_split_files, read_split_files
from data_prep.errors import InputError
from data_prep.fashionai_vocabulary import ATTRIBUTES
from data_prep.tables import Attribute

NAME = "FashionAI"
SCHEMA = tuple(Attribute(name=name, values=values) for name, values in ATTRIBUTES.items())
_INDEX = {f"{attribute.name}_labels": i for i, attribute in enumerate(SCHEMA)}
LABEL_FILE = "Annotations/label.csv"


def read(root: Path, split_files: Path | None, seed: int) -> Annotation:
    """Read the annotation below `root`; every row has a split afterwards.

    With `split_files` (or with split files in `root` itself) the split is theirs, and raw rows are
    checked against it. Without, one is made in ASEN's proportions from `seed`.
    """
    raw = read_raw(root)
    splits = find_split_files(split_files or root, NAME)
    if split_files and not splits:
        raise InputError(f"{split_files}: no filenames_train.txt, filenames_valid.txt or filenames_test.txt")
    if splits:
        return reconcile(read_split_files(splits, SCHEMA), raw)
    if not len(raw):
        empty = next(root.rglob(LABEL_FILE), None)
        if empty:
            raise InputError(f"{empty}: the annotation is empty")
        raise InputError(
            f"{root}: not FashionAI's layout (no {LABEL_FILE} in or below it, no filenames_*.txt; "
            "give --split-files if they lie elsewhere)"
        )
    raw.rows = assign_splits(raw.rows, seed)
    return raw


def read_raw(root: Path) -> Annotation:
    """Read every `Annotations/label.csv` in or below `root`."""
    annotation = Annotation(SCHEMA)
    for file in sorted(root.rglob(LABEL_FILE)):
        folder = file.parent.parent.relative_to(root).as_posix()
        prefix = "" if folder == "." else f"{folder}/"
        source = file.relative_to(root).as_posix()
        for line_number, line in enumerate(read_lines(file), start=1):
            parsed = _read_line(line, prefix, source, line_number)
            (annotation.rows if isinstance(parsed, Row) else annotation.rejects).append(parsed)  # type: ignore[arg-type]
    return annotation.without_repeats()


def _read_line(line: str, prefix: str, source: str, number: int) -> Row | Reject:
    parts = line.split(",")
    if len(parts) != 3 or not parts[0] or set(parts[2]) - set("ynm"):
        return Reject(source, number, "bad_line", line[:200])
    path, key, marks = parts
    if key not in _INDEX:
        return Reject(source, number, "unknown_attribute", f"{key[:100]} of {path}")
    attribute = _INDEX[key]
    expected = len(SCHEMA[attribute].values)
    if len(marks) != expected:
        detail = f"{path}: {len(marks)} marks, {SCHEMA[attribute].name} has {expected} values"
        return Reject(source, number, "value_out_of_range", detail)
    if marks.count("y") != 1:
        reason = "several_values" if "y" in marks else "no_value"
        return Reject(source, number, reason, f"{path}: {marks}")
    return Row(prefix + path, attribute, marks.index("y"), "", "", source, number)


def reconcile(split: Annotation, raw: Annotation) -> Annotation:
    """Check split rows against raw ones: where they name the same image they must agree.

    A raw row that agrees is the same row and is not counted again; one in no split is rejected.
    """
    merged = Annotation(split.attributes, rejects=split.rejects + raw.rejects)
    raw_of = {(row.path, row.attribute): row for row in raw.rows}
    for row in split.rows:
        other = raw_of.pop((row.path, row.attribute), row)
        if other.value == row.value:
            merged.rows.append(row)
        else:
            detail = f"{row.path}: {row.value}, but {other.value} in {other.source} line {other.line}"
            merged.reject(row, "labels_disagree", detail)
    for row in raw_of.values():
        merged.reject(row, "not_in_split", row.path)
    return merged


def write_raw(root: Path, rows: list[Row]) -> None:
    """Write rows as raw `label.csv` files, one for each folder that holds an `Images/` of theirs."""
    lines: dict[Path, list[tuple[str, str, str]]] = {}
    for row in rows:
        folder, _, image = row.path.rpartition("Images/")
        attribute = SCHEMA[row.attribute]
        marks = "".join("y" if value == row.value else "n" for value in range(len(attribute.values)))
        lines.setdefault(root / folder, []).append((f"Images/{image}", f"{attribute.name}_labels", marks))
    for directory, of_folder in lines.items():
        file = directory / LABEL_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out, lineterminator="\n").writerows(of_folder)
