"""The result of every dataset adapter: labelled rows, and rejected rows with their reasons."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from data_prep.blocks import slices
from data_prep.tables import Attribute

REASONS = {
    "bad_line": "the line is not in the layout's format",
    "unknown_attribute": "the attribute is not one of the layout's",
    "value_out_of_range": "the attribute has no such value",
    "no_value": "no value is marked",
    "several_values": "more than one value is marked (several 'y')",
    "index_out_of_range": "the index points past the end of the file names",
    "labels_disagree": "two annotations of this image give different values",
    "in_two_splits": "the image belongs to another split already",
    "in_both_roles": "the image is a query and a candidate of the same attribute",
    "not_in_split": "the raw row's image and value are in none of the split files",
    "no_label": "the split's file name has no label",
    "no_partition": "the image is in no part of list_eval_partition.txt",
    "same_image_twice": "two of the triplet's three images are the same",
    "path_outside_root": "the path (a link or ..) leaves the dataset's folder",
    "missing_image": "there is no such file",
    "unreadable_image": "the file cannot be decoded as a picture",
    "image_too_large": "the file has more bytes, or the picture more pixels, than allowed",
    "several_images": "more than one file bears the name of the row's image",
    "bad_box": "the box to cut out is empty, or outside the picture",
    "no_split": "the row's cell of the split is empty",
    "near_duplicate": "a near-duplicate of another picture, left out by --near-duplicates drop",
    "without_label": "the row has a label under none of the attributes",
    "too_rare": "fewer images than --min-images have the value",
    "dropped_by_correction": "the label is left out by a file of corrections",
    "other_depth": "the picture is not as many folders deep as --levels names",
}
CHOSEN = ("not_in_split", "without_label", "too_rare", "near_duplicate", "dropped_by_correction")
"""Reasons that do not mean damage: the row is intact, and left out by the split or by an option."""

SPLIT_OF = {"train": "train", "val": "valid", "test": "test"}
"""Name of a split in the official files -> our name."""
ODD = re.compile(r"\\|/\.{0,2}/|^\.\.?/|/\.{0,2}$")
"""Pattern of paths that are not in their plain form: backslashes, empty, `.` or `..` parts, a slash at the end."""
SHOWN = 200
"""Characters of a bad line that its reject repeats."""


class Reject(NamedTuple):
    """An annotation row that did not become a label: its file and line, and the reason (a key of REASONS)."""

    source: str
    line: int
    reason: str
    detail: str
    split: str = ""
    """Split of the label, if known; likewise its role."""
    role: str = ""
    again: bool = False
    """Whether another reject is about the same label."""


class Row(NamedTuple):
    """One label: this image has this value of this attribute."""

    path: str
    """Path relative to the dataset's folder, POSIX."""
    attribute: int
    value: int
    split: str
    """train, valid or test; empty if the layout gives no split."""
    role: str
    """query or candidate; empty for training images and if no split is given."""
    source: str
    line: int


TYPES = {
    "path": "str",
    "attribute": "int16",
    "value": "int32",
    "split": "str",
    "role": "str",
    "source": "str",
    "line": "int32",
}


def frame_of(rows: Iterable[Row]) -> pd.DataFrame:
    """Return rows as a table with the columns of Row."""
    return pd.DataFrame(list(rows), columns=list(Row._fields)).astype(TYPES)


TRIPLET_COLUMNS = ("anchor", "positive", "negative", "attribute", "split", "source", "line")
"""Columns of the triplets that a dataset brings; the first three are paths."""


@dataclass
class Annotation:
    """Content of a dataset's annotation files."""

    attributes: tuple[Attribute, ...]
    rows: pd.DataFrame = field(default_factory=lambda: frame_of([]))
    """Labels, with the columns of Row."""
    rejects: list[Reject] = field(default_factory=list)
    rows_in: int = 0
    """Labels (or triplets) in the files, and lines that could not be read as such."""
    repeats: int = 0
    """Rows that repeat another row: a raw label also in the split files, a query also among its image's labels."""
    several_values: bool = False
    """Whether an image may have several values of one attribute."""
    triplets: pd.DataFrame | None = None
    """Triplets that the dataset brings, with TRIPLET_COLUMNS; None if they have to be drawn."""
    boxes: pd.DataFrame | None = None
    """Bounding boxes to crop pictures to: path, x0, y0, x1, y1 in pixels; None if pictures are not cropped."""
    split_origin: str = ""
    """Who made the split: the dataset's authors, a column, or this package, with the seed."""
    made: Literal["split", "roles", ""] = ""
    """Part of the split that is made here: split and roles, the roles alone, or nothing (all is given)."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how the annotation was read."""
    expected: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(source, reason) -> what was expected instead of a rejected row; a source "" stands for every source."""
    near_duplicates: pd.DataFrame | None = None
    """Pairs with the columns of tables.NEAR_DUPLICATES; None if they were not looked for."""
    groups: pd.Series | None = None
    """Name of what is not divided between splits, by path; None if there are no groups."""
    reviewed: pd.DataFrame | None = None
    """Labels that a person has kept or given: path, attribute, value; None if there are no corrections."""
    unused: pd.DataFrame | None = None
    """Files below the root that no row names: path, and whether it is a `picture`; None if they were not looked for."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise AssertionError unless every row read is a label, a triplet, a repeat or a reject."""
        triplets = 0 if self.triplets is None else len(self.triplets)
        out = len(self.rows) + triplets + self.repeats + len(self.rejects)
        if out != self.rows_in:
            raise AssertionError(f"{self.rows_in} rows in, but {out} accounted for")

    def images(self) -> pd.DataFrame:
        """Return the distinct images: path and split, and the box (x0, y0, x1, y1) if pictures are cropped.

        A path has one split, unless triplets that the dataset brings use the picture in several.
        """
        # One row of each path; paths and splits may be categories, which sort by their codes.
        codes, paths = path_codes(self.rows)
        row = np.full(len(paths), -1, np.int32)
        for part in slices(len(codes)):
            row[codes[part]] = part.start + np.arange(len(codes[part]))
        of_rows = [self.rows[["path", "split"]].iloc[row[row >= 0]].astype({"path": "str", "split": "str"})]
        if self.triplets is not None:
            for name in TRIPLET_COLUMNS[:3]:
                of_rows.append(self.triplets[[name, "split"]].rename(columns={name: "path"}))
        images = pd.concat(of_rows).drop_duplicates(["path", "split"])
        if self.boxes is not None:
            images = images.merge(self.boxes, on="path", how="left")
        return images.sort_values(["path", "split"], ignore_index=True)


def path_codes(rows: pd.DataFrame) -> tuple[np.ndarray, pd.Index]:
    """Return the index of each row's path (int32), and the distinct paths, some of which may have no row."""
    if isinstance(rows["path"].dtype, pd.CategoricalDtype):
        return rows["path"].cat.codes.to_numpy(np.int32), rows["path"].cat.categories
    codes, paths = pd.factorize(rows["path"])
    return codes.astype(np.int32), paths


WHAT_DIFFERS = {"in_two_splits": "split", "labels_disagree": "value", "in_both_roles": "role"}


def count_rows(rows: pd.DataFrame, rejects: list[Reject], filled: Mapping[str, int]) -> int:
    """Return the number of rows read: labels and rejects.

    `filled` is the number of lines that are not blank, by source. Raises AssertionError unless each of these lines is
    in `rows` or in `rejects`.
    """
    accounted = {source: set(of_source["line"]) for source, of_source in rows.groupby("source")}
    for reject in rejects:
        accounted.setdefault(reject.source, set()).add(reject.line)
    for source, lines in filled.items():
        if len(accounted.get(source, ())) != lines:
            raise AssertionError(f"{source}: {lines} lines read, but {len(accounted.get(source, ()))} accounted for")
    return len(rows) + len(rejects)


def normal_path(path: str) -> str:
    """Return a picture's path with single slashes between its names and without `.` and `..`, where possible."""
    return posixpath.normpath(path.replace("\\", "/")) if ODD.search(path) else path


def settled(annotation: Annotation) -> Annotation:
    """Resolve contradictions between rows about the same image: the first row counts, later ones are rejected.

    The same path may be written in several ways, such as `img/a.jpg` and `./img//a.jpg`.
    An image keeps its first split. It keeps the first value of an attribute, unless it may have several. A row that
    repeats an earlier one is counted as a repeat, and the earlier row takes its role.
    """
    rows = annotation.rows.reset_index(drop=True)
    if rows["path"].str.contains(ODD).any():
        rows["path"] = rows["path"].map(normal_path).astype("str")
    image = pd.factorize(rows["path"])[0]
    rejects = list(annotation.rejects)

    def refuse(bad: np.ndarray, reason: str, first: np.ndarray) -> np.ndarray:
        what = WHAT_DIFFERS[reason]
        named = _named(rows, annotation.attributes) if what == "value" else rows
        other = named.loc[first[bad], [what, "source", "line"]].add_prefix("other_").set_axis(rows.index[bad])
        words = f"{{path}}: {what} {{{what}}}, but {{other_{what}}} in {{other_source}} line {{other_line}}"
        rejects.extend(rejected(named[bad].join(other), reason, words))
        return ~bad

    first = _first_of(image)
    keep = refuse((rows["split"].to_numpy() != rows["split"].to_numpy()[first]), "in_two_splits", first)
    label = [image, rows["attribute"].to_numpy(np.int64)]
    if not annotation.several_values:
        first = _first_of(*label, among=keep)
        keep &= refuse(keep & (rows["value"].to_numpy() != rows["value"].to_numpy()[first]), "labels_disagree", first)

    role = rows["role"].to_numpy(object)
    with_role = keep & (role != "")
    first = _first_of(*label, among=with_role)
    keep &= refuse(with_role & (role != role[first]), "in_both_roles", first)

    first = _first_of(*label, rows["value"].to_numpy(np.int64), among=keep)
    kept = keep & (first == np.arange(len(rows)))
    role[first[keep & (role != "")]] = role[keep & (role != "")]
    return replace(
        annotation,
        rows=rows.assign(role=role).astype(TYPES)[kept].reset_index(drop=True),
        rejects=rejects,
        repeats=annotation.repeats + int((keep & ~kept).sum()),
    )


def _named(rows: pd.DataFrame, attributes: tuple[Attribute, ...]) -> pd.DataFrame:
    """Return the rows with the names of their values instead of the numbers."""
    pairs = zip(rows["attribute"], rows["value"], strict=True)
    return rows.assign(value=[f"{attributes[a].values[v]} of {attributes[a].name}" for a, v in pairs])


def _first_of(*keys: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Return for every row the index of the first row (of those `among`) with the same keys, or its own index."""
    number = np.arange(len(keys[0]))
    chosen = number if among is None else number[among]
    table = pd.DataFrame({str(i): key[chosen] for i, key in enumerate(keys)})
    first = number.copy()
    if len(chosen):
        # groupby numbers the groups by first appearance; drop_duplicates keeps each group's first row.
        group = table.groupby(list(table.columns), sort=False).ngroup().to_numpy()
        first[chosen] = chosen[np.unique(group, return_index=True)[1]][group]
    return first


def reconcile(split: Annotation, raw: Annotation) -> Annotation:
    """Check the rows of split files against raw rows, which may have more rows but must not contradict.

    A raw row with the same label is a repeat. If an attribute has one value, two rows that differ are both rejected.
    If it may have several, a split row is rejected if the raw file does not give its image that value. Raw rows that
    are not in the split files are rejected as not_in_split.
    """
    label, pair = ["path", "attribute", "value"], ["path", "attribute"]
    ours, theirs = split.rows, raw.rows
    agreed = contained(theirs, ours, label)
    raw_image_known = contained(ours, theirs, ["path"] if split.several_values else pair)
    contradicted = (raw_image_known & ~contained(ours, theirs, label)).to_numpy()
    contradicting = ~agreed & (contained(theirs, ours, pair) if not split.several_values else False)
    rejects = split.rejects + raw.rejects
    rejects += rejected(ours[contradicted], "labels_disagree", "{path}: value {value}, but not in the raw files")
    both = rejected(theirs[contradicting], "labels_disagree", "{path}: value {value}, but not in the split files")
    rejects += [reject._replace(again=True) for reject in both]
    rejects += rejected(theirs[~agreed & ~contradicting], "not_in_split", "{path}: value {value}")
    return Annotation(
        split.attributes,
        rows=ours[~contradicted].reset_index(drop=True),
        rejects=rejects,
        rows_in=split.rows_in + raw.rows_in,
        repeats=split.repeats + raw.repeats + int(agreed.sum()),
        several_values=split.several_values,
        boxes=raw.boxes,
        split_origin=split.split_origin,
        notes=split.notes + raw.notes,
        expected={**split.expected, **raw.expected},
    )


def contained(rows: pd.DataFrame, others: pd.DataFrame, columns: list[str]) -> pd.Series:
    """Return which of `rows` have a row with equal `columns` in `others`."""
    found = rows[columns].merge(others[columns].drop_duplicates(), on=columns, how="left", indicator=True)
    return pd.Series((found["_merge"] == "both").to_numpy(), index=rows.index)


def rejected(rows: pd.DataFrame, reason: str, words: str) -> list[Reject]:
    """Return a reject for each of `rows`. `words` is the detail's template, with names of columns in braces."""
    columns = [rows[name].tolist() for name in rows.columns]
    records = (dict(zip(rows.columns, values, strict=True)) for values in zip(*columns, strict=True))
    return [
        Reject(
            row["source"], int(row["line"]), reason, words.format_map(row), row.get("split", ""), row.get("role", "")
        )
        for row in records
    ]


def count_reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """Return the number of rejects by reason, most frequent first."""
    return dict(Counter(reject.reason for reject in rejects).most_common())


def bad_line(source: str, number: int, line: str) -> Reject:
    """Return the reject for a line that cannot be read."""
    return Reject(source, number, "bad_line", line.strip()[:SHOWN])
