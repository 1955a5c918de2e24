"""FashionAI: raw `label.csv` files, ASEN's split files, or both, checked against each other.

    {train1|train2|...}/Annotations/label.csv    Images/neck_design_labels/ab12.jpg,neck_design_labels,nnnyn

The string has one letter for each value: exactly one `y`, whose place is the value; `m` means maybe.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd

from data_prep.annotation import (
    LONGEST_LINE,
    Annotation,
    Reject,
    Row,
    bad_line,
    frame_of,
    numbered_lines,
    reconcile,
    settled,
)
from data_prep.asen_split import assign_splits, find_split_files, read_split_files, required_split_files
from data_prep.errors import InputError
from data_prep.fashionai_vocabulary import ATTRIBUTES
from data_prep.request import Request
from data_prep.tables import Attribute

NAME = "FashionAI"
SCHEMA = tuple(Attribute(name=name, values=values) for name, values in ATTRIBUTES.items())
_INDEX = {f"{attribute.name}_labels": i for i, attribute in enumerate(SCHEMA)}
LABEL_FILE = "Annotations/label.csv"


def read(request: Request) -> Annotation:
    """Read the annotation below the root; every row has a split afterwards.

    With split files (given, or in the root itself) the split is theirs, and raw rows are checked against it.
    Without, one is made in ASEN's proportions from the seed.
    """
    root = request.root
    raw = read_raw(root)
    splits = required_split_files(request.split_files, NAME) or find_split_files(root, NAME)
    if splits:
        split = read_split_files(splits, SCHEMA)
        _align(split.rows, raw.rows, root)
        return reconcile(split, raw)
    if not raw.rows_in:
        empty = next(root.rglob(LABEL_FILE), None)
        if empty:
            raise InputError(f"{empty}: the annotation is empty")
        raise InputError(
            f"{root}: not FashionAI's layout (no {LABEL_FILE} in or below it, no filenames_*.txt; "
            "give --split-files if they lie elsewhere)"
        )
    raw.rows = assign_splits(raw.rows, request.seed)
    return raw


def read_raw(root: Path) -> Annotation:
    """Read every `Annotations/label.csv` in or below `root`."""
    rows: list[Row] = []
    rejects: list[Reject] = []
    for file in sorted(root.rglob(LABEL_FILE)):
        folder = file.parent.parent.relative_to(root).as_posix()
        prefix = "" if folder == "." else f"{folder}/"
        source = file.relative_to(root).as_posix()
        for number, line in numbered_lines(file):
            read = _read_line(line, prefix, source, number)
            (rows if isinstance(read, Row) else rejects).append(read)  # type: ignore[arg-type]
    return settled(Annotation(SCHEMA, frame_of(rows), rejects, rows_in=len(rows) + len(rejects)))


def _read_line(line: str, prefix: str, source: str, number: int) -> Row | Reject:
    parts = line.split(",", 3)
    if len(line) > LONGEST_LINE or len(parts) != 3 or not parts[0] or set(parts[2]) - set("ynm"):
        return bad_line(source, number, line)
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


def _align(split: pd.DataFrame, raw: pd.DataFrame, root: Path) -> None:
    """Give the rows of one picture one path in both tables, in place: that of the folder that is there.

    Releases name their top folders differently (fashionAI_attributes_train1, train1, valid); `<attribute>_labels/
    <md5>.jpg` is the same in all.
    """
    places = raw[["path"]].assign(tail=_tail(raw["path"])).drop_duplicates()
    places = places[~places["tail"].duplicated(keep=False)]
    raw_path_of = dict(zip(places["tail"], places["path"], strict=True))
    top = split["path"].str.partition("/")[0]
    is_there = {name: (root / name).is_dir() for name in top.unique()}
    same: dict[str, str] = {}
    for path, tail, folder in zip(split["path"], _tail(split["path"]), top, strict=True):
        other = raw_path_of.get(tail, path)
        old, new = (path, other) if not is_there[folder] and (root / other).is_file() else (other, path)
        same[old] = new
    for rows in (split, raw):
        rows["path"] = pd.Series([same.get(path, path) for path in rows["path"]], index=rows.index, dtype="str")


def _tail(paths: pd.Series) -> pd.Series:
    return paths.str.rsplit("/", n=2).str[-2:].str.join("/")


def write_raw(root: Path, rows: pd.DataFrame) -> None:
    """Write rows as raw `label.csv` files, one for each folder that holds an `Images/` of theirs."""
    lines: dict[Path, list[tuple[str, str, str]]] = {}
    for path, number, value in zip(rows["path"], rows["attribute"], rows["value"], strict=True):
        folder, _, image = path.rpartition("Images/")
        attribute = SCHEMA[number]
        marks = "".join("y" if value == other else "n" for other in range(len(attribute.values)))
        lines.setdefault(root / folder, []).append((f"Images/{image}", f"{attribute.name}_labels", marks))
    for directory, of_folder in lines.items():
        file = directory / LABEL_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out, lineterminator="\n").writerows(of_folder)
