"""FashionAI: raw `label.csv` files, ASEN's split files, or both, checked against each other.

    {train1|train2|...}/Annotations/label.csv    Images/neck_design_labels/ab12.jpg,neck_design_labels,nnnyn

The string has one letter for each value. Exactly one is `y`; its index is the value. `m` means maybe.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd

from data_prep.annotation import Annotation, Reject, Row, bad_line, counted, frame_of, reconcile, settled
from data_prep.errors import InputError
from data_prep.layouts.asen_split import find_split_files, read_split_files
from data_prep.layouts.text_files import LONGEST_LINE, LONGEST_PATH, check_commas, is_dir, is_file, numbered_lines
from data_prep.request import Request
from data_prep.tables import Attribute

NAME = "FashionAI"
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "skirt_length": ("Invisible", "Short", "Knee", "Midi", "Ankle", "Floor"),
    "sleeve_length": (
        "Invisible", "Sleeveless", "Cup", "Short", "Elbow", "3-4", "Wrist", "Long", "Extra Long",
    ),
    "coat_length": ("Invisible", "High Waist", "Regular", "Long", "Micro", "Knee", "Midi", "Ankle&Floor"),
    "pant_length": ("Invisible", "Short", "Mid", "3-4", "Cropped", "Full"),
    "collar_design": ("Invisible", "Shirt", "Peter Pan", "Puritan", "Rib"),
    "lapel_design": ("Invisible", "Notched", "Collarless", "Shawl", "Plus Size Shawl"),
    "neckline_design": (
        "Invisible", "Strapless", "Deep V", "Straight", "V", "Square", "Off Shoulder", "Round", "Sweetheart",
        "One Shoulder",
    ),
    "neck_design": ("Invisible", "Turtle", "Ruffle Semi-High", "Low Turtle", "Draped"),
}  # fmt: skip
"""The eight attributes and the names of their 54 values, in the official order."""
SCHEMA = tuple(Attribute(name=name, values=values) for name, values in ATTRIBUTES.items())
_INDEX = {f"{attribute.name}_labels": i for i, attribute in enumerate(SCHEMA)}
LABEL_FILE = "Annotations/label.csv"


def read(request: Request) -> Annotation:
    """Read the annotation below the root.

    If there are split files (given, or in the root), they decide the split, and raw rows are checked against them.
    Raises InputError.
    """
    root = request.root
    splits = find_split_files(request, NAME)
    raw = read_raw(root)
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
            "give --split-files if they are elsewhere)"
        )
    return replace(raw, made="split")


def read_raw(root: Path) -> Annotation:
    """Read every `Annotations/label.csv` in or below `root`."""
    rows: list[Row] = []
    rejects: list[Reject] = []
    filled: Counter[str] = Counter()
    for file in sorted(root.rglob(LABEL_FILE)):
        folder = file.parent.parent.relative_to(root).as_posix()
        prefix = "" if folder == "." else f"{folder}/"
        source = file.relative_to(root).as_posix()
        for number, line in numbered_lines(file, root):
            if not filled[source]:
                check_commas(file, line)
            filled[source] += 1
            read = _read_line(line, prefix, source, number)
            (rows if isinstance(read, Row) else rejects).append(read)  # type: ignore[arg-type]
    labels = frame_of(rows)
    return settled(Annotation(SCHEMA, labels, rejects, rows_in=counted(labels, rejects, filled)))


def _read_line(line: str, prefix: str, source: str, number: int) -> Row | Reject:
    parts = line.split(",", 3)
    if (
        len(line) > LONGEST_LINE
        or len(parts) != 3
        or not 0 < len(parts[0]) <= LONGEST_PATH
        or set(parts[2]) - set("ynm")
    ):
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
    """Give the rows of a picture the same path in both tables, in place: the path whose folder exists.

    Releases differ in the names of their top folders (fashionAI_attributes_train1, train1, valid), but not in
    `<attribute>_labels/<md5>.jpg`.
    """
    known = raw[["path"]].assign(tail=_tail(raw["path"])).drop_duplicates()
    known = known[~known["tail"].duplicated(keep=False)]
    raw_path_of = dict(zip(known["tail"], known["path"], strict=True))
    top = split["path"].str.partition("/")[0]
    exists = {name: is_dir(root / name) for name in top.unique()}
    same: dict[str, str] = {}
    for path, tail, folder in zip(split["path"], _tail(split["path"]), top, strict=True):
        other = raw_path_of.get(tail, path)
        old, new = (path, other) if not exists[folder] and is_file(root / other) else (other, path)
        same[old] = new
    for rows in (split, raw):
        rows["path"] = pd.Series([same.get(path, path) for path in rows["path"]], index=rows.index, dtype="str")


def _tail(paths: pd.Series) -> pd.Series:
    return paths.str.rsplit("/", n=2).str[-2:].str.join("/")
