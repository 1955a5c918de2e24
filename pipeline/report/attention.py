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
from pipeline.report import figures
from pipeline.report.galleries import Pictures

SHOWN = 2
"""Pictures per attribute."""
SIDE = 208
"""Pixels of a picture."""
MEASURED = 512
"""Pairs at most that the share inside is a mean of."""
CORNERS = ["x0", "y0", "x1", "y1"]


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
    box: Box | None


@dataclass(frozen=True)
class Inside:
    """Means over measured pairs: attention inside the true region, and what part of the picture that is."""

    share: float
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
    model: agman.RetrievalModel, image_size: int, dataset: Dataset, split: str, pairs: pd.DataFrame
) -> Attention:
    """Maps of `model`, which sees pictures of `image_size` px, for some of the split's pairs."""
    pairs = _with_regions(_visible(pairs, dataset), dataset.regions)
    if pairs.empty:
        return Attention([], None, [])
    shown = _choose(pairs)
    heats = _heats(model, image_size, dataset, split, shown)
    pictures = Pictures(dataset, split, shown["image_id"].to_numpy())
    measured = _measure(model, image_size, dataset, split, pairs) if dataset.regions is not None else None
    sections = []
    for number, attribute in enumerate(dataset.info.attributes):
        places = np.flatnonzero(shown["attribute"] == number)
        views = [_view(shown.iloc[place], heats[place], attribute.values, pictures) for place in places]
        inside = None if measured is None else _mean(measured[measured["attribute"] == number])
        if views:
            sections.append(AttributeAttention(attribute.name, views, inside))
    return Attention(sections, None if measured is None else _mean(measured), figures.heat_colours())


def _visible(pairs: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """Without the pairs whose value says that the attribute cannot be seen; queries first."""
    hidden = {
        (a, v)
        for a, attribute in enumerate(dataset.info.attributes)
        for v, value in enumerate(attribute.values)
        if value == "Invisible"
    }
    seen = [pair not in hidden for pair in zip(pairs["attribute"], pairs["value"], strict=True)]
    return pairs[seen].sort_values("role", ascending=False, kind="stable")


def _with_regions(pairs: pd.DataFrame, regions: pd.DataFrame | None) -> pd.DataFrame:
    """The pairs whose true region is known; all of them where the dataset knows none."""
    if regions is None:
        return pairs.assign(**dict.fromkeys(CORNERS, np.nan))
    return pairs.merge(regions, on=["image_id", "attribute"], how="inner")


def _choose(pairs: pd.DataFrame) -> pd.DataFrame:
    """The first pairs of each attribute with different values: nothing the model does has a say."""
    distinct = pairs.drop_duplicates(["attribute", "value"])
    return distinct.groupby("attribute").head(SHOWN).sort_values("attribute", kind="stable")


def _measure(
    model: agman.RetrievalModel, image_size: int, dataset: Dataset, split: str, pairs: pd.DataFrame
) -> pd.DataFrame:
    """attribute, share, area of the pairs with a region, of at most MEASURED evenly spaced ones."""
    sampled = pairs.sort_values(["attribute", "image_id"]).iloc[:: -(-len(pairs) // MEASURED)]
    heats = _heats(model, image_size, dataset, split, sampled)
    boxes = [_box(row, heat) for (_, row), heat in zip(sampled.iterrows(), heats, strict=True)]
    return pd.DataFrame(
        {
            "attribute": sampled["attribute"].to_numpy(),
            "share": [box.share for box in boxes],
            "area": [box.area for box in boxes],
        }
    )


def _mean(measured: pd.DataFrame) -> Inside | None:
    if measured.empty:
        return None
    return Inside(float(measured["share"].mean()), float(measured["area"].mean()), len(measured))


@torch.inference_mode()
def _heats(
    model: agman.RetrievalModel,
    image_size: int,
    dataset: Dataset,
    split: str,
    pairs: pd.DataFrame,
    batch_size: int = 64,
) -> np.ndarray:
    """Attention of the pairs, K×S×S: bilinearly enlarged to the model's picture, each summing to 1."""
    device = next(model.parameters()).device
    images = ImageStore(dataset, split, image_size, wanted=pairs["image_id"])
    parts = []
    for start in range(0, len(pairs), batch_size):
        batch = pairs.iloc[start : start + batch_size]
        pixels = agman.normalise(images.read(batch["image_id"].to_numpy()).to(device))
        maps = model.attention(pixels, torch.tensor(batch["attribute"].to_numpy(np.int64), device=device))
        large = F.interpolate(maps[:, None], size=image_size, mode="bilinear", align_corners=False)[:, 0]
        parts.append((large / large.sum((1, 2), keepdim=True)).cpu())
    return torch.cat(parts).numpy()


def _view(row: pd.Series, heat: np.ndarray, values: Sequence[str], pictures: Pictures) -> View:
    image_id = int(row["image_id"])
    picture = pictures.array(image_id)
    large = torch.from_numpy(heat)[None, None]
    fitted = F.interpolate(large, size=len(picture), mode="bilinear", align_corners=False)[0, 0].numpy()
    return View(
        plain=figures.jpeg(picture, SIDE),
        heat=figures.jpeg(figures.heat_over(picture, fitted), SIDE),
        image_id=image_id,
        value=values[row["value"]],
        box=None if np.isnan(row["x0"]) else _box(row, heat),
    )


def _box(row: pd.Series, heat: np.ndarray) -> Box:
    """The pair's true region. Drawn pictures are square, so the model's crop is the whole picture."""
    x0, y0, x1, y1 = (float(row[corner]) for corner in CORNERS)
    centres = (np.arange(len(heat)) + 0.5) / len(heat)
    columns, rows = (x0 <= centres) & (centres <= x1), (y0 <= centres) & (centres <= y1)
    return Box(x0, y0, x1, y1, share=float(heat[np.ix_(rows, columns)].sum()))
