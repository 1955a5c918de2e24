"""A few packed images of each attribute, which show whether they are upright and cropped correctly."""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pandas as pd
from PIL import Image

from data_prep.dataset import Dataset
from data_prep.pictures import to_square
from data_prep.tables import SPLITS, Attribute
from pipeline.reports.charts import jpeg

SHOWN = 6
"""Images per attribute."""
TRIPLETS = SHOWN // 3
SIDE = 132
"""Longer side of an image in pixels."""
GROUPS = 4
"""Maximum number of row groups (of about 1,000 images) to read; images are packed in shuffled order."""
OUTSIDE = 0.7
"""Opacity of the grey over the margins that the model's square crop leaves out."""


@dataclass(frozen=True)
class Tile:
    """One image."""

    picture: str
    image_id: int
    caption: str


@dataclass(frozen=True)
class Strip:
    """Images of one attribute."""

    attribute: str
    tiles: list[Tile]


def contact_sheet(dataset: Dataset) -> list[Strip]:
    """Choose images with different values of each attribute, or triplets if the dataset has given triplets.

    The images are from the first split that has some, which is train if that has.
    """
    split = next(split for split in SPLITS if dataset.info.images[split])
    labels = dataset.labels_of(split)
    triplets = pd.DataFrame(dataset.triplets(split).columns())
    pictures: dict[int, bytes] = {}
    chosen: list[list[tuple[int, str]]] = []
    for group in islice(dataset.packed(split), GROUPS):
        pictures |= zip(group["image_id"].to_pylist(), group["jpeg"].to_pylist(), strict=True)
        chosen = [
            _of_values(labels[labels["attribute"] == number], attribute, pictures)
            if len(labels)
            else _of_triplets(triplets[triplets["attribute"] == number], pictures)
            for number, attribute in enumerate(dataset.info.attributes)
        ]
        if all(len(rows) == SHOWN for rows in chosen):
            break
    return [
        Strip(name, [Tile(jpeg(_marked(pictures[i], dataset.info.fit), SIDE), i, caption) for i, caption in rows])
        for name, rows in zip(dataset.info.attribute_names, chosen, strict=True)
        if rows
    ]


def _of_values(labels: pd.DataFrame, attribute: Attribute, pictures: Collection[int]) -> list[tuple[int, str]]:
    """Choose labels whose image was read, of as many values as possible, evenly spaced over the values."""
    read = labels[labels["image_id"].isin(list(pictures))]
    # The first of every value, then the second of every value, and so on.
    read = read.assign(nth=read.groupby("value").cumcount()).sort_values(["nth", "value"], kind="stable")
    n = max(int((read["nth"] == 0).sum()), min(SHOWN, len(read)))
    indices = np.unique(np.linspace(0, n - 1, min(SHOWN, n)).round().astype(int))
    shown = read.iloc[indices].sort_values("value", kind="stable")
    return [(i, attribute.values[v]) for i, v in zip(shown["image_id"], shown["value"], strict=True)]


def _of_triplets(triplets: pd.DataFrame, pictures: Collection[int]) -> list[tuple[int, str]]:
    """Return the first triplets of which all three images were read."""
    roles = ["anchor", "positive", "negative"]
    complete = triplets[triplets[roles].isin(list(pictures)).all(axis=1)].head(TRIPLETS)
    return [(i, role) for row in complete[roles].to_numpy().tolist() for i, role in zip(row, roles, strict=True)]


def _marked(data: bytes, fit: str) -> np.ndarray:
    """Return the packed image, made small, uint8 H×W×3, with grey over the margins that a model's crop leaves out.

    Where models see all of it, it is returned as they see it.
    """
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    if fit != "crop":
        return to_square(image, SIDE, fit)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = (left, top, left + side, top + side)
    shown = Image.blend(image, Image.new("RGB", image.size, "grey"), OUTSIDE)
    shown.paste(image.crop(square), square)
    return np.asarray(shown)
