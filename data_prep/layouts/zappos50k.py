"""UT-Zap50K: the triplet lists of CSN (Veit et al. 2017), or labels from meta-data.csv.

    ut-zap50k-images/<Category>/<SubCategory>/<Brand>/<CID>.jpg
    ut-zap50k-data/meta-data.csv      CID,Category,SubCategory,HeelHeight,Insole,Closure,Gender,Material,ToeStyle
    filenames.json                    plain text, one path a line
    tripletlists/{class,closure,gender,heel}_tripletlist_{train,val,test}.txt    anchor far close: line numbers

The lists have triplets and no labels, so that a dataset made of them has no queries. Without lists, the labels of the
four conditions come from meta-data.csv, and triplets are drawn from them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.annotation import (
    SHOWN,
    SPLIT_OF,
    TRIPLET_COLUMNS,
    Annotation,
    Reject,
    Row,
    bad_line,
    count_rows,
    frame_of,
    settled,
)
from data_prep.errors import InputError
from data_prep.layouts.folders import is_picture
from data_prep.layouts.text_files import (
    LONGEST_PATH,
    check_commas,
    csv_cells,
    find_files,
    integers,
    links_of,
    numbered_lines,
    read_lines,
)
from data_prep.request import Request
from data_prep.tables import CSN_SPLIT, SPLITS, Attribute
from data_prep.words import counted

CONDITIONS = {"class": "Category", "closure": "Closure", "gender": "Gender", "heel": "HeelHeight"}
"""The four conditions, which are our attributes, and their columns of meta-data.csv."""
IMAGE_FOLDERS = ("ut-zap50k-images", "ut-zap50k-images-square")
SEPARATOR = ";"
"""Separator of the values in a cell."""


def read(request: Request) -> Annotation:
    """Read the triplet lists (in --split-files or in the root) if there are any, else the labels. Raises InputError."""
    for folder in (request.split_files, request.root):
        lists = folder and lists_below(folder)
        if lists:
            return read_lists(lists, request.root)
        if folder and folder == request.split_files:
            raise InputError(f"{folder}: no filenames.json with a folder tripletlists beside it")
    tables = find_files(request.root, "meta-data.csv")
    table = next((file for file in tables if file.name.lower() == "meta-data.csv"), None)
    if not table:
        raise InputError(
            f"{request.root}: not UT-Zap50K's layout (neither filenames.json with tripletlists/ nor meta-data.csv "
            "below it; give --split-files if the lists are elsewhere)"
        )
    return replace(read_table(table, request.root), made="split")


def lists_below(folder: Path) -> Path | None:
    """Return the folder with filenames.json and tripletlists/, if any. Raises InputError if it has only the lists."""
    found = (lists for top in (folder, *links_of(folder)) for lists in sorted(top.rglob("tripletlists")))
    for lists in found:
        if not (lists.parent / "filenames.json").exists():
            raise InputError(f"{lists.parent}: tripletlists/ is there but filenames.json is missing")
        return lists.parent
    return None


def read_lists(folder: Path, root: Path) -> Annotation:
    """Read all triplets of all lists, also those whose pictures another split uses: that is the published protocol."""
    names = [name.strip() for name in read_lines(folder / "filenames.json", folder)]
    if names and names[0].startswith("["):
        raise InputError(
            f"{folder / 'filenames.json'}: is JSON; CSN's file of this name is plain text, one path a line"
        )
    prefix = next((f"{folder}/" for folder in IMAGE_FOLDERS if (root / folder).is_dir()), "")
    paths = [name if name.startswith(prefix) else prefix + name for name in names]
    # A file that is listed twice is the same image.
    image_of, images = pd.factorize(pd.Series(paths, dtype="str"))
    columns: dict[str, list] = {name: [] for name in TRIPLET_COLUMNS}
    rejects: list[Reject] = []
    attributes = tuple(Attribute(name=name, values=()) for name in CONDITIONS)
    filled: Counter[str] = Counter()
    found = False
    for official, split in SPLIT_OF.items():
        for attribute, condition in enumerate(CONDITIONS):
            file = folder / "tripletlists" / f"{condition}_tripletlist_{official}.txt"
            if not file.is_file():
                continue
            found = True
            for number, line in numbered_lines(file, folder):
                filled[file.name] += 1
                read = _read_triplet(line, paths, image_of, file.name, number)
                if isinstance(read, Reject):
                    rejects.append(read)
                    continue
                triplet = (*read, attribute, split, file.name, number)
                for name, value in zip(TRIPLET_COLUMNS, triplet, strict=True):
                    columns[name].append(value)
    if not found:
        raise InputError(f"{folder / 'tripletlists'}: none of its files is a CONDITION_tripletlist_SPLIT.txt")
    triplets = pd.DataFrame(columns).astype({"attribute": "int16", "line": "int64"})
    rows_in = count_rows(triplets, rejects, filled)
    notes = _sharing(triplets, len(images))
    for name in TRIPLET_COLUMNS[:3]:
        triplets[name] = images.take(triplets[name].to_numpy(int))
    triplets = triplets.astype(dict.fromkeys(TRIPLET_COLUMNS[:3], "str"))
    return Annotation(
        attributes,
        rejects=rejects,
        rows_in=rows_in,
        triplets=triplets,
        split_origin=CSN_SPLIT,
        notes=notes,
        expected={
            (source, "bad_line"): "expected three whole numbers, anchor far close: lines of filenames.json from 0"
            for source in filled
        },
    )


def _read_triplet(
    line: str, paths: list[str], image_of: np.ndarray, source: str, number: int
) -> tuple[int, int, int] | Reject:
    """Return anchor, positive and negative. In the lists, the far one (negative) is before the close one."""
    numbers = integers(line)
    if numbers is None or len(numbers) != 3:
        return bad_line(source, number, line)
    if not all(0 <= index < len(paths) for index in numbers):
        return Reject(source, number, "index_out_of_range", f"{line.strip()[:80]}: {counted(len(paths), 'file name')}")
    if max(len(paths[index]) for index in numbers) > LONGEST_PATH:
        return Reject(source, number, "bad_line", f"{line.strip()}: a file name has too many characters")
    anchor, far, close = image_of[numbers].tolist()
    if len({anchor, far, close}) < 3:
        return Reject(source, number, "same_image_twice", line.strip())
    return anchor, close, far


def _sharing(triplets: pd.DataFrame, images: int) -> tuple[str, ...]:
    """Return a note on the triplets with a picture that an earlier split has, too, if there are any."""
    shared = []
    seen = np.zeros(images, bool)
    for split in SPLITS:
        own = triplets.loc[triplets["split"] == split, list(TRIPLET_COLUMNS[:3])].to_numpy(int)
        if count := int(seen[own].any(axis=1).sum()):
            shared.append(f"{count:,} of {counted(len(own), f'{split} triplet')}")
        seen[own] = True
    if not shared:
        return ()
    return (f"CSN's lists share pictures with an earlier split: {' and '.join(shared)}",)


def _pictures(root: Path) -> Iterator[str]:
    """Yield the path of every picture below the images' folder, relative to the root."""
    top = next((root / folder for folder in IMAGE_FOLDERS if (root / folder).is_dir()), root)
    for folder, folders, files in os.walk(top):
        folders.sort()
        relative = Path(folder).relative_to(root).as_posix()
        for name in sorted(files):
            if is_picture(name):
                yield name if relative == "." else f"{relative}/{name}"


def read_table(file: Path, root: Path) -> Annotation:
    """Read the labels of the four conditions from meta-data.csv: one row for every value in a cell.

    An empty cell is no label; a line with four empty cells is rejected. The picture is the file named after the CID,
    in which meta-data-bin.csv and some copies write `-` instead of `.`.
    """
    source = file.relative_to(root).as_posix()
    paths_of: dict[str, list[str]] = {}
    for path in _pictures(root):
        paths_of.setdefault(_cid(Path(path).stem), []).append(path)
    first: dict[str, set[tuple[int, str]]] = {}
    filled = 0
    cells: list[tuple[str, int, str, int]] = []
    rejects: list[Reject] = []
    for number, record in _records(file, root):
        filled += 1
        if isinstance(record, str):
            rejects.append(bad_line(source, number, record))
            continue
        labels = [
            (attribute, value.strip())
            for attribute, column in enumerate(CONDITIONS.values())
            for value in dict.fromkeys(record[column].split(SEPARATOR))
            if value.strip()
        ]
        cid, paths = record["CID"][:SHOWN], paths_of.get(_cid(record["CID"]), [])
        known = first.setdefault(_cid(record["CID"]), set(labels))
        if not paths:
            rejects += [Reject(source, number, "missing_image", f"{cid}.jpg")] * max(1, len(labels))
        elif len(paths) > 1:
            detail = f"{cid}: {paths[0]} and {paths[1]}"
            rejects += [Reject(source, number, "several_images", detail)] * max(1, len(labels))
        elif not labels:
            rejects.append(Reject(source, number, "no_value", f"{cid}: no cell of the four is filled"))
        else:
            cells += [
                (paths[0], attribute, value, number) for attribute, value in labels if (attribute, value) in known
            ]
            rejects += [
                Reject(source, number, "labels_disagree", f"{cid}: {value!r}, but not so in an earlier line")
                for attribute, value in labels
                if (attribute, value) not in known
            ]
    values = [sorted({value for _, a, value, _ in cells if a == attribute}) for attribute in range(len(CONDITIONS))]
    number_of = [{value: number for number, value in enumerate(of_attribute)} for of_attribute in values]
    rows = frame_of(
        Row(path, attribute, number_of[attribute][value], "", "", source, number)
        for path, attribute, value, number in cells
    )
    schema = tuple(Attribute(name=name, values=tuple(v)) for name, v in zip(CONDITIONS, values, strict=True))
    rows_in = count_rows(rows, rejects, {source: filled})
    pictures = f"this is the name of none of the {counted(sum(map(len, paths_of.values())), 'picture')} below the root"
    expected = {(source, "bad_line"): "expected as many cells as line 1 has", (source, "missing_image"): pictures}
    return settled(Annotation(schema, rows, rejects, rows_in=rows_in, several_values=True, expected=expected))


def _cid(text: str) -> str:
    return text.strip().replace(".", "-")


def _records(file: Path, root: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield (number, cells by column name) of every line, or (number, line) if its number of cells is wrong."""
    lines = read_lines(file, root)
    header = csv_cells(lines[0]) if lines else None
    missing = {"CID", *CONDITIONS.values()} - set(header or [])
    if not header or missing:
        check_commas(file, lines[0] if lines else "")
        raise InputError(f"{file}: line 1 lacks the column{'s' * (len(missing) > 1)} {', '.join(sorted(missing))}")
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = csv_cells(line)
        fits = cells is not None and len(cells) == len(header)
        yield number, dict(zip(header, cells or [], strict=False)) if fits else line
