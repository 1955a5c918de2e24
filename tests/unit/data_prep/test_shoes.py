"""Drawn shoes: equal arguments, equal pixels; every value shows, in its own place."""

import itertools

import numpy as np
import pytest

from data_prep.synthetic.garments import Drawing
from data_prep.synthetic.shoes import REGION_NAMES, SHOE_VALUES, draw_shoe, shoe_sheet
from data_prep.synthetic.shoes.closures import CLOSURES
from data_prep.synthetic.shoes.drawing import LENGTHS, SOLES
from data_prep.synthetic.shoes.last import HEEL_HEIGHTS
from data_prep.synthetic.shoes.uppers import UPPERS

EVERY_VALUE = [(key, name) for key, names in SHOE_VALUES.items() for name in names]


def pixels(drawing: Drawing) -> np.ndarray:
    return np.asarray(drawing.image).astype(int)


def inside(drawing: Drawing, region: str) -> np.ndarray:
    """A mask of the pixels in the region."""
    side = drawing.image.width
    x0, y0, x1, y1 = drawing.regions[region]
    mask = np.zeros((side, side), dtype=bool)
    mask[int(y0 * side) : int(np.ceil(y1 * side)), int(x0 * side) : int(np.ceil(x1 * side))] = True
    return mask


def test_every_value_has_its_part():
    tables = {"Category": (UPPERS,), "Closure": (CLOSURES,), "Gender": (SOLES, LENGTHS), "HeelHeight": (HEEL_HEIGHTS,)}
    assert set(tables) == set(SHOE_VALUES) == set(REGION_NAMES)
    for key, parts in tables.items():
        assert all(set(part) == set(SHOE_VALUES[key]) for part in parts)


def test_higher_heels_are_higher():
    heights = [HEEL_HEIGHTS[name] for name in SHOE_VALUES["HeelHeight"]]
    assert min(np.diff(heights)) > 0.05


@pytest.mark.parametrize(("key", "name"), EVERY_VALUE)
def test_every_value_draws(key, name):
    for seed in range(3):
        drawing = draw_shoe({key: name}, seed=seed, size=37)
        assert (drawing.image.size, drawing.image.mode) == ((37, 37), "RGB")
        assert set(drawing.regions) == {REGION_NAMES[key]}
        (region,) = drawing.regions.values()
        assert 0.0 <= region.x0 < region.x1 <= 1.0
        assert 0.0 <= region.y0 < region.y1 <= 1.0
        assert 60 <= drawing.jpeg_quality <= 95


def test_equal_arguments_give_equal_pixels_whatever_was_drawn_before():
    values = {"Closure": "Buckle", "Gender": "Girls"}
    first = draw_shoe(values, seed=5, size=64)
    draw_shoe({"Category": "Boots"}, seed=6, size=64)
    again = draw_shoe(dict(reversed(values.items())), seed=5, size=64)
    assert np.array_equal(pixels(first), pixels(again))
    assert (first.regions, first.jpeg_quality) == (again.regions, again.jpeg_quality)
    assert not np.array_equal(pixels(first), pixels(draw_shoe(values, seed=6, size=64)))


def test_missing_values_are_drawn_at_random_and_do_not_depend_on_the_given_ones():
    """A seed's random value, when asked for, gives the same picture again."""
    drawn = pixels(draw_shoe({}, seed=3, size=48))
    for key, names in SHOE_VALUES.items():
        same = [np.array_equal(drawn, pixels(draw_shoe({key: name}, seed=3, size=48))) for name in names]
        assert sum(same) == 1


@pytest.mark.parametrize("key", SHOE_VALUES)
def test_any_two_values_differ_in_the_region(key):
    for seed in range(2):
        others = {other: names[0] for other, names in SHOE_VALUES.items() if other != key}
        shoes = [draw_shoe({key: name, **others}, seed=seed, size=96) for name in SHOE_VALUES[key]]
        for one, other in itertools.combinations(shoes, 2):
            mask = inside(one, REGION_NAMES[key]) | inside(other, REGION_NAMES[key])
            difference = np.abs(pixels(one) - pixels(other)).mean(axis=2)
            assert difference[mask].mean() > 1.5
            assert (difference[mask] > 40).sum() > 40


def test_a_closure_changes_nothing_outside_its_region():
    for seed in range(4):
        base = {"Category": SHOE_VALUES["Category"][seed], "Gender": "Men", "HeelHeight": "Flat"}
        plain = draw_shoe({"Closure": "Slip-On", **base}, seed=seed, size=96)
        for name in SHOE_VALUES["Closure"]:
            shoe = draw_shoe({"Closure": name, **base}, seed=seed, size=96)
            changed = np.abs(pixels(shoe) - pixels(plain)).max(axis=2) > 8
            assert changed[~inside(shoe, "closure")].mean() < 0.005


@pytest.mark.parametrize(
    ("values", "seed", "size", "message"),
    [
        ({"Laces": "Buckle"}, 0, 64, "unknown attribute 'Laces' of shoes; choose one of Category"),
        ({"Closure": "Glue"}, 0, 64, "unknown Closure 'Glue'; choose one of Lace up"),
        ({}, -1, 64, "the seed must not be negative"),
        ({}, 0, 15, "at least 16 pixels"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(values, seed, size, message):
    with pytest.raises(ValueError, match=message):
        draw_shoe(values, seed=seed, size=size)


def test_a_contact_sheet_has_a_row_per_value():
    assert shoe_sheet("HeelHeight", size=20, columns=3).height == 7 * 20
    with pytest.raises(ValueError, match="unknown attribute 'Hat'"):
        shoe_sheet("Hat")


@pytest.mark.parametrize("key", SHOE_VALUES)
def test_nearest_mean_tells_the_values_apart(key):
    """Grey pixels of the region, averaged per value, beat chance in pictures where all else is at random."""
    size, train, test = 48, 24, 8
    names = SHOE_VALUES[key]

    def described(value: int, seed: int) -> np.ndarray:
        drawing = draw_shoe({key: names[value]}, seed=1000 * value + seed, size=size)
        box = tuple(part * size for part in drawing.regions[REGION_NAMES[key]])
        patch = np.asarray(drawing.image.convert("L").resize((24, 24), box=box), dtype=float)
        flat = np.hypot(*np.gradient(patch)).ravel()
        return flat / np.linalg.norm(flat)

    values = range(len(names))
    means = np.stack([np.mean([described(v, s) for s in range(train)], axis=0) for v in values])
    guesses = [(v, np.argmax(means @ described(v, s))) for v in values for s in range(train, train + test)]
    accuracy = np.mean([truth == guess for truth, guess in guesses])
    assert accuracy > 1.5 / len(names)
