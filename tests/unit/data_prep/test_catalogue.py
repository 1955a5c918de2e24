"""Drawn catalogue pages: equal arguments give equal pixels; every label is visible in its own region."""

from functools import cache

import numpy as np
import pytest

from data_prep.synthetic.garments import Drawing, draw_catalogue
from data_prep.synthetic.garments.accessories import BELTS, EMBLEMS, HATS
from data_prep.synthetic.garments.cloth import distance
from data_prep.synthetic.garments.collars import FASHIONAI_NAME, OWN_COLLARS, OWN_EDGES
from data_prep.synthetic.garments.darn import HEM, SILHOUETTE, garment_colour
from data_prep.synthetic.garments.deepfashion import palette_colours
from data_prep.synthetic.garments.prints import FINISHES, PRINT_TILES, WEAVE_TILES
from data_prep.synthetic.garments.sleeves import SLEEVE_END, SLEEVE_SHAPES
from data_prep.synthetic.garments.vocabulary import DARN, DEEPFASHION, DRAWN
from tests.support.drawings import (
    assert_same,
    check_drawing,
    difference,
    inside,
    nearest_mean_accuracy,
    outlines,
    pixels,
)

NAMES = {"deepfashion": DEEPFASHION, "darn": DARN}
EVERY_ATTRIBUTE = [(layout, attribute) for layout, attributes in NAMES.items() for attribute in attributes]
# Attributes whose values change nothing elsewhere.
LOCAL = [
    ("deepfashion", "texture-related"),
    ("deepfashion", "fabric-related"),
    ("deepfashion", "part-related"),
    ("darn", "clothes category"),
    ("darn", "clothes button"),
    ("darn", "clothes color"),
    ("darn", "clothes pattern"),
    ("darn", "collar shape"),
    ("darn", "sleeve shape"),
]


def some_values(layout: str, attribute: str, number: int) -> list[int]:
    """Return values spread over the attribute's, and for every part of a value one that differs only in that part."""
    values = DRAWN[layout][attribute]
    unequal = [[one != other for one, other in zip(values[0], value, strict=False)] for value in values]
    parts = np.eye(len(values[0]), dtype=bool).tolist()
    alone = [unequal.index(part) for part in parts if part in unequal]
    return sorted({0, *alone, *np.linspace(1, len(values) - 1, number).astype(int).tolist()})


# --- vocabulary ----------------------------------------------------------------------


def test_the_numbers_of_values_are_the_datasets():
    assert [len(names) for names in DEEPFASHION.values()] == [156, 218, 180, 216, 230]
    assert [len(names) for names in DARN.values()] == [20, 13, 55, 7, 28, 11, 26, 8, 17]


@pytest.mark.parametrize(("layout", "attribute"), EVERY_ATTRIBUTE)
def test_names_are_unique_lower_case_words(layout, attribute):
    names = NAMES[layout][attribute]
    assert len(set(names)) == len(names)
    assert all(name == name.lower().strip() and "  " not in name for name in names)


def test_every_part_of_a_value_is_used():
    last_words = {name.split()[-1] for name in DEEPFASHION["texture-related"]}
    assert last_words == {name.split()[-1] for name in PRINT_TILES}
    assert {name.split()[-1] for name in DEEPFASHION["fabric-related"]} == set(WEAVE_TILES)
    assert all(any(finish in name for name in DEEPFASHION["fabric-related"]) for finish in FINISHES)
    assert all(any(name.startswith(emblem) for name in DEEPFASHION["part-related"]) for emblem in EMBLEMS)
    assert all(any(belt in name for name in DEEPFASHION["part-related"]) for belt in BELTS)
    assert all(any(hat in name for name in DEEPFASHION["style-related"]) for hat in HATS)
    assert set(HEM) == set(DARN["clothes length"])
    assert set(SILHOUETTE) == set(DARN["clothes shape"])
    assert set(SLEEVE_END) == set(DARN["sleeve length"])
    assert set(SLEEVE_SHAPES) == set(DARN["sleeve shape"])
    assert {*FASHIONAI_NAME, *OWN_COLLARS, *OWN_EDGES} == set(DARN["collar shape"])


def test_colours_can_be_told_apart():
    darn = [garment_colour(parts) for parts in DRAWN["darn"]["clothes color"]]
    palettes = {name[name.index("in ") :] for name in DEEPFASHION["style-related"]}
    walls = [palette_colours(palette)[0] for palette in palettes]
    assert len(walls) == 23
    for colours, least in ((darn, 45), (walls, 50)):
        gaps = [distance(one, other) for number, one in enumerate(colours) for other in colours[:number]]
        assert min(gaps) > least


# --- pictures ------------------------------------------------------------------------


@pytest.mark.parametrize("layout", NAMES)
def test_every_value_draws(layout):
    """Draw as many images as the longest list has values, with a label for every attribute."""
    for number in range(max(map(len, NAMES[layout].values()))):
        labels = [(attribute, number % len(names)) for attribute, names in NAMES[layout].items()]
        drawing = draw_catalogue(layout, labels, seed=number, size=24)
        check_drawing(drawing, 24)
        assert set(drawing.regions) == set(NAMES[layout])


@pytest.mark.parametrize("layout", NAMES)
def test_equal_arguments_give_equal_pixels_whatever_was_drawn_before(layout):
    labels = [(attribute, 2) for attribute in NAMES[layout]] + [(next(iter(NAMES[layout])), 5)]
    first = draw_catalogue(layout, labels, seed=5, size=64)
    draw_catalogue("darn", [("clothes color", 3)], seed=6, size=40)
    assert_same(first, draw_catalogue(layout, labels, seed=5, size=64))
    assert difference(first, draw_catalogue(layout, labels, seed=6, size=64)).mean() > 10


def test_labelling_an_attribute_with_its_random_value_changes_nothing():
    """An unlabelled attribute has a random value; labelling it with that value gives the same image."""
    drawn = pixels(draw_catalogue("darn", [("clothes length", 3)], seed=3, size=48))
    for attribute in ("clothes button", "sleeve length"):
        with_label = [
            draw_catalogue("darn", [("clothes length", 3), (attribute, value)], seed=3, size=48)
            for value in range(len(DARN[attribute]))
        ]
        assert sum(np.array_equal(drawn, pixels(other)) for other in with_label) == 1


@pytest.mark.parametrize(("layout", "attribute"), EVERY_ATTRIBUTE)
def test_any_two_values_differ_in_the_region(layout, attribute):
    values = some_values(layout, attribute, 7)
    pages = [draw_catalogue(layout, [(attribute, value)], seed=2, size=112) for value in values]
    for number, one in enumerate(pages):
        for other in pages[:number]:
            changed = difference(one, other)[inside(one, attribute) | inside(other, attribute)]
            assert changed.mean() > 0.4
            assert (changed > 25).sum() > 12


@pytest.mark.parametrize(("layout", "attribute"), LOCAL)
def test_a_value_changes_little_outside_its_region(layout, attribute):
    for seed in range(2):
        one, *others = (draw_catalogue(layout, [(attribute, value)], seed=seed, size=96) for value in (0, 4, 7))
        for other in others:
            outside = ~(inside(one, attribute) | inside(other, attribute))
            assert (difference(one, other)[outside] > 8).mean() < 0.01
            assert one.jpeg_quality == other.jpeg_quality


@pytest.mark.parametrize(("layout", "attribute"), EVERY_ATTRIBUTE)
@pytest.mark.parametrize("number", [2, 4])
def test_each_of_several_values_is_visible(layout, attribute, number):
    """Exchanging one of an attribute's values changes a part of the image that exchanging the others does not."""
    values, spare = list(range(number)), len(NAMES[layout][attribute]) - 1
    page = draw_catalogue(layout, [(attribute, value) for value in values], seed=1, size=96)
    footprints = []
    for changed in range(number):
        swapped = [spare if index == changed else value for index, value in enumerate(values)]
        other = draw_catalogue(layout, [(attribute, value) for value in swapped], seed=1, size=96)
        footprints.append(difference(page, other) > 20)
    for changed, footprint in enumerate(footprints):
        rest = np.logical_or.reduce([other for index, other in enumerate(footprints) if index != changed])
        assert (footprint & ~rest).sum() > 8


def test_more_than_eight_values_of_an_attribute_are_refused():
    labels = [("clothes color", value) for value in range(9)]
    assert draw_catalogue("darn", labels[:8] * 2, seed=0, size=64).regions["clothes color"].x1 > 0.8
    with pytest.raises(ValueError, match="at most 8 values of clothes color"):
        draw_catalogue("darn", labels, seed=0, size=64)


def test_a_region_encloses_all_figures():
    alone, pair = (draw_catalogue("darn", [("collar shape", v) for v in range(n)], seed=2, size=64) for n in (1, 2))
    one, both = alone.regions["collar shape"], pair.regions["collar shape"]
    assert both.x0 < 0.25 < 0.75 < both.x1
    assert one.x1 - one.x0 < 0.6


def test_without_labels_there_are_no_regions():
    assert draw_catalogue("darn", [], seed=0, size=32).regions == {}


@pytest.mark.parametrize(
    ("layout", "labels", "seed", "size", "message"),
    [
        ("fashion", [], 0, 64, "unknown layout 'fashion'; choose one of deepfashion, darn"),
        ("darn", [("hat", 0)], 0, 64, "unknown attribute 'hat' of darn; choose one of clothes category"),
        ("darn", [("texture-related", 0)], 0, 64, "unknown attribute 'texture-related' of darn"),
        ("darn", [("clothes length", 7)], 0, 64, "clothes length has the values 0 to 6, not 7"),
        ("deepfashion", [("style-related", -1)], 0, 64, "style-related has the values 0 to 229, not -1"),
        ("darn", [], -1, 64, "the seed must not be negative"),
        ("darn", [], 0, 15, "at least 16 pixels"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(layout, labels, seed, size, message):
    with pytest.raises(ValueError, match=message):
        draw_catalogue(layout, labels, seed=seed, size=size)


# --- can values be told apart ---------------------------------------------------------------


def spectrum(patch: np.ndarray) -> np.ndarray:
    """Return the magnitudes of low frequencies, which describe a pattern independently of its position."""
    grey = patch.mean(axis=2)
    strength = np.abs(np.fft.fft2(grey - grey.mean()))
    return np.concatenate([strength[:14, :14], strength[-14:, :14]]).ravel()


def tint(patch: np.ndarray) -> np.ndarray:
    """Return the colours relative to grey, in large squares."""
    squares = patch.reshape(6, 8, 6, 8, 3).mean(axis=(1, 3))
    return (squares - squares.mean(axis=2, keepdims=True)).ravel()


DESCRIPTIONS = {
    ("deepfashion", "texture-related"): spectrum,
    ("deepfashion", "fabric-related"): spectrum,
    ("deepfashion", "shape-related"): outlines,
    ("deepfashion", "part-related"): outlines,
    ("deepfashion", "style-related"): tint,
    ("darn", "clothes button"): outlines,
    ("darn", "clothes color"): tint,
    ("darn", "clothes length"): outlines,
    ("darn", "clothes pattern"): spectrum,
    ("darn", "clothes shape"): outlines,
    ("darn", "collar shape"): outlines,
}
PAGES = 24


@cache
def page_of(layout: str, number: int, place: int) -> tuple[dict[str, int], Drawing]:
    """Draw page `place` of six, on which every attribute has one of six values, and no two pages have the same."""
    rng = np.random.default_rng(number)
    values = {attribute: int(rng.permutation(6)[place]) for attribute in NAMES[layout]}
    return values, draw_catalogue(layout, list(values.items()), seed=1000 * place + number, size=64)


@pytest.mark.parametrize("layout", NAMES)
def test_nearest_mean_tells_the_values_apart(layout):
    """A plain description of the region, averaged per value, gives twice the accuracy of chance on six values.

    The attributes are looked at on the same pages, whose other values are random.
    """

    def accuracy(attribute: str) -> float:
        def drawn(value: int, seed: int) -> Drawing:
            pages = (page_of(layout, seed % 1000, place) for place in range(6))
            return next(page for values, page in pages if values[attribute] == value)

        return nearest_mean_accuracy(
            drawn, 6, attribute, DESCRIPTIONS[layout, attribute], side=48, train=PAGES * 2 // 3, test=PAGES // 3
        )

    accuracies = {attribute: accuracy(attribute) for of, attribute in DESCRIPTIONS if of == layout}
    assert min(accuracies.values()) > 2 / 6, accuracies
