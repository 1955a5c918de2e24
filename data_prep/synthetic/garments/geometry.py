"""Outlines: points in, points out. Arrays are (n, 2) floats, x to the right, y down."""

from collections.abc import Sequence

import numpy as np

Points = np.ndarray
UNIT = np.linspace(0.0, 1.0, 12)
Pairs = Sequence[tuple[float, float]] | Points


def points(pairs: Pairs) -> Points:
    """Return an (n, 2) float array of the given x, y pairs."""
    return np.asarray(pairs, dtype=float).reshape(-1, 2)


def mirrored(outline: Pairs) -> Points:
    """Return the outline reflected about the body's centre line, x = 0."""
    return points(outline) * (-1.0, 1.0)


def symmetric(right_half: Pairs) -> Points:
    """Return a closed outline: the right half from top to bottom, then its reflection from bottom to top."""
    right = points(right_half)
    return np.concatenate([right, mirrored(right)[::-1]])


def across(right_half: Pairs) -> Points:
    """Return an open edge from left to right; its right half is given from the centre line outwards."""
    right = points(right_half)
    return np.concatenate([mirrored(right)[::-1], right])


def smooth(outline: Pairs, *, closed: bool = False, rounds: int = 3) -> Points:
    """Cut corners by Chaikin's rule; an open line keeps its two ends."""
    line = points(outline)
    for _ in range(rounds):
        ahead = np.roll(line, -1, axis=0) if closed else line[1:]
        here = line if closed else line[:-1]
        cut = np.stack([0.75 * here + 0.25 * ahead, 0.25 * here + 0.75 * ahead], axis=1).reshape(-1, 2)
        line = cut if closed else np.concatenate([line[:1], cut, line[-1:]])
    return line


def ellipse(x: float, y: float, half_width: float, half_height: float, corners: int = 28) -> Points:
    """Return an ellipse around (x, y)."""
    angle = np.linspace(0.0, 2.0 * np.pi, corners, endpoint=False)
    return np.stack([x + half_width * np.cos(angle), y + half_height * np.sin(angle)], axis=1)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Points:
    """Return the four corners of an upright rectangle."""
    return points([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def along(joints: Pairs, share: np.ndarray) -> Points:
    """Return points at fractions `share` of a two-bone limb: 0, 0.5 and 1 are its joints, beyond 1 is straight on."""
    first, middle, last = points(joints)
    upper = first + np.outer(2.0 * share, middle - first)
    lower = middle + np.outer(2.0 * share - 1.0, last - middle)
    return np.where((share < 0.5)[:, None], upper, lower)


def tube(joints: Pairs, start: float, end: float, half_widths: Sequence[float], *,
         ease: float | np.ndarray = 0.0, flare: float = 0.0) -> Points:  # fmt: skip
    """Return the outline of a limb, or of the cloth around it, from `start` to `end` along its two bones.

    `half_widths` belong to the fractions 0, 0.25, 0.5, 0.75 and 1. `ease` is added everywhere (an array: at each
    fraction of UNIT), `flare` grows from 0 at `start` to its full value at `end`.
    """
    share = start + (end - start) * UNIT
    centre = along(joints, share)
    direction = np.gradient(centre, axis=0)
    direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
    half = np.interp(share * (len(half_widths) - 1), range(len(half_widths)), half_widths) + ease
    half = half + flare * UNIT
    normal = np.stack([-direction[:, 1], direction[:, 0]], axis=1) * half[:, None]
    return np.concatenate([centre + normal, (centre - normal)[::-1]])
