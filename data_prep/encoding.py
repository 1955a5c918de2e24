"""From a picture file to the JPEG bytes that a shard holds, or to the reason why there are none."""

from __future__ import annotations

import errno
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from data_prep.pictures import MAX_PIXELS, TooLarge, open_picture, read_file, upright_rgb, upright_size

JPEG_QUALITY = 92
LONGEST_SIDE = 65_535  # JPEG's limit
KEPT_PER_PIXEL, KEPT_BESIDES = 3, 4096
"""Bytes for each pixel, and beside them, that a JPEG may have to be kept as it is: not more than the bare pixels."""
MAX_PATH = 4096  # Linux's limit
LONGEST_PATH, LONGEST_DETAIL = 200, 300
"""Characters of a reject's detail: the annotation may name a path of megabytes, and the details of a shard are kept in
memory together."""


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


def pack_image(root: Path, relative: str, image_size: int, box: tuple[float, ...] | None = None) -> Packed | Refused:
    """Decode `root/relative`, turn it upright (EXIF), make it RGB, cut out `box`, resize it.

    `root` is a resolved path; the short side becomes `image_size` pixels. A JPEG that already is all that keeps
    its bytes, since a second encoding would only lose detail, unless they are many for its pixels or hold EXIF or
    other notes on where and with what it was taken: no packed picture does. Raises nothing for a bad file, and says
    the same of the same file wherever `root` is.
    """
    if len(relative) > MAX_PATH:  # to resolve millions of folders would take for ever
        return _refused("unreadable_image", relative, os.strerror(errno.ENAMETOOLONG))
    path = root / relative
    try:
        if not path.resolve().is_relative_to(root):
            return _refused(
                "path_outside_root", relative, "a link or .. leads out of the folder; put the pictures in it"
            )
        data = read_file(path)
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
    except Exception as error:  # a damaged file can raise nearly anything inside a decoder
        return _refused("unreadable_image", relative, _in_words(error, root))
    return Packed(jpeg, *size, width, height)


def _refused(reason: str, relative: str, why: str = "") -> Refused:
    """The one place where details are made, and cut to LONGEST_DETAIL."""
    path = relative if len(relative) <= LONGEST_PATH else f"{relative[:LONGEST_PATH]}…"
    return Refused(reason, (f"{path}: {why}" if why else path)[:LONGEST_DETAIL])


def _in_words(error: Exception, root: Path) -> str:
    """What went wrong, without memory addresses and the place of `root`: rejects are part of a dataset's digest."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or not of a format that is read"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    text = str(error).replace(f"{root}/", "") or type(error).__name__
    return re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "it", " ".join(text.split()))


Area = tuple[float, float, float, float]


def _clipped(box: tuple[float, ...] | None, width: int, height: int) -> Area | None:
    """The part of `box` inside the picture; None if that is not a pixel wide and high."""
    if box is None:
        return 0.0, 0.0, float(width), float(height)
    x0, y0, x1, y1 = (float(edge) for edge in np.clip(box, 0, [width, height, width, height]))
    return (x0, y0, x1, y1) if x1 - x0 >= 1 and y1 - y0 >= 1 else None  # NaN is never >= 1


def _fits(width: float, height: float, image_size: int) -> bool:
    """What the picture is resized to has neither too many pixels nor a side that JPEG cannot have."""
    scale = max(1.0, image_size / min(width, height))
    return width * height * scale**2 <= MAX_PIXELS and max(width, height) * scale <= LONGEST_SIDE


def _encode(image: Image.Image, data: bytes, image_size: int, area: Area) -> tuple[bytes, tuple[int, int]]:
    width, height = upright_size(image)
    if area == (0, 0, width, height) and min(image.size) == image_size and _can_be_kept(image, len(data)):
        image.load()  # decodes to the end, so that a truncated file shows
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
        comment=b"",  # Pillow would carry over the source's
    )
    return out.getvalue(), size


def _can_be_kept(image: Image.Image, size: int) -> bool:
    """Whether a file of `size` bytes is an RGB JPEG with nothing in it but the picture and what decoding takes."""
    if not isinstance(image, JpegImageFile) or image.format != "JPEG" or image.mode != "RGB":
        return False
    if size > KEPT_PER_PIXEL * image.width * image.height + KEPT_BESIDES:
        return False
    # JFIF's and Adobe's headers, the colour profile. EXIF, XMP (both APP1) and IPTC (APP13) can say where it was taken.
    return all(
        name in ("APP0", "APP14", "COM") or (name == "APP2" and content.startswith(b"ICC_PROFILE\0"))
        for name, content in image.applist
    )
