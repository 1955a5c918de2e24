"""FashionAI: raw `label.csv` files, ASEN's split files, or both, checked against each other.

    {train1|train2|...}/Annotations/label.csv    Images/neck_design_labels/ab12.jpg,neck_design_labels,nnnyn

The string has one letter for each value. Exactly one is `y`; its index is the value. `m` means maybe. Copies with the
names of the columns, with quotes, or with more columns are read, too.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd

from data_prep.annotation import Annotation, Reject, Row, bad_line, count_rows, frame_of, reconcile, settled
from data_prep.errors import InputError
from data_prep.layouts.asen_split import find_split_files, read_split_files
from data_prep.layouts.text_files import (
    LONGEST_PATH,
    check_commas,
    csv_cells,
    find_files,
    is_dir,
    is_file,
    numbered_lines,
)
from data_prep.request import Request
from data_prep.tables import Attribute
from data_prep.words import counted

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
EXPECTED = {
    "bad_line": "expected PATH,ATTRIBUTE,MARKS such as Images/neck_design_labels/ab12.jpg,neck_design_labels,nnnyn",
    "unknown_attribute": f"expected one of {', '.join(f'{name}_labels' for name in ATTRIBUTES)}",
    "no_value": "expected one y",
    "several_values": "expected one y",
}
"""Reason of a reject -> what was expected in its place."""
_INDEX = {f"{attribute.name}_labels": i for i, attribute in enumerate(SCHEMA)}
LABEL_FILE = "Annotations/label.csv"
_FOLDER, _FILE = LABEL_FILE.split("/")


def read(request: Request) -> Annotation:
    """Read the annotation below the root.

    If there are split files (given, or in the root), they decide the split, and raw rows are checked against them.
    Raises InputError.
    """
    root = request.root
    splits = find_split_files(request, NAME)
    raw = read_raw(root)
    if splits:
        split = _once(read_split_files(splits, SCHEMA), root)
        _align(split.rows, raw.rows, root)
        return reconcile(split, raw)
    if not raw.rows_in:
        empty = next(iter(label_files(root)), None)
        if empty:
            raise InputError(f"{empty}: the annotation is empty")
        raise InputError(
            f"{root}: not FashionAI's layout (no {LABEL_FILE} in or below it, no filenames_*.txt; "
            "give --split-files if they are elsewhere)"
        )
    return replace(raw, made="split")


def read_raw(root: Path) -> Annotation:
    """Read every `label.csv` in or below `root`. Paths start at the folder that holds its folder `Annotations`."""
    rows: list[Row] = []
    rejects: list[Reject] = []
    filled: Counter[str] = Counter()
    expected: dict[tuple[str, str], str] = {}
    for file in label_files(root):
        top = file.parent.parent if file.parent.name.casefold() == _FOLDER.casefold() else file.parent
        prefix = "" if top == root else f"{top.relative_to(root).as_posix()}/"
        source = file.relative_to(root).as_posix()
        lines = list(numbered_lines(file, root))
        if lines:
            check_commas(file, lines[0][1])
        first = _first_column(lines)
        for number, line in lines[_has_names(lines, first) :]:
            filled[source] += 1
            read = _read_line(line, first, prefix, source, number)
            (rows if isinstance(read, Row) else rejects).append(read)  # type: ignore[arg-type]
        expected |= {(source, reason): words for reason, words in EXPECTED.items()}
    labels = frame_of(rows)
    rows_in = count_rows(labels, rejects, filled)
    return _once(Annotation(SCHEMA, labels, rejects, rows_in=rows_in, expected=expected), root)


def _once(annotation: Annotation, root: Path) -> Annotation:
    """Settle the annotation, with one path for every picture.

    `<attribute>_labels/<md5>.jpg` is the same picture in every folder, such as one that was unpacked twice: its path is
    the first one with a file.
    """
    rows = annotation.rows.assign(tail=_tail(annotation.rows["path"]))
    paths = rows.drop_duplicates("path")
    paths = paths[paths["tail"].duplicated(keep=False) & paths["tail"].str.contains("_labels/")]
    if paths.empty:
        return settled(annotation)
    chosen = {
        tail: next((p for p in of if is_file(root / p)), of.iloc[0]) for tail, of in paths.groupby("tail")["path"]
    }
    path = rows["tail"].map(chosen).where(rows["path"].isin(paths["path"]), rows["path"]).astype("str")
    note = f"pictures in several folders, each read once: {len(chosen):,}, such as {paths['path'].iloc[0]}"
    return settled(replace(annotation, rows=annotation.rows.assign(path=path), notes=(*annotation.notes, note)))


def label_files(root: Path) -> list[Path]:
    """Return every `label.csv` in or below `root`, in a folder of any name."""
    return [file for file in find_files(root, _FILE) if file.name.lower() == _FILE]


def _first_column(lines: list[tuple[int, str]]) -> int:
    """Return the column of the path, which stands before the attribute; others may stand around them."""
    for _, line in lines:
        for column, cell in enumerate(csv_cells(line) or []):
            if column and cell.strip() in _INDEX:
                return column - 1
    return 0


def _has_names(lines: list[tuple[int, str]], first: int) -> bool:
    """Return whether the first line has the names of the columns: neither a picture's path nor marks."""
    cells = csv_cells(lines[0][1]) or [] if len(lines) > 1 else []
    if len(cells) < first + 3 or set(cells[first]) & set("./"):
        return False
    named = all(cell.strip() and cell.isprintable() for cell in cells[first : first + 3])
    return named and not any(cell.strip() in _INDEX for cell in cells) and bool(set(cells[first + 2]) - set("ynm"))


def _read_line(line: str, first: int, prefix: str, source: str, number: int) -> Row | Reject:
    cells = [cell.strip() for cell in csv_cells(line) or []]
    path, key, marks = cells[first : first + 3] if len(cells) >= first + 3 else ("", "", "")
    if not 0 < len(path) <= LONGEST_PATH or not marks or set(marks) - set("ynm"):
        return bad_line(source, number, line)
    if key not in _INDEX:
        return Reject(source, number, "unknown_attribute", f"{key[:100]} of {path}")
    attribute = _INDEX[key]
    expected = len(SCHEMA[attribute].values)
    if len(marks) != expected:
        detail = f"{path}: {counted(len(marks), 'mark')}, {SCHEMA[attribute].name} has {expected} values"
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
