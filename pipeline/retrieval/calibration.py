"""Pictures that show a quantised model the range of its numbers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from agman.embedder import Embedder
from data_prep.errors import InputError
from pipeline.retrieval.image_sources import find_source
from pipeline.retrieval.picture_embedder import PictureEmbedder

CALIBRATION = 256
"""Number of pictures that are read, half of them to check the others' result."""
LEAST = 32


def calibration_pictures(images: str | Path, embedder: Embedder) -> list[np.ndarray]:
    """Return some pictures of a source, evenly spaced in it, as the model receives them: uint8 S×S×3 each.

    Raises InputError if fewer than LEAST can be read.
    """
    try:
        source = find_source(images)
    except InputError as error:
        raise InputError(str(error).replace("--images", "--int8", 1)) from error
    rows = np.linspace(0, len(source.pictures) - 1, min(CALIBRATION, len(source.pictures))).round().astype(int)
    reader = PictureEmbedder(embedder, source.root, source.column, os.cpu_count() or 1)
    read = [one for one in reader.read(source.pictures.take(pa.array(rows))) if isinstance(one, np.ndarray)]
    if len(read) < LEAST:
        raise InputError(
            f"--int8 {images}: {len(read)} pictures can be read; at least {LEAST} are needed to calibrate with"
        )
    return read
