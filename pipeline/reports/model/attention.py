"""Where a model looks: attention maps over pictures, and how much of them lies in the true regions."""

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
from pipeline.reports import charts as figures
from pipeline.reports.model.pictures import Pictures

SHOWN = 2
"""Pictures per attribute."""
SIDE = 208
"""Pixels of a picture."""


@dataclass(frozen=True)
class Box:
    """A true region, in fractions of the picture, and the share of the attention inside it."""

    x0: float
    y0: float
    x1: float
    y1: float
    share: float

    @property
    def area(self) -> float:
        return (self.x1 - self.x0) * (self.y1 - self.y0)


@dataclass(frozen=True)
class View:
    """One picture, plain and under its attention."""

    plain: str
    heat: str
    image_id: int
    value: str
    """Empty where the dataset gives triplets and no values."""
    box: Box | None


@dataclass(frozen=True)
class Inside:
    """Means over measured pairs: attention inside the true region, and what part of the picture that is."""

    share: float
    hits: float
    """Share of the pairs whose map has its maximum in the region."""
    area: float
    pairs: int


@dataclass(frozen=True)
class AttributeAttention:
    """One attribute's pictures, and its mean where true regions are known."""

    attribute: str
    views: list[View]
    inside: Inside | None


@dataclass(frozen=True)
class Attention:
    """The page's section on attention."""

    attributes: list[AttributeAttention]
    inside: Inside | None
    colours: list[str]


def attention(
    model: agman.RetrievalModel,
    image_size: int,
    dataset: Dataset,
    evaluation: Evaluation,
) -> Attention:
    """Maps of `model`, which sees pictures of `image_size` px, for some of the split's pairs; means of all measured.

    The pairs are the queries and candidates, or the given triplets' anchors where there are none.
    """
    split, measured = evaluation.split, evaluation.attention
    pairs = evaluation.pairs if evaluation.results else _anchors(dataset.triplets(split))
    pairs = with_regions(pairs, dataset)
    if pairs.empty:
        return Attention([], None, [])
    shown = _choose(pairs)
    images = ImageStore(dataset, split, image_size, wanted=shown["image_id"])
    maps = attention_maps(model, images, shown)
    boxes = _boxes(shown, maps) if dataset.regions is not None else [None] * len(shown)
    pictures = Pictures(dataset, split, shown["image_id"].to_numpy())
    sections = []
    for number, attribute in enumerate(dataset.info.attributes):
        places = np.flatnonzero(shown["attribute"] == number)
        views = [_view(shown.iloc[place], maps[place], attribute.values, pictures, boxes[place]) for place in places]
        inside = None if measured is None else _mean(measured[measured["attribute"] == number])
        if views:
            sections.append(AttributeAttention(attribute.name, views, inside))
    return Attention(sections, None if measured is None else _mean(measured), figures.heat_colours())


def _anchors(triplets: Triplets) -> pd.DataFrame:
    """As pairs without a value."""
    columns = {"image_id": triplets.anchor, "attribute": triplets.attribute}
    return pd.DataFrame(columns).drop_duplicates(ignore_index=True).assign(role="query", value=-1)


def _choose(pairs: pd.DataFrame) -> pd.DataFrame:
    """The first pairs of each attribute with different values: nothing the model does has a say."""
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
        plain=figures.jpeg(picture, SIDE),
        heat=figures.jpeg(figures.heat_over(picture, fitted), SIDE),
        image_id=image_id,
        value=values[row["value"]] if row["value"] >= 0 else "",
        box=box,
    )


def _boxes(pairs: pd.DataFrame, maps_khw: torch.Tensor) -> list[Box]:
    """The pairs' true regions. Drawn pictures are square, so the model's crop is the whole picture."""
    corners, shares = pairs[CORNERS].to_numpy(float).tolist(), measure(maps_khw, pairs)["mass"]
    return [Box(x0, y0, x1, y1, share) for (x0, y0, x1, y1), share in zip(corners, shares, strict=True)]
