"""Encoding of picture files as the JPEG bytes of a shard, or the reasons why files are refused."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from data_prep.errors import StorageError
from data_prep.pictures import (
    FORMATS,
    HEIC,
    HEIC_MISSING,
    MAX_BYTES,
    MAX_PIXELS,
    TooLarge,
    in_words,
    is_within,
    open_picture,
    read_file,
    upright_rgb,
    upright_size,
)
from data_prep.storage import Storage

JPEG_QUALITY = 92
LONGEST_SIDE = 65_535  # JPEG's limit
KEPT_PER_PIXEL, KEPT_BESIDES = 3, 4096
"""A JPEG keeps its bytes if it has at most KEPT_PER_PIXEL bytes a pixel and KEPT_BESIDES more."""
MAX_PATH = 4096  # Linux's limit
LONGEST_PATH, LONGEST_DETAIL = 200, 300
"""Characters of a reject's detail. An annotation may name a path of megabytes, and the details of a shard are in memory
together."""


class Packed(NamedTuple):
    """A picture for a shard: its JPEG bytes, its size and its source's size in pixels."""

    jpeg: bytes
    width: int
    height: int
    source_width: int
    source_height: int


class Refused(NamedTuple):
    """A file that did not become a picture; `reason` is a key of annotation.REASONS."""

    reason: str
    detail: str


def pack_image(root: Path, relative: str, image_size: int, box: tuple[float, ...] | None = None) -> Packed | Refused:
    """Decode `root/relative`, turn it upright (EXIF), convert it to RGB, cut out `box`, and resize it.

    `root` is a resolved path; the short side becomes `image_size` pixels. A JPEG that already meets all this keeps its
    bytes, because a second encoding would lose detail. It is encoded again if it has many bytes for its pixels, or
    holds EXIF or other data about where and with what it was taken: no packed picture holds such data. A bad file
    raises nothing, and gives the same detail wherever `root` is. `relative` may be the URI of a remote file; raises
    StorageError if its store does not answer.
    """
    if len(relative) > MAX_PATH:  # resolving millions of folders would take too long
        return _refused("unreadable_image", relative, os.strerror(errno.ENAMETOOLONG))
    remote = "://" in relative
    path = root / relative
    try:
        if not remote and not is_within(root, path):
            return _refused(
                "path_outside_root", relative, "a link or .. leads out of the folder; put the pictures in it"
            )
        data = _read_remote(relative) if remote else read_file(path)
        with open_picture(data) as image:
            width, height = upright_size(image)
            area = _clipped(box, width, height)
            if area is None:
                return _refused("bad_box", relative, f"{box} in a picture of {width}x{height}")
            if not _fits(area[2] - area[0], area[3] - area[1], image_size):
                return _refused("image_too_large", relative, f"{width}x{height}")
            jpeg, size = _encode(image, data, image_size, area)
    except TooLarge as error:
        return _refused("image_too_large", relative, str(error))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return _refused("missing_image", relative)
    except StorageError:  # not the picture's fault: the same command continues
        raise
    except Exception as error:  # a damaged file can raise nearly anything inside a decoder
        # Rejects are part of the digest, which is the same wherever `root` is.
        why = in_words(error).replace(f"{root}/", "")
        if relative.lower().endswith(HEIC) and "HEIF" not in FORMATS:
            why = HEIC_MISSING
        return _refused("unreadable_image", relative, why)
    return Packed(jpeg, *size, width, height)


def _read_remote(uri: str) -> bytes:
    """Return the bytes of a picture at a URI. Raises TooLarge, FileNotFoundError, StorageError."""
    picture = Storage(uri)
    if picture.local:
        raise ValueError("give a path below the root instead of a file:// URI")
    if picture.size() > MAX_BYTES:
        raise TooLarge(f"{picture.size():,} bytes")
    return picture.read_bytes()


def _refused(reason: str, relative: str, why: str = "") -> Refused:
    """Return a refusal with a detail of at most LONGEST_DETAIL characters."""
    if "://" in relative:
        relative = relative.partition("?")[0]  # which may hold credentials
    path = relative if len(relative) <= LONGEST_PATH else f"{relative[:LONGEST_PATH]}…"
    return Refused(reason, (f"{path}: {why}" if why else path)[:LONGEST_DETAIL])


Area = tuple[float, float, float, float]


def _clipped(box: tuple[float, ...] | None, width: int, height: int) -> Area | None:
    """Return `box` cut to the picture; None if it is less than a pixel wide or high."""
    if box is None:
        return 0.0, 0.0, float(width), float(height)
    x0, y0, x1, y1 = (float(edge) for edge in np.clip(box, 0, [width, height, width, height]))
    return (x0, y0, x1, y1) if x1 - x0 >= 1 and y1 - y0 >= 1 else None  # NaN is never >= 1


def _fits(width: float, height: float, image_size: int) -> bool:
    """Return whether the resized picture has neither too many pixels nor a side too long for JPEG."""
    scale = max(1.0, image_size / min(width, height))
    return width * height * scale**2 <= MAX_PIXELS and max(width, height) * scale <= LONGEST_SIDE


def _encode(image: Image.Image, data: bytes, image_size: int, area: Area) -> tuple[bytes, tuple[int, int]]:
    width, height = upright_size(image)
    if area == (0, 0, width, height) and min(image.size) == image_size and _can_be_kept(image, len(data)):
        image.load()  # decodes to the end, so that a truncated file raises
        return data, image.size
    across, down = area[2] - area[0], area[3] - area[1]
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 scale at a fraction of the cost; keep twice the target.
    enough = 2 * image_size / min(across, down)
    image.draft("RGB", (round(image.width * enough), round(image.height * enough)))
    picture = upright_rgb(image)
    ratios = picture.width / width, picture.height / height
    box = area[0] * ratios[0], area[1] * ratios[1], area[2] * ratios[0], area[3] * ratios[1]
    scale = image_size / min(across, down)
    size = (max(image_size, round(across * scale)), max(image_size, round(down * scale)))
    out = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS, box=box).save(
        out,
        "JPEG",
        quality=JPEG_QUALITY,
        comment=b"",  # Pillow would copy the comment of the source
    )
    return out.getvalue(), size


def _can_be_kept(image: Image.Image, size: int) -> bool:
    """Return whether a file of `size` bytes is an RGB JPEG with no more data than decoding needs."""
    if not isinstance(image, JpegImageFile) or image.format != "JPEG" or image.mode != "RGB":
        return False
    if size > KEPT_PER_PIXEL * image.width * image.height + KEPT_BESIDES:
        return False
    # Allowed: JFIF's and Adobe's headers, colour profiles. EXIF, XMP (both APP1) and IPTC (APP13) can hold locations.
    return all(
        name in ("APP0", "APP14", "COM") or (name == "APP2" and content.startswith(b"ICC_PROFILE\0"))
        for name, content in image.applist
    )
