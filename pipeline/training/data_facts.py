"""What a checkpoint says of the dataset it was trained on, for the model card."""

from __future__ import annotations

from typing import Any

from data_prep.dataset import Dataset


def data_facts(dataset: Dataset) -> dict[str, Any]:
    """Plain values: layout, whether the pictures are drawn, counts."""
    info = dataset.info
    return {
        "layout": info.layout,
        "drawn": dataset.drawn,
        "values": [len(attribute.values) for attribute in info.attributes],
        "images": info.images,
        "queries": info.queries,
        "triplets": info.triplets,
    }
