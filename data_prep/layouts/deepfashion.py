"""DeepFashion, Category and Attribute Prediction: raw coarse or fine annotation, ASEN's split files, or both.

    Anno_coarse/list_attr_cloth.txt       attribute name (with blanks), type 1-5
    Anno_coarse/list_attr_img.txt         path, 1000 values of 1, -1 or 0
    Anno_coarse/list_category_cloth.txt, list_category_img.txt, list_bbox.txt
    Eval/list_eval_partition.txt          path, train | val | test
    Anno_fine/{train,val,test}.txt        path;  *_attr.txt (26 × 0/1), *_cate.txt, *_bbox.txt: row by row

The paper's attributes are the five types. The values of an attribute are list_attr_cloth's rows of its type, in order.
Files are found anywhere below the root.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.annotation import (
    SPLIT_OF,
    TYPES,
    Annotation,
    Reject,
    bad_line,
    counted,
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
from data_prep.layouts.deepfashion_matrix import read_marks
from data_prep.layouts.text_files import (
    HEADER,
    annotation_file,
    check_header,
    integers,
    is_dir,
    numbered_lines,
    read_lines,
)
from data_prep.request import Request
from data_prep.splits import assign_roles
from data_prep.tables import Attribute

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


def read(request: Request) -> Annotation:
    """Read the annotation below the root.

    If there are split files, labels and split are theirs, and raw coarse labels, if any, are checked against them.
    Otherwise, the split is that of list_eval_partition.txt or Anno_fine, and queries and candidates are made from the
    seed in ASEN's proportions. Raises InputError.
    """
    splits = find_split_files(request, NAME)
    annotation = _read_split(splits, request) if splits else _read_unsplit(request)
    return _below_root(_boxed(annotation, request) if request.crop_boxes else annotation, request.root)


def _read_split(splits: Path, request: Request) -> Annotation:
    if request.annotation == "fine" or request.categories:
        raise InputError(
            "--annotation fine and --categories go with the raw annotation alone; move ASEN's split files "
            f"(filenames_*.txt and so on) out of {splits}"
        )
    cloth = _find(request.root, "list_attr_cloth.txt", COARSE)
    schema, meaning = read_schema(cloth, request.root) if cloth else (UNNAMED, None)
    split = read_split_files(splits, schema, several_values=True, global_values=meaning)
    coarse = _find(request.root, "list_attr_img.txt", COARSE)
    if not coarse:
        return split
    raw = _read_coarse(coarse, request)
    return reconcile(split, replace(raw, rows=raw.rows.assign(split="")))


def _read_unsplit(request: Request) -> Annotation:
    coarse = _find(request.root, "list_attr_img.txt", COARSE)
    fine = _find(request.root, "train_attr.txt", FINE_FOLDER)
    for asked, found, name in (("coarse", coarse, "list_attr_img.txt"), ("fine", fine, "Anno_fine/train_attr.txt")):
        if request.annotation == asked and not found:
            raise InputError(f"{request.root}: no {name} below it")
    if coarse and request.annotation != "fine":
        raw = _read_coarse(coarse, request)
    elif fine:
        raw = _read_fine(fine.parent, request)
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


def _below_root(annotation: Annotation, root: Path) -> Annotation:
    """Make paths relative to the root: the archives unpack to Img/img, but the annotation says img."""
    if is_dir(root / "img") or not is_dir(root / "Img" / "img"):
        return annotation
    boxes = annotation.boxes
    return replace(
        annotation,
        rows=annotation.rows.assign(path="Img/" + annotation.rows["path"]),
        boxes=None if boxes is None else boxes.assign(path="Img/" + boxes["path"]),
    )


def _boxed(annotation: Annotation, request: Request) -> Annotation:
    """Add the bounding boxes, and reject rows of images without one."""
    boxes = _read_boxes(request.root) if annotation.boxes is None else annotation.boxes
    without = ~annotation.rows["path"].isin(boxes["path"])
    return replace(
        annotation,
        rows=annotation.rows[~without].reset_index(drop=True),
        rejects=annotation.rejects + rejected(annotation.rows[without], "bad_box", "{path}: has no bounding box"),
        boxes=boxes,
    )


def _find(root: Path, name: str, folder: str) -> Path | None:
    """Return the file of this name below `root`, preferably the one in `folder`; None if there is none."""
    found = sorted(root.rglob(name), key=lambda file: (file.parent.name != folder, file.as_posix()))
    other = FINE_FOLDER if folder == COARSE else COARSE
    return next((file for file in found if file.parent.name != other), None)


def _needed(root: Path, name: str, folder: str) -> Path:
    file = _find(root, name, folder)
    if not file:
        raise InputError(f"{root}: no {name} below it")
    return file


def read_schema(file: Path, root: Path) -> tuple[tuple[Attribute, ...], list[GlobalValue]]:
    """Read list_attr_cloth.txt: the attributes with the names of their values, and the meaning of each row.

    Raises InputError for a line that is not a name and a type, because the meaning of later rows would be unknown.
    """
    names: list[list[str]] = [[] for _ in TYPE_NAMES]
    types = []
    for number, line in _list_rows(file, root):
        *name, kind = line.rsplit(maxsplit=1)
        if kind not in ("1", "2", "3", "4", "5") or not name:
            raise InputError(f"{file} line {number}: expected a name and a type from 1 to 5: {line.strip()[:80]!r}")
        types.append(int(kind) - 1)
        names[int(kind) - 1].append(name[0].strip())
    schema = zip(TYPE_NAMES, names, strict=True)
    return tuple(Attribute(name=name, values=tuple(values)) for name, values in schema), ranked(types)


def _list_rows(file: Path, root: Path) -> list[tuple[int, str]]:
    """Return the rows of a list_*.txt with their line numbers. Raises InputError if their number is not as stated."""
    lines = list(numbered_lines(file, root))
    if len(lines) < HEADER:
        raise InputError(f"{file}: line 1 should be the number of rows, line 2 the columns' names")
    rows = lines[HEADER:]
    check_header(file, lines[0][1], len(rows))
    return rows


def _read_coarse(file: Path, request: Request) -> Annotation:
    root = request.root
    schema, meaning = read_schema(_needed(root, "list_attr_cloth.txt", COARSE), root)
    source = file.relative_to(root).as_posix()
    advance = request.progress(f"{source} read, bytes", annotation_file(file, root).stat().st_size)
    marks = read_marks(file, root, len(meaning), advance)
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
        categories, listed, refused = _read_categories(root, set(marks.paths))
        schema += (categories,)
        rows = pd.concat([rows, listed.assign(attribute=len(schema) - 1)], ignore_index=True)
        rejects += refused
    rows_in = counted(rows, rejects, filled)
    partition = _find(root, "list_eval_partition.txt", "Eval")
    if partition:
        rows, refused = _with_partition(rows, partition, root)
        rejects += refused
    else:
        rows = rows.assign(split="")
    annotation = Annotation(
        schema,
        rows[list(TYPES)].astype(TYPES),
        rejects,
        rows_in=rows_in,
        several_values=True,
    )
    return settled(annotation)


def _with_partition(rows: pd.DataFrame, file: Path, root: Path) -> tuple[pd.DataFrame, list[Reject]]:
    """Add the split of their image to rows, and reject rows of images without one."""
    split_of: dict[str, str] = {}
    for number, line in _list_rows(file, root):
        *path, name = line.rsplit(maxsplit=1)
        if name not in SPLIT_OF or not path:
            raise InputError(f"{file} line {number}: expected a path and train, val or test: {line.strip()[:80]!r}")
        if split_of.setdefault(path[0].strip(), SPLIT_OF[name]) != SPLIT_OF[name]:
            raise InputError(f"{file} line {number}: {path[0].strip()[:80]!r} is in another split further up")
    rows = rows.assign(split=rows["path"].map(split_of))
    without = rows["split"].isna()
    return rows[~without], rejected(rows[without], "no_partition", "{path}: no split given")


def _read_categories(root: Path, paths: set[str]) -> tuple[Attribute, pd.DataFrame, list[Reject]]:
    """Read the clothing category of every image of `paths`, one per image, as one more attribute."""
    cloth = _needed(root, "list_category_cloth.txt", COARSE)
    names = [line.split()[0] for _, line in _list_rows(cloth, root)]
    file = _needed(root, "list_category_img.txt", COARSE)
    source = file.relative_to(root).as_posix()
    rows: list[tuple[str, int, int]] = []
    rejects: list[Reject] = []
    first: dict[str, int] = {}
    filled = 0
    for number, line in _list_rows(file, root):
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
    counted(frame, rejects, {source: filled})
    return Attribute(name="category", values=tuple(names)), frame, rejects


def _read_boxes(root: Path) -> pd.DataFrame:
    """Read list_bbox.txt: path, x0, y0, x1, y1 in pixels. Raises InputError for any other line."""
    file = _needed(root, "list_bbox.txt", COARSE)
    rows = []
    for number, line in _list_rows(file, root):
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


def _read_fine(folder: Path, request: Request) -> Annotation:
    schema = tuple(Attribute(name=name, values=values) for name, values in FINE.items())
    of_column = [(a, v) for a, values in enumerate(FINE.values()) for v in range(len(values))]
    rows: list[tuple] = []
    rejects: list[Reject] = []
    boxes: list[tuple] = []
    filled: Counter[str] = Counter()
    if request.categories:
        raise InputError("--categories goes with --annotation coarse")
    for official, split in SPLIT_OF.items():
        paths = _aligned(folder / f"{official}.txt", None)
        if request.crop_boxes:
            file = folder / f"{official}_bbox.txt"
            lines = zip(paths, _aligned(file, len(paths)), strict=True)
            boxes += [(path, *_corners(line, file, n)) for n, (path, line) in enumerate(lines, start=1)]
        source = f"{folder.name}/{official}_attr.txt"
        filled[source] = len(paths)
        for number, line in enumerate(_aligned(folder / f"{official}_attr.txt", len(paths)), start=1):
            path, marks = paths[number - 1], integers(line)
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
        rows_in=counted(frame, rejects, filled),
        several_values=True,
        boxes=_box_frame(boxes) if request.crop_boxes else None,
    )
    return settled(annotation)


def _aligned(file: Path, rows: int | None) -> list[str]:
    """Return the lines of a file without header. Raises InputError unless there are `rows` of them, if given."""
    lines = [line.strip() for line in read_lines(file, file.parent)]
    while lines and not lines[-1]:
        lines.pop()
    if rows is not None and len(lines) != rows:
        raise InputError(f"{file}: {len(lines):,} lines, but {rows:,} images; is it complete?")
    return lines
