"""Attention maps of a model, measured against the true regions of a drawn dataset."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

import agman
from agman.attention_score import attention_mass, pointing_hits
from data_prep.dataset import Dataset, ImageStore

MEASURED = 512
"""Largest number of pairs that are measured: each costs another pass of the backbone."""
CORNERS = ["x0", "y0", "x1", "y1"]
METRICS = ("mass", "hits", "area")


def measure_attention(
    model: agman.RetrievalModel, images: ImageStore, dataset: Dataset, pairs: pd.DataFrame
) -> pd.DataFrame | None:
    """Measure the attention of queries and candidates whose region is known; return None if there are none.

    Of more than MEASURED pairs, ordered by attribute and image, MEASURED evenly spaced ones are measured. Drawn
    images are square, so the model's crop is the full image and the boxes apply as they are.

    Returns:
        One row for each pair, with the columns of `measure`.
    """
    if dataset.regions is None:
        return None
    known = with_regions(pairs, dataset).sort_values(["attribute", "image_id"], kind="stable")
    if known.empty:
        return None
    chosen = known.iloc[np.linspace(0, len(known) - 1, min(len(known), MEASURED)).round().astype(int)]
    return measure(attention_maps(model, images, chosen), chosen)


def measure(maps_khw: torch.Tensor, pairs: pd.DataFrame) -> pd.DataFrame:
    """Measure K attention maps of shape h×w against the regions of their K pairs.

    Returns:
        One row for each pair: attribute; mass, the fraction of the attention inside the region; hits, 1 if its
        maximum is inside, otherwise 0; area, the region's fraction of the image, which is the mass of a uniform map.
    """
    boxes_k4 = torch.tensor(pairs[CORNERS].to_numpy(np.float64))
    x0, y0, x1, y1 = boxes_k4.unbind(1)
    columns = {
        "mass": attention_mass(maps_khw, boxes_k4),
        "hits": pointing_hits(maps_khw, boxes_k4).double(),
        "area": (x1 - x0) * (y1 - y0),
    }
    return pd.DataFrame({"attribute": pairs["attribute"].to_numpy()} | {k: v.numpy() for k, v in columns.items()})


def attention_metrics(measured: pd.DataFrame, names: list[str]) -> dict[str, float]:
    """Return attention_mass, attention_hits and attention_area, overall and by /<attribute>, and attention_pairs."""
    metrics = {f"attention_{name}": float(measured[name].mean()) for name in METRICS}
    for number in measured["attribute"].unique().tolist():
        of_attribute = measured[measured["attribute"] == number]
        metrics |= {f"attention_{name}/{names[number]}": float(of_attribute[name].mean()) for name in METRICS}
    return metrics | {"attention_pairs": float(len(measured))}


def visible(pairs: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """Return the pairs whose attribute can be seen (any value but "Invisible"), queries first."""
    invisible = {
        (a, v)
        for a, attribute in enumerate(dataset.info.attributes)
        for v, value in enumerate(attribute.values)
        if value == "Invisible"
    }
    seen = [pair not in invisible for pair in zip(pairs["attribute"], pairs["value"], strict=True)]
    return pairs[np.array(seen, bool)].sort_values("role", ascending=False, kind="stable")


def with_regions(pairs: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """Return the visible pairs whose true region is known, or all visible pairs if the dataset has no regions."""
    shown = visible(pairs, dataset)
    if dataset.regions is None:
        return shown.assign(**dict.fromkeys(CORNERS, np.nan))
    return shown.merge(dataset.regions, on=["image_id", "attribute"], how="inner")


@torch.inference_mode()
def attention_maps(
    model: agman.RetrievalModel, images: ImageStore, pairs: pd.DataFrame, batch_size: int = 64
) -> torch.Tensor:
    """Return the attention maps K×h×w of K pairs, on the CPU; each sums to 1. The model must be in evaluation mode."""
    device = next(model.parameters()).device
    maps = []
    for start in range(0, len(pairs), batch_size):
        batch = pairs.iloc[start : start + batch_size]
        pixels = agman.normalise(images.read(batch["image_id"].to_numpy()).to(device), model.pixels)
        attributes = torch.tensor(batch["attribute"].to_numpy(np.int64), device=device)
        maps.append(model.attention(pixels, attributes).float().cpu())
    return torch.cat(maps)
