"""A catalogue with labels that are wrong on purpose, and a model that sees the right ones."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import agman
from data_prep.corrections import COLUMNS
from data_prep.dataset import Dataset
from data_prep.prepare import prepare
from data_prep.request import TableOptions
from data_prep.tables import DatasetInfo
from support.galleries import random_model

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), '<b>sky</b>, "blue"': (50, 80, 230)}
WRONG = {"05.png": "green", "31.png": "red", "64.png": '<b>sky</b>, "blue"', "70.png": "red"}
"""Pictures whose label is another value than the one drawn."""
TWIN = ("20.png", "twin.jpg")
"""Near-duplicates; the second is labelled green, but is of the first one's colour."""
PICTURES = 90


def drawn_colour(number: int) -> str:
    """Return the right label of a picture."""
    return [*COLOURS][number % len(COLOURS)]


def draw_catalogue(root: Path) -> Path:
    """Draw pictures of three colours and write their table: file, colour, cut."""
    root.mkdir(parents=True)
    rows = []
    for number in range(PICTURES):
        name = f"{number:02d}.png"
        tint = np.array(COLOURS[drawn_colour(number)], float)
        fields = np.random.default_rng(number).uniform(0.4, 1, (8, 8, 1)) * tint
        picture = Image.fromarray(fields.astype(np.uint8)).resize((64, 64), Image.Resampling.NEAREST)
        picture.save(root / name)
        rows.append([name, WRONG.get(name, drawn_colour(number)), "long" if number % 2 else "short"])
        if name == TWIN[0]:
            picture.save(root / TWIN[1], quality=95)
            rows.append([TWIN[1], "green", "short"])
    with (root / "table.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows([["file", "colour", "cut"], *rows])
    return root


def prepare_catalogue(root: Path, out: Path, corrections: Sequence[Path] = (), **options: Any) -> Dataset:
    """Prepare the catalogue with the attribute colour."""
    table = TableOptions(table=root / "table.csv", image="file", attributes=("colour",))
    fixed = {"name": "shop", "image_size": 32, "triplets": 20, "epochs": 1, "table": table}
    prepare("table", root, out, corrections=corrections, **(fixed | options))
    return Dataset(out)


def seeing_model(attributes: Sequence[str]) -> tuple[agman.RetrievalModel, dict[str, Any]]:
    """Return a model of random weights, whose embeddings differ with the colours."""
    network, description = random_model(attributes)
    return network.eval(), description


def write_corrections(file: Path, info: DatasetInfo, *rows: tuple[str, ...], name: str | None = None) -> Path:
    """Write image, attribute, value, action and new value of some labels, as the page does."""
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([COLUMNS, *((name or info.name, info.labels_digest, *row) for row in rows)])
    return file
