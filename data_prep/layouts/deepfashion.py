"""DeepFashion, Category and Attribute Prediction: raw coarse or fine annotation, ASEN's split files, or both.

    Anno_coarse/list_attr_cloth.txt       attribute name (with blanks), type 1-5
    Anno_coarse/list_attr_img.txt         path, 1000 values of 1, -1 or 0
    Anno_coarse/list_category_cloth.txt, list_category_img.txt, list_bbox.txt
    Eval/list_eval_partition.txt          path, train | val | test
    Anno_fine/{train,val,test}.txt        path;  *_attr.txt (26 × 0/1), *_cate.txt, *_bbox.txt: row by row

The paper's attributes are the five types. The values of an attribute are list_attr_cloth's rows of its type, in order.
Files are found anywhere below the root, in folders of any name; Anno_fine has lists of its own, of the same names.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.annotation import (
    SPLIT_OF,
    TYPES,
    Annotation,
    Reject,
    bad_line,
    count_rows,
    reconcile,
    rejected,
    settled,
)
from data_prep.errors import InputError
from data_prep.layouts.asen_split import (
    GlobalValue,
    find_split_files,
    ranked,
    read_split_files,
)
from data_prep.layouts.deepfashion_matrix import read_head, read_marks
from data_prep.layouts.text_files import (
    annotation_file,
    check_count,
    find_files,
    integers,
    list_rows,
    read_lines,
)
from data_prep.request import Request
from data_prep.splits import assign_roles
from data_prep.tables import Attribute
from data_prep.words import counted

NAME = "DeepFashion"
COARSE, FINE_FOLDER = "Anno_coarse", "Anno_fine"
TYPE_NAMES = ("texture-related", "fabric-related", "shape-related", "part-related", "style-related")
TYPE_SIZES = (156, 218, 180, 216, 230)
UNNAMED = tuple(
    Attribute(name=name, values=tuple(str(i) for i in range(size)))
    for name, size in zip(TYPE_NAMES, TYPE_SIZES, strict=True)
)
"""Schema without a list_attr_cloth.txt, which has the names of the values."""
FINE = {
    "texture": ("floral", "graphic", "striped", "embroidered", "pleated", "solid", "lattice"),
    "sleeve": ("long_sleeve", "short_sleeve", "sleeveless"),
    "length": ("maxi_length", "mini_length", "no_dress"),
    "neckline": ("crew_neckline", "v_neckline", "square_neckline", "no_neckline"),
    "fabric": ("denim", "chiffon", "cotton", "leather", "faux", "knit"),
    "fit": ("tight", "loose", "conventional"),
}
"""The 26 columns of Anno_fine, in their order."""
LARGEST_EDGE = 100_000
"""Pixels of the largest plausible edge; a larger number in a bounding box is an error."""


@dataclass
class Below:
    """The text files below the root, and notes on how they are read."""

    root: Path
    files: list[Path]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path) -> Below:
        """Return the files below `root`."""
        return cls(root, find_files(root, ".txt"))

    @cached_property
    def fine(self) -> Path | None:
        """Return the folder of Anno_fine, if any: the one of this name, else one with marks of a split."""
        parts = {f"{official}_attr.txt" for official in SPLIT_OF}
        folders = {file.parent.parent if file.parent.name in SPLIT_OF else file.parent: None for file in self.files}
        named = (folder for folder in folders if _plain(folder.name) == _plain(FINE_FOLDER))
        marked = (file.parent for file in self.files if file.name.lower() in parts)
        return next(iter([*named, *marked]), None)

    def fine_file(self, name: str) -> Path:
        """Return the path of a file of Anno_fine, which may have a folder for each split."""
        fine = self.fine or self.root / FINE_FOLDER
        found = (file for file in self.files if file.name.lower() == name and self._is_fine(file))
        return next(found, fine / name)

    def _is_fine(self, file: Path) -> bool:
        part = file.parent.name in SPLIT_OF
        return self.fine is not None and self.fine in (file.parent, file.parent.parent if part else None)

    def find(self, name: str, folder: str = COARSE) -> Path | None:
        """Return the file of this name outside of Anno_fine, preferably in a folder of that name, if there is one."""
        found = [file for file in self.files if file.name.lower() == name and not self._is_fine(file)]
        return min(found, key=lambda file: _plain(file.parent.name) != _plain(folder), default=None)

    def needed(self, name: str, purpose: str) -> Path:
        """Return the file of this name. Raises InputError if there is none."""
        if not (file := self.find(name)):
            raise InputError(f"{self.root}: no {name} below it, which {purpose}")
        return file

    def rows(self, file: Path) -> list[tuple[int, str]]:
        """Return the rows of a list_*.txt with their line numbers."""
        return list_rows(file, self.root, self.notes)


def _plain(name: str) -> str:
    """Return a folder's name without case and punctuation: Anno_fine, anno-fine and AnnoFine are the same."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def read(request: Request) -> Annotation:
    """Read the annotation below the root.

    If there are split files, labels and split are theirs, and raw coarse labels, if any, are checked against them.
    Otherwise, the split is that of list_eval_partition.txt or Anno_fine, and queries and candidates are made from the
    seed in ASEN's proportions. Raises InputError.
    """
    splits = find_split_files(request, NAME)
    below = Below.of(request.root)
    annotation = _read_split(splits, request, below) if splits else _read_unsplit(request, below)
    annotation = _boxed(annotation, below) if request.crop_boxes else annotation
    return replace(annotation, notes=annotation.notes + tuple(below.notes))


def _read_split(splits: Path, request: Request, below: Below) -> Annotation:
    if request.annotation == "fine" or request.categories:
        raise InputError(
            "--annotation fine and --categories go with the raw annotation alone; move ASEN's split files "
            f"(filenames_*.txt and so on) out of {splits}"
        )
    cloth = below.find("list_attr_cloth.txt")
    schema, meaning = read_schema(cloth, below) if cloth else (UNNAMED, None)
    split = read_split_files(splits, schema, several_values=True, global_values=meaning)
    coarse = below.find("list_attr_img.txt")
    if not coarse:
        return split
    raw = _read_coarse(coarse, request, below)
    return reconcile(split, replace(raw, rows=raw.rows.assign(split="")))


def _read_unsplit(request: Request, below: Below) -> Annotation:
    coarse, fine = below.find("list_attr_img.txt"), below.fine
    for asked, found, name in (("coarse", coarse, "list_attr_img.txt"), ("fine", fine, "Anno_fine/train_attr.txt")):
        if request.annotation == asked and not found:
            raise InputError(f"{request.root}: no {name} below it")
    if coarse and request.annotation != "fine":
        raw = _read_coarse(coarse, request, below)
    elif fine:
        raw = _read_fine(fine, request, below)
    else:
        raise InputError(
            f"{request.root}: not DeepFashion's layout (no list_attr_img.txt and no Anno_fine/train_attr.txt below it, "
            "no filenames_*.txt in it; give --split-files if they are elsewhere)"
        )
    if not (raw.rows["split"] != "").all():
        return replace(raw, made="split")
    rows = assign_roles(raw.rows, request.seed, request.fractions)
    origin = f"the annotation's, queries made, seed {request.seed}"
    return replace(raw, rows=rows, made="roles", split_origin=origin)


def _boxed(annotation: Annotation, below: Below) -> Annotation:
    """Add the bounding boxes, and reject rows of images without one."""
    boxes = _read_boxes(below) if annotation.boxes is None else annotation.boxes
    without = ~annotation.rows["path"].isin(boxes["path"])
    return replace(
        annotation,
        rows=annotation.rows[~without].reset_index(drop=True),
        rejects=annotation.rejects + rejected(annotation.rows[without], "bad_box", "{path}: has no bounding box"),
        boxes=boxes,
    )


def read_schema(file: Path, below: Below) -> tuple[tuple[Attribute, ...], list[GlobalValue]]:
    """Read list_attr_cloth.txt: the attributes with the names of their values, and the meaning of each row.

    Raises InputError for a line that is not a name and a type, because the meaning of later rows would be unknown.
    """
    names: list[list[str]] = [[] for _ in TYPE_NAMES]
    types = []
    for number, line in below.rows(file):
        *name, kind = line.rsplit(maxsplit=1)
        if kind not in ("1", "2", "3", "4", "5") or not name:
            if kind == "6":
                raise InputError(f"{file} line {number}: type 6 is Anno_fine's; the list of Anno_coarse is needed")
            raise InputError(f"{file} line {number}: expected a name and a type from 1 to 5: {line.strip()[:80]!r}")
        types.append(int(kind) - 1)
        names[int(kind) - 1].append(name[0].strip())
    schema = zip(TYPE_NAMES, names, strict=True)
    return tuple(Attribute(name=name, values=tuple(values)) for name, values in schema), ranked(types)


def _read_coarse(file: Path, request: Request, below: Below) -> Annotation:
    root = request.root
    schema, meaning = read_schema(below.needed("list_attr_cloth.txt", "names the columns of list_attr_img.txt"), below)
    source = file.relative_to(root).as_posix()
    advance = request.progress(f"{source} read, bytes", annotation_file(file, root).stat().st_size)
    head = read_head(file, root)
    marks = read_marks(file, root, head, len(meaning), advance)
    check_count(file, head, len(marks.lines) + len(marks.rejects), below.notes)
    paths = pd.Series(marks.paths, dtype="str")
    of_column = np.array(meaning, np.int64).reshape(-1, 2)
    rows = pd.DataFrame(
        {
            "path": paths.take(marks.image).reset_index(drop=True),
            "attribute": of_column[marks.column, 0],
            "value": of_column[marks.column, 1],
            "line": marks.lines[marks.image],
        }
    ).assign(source=source, role="")
    unmarked = np.setdiff1d(np.arange(len(paths)), marks.image)
    rejects = marks.rejects + [
        Reject(source, int(marks.lines[i]), "no_value", f"{marks.paths[i]}: no attribute is 1") for i in unmarked
    ]
    filled = {source: len(marks.lines) + len(marks.rejects)}
    if request.categories:
        categories, listed, refused = _read_categories(below, set(marks.paths))
        schema += (categories,)
        rows = pd.concat([rows, listed.assign(attribute=len(schema) - 1)], ignore_index=True)
        rejects += refused
    rows_in = count_rows(rows, rejects, filled)
    partition = below.find("list_eval_partition.txt", "Eval")
    if partition:
        rows, refused = _with_partition(rows, partition, below)
        rejects += refused
    else:
        rows = rows.assign(split="")
    expected = {
        "bad_line": f"expected a path and {counted(len(meaning), 'value')} of 1, -1 or 0, as list_attr_cloth.txt has "
        f"{counted(len(meaning), 'row')}",
        "no_partition": "expected every path of list_attr_img.txt in list_eval_partition.txt, too",
    }
    annotation = Annotation(
        schema,
        rows[list(TYPES)].astype(TYPES),
        rejects,
        rows_in=rows_in,
        several_values=True,
        expected={(source, reason): "; ".join([words, *below.notes]) for reason, words in expected.items()},
    )
    return settled(annotation)


def _with_partition(rows: pd.DataFrame, file: Path, below: Below) -> tuple[pd.DataFrame, list[Reject]]:
    """Add the split of their image to rows, and reject rows of images without one."""
    split_of: dict[str, str] = {}
    for number, line in below.rows(file):
        *path, name = line.rsplit(maxsplit=1)
        if name not in SPLIT_OF or not path:
            raise InputError(f"{file} line {number}: expected a path and train, val or test: {line.strip()[:80]!r}")
        if split_of.setdefault(path[0].strip(), SPLIT_OF[name]) != SPLIT_OF[name]:
            raise InputError(f"{file} line {number}: {path[0].strip()[:80]!r} is in another split further up")
    rows = rows.assign(split=rows["path"].map(split_of))
    without = rows["split"].isna()
    return rows[~without], rejected(rows[without], "no_partition", "{path}: no split given")


def _read_categories(below: Below, paths: set[str]) -> tuple[Attribute, pd.DataFrame, list[Reject]]:
    """Read the clothing category of every image of `paths`, one per image, as one more attribute.

    Categories without an image are left out: the official files use 46 of 50.
    """
    cloth = below.needed("list_category_cloth.txt", "--categories reads")
    names = [line.split()[0] for _, line in below.rows(cloth)]
    file = below.needed("list_category_img.txt", "--categories reads")
    source = file.relative_to(below.root).as_posix()
    rows: list[tuple[str, int, int]] = []
    rejects: list[Reject] = []
    first: dict[str, int] = {}
    filled = 0
    for number, line in below.rows(file):
        filled += 1
        *path, number_text = line.rsplit(maxsplit=1)
        category = integers(number_text)
        if not category or not path:
            rejects.append(bad_line(source, number, line))
        elif not 1 <= category[0] <= len(names):
            detail = f"{path[0].strip()}: category {number_text[:40]} of {len(names)}"
            rejects.append(Reject(source, number, "value_out_of_range", detail))
        elif (image := path[0].strip()) not in paths:
            rejects.append(Reject(source, number, "no_label", f"{image}: not in list_attr_img.txt"))
        elif first.setdefault(image, category[0]) != category[0]:
            detail = f"{image}: category {category[0]}, but {first[image]} further up"
            rejects.append(Reject(source, number, "labels_disagree", detail))
        else:
            rows.append((image, category[0] - 1, number))
    frame = pd.DataFrame(rows, columns=["path", "value", "line"]).assign(source=source, role="")
    count_rows(frame, rejects, {source: filled})
    used = sorted(set(frame["value"]))
    if unused := [name for value, name in enumerate(names) if value not in used]:
        below.notes.append(f"categories without a picture, {len(unused)} of {len(names)}: {', '.join(unused)}")
    frame["value"] = np.searchsorted(used, frame["value"])
    return Attribute(name="category", values=tuple(names[value] for value in used)), frame, rejects


def _read_boxes(below: Below) -> pd.DataFrame:
    """Read list_bbox.txt: path, x0, y0, x1, y1 in pixels. Raises InputError for any other line."""
    file = below.needed("list_bbox.txt", "--crop-boxes reads")
    rows = []
    for number, line in below.rows(file):
        path, *numbers = line.rsplit(maxsplit=4)
        rows.append((path.strip(), *_corners(" ".join(numbers), file, number)))
    return _box_frame(rows)


def _corners(text: str, file: Path, number: int) -> list[float]:
    corners = integers(text)
    if corners is None or len(corners) != 4 or max(map(abs, corners)) > LARGEST_EDGE:
        raise InputError(f"{file} line {number}: expected the corners x1 y1 x2 y2, it is {text[:80]!r}")
    return [float(corner) for corner in corners]


def _box_frame(rows: list[tuple]) -> pd.DataFrame:
    boxes = pd.DataFrame(rows, columns=["path", "x0", "y0", "x1", "y1"])
    return boxes.astype({"path": "str"}).drop_duplicates("path")


def _read_fine(folder: Path, request: Request, below: Below) -> Annotation:
    """Read the parts of Anno_fine, of which each is a split. Raises InputError if there is none."""
    if request.categories:
        raise InputError("--categories goes with --annotation coarse")
    schema = tuple(Attribute(name=name, values=values) for name, values in FINE.items())
    of_column = [(a, v) for a, values in enumerate(FINE.values()) for v in range(len(values))]
    rows: list[tuple] = []
    rejects: list[Reject] = []
    boxes: list[tuple] = []
    filled: Counter[str] = Counter()
    parts = {official: _part(folder, official, below) for official in SPLIT_OF}
    for official, (paths, lines) in parts.items():
        split = SPLIT_OF[official]
        if request.crop_boxes and paths:
            file = below.fine_file(f"{official}_bbox.txt")
            corners = _lines_of(file, below)
            if len(corners) != len(paths):
                raise InputError(
                    f"{file}: {_amount(file, corners)}, but {counted(len(paths), 'image')}; leave out "
                    "--crop-boxes to do without"
                )
            boxes += [
                (path, *_corners(line, file, n)) for n, (path, line) in enumerate(zip(paths, corners, strict=True), 1)
            ]
        source = f"{folder.name}/{official}_attr.txt"
        filled[source] = len(paths)
        for number, (path, line) in enumerate(zip(paths, lines, strict=True), start=1):
            marks = integers(line)
            if marks is None or len(marks) != len(of_column) or set(marks) - {0, 1}:
                rejects.append(bad_line(source, number, line))
                continue
            marked = [(path, *of_column[i], split, "", source, number) for i, mark in enumerate(marks) if mark]
            rows += marked
            if not marked:
                rejects.append(Reject(source, number, "no_value", f"{path}: no attribute is 1"))
    frame = pd.DataFrame(rows, columns=list(TYPES)).astype(TYPES)
    annotation = Annotation(
        schema,
        frame,
        rejects,
        rows_in=count_rows(frame, rejects, filled),
        several_values=True,
        boxes=_box_frame(boxes) if request.crop_boxes else None,
        expected={(source, "bad_line"): f"expected {counted(len(of_column), 'value')} of 0 or 1" for source in filled},
    )
    return settled(annotation)


def _part(folder: Path, official: str, below: Below) -> tuple[list[str], list[str]]:
    """Return paths and marks of one part of Anno_fine, and note a part that is not there.

    Raises InputError if only one of its two files is complete, or if no part is there.
    """
    split = SPLIT_OF[official]
    files = below.fine_file(f"{official}.txt"), below.fine_file(f"{official}_attr.txt")
    paths, marks = (_lines_of(file, below) for file in files)
    if len(paths) == len(marks):
        if not paths:
            if not any(_lines_of(below.fine_file(f"{other}_attr.txt"), below) for other in SPLIT_OF):
                raise InputError(
                    f"{folder}: train.txt and train_attr.txt are missing or empty, and so are those of val and test; "
                    "its list_*.txt alone are not read. Put them there, or Anno_coarse beside it"
                )
            below.notes.append(f"{folder.name}: {official}_attr.txt is missing or empty: there is no split {split}")
        return paths, marks
    short, whole = sorted(((files[0], paths), (files[1], marks)), key=lambda pair: len(pair[1]))
    raise InputError(
        f"{short[0]}: {_amount(*short)}, but {counted(len(whole[1]), 'image')} in {whole[0].name}; is it complete? "
        f"Without both files there is no split {split}: move them away to do without"
    )


def _amount(file: Path, lines: list[str]) -> str:
    return counted(len(lines), "line") if lines else "is empty" if file.exists() else "is missing"


def _lines_of(file: Path, below: Below) -> list[str]:
    """Return the lines of a file of Anno_fine, which has no header; none if there is no such file."""
    if not (file.exists() or file.is_symlink()):
        return []
    lines = [line.strip() for line in read_lines(file, below.root)]
    while lines and not lines[-1]:
        lines.pop()
    return lines
