"""Drawing a dataset in its official layout: pictures, raw annotation, split files, and the true regions."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from data_prep import fashionai
from data_prep.annotation import Row
from data_prep.asen_split import assign_splits, find_split_files, read_split_files, write_split_files
from data_prep.errors import InputError
from data_prep.fashionai_vocabulary import ATTRIBUTES
from data_prep.garments import draw
from data_prep.progress import Progress, silent
from data_prep.tables import DRAWN_REGIONS_FILE
from data_prep.whole import whole_folder

SAMPLE_LAYOUTS = ("fashionai",)


@dataclass(frozen=True)
class Sampled:
    """What was drawn."""

    images: int
    labels: int


def sample(
    layout: str,
    out: Path,
    *,
    images: int = 2_000,
    size: int = 224,
    seed: int = 0,
    split_files: Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Sampled:
    """Draw `images` pictures of `size`×`size` px in `layout`'s official files below `out`.

    With `split_files` (a folder of split files, or one that holds raw `label.csv` files) exactly those
    rows are drawn and the files are copied as they are. Equal arguments give equal files. Raises
    InputError for an annotation that cannot be drawn.
    """
    if layout not in SAMPLE_LAYOUTS:
        raise InputError(f"layout {layout!r} cannot be drawn yet; one of: {', '.join(SAMPLE_LAYOUTS)}")
    with whole_folder(out, marker=DRAWN_REGIONS_FILE, overwrite=overwrite, inputs=(split_files,)) as aside:
        rows = _copied_rows(split_files, aside) if split_files else _new_rows(images, seed, aside)
        _draw_all(rows, aside, size, seed, progress)
    return Sampled(images=len({row.path for row in rows}), labels=len(rows))


def _new_rows(images: int, seed: int, aside: Path) -> list[Row]:
    """Attributes in turn, values in turn within each; written as raw files and as split files."""
    counters = dict.fromkeys(ATTRIBUTES, 0)
    rows = []
    for number in range(images):
        attribute = number % len(ATTRIBUTES)
        name = list(ATTRIBUTES)[attribute]
        value = counters[name] % len(ATTRIBUTES[name])
        counters[name] += 1
        stem = hashlib.md5(f"{seed}/{number}".encode(), usedforsecurity=False).hexdigest()
        half = 1 + (number >= images // 2)
        path = f"fashionAI_attributes_train{half}/Images/{name}_labels/{stem}.jpg"
        rows.append(Row(path, attribute, value, "", "", "", number + 1))
    order = np.random.default_rng(seed).permutation(len(rows))  # values must not follow file order
    rows = assign_splits([rows[i] for i in order], seed)
    fashionai.write_raw(aside, rows)
    write_split_files(aside, rows)
    return rows


def _copied_rows(split_files: Path, aside: Path) -> list[Row]:
    """The rows of existing annotation, whose files are copied byte for byte."""
    if not split_files.is_dir():
        raise InputError(f"{split_files}: no such folder")
    splits = find_split_files(split_files, fashionai.NAME)
    if splits:
        annotation = read_split_files(splits, fashionai.SCHEMA)
        _check_paths(annotation.rows)
        for file in splits.glob("*.txt"):
            shutil.copyfile(file, aside / file.name)
        fashionai.write_raw(aside, annotation.rows)
    else:
        annotation = fashionai.read_raw(split_files)
        _check_paths(annotation.rows)
        for file in split_files.rglob(fashionai.LABEL_FILE):
            target = aside / file.relative_to(split_files)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    if not annotation.rows:
        raise InputError(f"{split_files}: neither split files nor a {fashionai.LABEL_FILE} with readable rows")
    return annotation.rows


def _check_paths(rows: list[Row]) -> None:
    for row in rows:
        path = PurePosixPath(row.path)
        if path.is_absolute() or ".." in path.parts or "\0" in row.path:
            raise InputError(f"{row.source} line {row.line}: {row.path!r} leaves the dataset's folder")


def _draw_all(rows: list[Row], aside: Path, size: int, seed: int, progress: Progress) -> None:
    """Draw every row's picture in all cores, and write the regions."""
    advance = progress("images drawn", len(rows))
    regions: list[tuple] = []
    job = partial(_draw_rows, folder=aside, size=size, seed=seed)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for of_chunk in pool.map(job, _chunks(rows, 50)):
            regions += of_chunk
            advance(50)
    columns = ["path", "attribute", "x0", "y0", "x1", "y1"]
    pd.DataFrame(regions, columns=columns).to_parquet(aside / DRAWN_REGIONS_FILE, index=False)


def _chunks(rows: list[Row], size: int) -> Iterator[list[Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _draw_rows(rows: list[Row], folder: Path, size: int, seed: int) -> list[tuple]:
    regions = []
    for row in rows:
        # The path decides the picture, so that a row is drawn alike whatever stands around it.
        image_seed = int.from_bytes(hashlib.sha256(f"{seed}/{row.path}".encode()).digest()[:8])
        attribute = list(ATTRIBUTES)[row.attribute]
        drawing = draw(attribute, row.value, seed=image_seed, size=size)
        target = folder / row.path
        target.parent.mkdir(parents=True, exist_ok=True)
        drawing.image.save(target, "JPEG", quality=drawing.jpeg_quality)
        regions += [(row.path, name, *region) for name, region in drawing.regions.items()]
    return regions
