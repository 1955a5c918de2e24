"""What every dataset adapter returns: labelled rows, and the rows that it had to reject."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data_prep.errors import InputError
from data_prep.tables import Attribute

REASONS = {
    "bad_line": "the line is not in the layout's format",
    "unknown_attribute": "the attribute is not one of the layout's",
    "value_out_of_range": "the attribute has no such value",
    "no_value": "no value is marked (no 'y')",
    "several_values": "more than one value is marked (several 'y')",
    "index_out_of_range": "the index points past the end of the file names",
    "duplicate": "this image already has a label for this attribute",
    "labels_disagree": "two annotations of this image give different values",
    "in_two_splits": "the image belongs to another split already",
    "not_in_split": "the raw row's image is in none of the split files",
    "no_label": "the split's file name has no label",
    "path_outside_root": "the path leaves the dataset's folder",
    "missing_image": "there is no such file",
    "unreadable_image": "the file cannot be decoded as a picture",
    "image_too_large": "the file has more bytes, or the picture more pixels, than allowed",
    "bad_box": "the box to cut out is empty, or outside the picture",
}


class Reject(NamedTuple):
    """An annotation row that did not become a label, where it stood, and why (a key of REASONS)."""

    source: str
    line: int
    reason: str
    detail: str


class Row(NamedTuple):
    """One label: this image has this value of this attribute."""

    path: str
    """Relative to the dataset's folder, POSIX."""
    attribute: int
    value: int
    split: str
    """train, valid or test; empty where the layout gives no split."""
    role: str
    """query or candidate; empty for training images and where no split is given."""
    source: str
    line: int


@dataclass
class Annotation:
    """All that one dataset's annotation files say. Rows in = rows + rejects."""

    attributes: tuple[Attribute, ...]
    rows: list[Row] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows) + len(self.rejects)

    def reject(self, row: Row, reason: str, detail: str) -> None:
        self.rejects.append(Reject(row.source, row.line, reason, detail))

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=list(Row._fields))

    def without_repeats(self) -> Annotation:
        """Keep the first label of every (image, attribute), and an image in its first split; reject the others."""
        kept = Annotation(self.attributes, rejects=list(self.rejects))
        first: dict[tuple[str, int], Row] = {}
        split_of: dict[str, str] = {}
        for row in self.rows:
            if split_of.setdefault(row.path, row.split) != row.split:
                kept.reject(row, "in_two_splits", f"{row.path}: already in {split_of[row.path]}")
                continue
            earlier = first.setdefault((row.path, row.attribute), row)
            if earlier is row:
                kept.rows.append(row)
            else:
                reason = "duplicate" if earlier.value == row.value else "labels_disagree"
                kept.reject(row, reason, f"{row.path}: first in {earlier.source} line {earlier.line}")
        return kept


def count_reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """Rejects per reason, most frequent first."""
    return dict(Counter(reject.reason for reject in rejects).most_common())


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, whatever its line ends (LF, CRLF, lone CR) and with or without a last one.

    Bytes that are not UTF-8 become U+FFFD, so that a damaged line is rejected by name and not fatal.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return re.sub(r"\r*\n|\r", "\n", text).removesuffix("\n").split("\n") if text else []
