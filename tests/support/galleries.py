"""Galleries of random embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.retrieval.gallery import GalleryInfo, write_gallery

NAMES = ("collar", "skirt", "sleeve")


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def make_gallery(folder: Path, embeddings: np.ndarray, **fields: object) -> Path:
    """Write a gallery of these embeddings, R×N×D."""
    folder.mkdir(parents=True)
    names = [f"{row:03d}.png" for row in range(len(embeddings))]
    info = {
        "model": "no-model",
        "model_digest": "0" * 64,
        "attributes": NAMES[: embeddings.shape[1]],
        "width": embeddings.shape[2],
        "image_size": 32,
        "images": len(embeddings),
        "root": str(folder),
    }
    images = pa.table({"image": names, "file": names, "row": pa.nulls(len(names))})
    write_gallery(folder, GalleryInfo(**info | fields), images, iter([embeddings[:7], embeddings[7:]]))  # type: ignore[arg-type]
    return folder
