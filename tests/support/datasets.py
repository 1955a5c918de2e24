"""Small datasets that tests make: photographs, drawn garments, annotation files."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_prep.annotation import Row, frame_of
from data_prep.dataset import Dataset
from data_prep.layouts.asen_split import assign_splits
from data_prep.layouts.fashionai import ATTRIBUTES
from data_prep.prepare import prepare
from data_prep.storage import Storage
from data_prep.synthetic import samples
from data_prep.synthetic.samples import sample
from data_prep.synthetic.writers import write_split_files
from data_prep.tables import LABELS, write_table

SIZE = 32
TINY = {"name": "tiny", "triplets": 48, "seed": 5}
"""Options with which most tests' dataset is prepared."""
NECKS = ("ynnnn", "nynnn", "nnynn", "nnnyn", "nnnny")


def make_photographs(root: Path, n: int = 100) -> Path:
    """Write n small JPEG files of the neck_design attribute with a raw label.csv; value = number mod 5."""
    folder = root / "train1" / "Images" / "neck_design_labels"
    folder.mkdir(parents=True)
    lines = []
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.jpg")
        lines.append(f"Images/neck_design_labels/{i:03d}.jpg,neck_design_labels,{NECKS[i % 5]}\n")
    (root / "train1" / "Annotations").mkdir()
    (root / "train1" / "Annotations" / "label.csv").write_text("".join(lines))
    return root


def prepare_small(root: Path, out: str | Path, **options: object) -> Dataset:
    """Prepare a FashionAI folder with few triplets and small pictures."""
    options = {"triplets": 20, "epochs": 2, "image_size": SIZE} | options
    prepare("fashionai", root, out, **options)  # type: ignore[arg-type]
    return Dataset(out)


def sample_here(layout: str, out: Path, **options: object) -> samples.Sampled:
    """Draw a dataset in this process: to start others takes longer than to draw a hundred pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "ProcessPoolExecutor", lambda *given, **named: ThreadPoolExecutor(1))
        return sample(layout, out, **options)  # type: ignore[arg-type]


def make_images(root: Path, count: int) -> pd.DataFrame:
    """Write `count` pictures, each of one colour, and return their table."""
    root.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (SIZE, SIZE), (number, 255 - number, 0)).save(root / f"{number}.jpg")
    splits = np.where(np.arange(count) % 5 == 0, "test", "train")
    return pd.DataFrame({"image_id": np.arange(count), "path": [f"{n}.jpg" for n in range(count)], "split": splits})


def draw_garments(folder: Path) -> Path:
    """Draw 540 garments in FashionAI's layout: two values of each attribute, so that queries find positives.

    Processes of pytest-xdist share one drawing, beside their own temporary folders.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent.parent / folder.name
        folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder / "fashionai" if (folder / "fashionai").exists() else _draw_garments(folder)


def _draw_garments(folder: Path) -> Path:
    path = "fashionAI_attributes_train1/Images/{}_labels/{:03d}.jpg"
    names = list(ATTRIBUTES)
    rows = [
        Row(path.format(names[i % 8], i), attribute=i % 8, value=1 + i // 8 % 2, split="", role="", source="", line=0)
        for i in range(540)
    ]
    write_split_files(folder / "annotation", assign_splits(frame_of(rows), seed=3))
    sample_here("fashionai", folder / "fashionai", split_files=folder / "annotation", size=SIZE, seed=3)
    return folder / "fashionai"


def with_labels(dataset: Dataset, folder: Path, labels: pd.DataFrame) -> Dataset:
    """Copy a dataset to `folder`, with other labels."""
    shutil.copytree(dataset.path, folder)
    write_table(Storage(folder) / "labels.parquet", {name: labels[name] for name in LABELS.names}, LABELS)
    return Dataset(folder)


def recorded(titles: list[str]) -> Callable[[str, int], Callable[[int], None]]:
    """Return a progress callback that records the titles it is given."""

    def progress(title: str, total: int) -> Callable[[int], None]:
        titles.append(title)
        return lambda done: None

    return progress


def write_files(folder: Path, **files: str | bytes) -> Path:
    """Write text files of these names (.txt) and contents, byte for byte."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def records(rows: pd.DataFrame) -> list[Row]:
    """Return the rows of an annotation one by one."""
    return [Row(*values) for values in zip(*(rows[name].tolist() for name in Row._fields), strict=True)]
