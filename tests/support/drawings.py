"""Comparison of drawn images: pixels, regions, and whether the values can be told apart."""

from collections.abc import Callable

import numpy as np

from data_prep.synthetic.garments import Drawing


def pixels(drawing: Drawing) -> np.ndarray:
    """Return the image as an H×W×3 array of integers."""
    return np.asarray(drawing.image).astype(int)


def inside(drawing: Drawing, region: str) -> np.ndarray:
    """Return a mask of the pixels in a region."""
    side = drawing.image.width
    x0, y0, x1, y1 = drawing.regions[region]
    mask = np.zeros((side, side), dtype=bool)
    mask[int(y0 * side) : int(np.ceil(y1 * side)), int(x0 * side) : int(np.ceil(x1 * side))] = True
    return mask


def difference(one: Drawing, other: Drawing) -> np.ndarray:
    """Return the mean absolute difference of the channels, per pixel."""
    return np.abs(pixels(one) - pixels(other)).mean(axis=2)


def check_drawing(drawing: Drawing, size: int) -> None:
    """Check the format of a drawing: size, mode, regions inside the image, JPEG quality."""
    assert (drawing.image.size, drawing.image.mode) == ((size, size), "RGB")
    assert 60 <= drawing.jpeg_quality <= 95
    for region in drawing.regions.values():
        assert 0.0 <= region.x0 < region.x1 <= 1.0
        assert 0.0 <= region.y0 < region.y1 <= 1.0


def assert_same(one: Drawing, other: Drawing) -> None:
    """Check that two drawings have equal pixels, regions and quality."""
    assert np.array_equal(pixels(one), pixels(other))
    assert (one.regions, one.jpeg_quality) == (other.regions, other.jpeg_quality)


def outlines(patch: np.ndarray) -> np.ndarray:
    """Return the strength of the grey image's gradient."""
    return np.hypot(*np.gradient(patch.mean(axis=2))).ravel()


def nearest_mean_accuracy(
    draw: Callable[[int, int], Drawing],
    values: int,
    region: str,
    describe: Callable[[np.ndarray], np.ndarray],
    *,
    side: int,
    train: int,
    test: int,
) -> float:
    """Return the accuracy of a classifier by the nearest mean of `describe`, over `test` drawings of each value.

    `draw` takes a value and a seed. `describe` takes the region, resized to `side` × `side` pixels, as floats.
    """

    def described(value: int, seed: int) -> np.ndarray:
        drawing = draw(value, 1000 * value + seed)
        box = tuple(part * drawing.image.width for part in drawing.regions[region])
        feature = describe(np.asarray(drawing.image.resize((side, side), box=box), dtype=float))
        return feature / np.linalg.norm(feature)

    means = np.stack([np.mean([described(v, s) for s in range(train)], axis=0) for v in range(values)])
    seeds = range(train, train + test)
    return float(np.mean([np.argmax(means @ described(v, s)) == v for v in range(values) for s in seeds]))
