"""Write the official annotation files of a drawn dataset from its labels."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.annotation import SPLIT_OF
from data_prep.layouts.asen_split import ROLES, GlobalValue
from data_prep.layouts.fashionai import LABEL_FILE, SCHEMA
from data_prep.layouts.zappos50k import CONDITIONS, IMAGE_FOLDERS
from data_prep.tables import SPLITS, Attribute
from data_prep.triplets import TripletSampler


def write_split_files(folder: Path, rows: pd.DataFrame, global_values: list[GlobalValue] | None = None) -> None:
    """Write rows, each with a split, as ASEN's files; images keep the order of their first row.

    With `global_values`, validation and test also get label files in DeepFashion's format, with its tabs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        of_split = rows[rows["split"] == split]
        if of_split.empty:
            continue
        index, names = pd.factorize(of_split["path"])
        _write_lines(folder / f"filenames_{split}.txt", names)
        of_split = of_split.assign(index=index)
        if split == "train":
            _write_lines(folder / "label_train.txt", _label_lines(of_split, " "))
            continue
        for role in ROLES:
            _write_lines(folder / f"{role}_{split}.txt", _label_lines(of_split[of_split["role"] == role], " "))
        if global_values:
            row_of = {pair: row for row, pair in enumerate(global_values)}
            pairs = zip(of_split["attribute"], of_split["value"], strict=True)
            in_schema = of_split.assign(value=[row_of[GlobalValue(*pair)] for pair in pairs])
            lines = _label_lines(in_schema.assign(attribute=in_schema["attribute"] + 1), "\t")
            _write_lines(folder / f"label_{split}.txt", [f"{line}\t\t\r" for line in lines])


def _label_lines(rows: pd.DataFrame, blank: str) -> list[str]:
    """Return one line for each image: its index, then attribute and value of each of its labels."""
    lines: dict[int, list[str]] = {}
    for index, attribute, value in zip(rows["index"], rows["attribute"], rows["value"], strict=True):
        lines.setdefault(index, [str(index)]).extend([str(attribute), str(value)])
    return [blank.join(words) for words in lines.values()]


def _write_lines(path: Path, lines: Iterable[object]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")


def write_fashionai(root: Path, rows: pd.DataFrame) -> None:
    """Write rows as raw `label.csv` files, one for each folder with an `Images/` folder."""
    lines: dict[Path, list[tuple[str, str, str]]] = {}
    for path, number, value in zip(rows["path"], rows["attribute"], rows["value"], strict=True):
        folder, _, image = path.rpartition("Images/")
        attribute = SCHEMA[number]
        marks = "".join("y" if value == other else "n" for other in range(len(attribute.values)))
        lines.setdefault(root / folder, []).append((f"Images/{image}", f"{attribute.name}_labels", marks))
    for directory, of_folder in lines.items():
        file = directory / LABEL_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out, lineterminator="\n").writerows(of_folder)


def write_deepfashion(root: Path, rows: pd.DataFrame, schema: Sequence[Attribute], meaning: list[GlobalValue]) -> None:
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
    """Write list_bbox.txt: the box around all regions of each image, from (path, attribute, region) and the size."""
    regions = pd.DataFrame([(path, *region) for path, _, region in drawn], columns=["path", "x0", "y0", "x1", "y1"])
    edges = regions.groupby("path", sort=False).agg({"x0": "min", "y0": "min", "x1": "max", "y1": "max"})
    pixels = (edges * size).round().astype(int)
    lines = [f"{path:70} {' '.join(f'{edge:03d}' for edge in box)}" for path, *box in pixels.itertuples()]
    _write_list(root / "Anno_coarse/list_bbox.txt", "image_name  x_1  y_1  x_2  y_2", lines)


def _write_list(file: Path, columns: str, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([str(len(lines)), columns, *lines, ""]), encoding="utf-8")


COLUMNS = ("CID", "Category", "SubCategory", "HeelHeight", "Insole", "Closure", "Gender", "Material", "ToeStyle")
LIST_LENGTH = {"train": 4, "valid": 1, "test": 1}
"""Triplets per image in each condition's list, by split."""


def write_zappos50k(root: Path, rows: pd.DataFrame, schema: Sequence[Attribute], seed: int) -> None:
    """Write labels as meta-data.csv, and triplets sampled from them within each split as CSN's lists."""
    _write_table(root / "ut-zap50k-data/meta-data.csv", rows, schema)
    images, paths = pd.factorize(rows["path"])
    prefix = f"{IMAGE_FOLDERS[0]}/"
    (root / "filenames.json").write_text("".join(f"{path.removeprefix(prefix)}\n" for path in paths), encoding="utf-8")
    lists = root / "tripletlists"
    lists.mkdir()
    numbered = rows.assign(image_id=images)
    for number, (official, split) in enumerate(SPLIT_OF.items()):
        for attribute, condition in enumerate(CONDITIONS):
            labels = numbered[(numbered["split"] == split) & (numbered["attribute"] == attribute)]
            wanted = LIST_LENGTH[split] * labels["image_id"].nunique()
            drawn = TripletSampler(labels).sample(wanted, [seed, number, attribute])
            lines = zip(drawn.anchor, drawn.negative, drawn.positive, strict=True)
            text = "".join(f"{anchor} {far} {close}\n" for anchor, far, close in lines)
            (lists / f"{condition}_tripletlist_{official}.txt").write_text(text)


def _write_table(file: Path, rows: pd.DataFrame, schema: Sequence[Attribute]) -> None:
    records: dict[str, dict[str, str]] = {}
    columns = list(CONDITIONS.values())
    for path, attribute, value in zip(rows["path"], rows["attribute"], rows["value"], strict=True):
        record = records.setdefault(
            path, {"CID": Path(path).stem.replace(".", "-"), "SubCategory": path.split("/")[-3]}
        )
        record[columns[attribute]] = schema[attribute].values[value]
    file.parent.mkdir(parents=True)
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(records.values())
