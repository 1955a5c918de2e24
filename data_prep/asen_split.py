"""The split files of ASEN (Ma et al. 2020), on which every method of the paper's tables reports.

    filenames_{train,valid,test}.txt     one path a line, relative to the dataset's folder
    label_train.txt                      idx attribute value [attribute value ...]
    {query,candidate}_{valid,test}.txt   idx attribute value

idx is the 0-based line of the split's file names; attribute and value are 0-based.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_prep.annotation import Annotation, Reject, Row, read_lines
from data_prep.errors import InputError
from data_prep.tables import SPLITS, Attribute

ROLES = ("query", "candidate")


def find_split_files(folder: Path, dataset: str) -> Path | None:
    """The folder that holds the split files: `folder` itself or its subfolder named after the dataset."""
    for candidate in (folder, folder / dataset):
        if any((candidate / f"filenames_{split}.txt").is_file() for split in SPLITS):
            return candidate
    return None


def read_split_files(folder: Path, attributes: tuple[Attribute, ...]) -> Annotation:
    """Read whichever of the three splits `folder` holds."""
    annotation = Annotation(attributes)
    for split in SPLITS:
        names_file = folder / f"filenames_{split}.txt"
        if not names_file.is_file():
            continue
        names = read_lines(names_file)
        labelled: set[int] = set()
        for file, role in _label_files(folder, split):
            for line_number, line in enumerate(read_lines(file), start=1):
                _read_line(annotation, names, labelled, line, Row("", 0, 0, split, role, file.name, line_number))
        annotation.rejects += [
            Reject(names_file.name, index + 1, "no_label", name)
            for index, name in enumerate(names)
            if index not in labelled
        ]
    return annotation.without_repeats()


def _label_files(folder: Path, split: str) -> Iterator[tuple[Path, str]]:
    wanted = [("label", "")] if split == "train" else [(role, role) for role in ROLES]
    for stem, role in wanted:
        file = folder / f"{stem}_{split}.txt"
        if not file.is_file():
            raise InputError(f"{folder}: filenames_{split}.txt is there but {file.name} is missing")
        yield file, role


def _read_line(annotation: Annotation, names: list[str], labelled: set[int], line: str, row: Row) -> None:
    """Turn one line into rows (one for each attribute-value pair) or one reject."""
    try:
        index, *pairs = [int(number) for number in line.split()]
    except ValueError:
        return annotation.reject(row, "bad_line", line[:200])
    if not pairs or len(pairs) % 2:
        return annotation.reject(row, "bad_line", line[:200])
    if not 0 <= index < len(names):
        return annotation.reject(row, "index_out_of_range", f"{index} of {len(names)} file names")
    labelled.add(index)
    for attribute, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not 0 <= attribute < len(annotation.attributes):
            annotation.reject(row, "unknown_attribute", f"attribute {attribute} of {names[index]}")
        elif not 0 <= value < len(annotation.attributes[attribute].values):
            name = annotation.attributes[attribute].name
            annotation.reject(row, "value_out_of_range", f"{name} value {value} of {names[index]}")
        else:
            annotation.rows.append(row._replace(path=names[index], attribute=attribute, value=value))


def write_split_files(folder: Path, rows: list[Row]) -> None:
    """Write rows (every one with a split) as ASEN's files; images keep the order of their first row."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        of_split = [row for row in rows if row.split == split]
        index = {path: i for i, path in enumerate(dict.fromkeys(row.path for row in of_split))}
        if not index:
            continue
        _write_lines(folder / f"filenames_{split}.txt", index)
        for file, role in (("label", ""),) if split == "train" else ((role, role) for role in ROLES):
            lines = [f"{index[r.path]} {r.attribute} {r.value}" for r in of_split if r.role == role]
            _write_lines(folder / f"{file}_{split}.txt", lines)


def _write_lines(path: Path, lines: Iterable[object]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def assign_splits(rows: list[Row], seed: int) -> list[Row]:
    """Make a reproducible split in ASEN's proportions: 8 : 1 : 1, query : candidate = 1 : 4, disjoint.

    Images are dealt out in turn within each value (of their first label), in an order shuffled by `seed`, so that
    every value appears in the three splits as evenly as its number of images allows. All labels of an image go
    to the same split.
    """
    of_image: dict[str, list[Row]] = {}
    for row in rows:
        of_image.setdefault(row.path, []).append(row)
    images = list(of_image.values())
    shuffled = [images[i] for i in np.random.default_rng(seed).permutation(len(images))]
    shuffled.sort(key=lambda labels: (labels[0].attribute, labels[0].value))
    dealt = []
    for place, labels in enumerate(shuffled):
        split = {8: "valid", 9: "test"}.get(place % 10, "train")
        role = "" if split == "train" else "query" if (place // 10) % 5 == 0 else "candidate"
        dealt += [row._replace(split=split, role=role) for row in labels]
    return dealt
