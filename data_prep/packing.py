"""Packing: every image decoded and resized once, shuffled, and written to Parquet shards."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.pictures import MAX_PIXELS, upright_rgb
from data_prep.progress import Advance
from data_prep.tables import PACKED

ROW_GROUP = 1_000
SHARD = 10_000
JPEG_QUALITY = 92
LONGEST_SIDE = 65_535  # JPEG's limit
EXIF_ORIENTATION = 0x0112


class Packed(NamedTuple):
    """A picture ready for a shard: its JPEG bytes and size in pixels, and the size it came in."""

    jpeg: bytes
    width: int
    height: int
    source_width: int
    source_height: int


class Refused(NamedTuple):
    """Why a file did not become a picture (`reason` is a key of annotation.REASONS)."""

    reason: str
    detail: str


def pack_image(root: Path, relative: str, image_size: int) -> Packed | Refused:
    """Decode `root/relative`, turn it upright (EXIF), make it RGB, resize its short side to `image_size`.

    A JPEG that already is all that keeps its bytes: a second encoding would only lose detail.
    """
    path = root / relative
    try:
        if not path.resolve().is_relative_to(root):
            return Refused("path_outside_root", relative)
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return Refused("missing_image", relative)
    except (OSError, ValueError, RuntimeError) as error:  # also a NUL in the path, or a loop of links
        return Refused("unreadable_image", f"{relative}: {error}"[:300])
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if not _fits(width, height, image_size):
                return Refused("image_too_large", f"{relative}: {width}x{height}")
            jpeg, size = _encode(image, data, image_size)
    except Image.DecompressionBombError:
        return Refused("image_too_large", relative)
    except Exception as error:  # a damaged file can raise nearly anything inside a decoder
        return Refused("unreadable_image", f"{relative}: {error}"[:300])
    return Packed(jpeg, *size, width, height)


def _fits(width: int, height: int, image_size: int) -> bool:
    """Neither the picture nor what it is resized to has too many pixels or a side that JPEG cannot have."""
    scale = max(1.0, image_size / min(width, height))
    return width * height * scale**2 <= MAX_PIXELS and max(width, height) * scale <= LONGEST_SIDE


def _encode(image: Image.Image, data: bytes, image_size: int) -> tuple[bytes, tuple[int, int]]:
    upright = image.getexif().get(EXIF_ORIENTATION, 1) == 1
    ready = image.format == "JPEG" and image.mode == "RGB" and upright and min(image.size) == image_size
    if ready:
        image.load()  # decodes to the end, so that a truncated file shows
        return data, image.size
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 scale at a fraction of the cost; keep twice the target.
    image.draft("RGB", (2 * image_size, 2 * image_size))
    picture = upright_rgb(image)
    scale = image_size / min(picture.size)
    size = (max(image_size, round(picture.width * scale)), max(image_size, round(picture.height * scale)))
    out = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue(), size


def pack_split(
    root: Path,
    image_ids: np.ndarray,
    paths: list[str],
    folder: Path,
    image_size: int,
    seed: int,
    advance: Advance,
) -> tuple[dict[int, tuple[int, int]], dict[int, Refused]]:
    """Pack one split's images into `folder/part-*.parquet`, in an order shuffled by `seed`.

    Returns the source (width, height) of every packed image and why the others were refused, by image
    id. Memory stays at one row group: images are decoded by threads (Pillow releases the GIL) and
    written a thousand at a time.
    """
    order = np.random.default_rng(seed).permutation(len(image_ids))
    sizes: dict[int, tuple[int, int]] = {}
    refused: dict[int, Refused] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shard, shard_order in enumerate(_chunks(order, SHARD)):
            part = folder / f"part-{shard:05d}.parquet"
            part.parent.mkdir(parents=True, exist_ok=True)
            # JPEG does not compress any further.
            with pq.ParquetWriter(part, PACKED, compression="none") as writer:
                for group in _chunks(shard_order, ROW_GROUP):
                    results = pool.map(lambda i: pack_image(root, paths[i], image_size), group)
                    packed: list[tuple[int, Packed]] = []
                    for image_id, result in zip(image_ids[group].tolist(), results, strict=True):
                        if isinstance(result, Refused):
                            refused[image_id] = result
                        else:
                            packed.append((image_id, result))
                            sizes[image_id] = (result.source_width, result.source_height)
                    writer.write_table(_table(packed))
                    advance(len(group))
    return sizes, refused


def _chunks(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _table(packed: list[tuple[int, Packed]]) -> pa.Table:
    return pa.table(
        {
            "image_id": [image_id for image_id, _ in packed],
            "jpeg": [image.jpeg for _, image in packed],
            "width": [image.width for _, image in packed],
            "height": [image.height for _, image in packed],
        },
        schema=PACKED,
    )
