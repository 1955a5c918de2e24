"""Near-duplicates among pictures: the same picture resized, encoded again or slightly changed.

Pictures are compared by the perceptual hash of `imagehash`: 64 bits of the lowest frequencies of a small grey copy. Two
hashes of near-duplicates differ in a few bits; those of other pictures differ in about half.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import faiss
import imagehash
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_prep.pictures import open_picture, read_file, upright_rgb, upright_size
from data_prep.progress import Progress, silent

DISTANCE = 4
"""Bits in which the hashes of near-duplicates differ at most."""
BANDS, BAND = 5, 12
"""A pair within DISTANCE has at least one of BANDS bands of BAND bits in common."""
SMALL_COPY = 128
"""Side in pixels that a JPEG is decoded at, at least."""
THUMBNAIL = 132
"""Longer side in pixels."""
FLAT = 2.0
"""Standard deviation of the grey values (0 to 255) below which a picture is of one colour."""


@dataclass(frozen=True)
class Look:
    """Results of a first look at N pictures; pictures that cannot be read have no hash, and a size of 0."""

    hashes: np.ndarray
    """N×8 uint8."""
    hashed: np.ndarray
    """N bool: whether the picture has a hash: it can be read, and is not of one colour."""
    one_colour: np.ndarray
    """N bool."""
    short_side: np.ndarray
    """N int64: short side in pixels."""


def look_at(root: Path, paths: Sequence[str], progress: Progress = silent) -> Look:
    """Look at pictures below `root`, in as many threads as there are cores."""
    look = Look(np.zeros((len(paths), 8), np.uint8), *(np.zeros(len(paths), kind) for kind in (bool, bool, np.int64)))
    advance = progress("pictures looked at", len(paths))

    def fill(number: int) -> None:
        try:
            with open_picture(read_file(root / paths[number])) as image:
                short = min(upright_size(image))
                image.draft("RGB", (SMALL_COPY, SMALL_COPY))
                grey = upright_rgb(image).convert("L")
        except Exception:  # a damaged picture can raise nearly anything; packing names the reason
            return
        look.short_side[number] = short
        look.one_colour[number] = np.asarray(grey).std() < FLAT
        if not look.one_colour[number]:
            look.hashes[number] = np.packbits(imagehash.phash(grey).hash.reshape(-1))
            look.hashed[number] = True

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(len(paths))):
            advance(1)
    return look


def near_pairs(look: Look) -> np.ndarray:
    """Return the pairs of near-duplicates, K×3 int64: two numbers of pictures, and their distance; nearest first."""
    numbers = np.flatnonzero(look.hashed)
    if not len(numbers):
        return np.empty((0, 3), np.int64)
    index = faiss.IndexBinaryMultiHash(64, BANDS, BAND)
    codes = np.ascontiguousarray(look.hashes[numbers])
    index.add(codes)
    limits, distances, found = index.range_search(codes, DISTANCE + 1)
    first = np.repeat(np.arange(len(numbers)), np.asarray(limits[1:] - limits[:-1], np.int64))
    keep = first < found
    pairs = np.stack([numbers[first[keep]], numbers[found[keep]], distances[keep].astype(np.int64)], axis=1)
    pairs = np.unique(pairs, axis=0)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0], pairs[:, 2]))]


def clusters(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return the cluster of each of `count` pictures: pictures that a chain of pairs connects have the same number."""
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def thumbnail(root: Path, path: str) -> bytes:
    """Return a small JPEG of a picture that `look_at` could read."""
    with open_picture(read_file(root / path)) as image:
        image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
        small = upright_rgb(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85, comment=b"")
    return out.getvalue()
