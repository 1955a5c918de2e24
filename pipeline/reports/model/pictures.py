"""Images of one split for the sections that show some."""

from __future__ import annotations

import numpy as np

from data_prep.dataset import Dataset, ImageStore
from pipeline.reports.charts import jpeg


class Pictures:
    """Images of one split, made square as `fit` says; only those of `image_ids` are held in memory."""

    def __init__(self, dataset: Dataset, split: str, image_ids: np.ndarray, fit: str | None = None):
        self._images = ImageStore(dataset, split, dataset.info.image_size, wanted=image_ids, fit=fit)

    def array(self, image_id: int) -> np.ndarray:
        """Return an image as it is packed, uint8 S×S×3."""
        return squares(self._images, np.array([image_id]))[0]

    def uri(self, image_id: int, side: int) -> str:
        """Return an image of at most `side` pixels as a data: URI."""
        return jpeg(self.array(image_id), side)


def squares(images: ImageStore, image_ids: np.ndarray) -> np.ndarray:
    """Return images as uint8 U×S×S×3."""
    return images.read(image_ids).permute(0, 2, 3, 1).numpy()
