"""Near-duplicates among pictures: the same picture resized, encoded again or slightly changed.

Pictures are compared by the perceptual hash of `imagehash`: 64 bits of the lowest frequencies of a small grey copy. Two
hashes of near-duplicates differ in a few bits; those of other pictures differ in about half. Garments in one pose
before one ground can have hashes as near: a pair's tiny copies in colour must be alike, too.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_prep.encoding import Refused, pack_image
from data_prep.pictures import is_within, open_picture, read_file, upright_rgb, upright_size
from data_prep.progress import Progress, silent

DISTANCE = 4
"""Bits in which the hashes of near-duplicates differ at most."""
BANDS = [np.uint64((1 << 64 * (n + 1) // 7) - (1 << 64 * n // 7)) for n in range(7)]
"""The hash's bits in seven bands. DISTANCE bits are in at most four of them, so near hashes agree in three or more."""
AGREEING = len(BANDS) - DISTANCE
TINY_COPY = 8
"""Side in pixels of the copies in colour."""
UNLIKE = 12.0
"""Root of the mean squared difference of the copies' pixels (0 to 255), up to which two pictures are near-duplicates.

Copies of a picture that is resized, encoded again or cropped by 1 % of its sides differ by 0 to 7, those of one that is
10 % brighter by 13; those of one garment in two colours by 25 and more.
"""
AT_ONCE = 10_000
"""Pictures that are looked at, and pairs whose copies are compared, at a time."""
SHOWN = 12
"""Pairs of which thumbnails are kept."""
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
    copies: np.ndarray
    """N×T×T×3 uint8, T = TINY_COPY."""
    short_side: np.ndarray
    """N int64: short side in pixels."""


def look_at(root: Path, paths: Sequence[str], progress: Progress = silent) -> Look:
    """Look at pictures below `root`, in as many threads as there are cores."""

    def read(number: int) -> bytes | None:
        path = root / paths[number]
        return read_file(path) if is_within(root, path) else None

    return look_at_files(read, len(paths), progress)


def look_at_files(read: Callable[[int], bytes | None], count: int, progress: Progress = silent) -> Look:
    """Look at picture files, in as many threads as there are cores.

    Args:
        read: function of a picture's number that returns its file, or None, or raises an exception.
        count: number of pictures.
        progress: callback for a progress bar.
    """
    look = Look(
        hashes=np.zeros((count, 8), np.uint8),
        hashed=np.zeros(count, bool),
        one_colour=np.zeros(count, bool),
        copies=np.zeros((count, TINY_COPY, TINY_COPY, 3), np.uint8),
        short_side=np.zeros(count, np.int64),
    )
    advance = progress("pictures looked at", count)

    def fill(number: int) -> None:
        try:
            if (data := read(number)) is None:
                return
            with open_picture(data) as image:
                short = min(upright_size(image))
                image.draft("RGB", (SMALL_COPY, SMALL_COPY))
                colour = upright_rgb(image)
                grey = colour.convert("L")
                tiny = colour.resize((TINY_COPY, TINY_COPY), Image.Resampling.BOX)
        except Exception:  # a damaged picture can raise nearly anything; packing names the reason
            return
        look.short_side[number] = short
        look.one_colour[number] = np.asarray(grey).std() < FLAT
        if not look.one_colour[number]:
            look.hashes[number] = np.packbits(imagehash.phash(grey).hash.reshape(-1))
            look.copies[number] = np.asarray(tiny)
            look.hashed[number] = True

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, count, AT_ONCE):  # the pool keeps a record of every call
            for _ in pool.map(fill, range(start, min(start + AT_ONCE, count))):
                advance(1)
    return look


def near_pairs(look: Look) -> np.ndarray:
    """Return the pairs of near-duplicates, K×3 int64: two numbers of pictures, and their distance; nearest first."""
    numbers = np.flatnonzero(look.hashed)
    codes = np.ascontiguousarray(look.hashes[numbers]).view(np.uint64).ravel()
    found = [np.empty((0, 3), np.int64)]
    for agreeing in itertools.combinations(range(len(BANDS)), AGREEING):
        found += _agreeing_pairs(codes, agreeing)
    one, other, distance = np.concatenate(found).T
    pairs = np.stack([numbers[one], numbers[other], distance], axis=1)
    parts = np.array_split(pairs, len(pairs) // AT_ONCE + 1)
    pairs = np.concatenate([part[_unlikeness(look.copies, part) <= UNLIKE] for part in parts])
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0], pairs[:, 2]))]


def _agreeing_pairs(codes: np.ndarray, agreeing: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yield K×3 arrays (index, other index, distance): pairs within DISTANCE whose first equal bands are `agreeing`.

    Every pair has one such combination of AGREEING bands, so that it is found once. Time grows with sorting, and with
    the pairs that agree in the bands: k equal codes are k²/2 of them.
    """
    keys = codes & np.bitwise_or.reduce([BANDS[band] for band in agreeing])
    order = np.argsort(keys, kind="stable")
    keys, between = keys[order], [band for band in range(agreeing[-1]) if band not in agreeing]
    at = np.arange(len(keys))
    for step in itertools.count(1):
        at = at[at < len(keys) - step]
        at = at[keys[at] == keys[at + step]]
        if not len(at):
            return
        one, other = order[at], order[at + step]  # one < other, as the sort is stable
        differing = codes[one] ^ codes[other]
        distance = np.bitwise_count(differing)
        near = distance <= DISTANCE
        for band in between:
            near &= (differing & BANDS[band]) != 0
        yield np.stack([one[near], other[near], distance[near].astype(np.int64)], axis=1)


def _unlikeness(copies: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    difference = copies[pairs[:, 0]].astype(np.float32) - copies[pairs[:, 1]]
    return np.sqrt(np.square(difference).mean((1, 2, 3)))


def clusters(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return the cluster of each of `count` pictures: pictures that a chain of pairs connects have the same number."""
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def kept_of(cluster: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Return for each picture the one that is kept of its cluster: that of the lowest rank, the first of equal ones."""
    order = np.lexsort((rank, cluster))
    first = np.ones(len(order), bool)
    first[1:] = cluster[order][1:] != cluster[order][:-1]
    return order[first][np.unique(cluster, return_inverse=True)[1]]


@dataclass(frozen=True)
class NearDuplicates:
    """Near-duplicates among N pictures."""

    pairs: pd.DataFrame
    """path, other_path, distance, and thumbnails of the first pairs; nearest first."""
    cluster: np.ndarray
    """N int64: pictures that a chain of pairs connects have the same number."""
    refused: dict[str, Refused]
    """Path -> reason, of pictures that cannot be read; those at URIs are not looked at."""
    notes: tuple[str, ...]
    """Notes for the user on pictures of one colour, and on pictures that have to be enlarged."""

    def in_splits(self, images: pd.DataFrame) -> pd.DataFrame:
        """Return the pairs with the splits of both pictures; empty for a picture that is not among `images`."""
        split = images.drop_duplicates("path").set_index("path")["split"]
        columns = {"split": "path", "other_split": "other_path"}
        return self.pairs.assign(
            **{name: self.pairs[path].map(split).fillna("").astype("str") for name, path in columns.items()}
        )


def find_near_duplicates(
    root: Path, paths: Sequence[str], image_size: int, progress: Progress = silent
) -> NearDuplicates:
    """Look at pictures below `root`, whose short side is to be `image_size` pixels, and find near-duplicates.

    Notes and refusals are for pictures of one colour, too small or not readable.
    """
    look = look_at(root, paths, progress)
    notes = []
    for marked, what in (
        (look.one_colour, "of one colour"),
        ((look.short_side > 0) & (look.short_side < image_size), f"enlarged to {image_size} px"),
    ):
        if marked.any():
            notes.append(f"pictures {what}: {int(marked.sum()):,}, such as {paths[int(np.argmax(marked))]}")
    pairs = near_pairs(look)
    jpegs = [
        [thumbnail(root, paths[i]) if row < SHOWN else None for i in pair] for row, pair in enumerate(pairs[:, :2])
    ]
    table = pd.DataFrame(
        {
            "path": [paths[i] for i in pairs[:, 0]],
            "other_path": [paths[i] for i in pairs[:, 1]],
            "distance": pairs[:, 2],
            "jpeg": [one for one, _ in jpegs],
            "other_jpeg": [other for _, other in jpegs],
        }
    )
    refused = {}
    for number in np.flatnonzero(look.short_side == 0).tolist():
        path = paths[number]
        if "://" not in path and isinstance(why := pack_image(root, path, image_size), Refused):
            refused[path] = why
    return NearDuplicates(table, clusters(len(paths), pairs), refused, tuple(notes))


def thumbnail(root: Path, path: str) -> bytes:
    """Return a small JPEG of a picture that `look_at` could read."""
    with open_picture(read_file(root / path)) as image:
        image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
        small = upright_rgb(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85, comment=b"")
    return out.getvalue()
