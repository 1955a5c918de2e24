"""Where a model looks, measured: its attention maps against the regions that a drawn dataset knows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

import agman
from data_prep.dataset import Dataset, ImageStore

MEASURED = 512
"""Pairs at most that are measured: a look costs a pass of the backbone beside the evaluation's own."""
CORNERS = ["x0", "y0", "x1", "y1"]
FIGURES = ("mass", "hits", "area")


def measure_attention(
    model: agman.RetrievalModel, images: ImageStore, dataset: Dataset, pairs: pd.DataFrame
) -> pd.DataFrame | None:
    """mass, hits, area of the queries and candidates with a region, one row each; None without any.

    The columns: attribute, the share of the attention inside the region, whether its maximum is inside (0 or 1), and
    the region's part of the picture, which is what attention spread evenly scores. Of more than MEASURED pairs,
    ordered by attribute and image, that many evenly spaced ones. Drawn pictures are square, so the model's crop is
    the whole picture and the boxes need no change.
    """
    if dataset.regions is None:
        return None
    known = with_regions(pairs, dataset).sort_values(["attribute", "image_id"], kind="stable")
    if known.empty:
        return None
    chosen = known.iloc[np.linspace(0, len(known) - 1, min(len(known), MEASURED)).round().astype(int)]
    return measure(attention_maps(model, images, chosen), chosen)


def measure(maps_khw: torch.Tensor, pairs: pd.DataFrame) -> pd.DataFrame:
    """attribute, mass, hits, area of K pairs with their regions, from their K maps."""
    boxes_k4 = torch.tensor(pairs[CORNERS].to_numpy(np.float64))
    x0, y0, x1, y1 = boxes_k4.unbind(1)
    columns = {
        "mass": agman.attention_mass(maps_khw, boxes_k4),
        "hits": agman.pointing_hits(maps_khw, boxes_k4).double(),
        "area": (x1 - x0) * (y1 - y0),
    }
    return pd.DataFrame({"attribute": pairs["attribute"].to_numpy()} | {k: v.numpy() for k, v in columns.items()})


def attention_figures(measured: pd.DataFrame, names: list[str]) -> dict[str, float]:
    """attention_mass, attention_hits and attention_area, over all measured pairs and /<attribute>; attention_pairs."""
    figures = {f"attention_{name}": float(measured[name].mean()) for name in FIGURES}
    for number in measured["attribute"].unique().tolist():
        of_attribute = measured[measured["attribute"] == number]
        figures |= {f"attention_{name}/{names[number]}": float(of_attribute[name].mean()) for name in FIGURES}
    return figures | {"attention_pairs": float(len(measured))}


def visible(pairs: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """Without the pairs whose value says that the attribute cannot be seen; queries first."""
    hidden = {
        (a, v)
        for a, attribute in enumerate(dataset.info.attributes)
        for v, value in enumerate(attribute.values)
        if value == "Invisible"
    }
    seen = [pair not in hidden for pair in zip(pairs["attribute"], pairs["value"], strict=True)]
    return pairs[np.array(seen, bool)].sort_values("role", ascending=False, kind="stable")


def with_regions(pairs: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """The visible pairs whose true region is known; all the visible ones where the dataset knows none."""
    shown = visible(pairs, dataset)
    if dataset.regions is None:
        return shown.assign(**dict.fromkeys(CORNERS, np.nan))
    return shown.merge(dataset.regions, on=["image_id", "attribute"], how="inner")


@torch.inference_mode()
def attention_maps(
    model: agman.RetrievalModel, images: ImageStore, pairs: pd.DataFrame, batch_size: int = 64
) -> torch.Tensor:
    """K×h×w on the CPU: the maps of K pairs by `model`, which is in evaluation mode; each sums to 1."""
    device = next(model.parameters()).device
    maps = []
    for start in range(0, len(pairs), batch_size):
        batch = pairs.iloc[start : start + batch_size]
        pixels = agman.normalise(images.read(batch["image_id"].to_numpy()).to(device))
        attributes = torch.tensor(batch["attribute"].to_numpy(np.int64), device=device)
        maps.append(model.attention(pixels, attributes).float().cpu())
    return torch.cat(maps)
