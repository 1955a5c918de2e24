"""The stored patterns of catalogue cloth: prints for texture, weaves in three finishes for fabric.

Every function takes the pixel grids of a tile and returns the weight of the second colour, 0 to 1. Prints cover
clearly less than half, so that light on dark differs from dark on light. All of them change when turned by 45
degrees.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

Grid = np.ndarray
Tile = Callable[[Grid, Grid], Grid]


def _cell(x: Grid, y: Grid, side: float) -> tuple[Grid, Grid]:
    """Return each pixel's position in its square cell, relative to the cell's middle."""
    return x % side - side / 2, y % side - side / 2


# --- prints --------------------------------------------------------------------------


def _stripe(x: Grid, y: Grid) -> Grid:
    return x % 24 < 9


def _double_stripe(x: Grid, y: Grid) -> Grid:
    return (x % 40 < 6) | ((x - 12) % 40 < 6)


def _dash(x: Grid, y: Grid) -> Grid:
    return (x % 20 < 8) & ((y + 20 * ((x // 20) % 2)) % 40 < 22)


def _check(x: Grid, y: Grid) -> Grid:
    return 0.5 * (x % 34 < 13) + 0.5 * (y % 34 < 13)


def _grid(x: Grid, y: Grid) -> Grid:
    return (x % 30 < 5) | (y % 30 < 5)


def _dot(x: Grid, y: Grid) -> Grid:
    return np.hypot(*_cell(x, y, 24)) < 7.5


def _ring(x: Grid, y: Grid) -> Grid:
    radius = np.hypot(*_cell(x, y, 32))
    return (radius > 7) & (radius < 13)


def _zigzag(x: Grid, y: Grid) -> Grid:
    return (y + np.abs(x % 36 - 18)) % 30 < 11


def _wave(x: Grid, y: Grid) -> Grid:
    return (y + 7 * np.sin(x * np.float32(2 * np.pi / 60))) % 26 < 9


def _triangle(x: Grid, y: Grid) -> Grid:
    across, down = _cell(x, y, 30)
    return (np.abs(across) < (down + 13) / 2) & (down < 12)


def _cross(x: Grid, y: Grid) -> Grid:
    across, down = (np.abs(part) for part in _cell(x, y, 30))
    return (np.minimum(across, down) < 3.2) & (np.maximum(across, down) < 12)


def _flower(x: Grid, y: Grid) -> Grid:
    across, down = _cell(x, y, 36)
    radius = np.hypot(across, down)
    petals = 15 * (0.65 + 0.35 * np.cos(4 * np.arctan2(down, across)))
    return (radius < petals) & (radius > 3)


def _brick(x: Grid, y: Grid) -> Grid:
    return (y % 20 < 4) | ((x + 20 * ((y // 20) % 2)) % 40 < 4)


PRINT_TILES: dict[str, Tile] = {
    "stripe": _stripe,
    "double stripe": _double_stripe,
    "dash": _dash,
    "check": _check,
    "grid": _grid,
    "dot": _dot,
    "ring": _ring,
    "zigzag": _zigzag,
    "wave": _wave,
    "triangle": _triangle,
    "cross": _cross,
    "flower": _flower,
    "brick": _brick,
}

# --- weaves --------------------------------------------------------------------------


def _rib(x: Grid, y: Grid) -> Grid:
    return 0.5 + 0.5 * np.cos(x * np.float32(2 * np.pi / 22))


def _waffle(x: Grid, y: Grid) -> Grid:
    across, down = _cell(x, y, 28)
    return np.maximum(np.abs(across), np.abs(down)) / 14


def _mesh(x: Grid, y: Grid) -> Grid:
    shifted = x + 11 * ((y // 19) % 2)
    return np.hypot(shifted % 22 - 11, y % 19 - 9.5) > 7.5


def _quilting(x: Grid, y: Grid) -> Grid:
    across, down = _cell(x + y, x - y, 44)
    return np.minimum(22 - np.abs(across), 22 - np.abs(down)) / 14


def _herringbone(x: Grid, y: Grid) -> Grid:
    return (y + np.abs(x % 56 - 28)) % 16 < 8


def _knit(x: Grid, y: Grid) -> Grid:
    middle = np.abs(x % 26 - 13)
    return ((y - 0.8 * middle) % 20 < 13) & (middle < 10.5)


def _basket(x: Grid, y: Grid) -> Grid:
    flat = ((x // 24) + (y // 24)) % 2
    return np.where(flat > 0, y % 12 < 7, x % 12 < 7)


def _cable(x: Grid, y: Grid) -> Grid:
    middle = x % 56 - 28
    swing = 13 * np.sin(y * np.float32(2 * np.pi / 72))
    return np.clip(1.3 - np.minimum(np.abs(middle - swing), np.abs(middle + swing)) / 7, 0, 1)


def _twill(x: Grid, y: Grid) -> Grid:
    return (x * 0.5 + y) % 17 < 7


def _crochet(x: Grid, y: Grid) -> Grid:
    across, down = x % 40 - 20, y % 30
    return np.hypot(across, down) % 13 < 6


def _lace(x: Grid, y: Grid) -> Grid:
    radius = np.hypot(*_cell(x, y, 36))
    return (radius < 5) | ((radius > 10) & (radius < 14)) | (radius > 20)


def _corduroy(x: Grid, y: Grid) -> Grid:
    return ((x % 30) / 30) ** 2


def _houndstooth(x: Grid, y: Grid) -> Grid:
    one, other = x % 36 < 18, y % 36 < 18
    return (one & other) | ((one ^ other) & ((x + y) % 18 < 9))


WEAVE_TILES: dict[str, Tile] = {
    "rib": _rib,
    "waffle": _waffle,
    "mesh": _mesh,
    "quilting": _quilting,
    "herringbone": _herringbone,
    "knit": _knit,
    "basket": _basket,
    "cable": _cable,
    "twill": _twill,
    "crochet": _crochet,
    "lace": _lace,
    "corduroy": _corduroy,
    "houndstooth": _houndstooth,
}


def _matte(weave: Grid, x: Grid, y: Grid) -> Grid:
    return 0.6 * weave


def _silky(weave: Grid, x: Grid, y: Grid) -> Grid:
    """Return broad soft lights, under which the weave is faint."""
    band = 0.5 + 0.5 * np.cos((x + 0.35 * y) * np.float32(2 * np.pi / 130))
    return 0.38 * weave + 0.62 * band**2


def _glittering(weave: Grid, x: Grid, y: Grid) -> Grid:
    """Return bright specks on a dark weave."""
    return np.where(_specks(len(x)), 1.0, 0.42 * weave)


@lru_cache(maxsize=1)
def _specks(side: int) -> Grid:
    """Return a mask of a tile of `side` pixels: one speck in every cell of 26 pixels."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    specks = np.random.default_rng(29).integers(0, 22, (2, 31, 31))
    rows, columns = (y // 26).astype(int), (x // 26).astype(int)
    return np.hypot(x % 26 - 2 - specks[0][rows, columns], y % 26 - 2 - specks[1][rows, columns]) < 4.5


FINISHES: dict[str, Callable[[Grid, Grid, Grid], Grid]] = {"matte": _matte, "silky": _silky, "glittering": _glittering}


def catalogue_tile(name: str, x: Grid, y: Grid) -> Grid:
    """Return the tile of a print ("dot") or of a weave in a finish ("rib, silky"). Raises KeyError if there is none."""
    if name in PRINT_TILES:
        return PRINT_TILES[name](x, y).astype(np.float32)
    weave, finish = name.split(", ")
    return FINISHES[finish](WEAVE_TILES[weave](x, y).astype(np.float32), x, y)
