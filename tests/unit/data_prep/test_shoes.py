"""Drawn shoes: equal arguments give equal pixels; every value is visible in its own region."""

import itertools

import numpy as np
import pytest

from data_prep.synthetic.garments import Drawing
from data_prep.synthetic.shoes import REGION_NAMES, SHOE_VALUES, draw_shoe
from data_prep.synthetic.shoes.closures import CLOSURES
from data_prep.synthetic.shoes.drawing import LENGTHS, SOLES
from data_prep.synthetic.shoes.last import HEEL_HEIGHTS
from data_prep.synthetic.shoes.uppers import UPPERS
from tests.support.drawings import (
    assert_same,
    check_drawing,
    difference,
    inside,
    nearest_mean_accuracy,
    outlines,
    pixels,
)

EVERY_VALUE = [(key, name) for key, names in SHOE_VALUES.items() for name in names]


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
    for seed in range(2):
        drawing = draw_shoe({key: name}, seed=seed, size=37)
        check_drawing(drawing, 37)
        assert set(drawing.regions) == {REGION_NAMES[key]}


def test_equal_arguments_give_equal_pixels_whatever_was_drawn_before():
    values = {"Closure": "Buckle", "Gender": "Girls"}
    first = draw_shoe(values, seed=5, size=64)
    draw_shoe({"Category": "Boots"}, seed=6, size=64)
    again = draw_shoe(dict(reversed(values.items())), seed=5, size=64)
    assert_same(first, again)
    assert not np.array_equal(pixels(first), pixels(draw_shoe(values, seed=6, size=64)))


def test_missing_values_are_random_and_independent_of_the_given_ones():
    """Asking for a seed's random value gives the same image again."""
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
            changed = difference(one, other)[mask]
            assert changed.mean() > 1.5
            assert (changed > 40).sum() > 40


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


@pytest.mark.parametrize("key", SHOE_VALUES)
def test_nearest_mean_tells_the_values_apart(key):
    """Outlines in the region, averaged per value, beat chance in images where all else is random."""
    names = SHOE_VALUES[key]

    def drawn(value: int, seed: int) -> Drawing:
        return draw_shoe({key: names[value]}, seed=seed, size=48)

    accuracy = nearest_mean_accuracy(drawn, len(names), REGION_NAMES[key], outlines, side=24, train=16, test=6)
    assert accuracy > 1.5 / len(names)
