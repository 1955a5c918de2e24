"""Drawn garments: equal arguments give equal pixels; a value changes its own region and nothing else."""

import io

import numpy as np
import pytest
from PIL import Image

from data_prep.synthetic.garments import ATTRIBUTES, Drawing, draw
from data_prep.synthetic.garments.drawing import WINDOWS
from data_prep.synthetic.garments.lengths import COAT_HEM, PANT_END, SKIRT_HEM, SLEEVE_END
from data_prep.synthetic.garments.occlusion import AREAS, COVERS, CROPS
from data_prep.synthetic.garments.tops import COLLARS, LAPELS, NECKLINES, NECKS
from tests.support.drawings import assert_same, check_drawing, inside, nearest_mean_accuracy, outlines, pixels

EVERY_VALUE = [(attribute, value) for attribute, names in ATTRIBUTES.items() for value in range(len(names))]


def test_the_vocabulary_is_fashionais():
    assert [len(names) for names in ATTRIBUTES.values()] == [6, 9, 8, 6, 5, 5, 10, 5]
    assert all(names[0] == "Invisible" for names in ATTRIBUTES.values())


@pytest.mark.parametrize(
    ("attribute", "parts"),
    [
        ("skirt_length", SKIRT_HEM),
        ("sleeve_length", {"Sleeveless": 0.0, **SLEEVE_END}),
        ("coat_length", COAT_HEM),
        ("pant_length", PANT_END),
        ("collar_design", COLLARS),
        ("lapel_design", LAPELS),
        ("neckline_design", NECKLINES),
        ("neck_design", NECKS),
    ],
)
def test_every_visible_value_has_its_part(attribute, parts):
    assert set(parts) == set(ATTRIBUTES[attribute][1:])


@pytest.mark.parametrize("table", [WINDOWS, AREAS, CROPS, COVERS], ids=["windows", "places", "crops", "covers"])
def test_every_attribute_has_a_camera_and_an_area(table):
    assert set(table) == set(ATTRIBUTES)


@pytest.mark.parametrize("ends", [SKIRT_HEM, SLEEVE_END, COAT_HEM, PANT_END])
def test_longer_values_end_lower(ends):
    heights = list(ends.values())
    assert heights == sorted(heights)
    assert min(np.diff(heights)) > 0.05


@pytest.mark.parametrize(("attribute", "value"), EVERY_VALUE)
def test_every_value_draws(attribute, value):
    for seed in range(2):
        drawing = draw(attribute, value, seed=seed, size=37)
        check_drawing(drawing, 37)
        assert attribute in drawing.regions
        assert set(drawing.regions) <= set(ATTRIBUTES)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_equal_arguments_give_equal_pixels(attribute):
    assert_same(*(draw(attribute, 2, seed=5, size=64) for _ in range(2)))


def test_another_drawing_in_between_changes_nothing():
    before = draw("coat_length", 3, seed=11, size=48)
    draw("neck_design", 1, seed=12, size=48)
    assert_same(before, draw("coat_length", 3, seed=11, size=48))


def test_another_seed_is_another_picture():
    one, other = (draw("skirt_length", 1, seed=seed, size=48) for seed in (0, 1))
    assert np.abs(pixels(one) - pixels(other)).mean() > 10


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_values_of_one_seed_differ_only_in_the_region(attribute):
    for seed in range(4):
        one, other = (draw(attribute, value, seed=seed, size=96) for value in (1, 3))
        changed = np.abs(pixels(one) - pixels(other)).max(axis=2) > 0
        region = inside(one, attribute) | inside(other, attribute)
        assert changed[region].any()
        assert changed.sum() > 20
        # Some attributes extend a little beyond their region (an edge, a bare arm); the rest must be the same.
        assert changed[~region].mean() < 0.12
        assert one.jpeg_quality == other.jpeg_quality
        assert np.array_equal(pixels(one)[:3, :3], pixels(other)[:3, :3])


def test_the_size_changes_only_the_resolution():
    small, large = (draw("lapel_design", 3, seed=2, size=size) for size in (64, 128))
    shrunk = np.asarray(large.image.reduce(2)).astype(int)
    assert np.abs(shrunk - pixels(small)).mean() < 15
    assert small.regions == large.regions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hat_size", 0, 0, 64), "unknown attribute 'hat_size'; choose one of skirt_length"),
        (("skirt_length", 6, 0, 64), "skirt_length has the values 0 to 5, not 6"),
        (("skirt_length", -1, 0, 64), "skirt_length has the values 0 to 5, not -1"),
        (("skirt_length", 1, -1, 64), "the seed must not be negative"),
        (("skirt_length", 1, 0, 15), "at least 16 pixels"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(arguments, message):
    attribute, value, seed, size = arguments
    with pytest.raises(ValueError, match=message):
        draw(attribute, value, seed=seed, size=size)


def test_nearest_mean_tells_the_values_apart():
    """Outlines in the region, averaged per value, give three times the accuracy of chance."""

    def drawn(value: int, seed: int) -> Drawing:
        return draw("neckline_design", value + 1, seed=seed, size=48)

    values = len(ATTRIBUTES["neckline_design"]) - 1
    accuracy = nearest_mean_accuracy(drawn, values, "neckline_design", outlines, side=16, train=16, test=6)
    assert accuracy > 3 / values


def test_a_drawing_fits_a_jpeg():
    drawing = draw("pant_length", 5, seed=1, size=64)
    stream = io.BytesIO()
    drawing.image.save(stream, "JPEG", quality=drawing.jpeg_quality)
    assert Image.open(io.BytesIO(stream.getvalue())).size == (64, 64)
