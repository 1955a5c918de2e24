"""Finding the pictures that an annotation names, wherever below the root they were unpacked."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from data_prep.annotation import SHOWN, TRIPLET_COLUMNS, Annotation, settled
from data_prep.layouts.folders import is_picture
from data_prep.layouts.text_files import files_below
from data_prep.words import counted

NOWHERE = 0.1
"""Share of the pictures that may be missing without a note that says where they were looked for."""
NAMED = 3
"""Number of folders that a note names."""


def located(annotation: Annotation, root: Path) -> Annotation:
    """Return the annotation with the paths of its pictures as they are below `root`, and a note if they differ.

    A picture that is not at its path is the one with equal names of file and folder, in any case and format, whose
    upper folders agree best. People unpack archives one folder deeper or shallower, beside the annotation or into
    folders with other names; some file systems drop the full stop at the end of a folder's name.
    """
    paths = annotation.images()["path"].unique().tolist()
    # With pathlib, this would take several times as long.
    missing = [path for path in paths if not os.path.isfile(os.path.join(root, path))]  # noqa: PTH113, PTH118
    if not missing:
        return annotation
    pictures = _Pictures(root)
    found = {path: there for path in missing if (there := pictures.like(path))}
    notes = [_moves(found)] if found else []
    expected = dict(annotation.expected)
    if len(missing) - len(found) >= NOWHERE * len(paths):
        nowhere_at_all = set(missing) - found.keys()
        in_order = [*annotation.rows["path"], *missing]  # the first one is that of the first row
        first = next(path for path in in_order if path in nowhere_at_all)
        there = counted(pictures.count, "picture")
        looked = f"by its name and folder among the {there} there" if pictures.count else ""
        nowhere = (
            f"nowhere below the root: {len(missing) - len(found):,} of {counted(len(paths), 'picture')}; "
            f"{first[:SHOWN]} was looked for at its path, and {looked or 'there is no other picture'}"
        )
        if namesake := pictures.namesake(first):
            nowhere += f"; a picture of this name is {namesake}"
        notes.append(nowhere)
        expected["", "missing_image"] = nowhere
    return _with_paths(replace(annotation, notes=(*annotation.notes, *notes), expected=expected), found)


class _Pictures:
    """The pictures below a folder, by their names."""

    def __init__(self, root: Path):
        self._at: dict[tuple[str, str], list[str]] = {}
        self._named: dict[str, str] = {}
        self.count = 0
        for path in filter(is_picture, files_below(root)):
            folder, name = _names(path)
            self._at.setdefault((folder, name), []).append(path)
            self._named.setdefault(name, path)
            self.count += 1

    def like(self, path: str) -> str | None:
        """Return the path of the picture that `path` means; None if there is none."""
        others = self._at.get(_names(path), ())
        return max(others, key=lambda other: _likeness(path, other)) if len(others) > 1 else next(iter(others), None)

    def namesake(self, path: str) -> str | None:
        """Return the path of a picture with this name in any folder."""
        return self._named.get(_names(path)[1])


def _names(path: str) -> tuple[str, str]:
    """Return the names of folder and file, without what may differ: case, format and a full stop at the end."""
    folders, _, name = path.rpartition("/")
    return _plain(folders.rpartition("/")[2]), _plain(name.rpartition(".")[0] or name)


def _plain(name: str) -> str:
    return name.casefold().rstrip(". ")


def _likeness(path: str, other: str) -> tuple[int, int, bool, int]:
    """Return how like two paths are: the number of their last names that agree, and that are equal."""
    names, others = path.split("/")[::-1], other.split("/")[::-1]
    pairs = list(zip(names[1:], others[1:], strict=False))
    alike = _leading(_plain(one) == _plain(two) for one, two in pairs)
    return alike, _leading(one == two for one, two in pairs), names[0] == others[0], -len(others)


def _leading(agree: Iterator[bool]) -> int:
    number = 0
    for yes in agree:
        if not yes:
            break
        number += 1
    return number


def _moves(found: dict[str, str]) -> str:
    """Describe in which folders the pictures were found."""
    moves = Counter(_move(path, there) for path, there in found.items())
    named = [f"those of {old} in {new} ({count:,})" for (old, new), count in moves.most_common(NAMED)]
    more = f", and {len(moves) - NAMED:,} more" if len(moves) > NAMED else ""
    return f"found elsewhere: {counted(len(found), 'picture')}, {', '.join(named)}{more}"


def _move(path: str, there: str) -> tuple[str, str]:
    """Return the beginnings in which two paths differ."""
    folders = [one.split("/")[:-1] for one in (path, there)]
    equal = _leading(one == two for one, two in zip(*(parts[::-1] for parts in folders), strict=False))
    if equal > 1 and equal in map(len, folders):
        equal -= 1  # img/ in Img/img/ says more than the root in Img/
    old, new = ("/".join(parts[: len(parts) - equal]) for parts in folders)
    formats = [one.rpartition(".")[2] for one in (path, there)]
    shown = [f"{one}/" if one else "the root" for one in (old, new)]
    if formats[0] != formats[1]:
        shown = [f"{one} (*.{end})" for one, end in zip(shown, formats, strict=True)]
    return shown[0], shown[1]


def _with_paths(annotation: Annotation, found: dict[str, str]) -> Annotation:
    """Return the annotation with the paths of pictures that were found elsewhere."""
    if not found:
        return annotation

    def moved(paths: pd.Series) -> pd.Series:
        return pd.Series([found.get(path, path) for path in paths], index=paths.index, dtype="str")

    rows, triplets, boxes = annotation.rows, annotation.triplets, annotation.boxes
    rows = rows.assign(path=moved(rows["path"]))
    if triplets is not None:
        triplets = triplets.assign(**{name: moved(triplets[name]) for name in TRIPLET_COLUMNS[:3]})
    if boxes is not None:
        boxes = boxes.assign(path=moved(boxes["path"])).drop_duplicates("path")
    # Two paths may have led to one picture.
    return settled(replace(annotation, rows=rows, triplets=triplets, boxes=boxes))
