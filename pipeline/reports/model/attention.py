"""Attention section of the report: maps over images, and the fraction of the attention in the true regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

import agman
from data_prep.dataset import Dataset, ImageStore
from data_prep.triplets import Triplets
from pipeline.evaluation.attention import CORNERS, attention_maps, measure, with_regions
from pipeline.evaluation.evaluate import Evaluation
from pipeline.reports import charts
from pipeline.reports.model.pictures import Pictures

SHOWN = 2
"""Images per attribute."""
SIDE = 208
"""Side of an image in pixels."""


@dataclass(frozen=True)
class Box:
    """A true region in fractions of the image, and the fraction of the attention inside it."""

    x0: float
    y0: float
    x1: float
    y1: float
    share: float

    @property
    def area(self) -> float:
        """Fraction of the image that the region covers."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)


@dataclass(frozen=True)
class View:
    """One image, alone and under its attention map."""

    plain: str
    heat: str
    image_id: int
    value: str
    """Empty if the dataset gives triplets and no values."""
    box: Box | None


@dataclass(frozen=True)
class Inside:
    """Means over the measured pairs: attention inside the true region, and the region's fraction of the image."""

    share: float
    hits: float
    """Fraction of the pairs whose map has its maximum inside the region."""
    area: float
    pairs: int


@dataclass(frozen=True)
class AttributeAttention:
    """Images of one attribute, and its means if true regions are known."""

    attribute: str
    views: list[View]
    inside: Inside | None


@dataclass(frozen=True)
class Attention:
    """Content of the section."""

    attributes: list[AttributeAttention]
    inside: Inside | None
    colours: list[str]


def attention(
    model: agman.RetrievalModel,
    image_size: int,
    dataset: Dataset,
    evaluation: Evaluation,
) -> Attention:
    """Compute attention maps for a few pairs of the split, and the means over all measured pairs.

    `image_size` is the side of the model's input in pixels. The pairs are the queries and candidates, or the anchors
    of the given triplets if there are no queries.
    """
    split, measured = evaluation.split, evaluation.attention
    pairs = evaluation.pairs if evaluation.results else _anchors(dataset.triplets(split))
    pairs = with_regions(pairs, dataset)
    if pairs.empty:
        return Attention([], None, [])
    shown = _choose(pairs)
    interpolation = model.pixels.interpolation
    images = ImageStore(dataset, split, image_size, shown["image_id"], fit=evaluation.fit, interpolation=interpolation)
    maps = attention_maps(model, images, shown)
    boxes = _boxes(shown, maps) if dataset.regions is not None else [None] * len(shown)
    pictures = Pictures(dataset, split, shown["image_id"].to_numpy(), evaluation.fit)
    sections = []
    for number, attribute in enumerate(dataset.info.attributes):
        indices = np.flatnonzero(shown["attribute"] == number)
        views = [_view(shown.iloc[index], maps[index], attribute.values, pictures, boxes[index]) for index in indices]
        inside = None if measured is None else _mean(measured[measured["attribute"] == number])
        if views:
            sections.append(AttributeAttention(attribute.name, views, inside))
    return Attention(sections, None if measured is None else _mean(measured), charts.heat_colours())


def _anchors(triplets: Triplets) -> pd.DataFrame:
    """Return the distinct anchors as pairs without a value."""
    columns = {"image_id": triplets.anchor, "attribute": triplets.attribute}
    return pd.DataFrame(columns).drop_duplicates(ignore_index=True).assign(role="query", value=-1)


def _choose(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the first pairs of each attribute with different values; the choice does not depend on the model."""
    known = pairs["value"] >= 0
    distinct = pd.concat([pairs[known].drop_duplicates(["attribute", "value"]), pairs[~known]])
    return distinct.groupby("attribute").head(SHOWN).sort_values("attribute", kind="stable")


def _mean(measured: pd.DataFrame) -> Inside | None:
    if measured.empty:
        return None
    mass, hits, area = (float(measured[name].mean()) for name in ("mass", "hits", "area"))
    return Inside(mass, hits, area, len(measured))


def _view(row: pd.Series, cells: torch.Tensor, values: Sequence[str], pictures: Pictures, box: Box | None) -> View:
    image_id = int(row["image_id"])
    picture = pictures.array(image_id)
    fitted = F.interpolate(cells[None, None], size=len(picture), mode="bilinear", align_corners=False)[0, 0].numpy()
    return View(
        plain=charts.jpeg(picture, SIDE),
        heat=charts.jpeg(charts.heat_over(picture, fitted), SIDE),
        image_id=image_id,
        value=values[row["value"]] if row["value"] >= 0 else "",
        box=box,
    )


def _boxes(pairs: pd.DataFrame, maps_khw: torch.Tensor) -> list[Box]:
    """Return the true regions of the pairs; drawn images are square, so the model's crop is the full image."""
    corners, shares = pairs[CORNERS].to_numpy(float).tolist(), measure(maps_khw, pairs)["mass"]
    return [Box(x0, y0, x1, y1, share) for (x0, y0, x1, y1), share in zip(corners, shares, strict=True)]
