"""From a picture file to the JPEG bytes that a shard holds, or to the reason why there are none."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_prep.pictures import (
    EXIF_ORIENTATION,
    MAX_PIXELS,
    TooLarge,
    open_picture,
    read_file,
    upright_rgb,
    upright_size,
)

JPEG_QUALITY = 92
LONGEST_SIDE = 65_535  # JPEG's limit


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
    its bytes: a second encoding would only lose detail.
    """
    path = root / relative
    try:
        if not path.resolve().is_relative_to(root):
            return Refused("path_outside_root", relative)
        data = read_file(path)
        with open_picture(data) as image:
            width, height = upright_size(image)
            area = _clipped(box, width, height)
            if area is None:
                return Refused("bad_box", f"{relative}: {box} in a picture of {width}x{height}")
            if not _fits(area[2] - area[0], area[3] - area[1], image_size):
                return Refused("image_too_large", f"{relative}: {width}x{height}")
            jpeg, size = _encode(image, data, image_size, area)
    except TooLarge as error:
        return Refused("image_too_large", f"{relative}: {error}")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return Refused("missing_image", relative)
    except Exception as error:  # a damaged file can raise nearly anything inside a decoder
        return Refused("unreadable_image", f"{relative}: {error}"[:300])
    return Packed(jpeg, *size, width, height)


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
    whole = area == (0, 0, width, height)
    upright = image.getexif().get(EXIF_ORIENTATION, 1) == 1
    if whole and upright and image.format == "JPEG" and image.mode == "RGB" and min(image.size) == image_size:
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
    picture.resize(size, Image.Resampling.LANCZOS, box=box).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue(), size
