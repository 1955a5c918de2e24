"""Annotation of drawn datasets for each layout: new labels in the official files, or copies of existing files.

Each layout makes a list of sketches (which image shows which labels); data_prep.synthetic.samples draws them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from data_prep.annotation import Row, frame_of
from data_prep.errors import InputError
from data_prep.layouts import darn, deepfashion, fashionai, zappos50k
from data_prep.layouts.asen_split import assign_splits, has_split_files, named_split_files, ranked, read_split_files
from data_prep.layouts.fashionai import ATTRIBUTES
from data_prep.synthetic.garments import Drawing, Region, draw, draw_catalogue
from data_prep.synthetic.garments.vocabulary import DEEPFASHION
from data_prep.synthetic.shoes import SHOE_VALUES, draw_shoe
from data_prep.synthetic.writers import (
    write_boxes,
    write_deepfashion,
    write_fashionai,
    write_split_files,
    write_zappos50k,
)
from data_prep.tables import Attribute

MOST_VALUES = 8
"""Values of one attribute that a drawing can show."""


class Sketch(NamedTuple):
    """An image to be drawn."""

    path: str
    labels: tuple[tuple[str, int], ...]
    """Attribute names and value indices."""


class Drawn(NamedTuple):
    """Region of an attribute in a drawn image, in fractions of the image."""

    path: str
    attribute: str
    region: Region


@dataclass(frozen=True)
class SampleLayout:
    """Functions that sample one layout."""

    make: Callable[[int, int, Path], list[Sketch]]
    """Make new labels and write them as official files: (number of images, seed, folder) to sketches."""
    copy: Callable[[Path, Path], list[Sketch]]
    """Copy files: (existing annotation, folder) to sketches. Raises InputError if there are none."""
    draw: Callable[[Sketch, int, int], Drawing]
    """Draw one image: (sketch, seed, size) to a drawing."""
    finish: Callable[[Path, list[Drawn], int], None] = lambda folder, drawn, size: None
    """Write files that need the drawn images: (folder, regions, size)."""


def layout_of(name: str) -> SampleLayout:
    """Return the sampler of a layout."""
    return {
        "fashionai": SampleLayout(_make_fashionai, _copy_fashionai, _draw_fashionai),
        "deepfashion": SampleLayout(
            _make_deepfashion,
            partial(_copy_split, deepfashion.NAME, deepfashion.UNNAMED, True),
            partial(_draw_catalogue, "deepfashion"),
            write_boxes,
        ),
        "zappos50k": SampleLayout(_make_zappos50k, _copy_zappos50k, _draw_shoe),
        "darn": SampleLayout(
            _make_darn, partial(_copy_split, darn.NAME, darn.SCHEMA, False), partial(_draw_catalogue, "darn")
        ),
    }[name]


def _stem(seed: int, number: int) -> str:
    return hashlib.md5(f"{seed}/{number}".encode(), usedforsecurity=False).hexdigest()


def _sketches(rows: pd.DataFrame, attributes: Sequence[Attribute]) -> list[Sketch]:
    """Return one sketch for each image, with at most MOST_VALUES values of each attribute."""
    _check_paths(rows)
    names = [attribute.name for attribute in attributes]
    labels: dict[str, list[tuple[str, int]]] = {}
    for path, attribute, value in zip(rows["path"], rows["attribute"], rows["value"], strict=True):
        of_image = labels.setdefault(path, [])
        if sum(name == names[attribute] for name, _ in of_image) < MOST_VALUES:
            of_image.append((names[attribute], value))
    return [Sketch(path, tuple(of_image)) for path, of_image in labels.items()]


def _check_paths(rows: pd.DataFrame) -> None:
    for text, source, line in zip(rows["path"], rows["source"], rows["line"], strict=True):
        path = PurePosixPath(text)
        if path.is_absolute() or ".." in path.parts or "\0" in text:
            raise InputError(f"{source} line {line}: {text!r} leaves the dataset's folder")


def _copy_files(files: Iterable[Path], source: Path, target: Path) -> None:
    for file in files:
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def _copy_split(
    name: str, attributes: Sequence[Attribute], several_values: bool, existing: Path, staging: Path
) -> list[Sketch]:
    """Copy ASEN's split files of the dataset `name`."""
    splits = named_split_files(existing, name)
    annotation = read_split_files(splits, tuple(attributes), several_values=several_values)
    sketches = _sketches(annotation.rows, attributes)
    _copy_files(splits.glob("*.txt"), splits, staging)
    return sketches


# FashionAI: one attribute an image.


def _make_fashionai(images: int, seed: int, staging: Path) -> list[Sketch]:
    """Take attributes in turn, and values in turn within each; write raw files and split files."""
    counters = dict.fromkeys(ATTRIBUTES, 0)
    rows = []
    for number in range(images):
        attribute = number % len(ATTRIBUTES)
        name = list(ATTRIBUTES)[attribute]
        value = counters[name] % len(ATTRIBUTES[name])
        counters[name] += 1
        half = 1 + (number >= images // 2)
        path = f"fashionAI_attributes_train{half}/Images/{name}_labels/{_stem(seed, number)}.jpg"
        rows.append(Row(path, attribute, value, "", "", "", number + 1))
    order = np.random.default_rng(seed).permutation(len(rows))  # values must not follow file order
    table = assign_splits(frame_of(rows[i] for i in order), seed)
    write_fashionai(staging, table)
    write_split_files(staging, table)
    return _sketches(table, fashionai.SCHEMA)


def _copy_fashionai(existing: Path, staging: Path) -> list[Sketch]:
    raw = fashionai.read_raw(existing).rows
    if any(has_split_files(folder) for folder in (existing, existing / fashionai.NAME)):
        sketches = _copy_split(fashionai.NAME, fashionai.SCHEMA, False, existing, staging)
        if raw.empty:
            write_fashionai(staging, read_split_files(staging, fashionai.SCHEMA).rows)
    elif raw.empty:
        raise InputError(f"{existing}: neither split files nor a {fashionai.LABEL_FILE} with readable rows")
    else:
        sketches = _sketches(raw, fashionai.SCHEMA)
    _copy_files(fashionai.label_files(existing), existing, staging)
    return sketches


def _draw_fashionai(sketch: Sketch, seed: int, size: int) -> Drawing:
    attribute, value = sketch.labels[0]
    return draw(attribute, value, seed=seed, size=size)


# DeepFashion and DARN: several attributes an image, many values with a long tail.


def _draw_catalogue(layout: str, sketch: Sketch, seed: int, size: int) -> Drawing:
    return draw_catalogue(layout, sketch.labels, seed=seed, size=size)


def _labels(sizes: Sequence[int], images: int, seed: int, *, share: float, second: float) -> list[tuple[int, int, int]]:
    """Sample (image, attribute, value): each attribute on a fraction `share` of the images.

    A fraction `second` of those has two values. The k-th most frequent value is 1/k as frequent as the first, as in the
    real datasets; ranks are shuffled.
    """
    rng = np.random.default_rng(seed)
    labels = []
    frequency = [1 / np.arange(1, size + 1) for size in sizes]
    ranks = [rng.permutation(size) for size in sizes]
    for image in range(images):
        has = rng.random(len(sizes)) < share
        has[rng.integers(len(sizes))] = True
        for attribute in np.flatnonzero(has):
            count = 1 + (rng.random() < second)
            weights = frequency[attribute] / frequency[attribute].sum()
            values = ranks[attribute][rng.choice(len(weights), count, replace=False, p=weights)]
            labels += [(image, int(attribute), int(value)) for value in sorted(values)]
    return labels


def _make_deepfashion(images: int, seed: int, staging: Path) -> list[Sketch]:
    """Write raw coarse annotation, and ASEN's split files beside it."""
    schema = [Attribute(name=name, values=values) for name, values in DEEPFASHION.items()]
    meaning = ranked([attribute for attribute, size in _interleaved(deepfashion.TYPE_SIZES) for _ in range(size)])
    labels = _labels(deepfashion.TYPE_SIZES, images, seed, share=0.6, second=0.25)
    rows = frame_of(
        Row(f"img/Drawn_Garment_{image % 97}/img_{image:08d}.jpg", attribute, value, "", "", "", line)
        for line, (image, attribute, value) in enumerate(labels, start=1)
    )
    rows = assign_splits(rows, seed)
    write_deepfashion(staging, rows, schema, meaning)
    write_split_files(staging, rows, meaning)
    return _sketches(rows, schema)


def _interleaved(sizes: Sequence[int], run: int = 7) -> list[tuple[int, int]]:
    """Return (attribute, length) of runs in turn, because list_attr_cloth.txt is not sorted by attribute."""
    left, runs = list(sizes), []
    while any(left):
        for attribute, count in enumerate(left):
            if count:
                runs.append((attribute, min(run, count)))
                left[attribute] -= min(run, count)
    return runs


def _make_darn(images: int, seed: int, staging: Path) -> list[Sketch]:
    """Write ASEN's split files: several attributes of one value each."""
    labels = _labels(list(darn.SIZES.values()), images, seed, share=0.3, second=0.0)
    rows = frame_of(
        Row(f"pic/{50_000_000 + image // 10}/{image:05d}_{image % 10}.jpg", attribute, value, "", "", "", line)
        for line, (image, attribute, value) in enumerate(labels, start=1)
    )
    rows = assign_splits(rows, seed)
    write_split_files(staging, rows)
    return _sketches(rows, darn.SCHEMA)


# Zappos50k: four attributes a shoe.

SHOE_ATTRIBUTES = [Attribute(name=name, values=SHOE_VALUES[column]) for name, column in zappos50k.CONDITIONS.items()]


def _make_zappos50k(images: int, seed: int, staging: Path) -> list[Sketch]:
    """Write meta-data.csv, and CSN's triplet lists sampled from it."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(images):
        values = [int(rng.integers(len(attribute.values))) for attribute in SHOE_ATTRIBUTES]
        category = SHOE_ATTRIBUTES[0].values[values[0]]
        brand = f"Brand {number % 41}" + "." * (number % 41 == 0)
        path = f"{zappos50k.IMAGE_FOLDERS[0]}/{category}/Drawn/{brand}/{7_000_000 + number}.{number % 1000}.jpg"
        rows += [Row(path, attribute, value, "", "", "", number + 1) for attribute, value in enumerate(values)]
    table = assign_splits(frame_of(rows), seed)
    write_zappos50k(staging, table, SHOE_ATTRIBUTES, seed)
    return _sketches(table, SHOE_ATTRIBUTES)


def _copy_zappos50k(existing: Path, staging: Path) -> list[Sketch]:
    """Copy triplet lists. They name no values: a shoe's class comes from its path, all else is random."""
    lists = zappos50k.lists_below(existing)
    if not lists:
        raise InputError(f"{existing}: no filenames.json with a folder tripletlists beside it")
    annotation = zappos50k.read_lists(lists, existing)
    images = annotation.images().assign(source="filenames.json", line=0)
    _check_paths(images)
    _copy_files([lists / "filenames.json", *(lists / "tripletlists").glob("*.txt")], lists, staging)
    categories = list(SHOE_VALUES["Category"])
    sketches = []
    for path in images["path"]:
        shown = [name for name in path.split("/") if name in categories]
        sketches.append(Sketch(path, tuple(("class", categories.index(name)) for name in shown[:1])))
    return sketches


def _draw_shoe(sketch: Sketch, seed: int, size: int) -> Drawing:
    values = {zappos50k.CONDITIONS[name]: SHOE_VALUES[zappos50k.CONDITIONS[name]][v] for name, v in sketch.labels}
    return draw_shoe(values, seed=seed, size=size)
