"""DeepFashion, Category and Attribute Prediction: raw coarse or fine annotation, ASEN's split files, or both.

    Anno_coarse/list_attr_cloth.txt       attribute name (with blanks), type 1-5
    Anno_coarse/list_attr_img.txt         path, 1000 values of 1, -1 or 0
    Anno_coarse/list_category_cloth.txt, list_category_img.txt, list_bbox.txt
    Eval/list_eval_partition.txt          path, train | val | test
    Anno_fine/{train,val,test}.txt        path;  *_attr.txt (26 × 0/1), *_cate.txt, *_bbox.txt: row by row

The paper's attributes are the five types; their values are list_attr_cloth's rows of that type, in order. Files
are found wherever they lie below the root.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from data_prep.annotation import (
    LONGEST_LINE,
    TYPES,
    Annotation,
    Reject,
    bad_line,
    integers,
    numbered_lines,
    read_lines,
    reconcile,
    rejected,
    settled,
)
from data_prep.asen_split import (
    GlobalValue,
    assign_roles,
    assign_splits,
    find_split_files,
    ranked,
    read_split_files,
    required_split_files,
)
from data_prep.deepfashion_matrix import read_marks
from data_prep.errors import InputError
from data_prep.request import Request
from data_prep.tables import Attribute

NAME = "DeepFashion"
TYPE_NAMES = ("texture-related", "fabric-related", "shape-related", "part-related", "style-related")
TYPE_SIZES = (156, 218, 180, 216, 230)
UNNAMED = tuple(
    Attribute(name=name, values=tuple(str(i) for i in range(size)))
    for name, size in zip(TYPE_NAMES, TYPE_SIZES, strict=True)
)
"""The schema where no list_attr_cloth.txt gives the values their names."""
FINE = {
    "texture": ("floral", "graphic", "striped", "embroidered", "pleated", "solid", "lattice"),
    "sleeve": ("long_sleeve", "short_sleeve", "sleeveless"),
    "length": ("maxi_length", "mini_length", "no_dress"),
    "neckline": ("crew_neckline", "v_neckline", "square_neckline", "no_neckline"),
    "fabric": ("denim", "chiffon", "cotton", "leather", "faux", "knit"),
    "fit": ("tight", "loose", "conventional"),
}
"""Anno_fine's 26 columns, in their order."""
SPLIT_OF = {"train": "train", "val": "valid", "test": "test"}
HEADER = 2  # lines of a list_*.txt: the number of rows, the columns' names


class Raw(NamedTuple):
    """A raw annotation before anything is decided about it."""

    annotation: Annotation
    has_splits: bool


def read(request: Request) -> Annotation:
    """Read the annotation below the root; every row has a split afterwards.

    With split files the labels and the split are theirs, and raw labels, where there are any, are checked against
    them. Without, the split is list_eval_partition's (or Anno_fine's), with queries and candidates made from the
    seed in ASEN's proportions.
    """
    root = request.root
    splits = required_split_files(request.split_files, NAME) or find_split_files(root, NAME)
    if splits and (request.annotation == "fine" or request.categories):
        raise InputError("--annotation fine and --categories go with the raw annotation, not with ASEN's split files")
    raw = _read_raw(request)
    if not splits:
        if not raw:
            raise InputError(
                f"{root}: not DeepFashion's layout (no list_attr_img.txt and no Anno_fine/train.txt below it, "
                "no filenames_*.txt; give --split-files if they lie elsewhere)"
            )
        made = assign_roles if raw.has_splits else assign_splits
        annotation = raw.annotation
        annotation.rows = made(annotation.rows, request.seed)
        return annotation
    cloth = _find(root, "list_attr_cloth.txt", "Anno_coarse")
    schema, meaning = read_schema(cloth) if cloth else (UNNAMED, None)
    split = read_split_files(splits, schema, several_values=True, global_values=meaning)
    if raw:
        unsplit = raw.annotation
        unsplit.rows = unsplit.rows.assign(split="")
        return reconcile(split, unsplit)
    return replace(split, boxes=_boxes(request))


def _read_raw(request: Request) -> Raw | None:
    coarse = _find(request.root, "list_attr_img.txt", "Anno_coarse")
    fine = _find(request.root, "train_attr.txt", "Anno_fine")
    if request.annotation == "coarse" and not coarse:
        raise InputError(f"{request.root}: no list_attr_img.txt below it")
    if request.annotation == "fine" and not fine:
        raise InputError(f"{request.root}: no Anno_fine/train_attr.txt below it")
    if coarse and request.annotation != "fine":
        return _read_coarse(coarse, request)
    return _read_fine(fine.parent, request) if fine else None


def _find(root: Path, name: str, folder: str) -> Path | None:
    """The file below `root`; of several, the one in `folder`."""
    found = sorted(root.rglob(name), key=lambda file: (file.parent.name != folder, file.as_posix()))
    other = "Anno_fine" if folder == "Anno_coarse" else "Anno_coarse"
    return next((file for file in found if file.parent.name != other), None)


def _needed(root: Path, name: str, folder: str) -> Path:
    file = _find(root, name, folder)
    if not file:
        raise InputError(f"{root}: no {name} below it")
    return file


def read_schema(file: Path) -> tuple[tuple[Attribute, ...], list[GlobalValue]]:
    """list_attr_cloth.txt: the attributes with their values' names, and what each of its rows is.

    Raises InputError for a line that is not a name and a type: every later row's meaning would be in doubt.
    """
    names: list[list[str]] = [[] for _ in TYPE_NAMES]
    types = []
    for number, line in _list_rows(file):
        name, _, kind = line.strip().rpartition(" ")
        if kind not in ("1", "2", "3", "4", "5") or not name.strip():
            raise InputError(
                f"{file} line {number}: expected a name and a type from 1 to 5, it is {line.strip()[:80]!r}"
            )
        types.append(int(kind) - 1)
        names[int(kind) - 1].append(name.strip())
    schema = zip(TYPE_NAMES, names, strict=True)
    return tuple(Attribute(name=name, values=tuple(values)) for name, values in schema), ranked(types)


def _list_rows(file: Path) -> list[tuple[int, str]]:
    """The rows of a list_*.txt with their line numbers. Raises InputError if they are not as many as it says."""
    lines = list(numbered_lines(file))
    if len(lines) < HEADER or not lines[0][1].strip().isdigit():
        raise InputError(f"{file}: line 1 should be the number of rows, line 2 the columns' names")
    said, rows = int(lines[0][1][:30]), lines[HEADER:]
    if said != len(rows):
        raise InputError(f"{file}: line 1 says {said:,} rows, the file has {len(rows):,}; is it complete?")
    return rows


def _read_coarse(file: Path, request: Request) -> Raw:
    root = request.root
    schema, meaning = read_schema(_needed(root, "list_attr_cloth.txt", "Anno_coarse"))
    source = file.relative_to(root).as_posix()
    advance = request.progress(f"{source} read, bytes", file.stat().st_size)
    marks = read_marks(file, source, len(meaning), advance)
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
    if request.categories:
        categories, listed, refused = _read_categories(root, set(marks.paths))
        schema += (categories,)
        rows = pd.concat([rows, listed.assign(attribute=len(schema) - 1)], ignore_index=True)
        rejects += refused
    rows_in = len(rows) + len(rejects)
    partition = _find(root, "list_eval_partition.txt", "Eval")
    if partition:
        rows, refused = _with_partition(rows, partition)
        rejects += refused
    else:
        rows = rows.assign(split="")
    annotation = Annotation(
        schema,
        rows[list(TYPES)].astype(TYPES),
        rejects,
        rows_in=rows_in,
        several_values=True,
        boxes=_boxes(request),
    )
    return Raw(settled(annotation), has_splits=partition is not None)


def _with_partition(rows: pd.DataFrame, file: Path) -> tuple[pd.DataFrame, list[Reject]]:
    """Rows with their image's split; those of images without one are rejected."""
    split_of: dict[str, str] = {}
    for number, line in _list_rows(file):
        path, _, name = line.strip().rpartition(" ")
        if name not in SPLIT_OF or split_of.setdefault(path.strip(), SPLIT_OF[name]) != SPLIT_OF[name]:
            raise InputError(f"{file} line {number}: expected a path and train, val or test: {line.strip()[:80]!r}")
    rows = rows.assign(split=rows["path"].map(split_of))
    without = rows["split"].isna()
    rejects = rejected(rows[without], "no_partition", "{path}: no split given")
    return rows[~without], rejects


def _read_categories(root: Path, paths: set[str]) -> tuple[Attribute, pd.DataFrame, list[Reject]]:
    """The clothing category of every image of `paths` as one more attribute."""
    names = []
    for _, line in _list_rows(_needed(root, "list_category_cloth.txt", "Anno_coarse")):
        names.append(line.split()[0])
    file = _needed(root, "list_category_img.txt", "Anno_coarse")
    source = file.relative_to(root).as_posix()
    rows, rejects = [], []
    for number, line in _list_rows(file):
        path, _, said = line.strip().rpartition(" ")
        category = integers(said)
        if not category:
            rejects.append(bad_line(source, number, line))
        elif not 1 <= category[0] <= len(names):
            detail = f"{path.strip()}: category {said[:40]} of {len(names)}"
            rejects.append(Reject(source, number, "value_out_of_range", detail))
        elif path.strip() in paths:
            rows.append((path.strip(), category[0] - 1, number))
        else:
            rejects.append(Reject(source, number, "no_label", f"{path.strip()}: not in list_attr_img.txt"))
    frame = pd.DataFrame(rows, columns=["path", "value", "line"]).assign(source=source, role="")
    return Attribute(name="category", values=tuple(names)), frame, rejects


def _boxes(request: Request) -> pd.DataFrame | None:
    """list_bbox.txt, if pictures are to be cropped. A line that cannot be read leaves its picture without a box."""
    if not request.crop_boxes:
        return None
    file = _needed(request.root, "list_bbox.txt", "Anno_coarse")
    rows = []
    for number, line in _list_rows(file):
        path, *numbers = line.rsplit(maxsplit=4)
        corners = integers(" ".join(numbers))
        if corners is None or len(corners) != 4:
            raise InputError(f"{file} line {number}: expected a path and x1 y1 x2 y2, it is {line.strip()[:80]!r}")
        rows.append((path.strip(), *map(float, corners)))
    return _box_frame(rows)


def _box_frame(rows: list[tuple]) -> pd.DataFrame:
    boxes = pd.DataFrame(rows, columns=["path", "x0", "y0", "x1", "y1"])
    return boxes.astype({"path": "str"}).drop_duplicates("path")


def _read_fine(folder: Path, request: Request) -> Raw:
    schema = tuple(Attribute(name=name, values=values) for name, values in FINE.items())
    of_column = [(a, v) for a, values in enumerate(FINE.values()) for v in range(len(values))]
    rows: list[tuple] = []
    rejects: list[Reject] = []
    boxes: list[tuple] = []
    if request.categories:
        raise InputError("--categories goes with --annotation coarse")
    for part, split in SPLIT_OF.items():
        paths = _aligned(folder / f"{part}.txt", None)
        if request.crop_boxes:
            corners = _numbers(_aligned(folder / f"{part}_bbox.txt", len(paths)), folder / f"{part}_bbox.txt", 4)
            boxes += [(path, *map(float, box)) for path, box in zip(paths, corners, strict=True)]
        source = f"{folder.name}/{part}_attr.txt"
        for number, line in enumerate(_aligned(folder / f"{part}_attr.txt", len(paths)), start=1):
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
        rows_in=len(frame) + len(rejects),
        several_values=True,
        boxes=_box_frame(boxes) if request.crop_boxes else None,
    )
    return Raw(settled(annotation), has_splits=True)


def _aligned(file: Path, rows: int | None) -> list[str]:
    """The lines of a headerless file. Raises InputError if they are not as many as `rows`: none could be trusted."""
    lines = [line.strip() for line in read_lines(file)]
    while lines and not lines[-1]:
        lines.pop()
    if rows is not None and len(lines) != rows:
        raise InputError(f"{file}: {len(lines):,} lines, but {rows:,} images; is it complete?")
    return lines


def _numbers(lines: list[str], file: Path, count: int) -> list[list[int]]:
    rows = []
    for number, line in enumerate(lines, start=1):
        read = integers(line) if len(line) <= LONGEST_LINE else None
        if read is None or len(read) != count:
            raise InputError(f"{file} line {number}: expected {count} integers, it is {line[:80]!r}")
        rows.append(read)
    return rows


def write_raw(root: Path, rows: pd.DataFrame, schema: Sequence[Attribute], meaning: list[GlobalValue]) -> None:
    """Write labels as the raw coarse annotation, and their splits as list_eval_partition.txt."""
    names = [schema[pair.attribute].values[pair.value] for pair in meaning]
    kinds = [f"{name:40} {pair.attribute + 1}" for name, pair in zip(names, meaning, strict=True)]
    _write_list(root / "Anno_coarse/list_attr_cloth.txt", "attribute_name  attribute_type", kinds)
    row_of = {pair: row for row, pair in enumerate(meaning)}
    images, paths = pd.factorize(rows["path"])
    pairs = zip(rows["attribute"], rows["value"], strict=True)
    marks = np.full((len(paths), len(meaning)), "-1", dtype="<U2")
    marks[images, [row_of[GlobalValue(*pair)] for pair in pairs]] = " 1"
    lines = [f"{path:70} {' '.join(of_image)}" for path, of_image in zip(paths, marks, strict=True)]
    _write_list(root / "Anno_coarse/list_attr_img.txt", "image_name  attribute_labels", lines)
    short = {split: name for name, split in SPLIT_OF.items()}
    split_of = rows.drop_duplicates("path").set_index("path")["split"]
    partition = [f"{path:70} {short[split]}" for path, split in split_of.items()]
    _write_list(root / "Eval/list_eval_partition.txt", "image_name  evaluation_status", partition)


def write_boxes(root: Path, drawn: Sequence[tuple[str, str, tuple[float, ...]]], size: int) -> None:
    """Write list_bbox.txt from (path, attribute, region): around all regions of a picture of `size` pixels."""
    regions = pd.DataFrame([(path, *region) for path, _, region in drawn], columns=["path", "x0", "y0", "x1", "y1"])
    edges = regions.groupby("path", sort=False).agg({"x0": "min", "y0": "min", "x1": "max", "y1": "max"})
    pixels = (edges * size).round().astype(int)
    lines = [f"{path:70} {' '.join(f'{edge:03d}' for edge in box)}" for path, *box in pixels.itertuples()]
    _write_list(root / "Anno_coarse/list_bbox.txt", "image_name  x_1  y_1  x_2  y_2", lines)


def _write_list(file: Path, columns: str, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([str(len(lines)), columns, *lines, ""]), encoding="utf-8")
