"""The camera and the canvas, which turn body units into pixels."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from data_prep.synthetic.garments.cloth import Colour, Fabric
from data_prep.synthetic.garments.geometry import Pairs, Points, mirrored

SUPERSAMPLING = 2  # the canvas is this many times the image's side, and is reduced at the end
TORSO_HALF = 0.13  # body heights; a turn of the body moves points nearer to its centre line than this


class Region(NamedTuple):
    """A box in the image: x0 < x1 and y0 < y1, as fractions of its side, from the upper left corner."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Camera:
    """Window of the image on the body (in body heights), and how the body is turned in it."""

    top: float
    bottom: float
    shift: float  # of the body from the image's middle, as a fraction of the image
    stretch: float  # of x against y
    tilt: float  # radians
    turn: float  # body heights that the torso's front moves sideways
    flip: bool

    def project(self, outline: Pairs) -> Points:
        """Return body points as fractions of the image's side."""
        bent = np.array(outline, dtype=float).reshape(-1, 2)
        bent[:, 0] += self.turn * np.maximum(0.0, 1.0 - (bent[:, 0] / TORSO_HALF) ** 2)
        return bent @ self._turned + self._moved

    @cached_property
    def _turned(self) -> np.ndarray:
        """Return the 2 x 2 matrix for row vectors from body to image: stretch, flip, tilt, scale."""
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        across = self.stretch * (-1.0 if self.flip else 1.0)
        return np.array([[across * cos, across * sin], [-sin, cos]]) / (self.bottom - self.top)

    @cached_property
    def _moved(self) -> np.ndarray:
        """Return the translation that centres the window in the image, plus the shift."""
        middle = np.array([0.0, (self.top + self.bottom) / 2])
        return np.array([0.5 + self.shift, 0.5]) - middle @ self._turned

    def region(self, outline: Pairs) -> Region:
        """Return the box around body points, cut to the image; if all are outside, the nearest strip of the image."""
        seen = self.project(outline)
        low, high = np.clip(seen.min(axis=0), 0.0, 0.94), np.clip(seen.max(axis=0), 0.06, 1.0)
        return Region(*(float(part) for part in (*np.minimum(low, high - 0.06), *high)))


class Canvas:
    """A supersampled image that is painted in body units."""

    def __init__(self, background: Image.Image, camera: Camera) -> None:
        self.side = background.width * SUPERSAMPLING
        self.image = background.resize((self.side, self.side), Image.Resampling.NEAREST)
        self.camera = camera
        self._pen = ImageDraw.Draw(self.image)

    def fill(self, outline: Pairs, fabric: Fabric, *, edge: float = 0.004) -> None:
        """Paint a closed outline and draw its edge, `edge` body heights thick (0: none)."""
        pixels = self._pixels(outline)
        if fabric.cloth is None:
            self._pen.polygon(pixels.ravel().tolist(), fill=fabric.colour)
        else:
            self._paste(pixels, fabric)
        if edge:
            self._stroke(np.concatenate([pixels, pixels[:1]]), fabric.edge, edge)

    def fill_both(self, outline: Pairs, fabric: Fabric, *, edge: float = 0.004) -> None:
        """Paint a closed outline, and then its reflection on the other side of the body."""
        for side in (outline, mirrored(outline)):
            self.fill(side, fabric, edge=edge)

    def line(self, path: Pairs, colour: Colour, thickness: float = 0.004) -> None:
        """Draw an open line, `thickness` body heights thick."""
        self._stroke(self._pixels(path), colour, thickness)

    def _pixels(self, outline: Pairs) -> Points:
        return self.camera.project(outline) * self.side

    def _stroke(self, pixels: Points, colour: Colour, thickness: float) -> None:
        width = max(1, round(thickness * self.side / (self.camera.bottom - self.camera.top)))
        self._pen.line(pixels.ravel().tolist(), fill=colour, width=width, joint="curve")

    def _paste(self, pixels: Points, fabric: Fabric) -> None:
        """Paint the texture through a mask that is only as large as the outline."""
        x0, y0 = np.clip(np.floor(pixels.min(axis=0)), 0, self.side).astype(int).tolist()
        x1, y1 = np.clip(np.ceil(pixels.max(axis=0)) + 1, 0, self.side).astype(int).tolist()
        if x0 >= x1 or y0 >= y1 or fabric.texture is None:
            return
        mask = Image.new("L", (x1 - x0, y1 - y0))
        ImageDraw.Draw(mask).polygon((pixels - (x0, y0)).ravel().tolist(), fill=255)
        self.image.paste(fabric.texture.crop((x0, y0, x1, y1)), (x0, y0), mask)
