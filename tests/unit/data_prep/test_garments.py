"""Drawn garments: equal arguments, equal pixels; the value changes its own place and nothing else."""

import io

import numpy as np
import pytest
from PIL import Image

from data_prep.synthetic.garments import ATTRIBUTES, Drawing, contact_sheet, draw
from data_prep.synthetic.garments.drawing import WINDOWS
from data_prep.synthetic.garments.lengths import COAT_HEM, PANT_END, SKIRT_HEM, SLEEVE_END
from data_prep.synthetic.garments.occlusion import COVERS, CROPS, PLACES
from data_prep.synthetic.garments.tops import COLLARS, LAPELS, NECKLINES, NECKS

EVERY_VALUE = [(attribute, value) for attribute, names in ATTRIBUTES.items() for value in range(len(names))]


def pixels(drawing: Drawing) -> np.ndarray:
    return np.asarray(drawing.image).astype(int)


def inside(drawing: Drawing, attribute: str) -> np.ndarray:
    """A mask of the pixels in the attribute's region."""
    side = drawing.image.width
    x0, y0, x1, y1 = drawing.regions[attribute]
    mask = np.zeros((side, side), dtype=bool)
    mask[int(y0 * side) : int(np.ceil(y1 * side)), int(x0 * side) : int(np.ceil(x1 * side))] = True
    return mask


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


@pytest.mark.parametrize("table", [WINDOWS, PLACES, CROPS, COVERS], ids=["windows", "places", "crops", "covers"])
def test_every_attribute_has_a_camera_and_a_place(table):
    assert set(table) == set(ATTRIBUTES)


@pytest.mark.parametrize("ends", [SKIRT_HEM, SLEEVE_END, COAT_HEM, PANT_END])
def test_longer_values_end_lower(ends):
    heights = list(ends.values())
    assert heights == sorted(heights)
    assert min(np.diff(heights)) > 0.05


@pytest.mark.parametrize(("attribute", "value"), EVERY_VALUE)
def test_every_value_draws(attribute, value):
    for seed in range(3):
        drawing = draw(attribute, value, seed=seed, size=37)
        assert drawing.image.size == (37, 37)
        assert drawing.image.mode == "RGB"
        assert attribute in drawing.regions
        assert set(drawing.regions) <= set(ATTRIBUTES)
        assert 60 <= drawing.jpeg_quality <= 95
        for region in drawing.regions.values():
            assert 0.0 <= region.x0 < region.x1 <= 1.0
            assert 0.0 <= region.y0 < region.y1 <= 1.0


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_equal_arguments_give_equal_pixels(attribute):
    first, again = (draw(attribute, 2, seed=5, size=64) for _ in range(2))
    assert np.array_equal(pixels(first), pixels(again))
    assert (first.regions, first.jpeg_quality) == (again.regions, again.jpeg_quality)


def test_another_drawing_in_between_changes_nothing():
    before = draw("coat_length", 3, seed=11, size=48)
    draw("neck_design", 1, seed=12, size=48)
    assert np.array_equal(pixels(before), pixels(draw("coat_length", 3, seed=11, size=48)))


def test_another_seed_is_another_picture():
    one, other = (draw("skirt_length", 1, seed=seed, size=48) for seed in (0, 1))
    assert np.abs(pixels(one) - pixels(other)).mean() > 10


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_values_of_one_seed_share_all_but_the_labelled_place(attribute):
    for seed in range(4):
        one, other = (draw(attribute, value, seed=seed, size=96) for value in (1, 3))
        changed = np.abs(pixels(one) - pixels(other)).max(axis=2) > 0
        place = inside(one, attribute) | inside(other, attribute)
        assert changed[place].any()
        assert changed.sum() > 20
        # Some attributes reach a little beyond their region (an edge, a bare arm); the rest must be the same.
        assert changed[~place].mean() < 0.12
        assert one.jpeg_quality == other.jpeg_quality
        assert np.array_equal(pixels(one)[:3, :3], pixels(other)[:3, :3])


def test_the_size_changes_the_resolution_only():
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


def test_a_contact_sheet_has_a_row_per_value():
    sheet = contact_sheet("neck_design", size=20, columns=3)
    assert isinstance(sheet, Image.Image)
    assert sheet.height == 5 * 20
    with pytest.raises(ValueError, match="unknown attribute"):
        contact_sheet("hat_size")


def test_nearest_mean_tells_the_values_apart():
    """Even grey pixels of the region, averaged per value, beat chance: the shape is in the picture."""
    attribute, size, train, test = "neckline_design", 48, 24, 8
    values = range(1, len(ATTRIBUTES[attribute]))

    def described(value: int, seed: int) -> np.ndarray:
        drawing = draw(attribute, value, seed=1000 * value + seed, size=size)
        box = tuple(part * size for part in drawing.regions[attribute])
        patch = drawing.image.convert("L").resize((16, 16), box=box)
        flat = np.abs(np.gradient(np.asarray(patch, dtype=float))).sum(axis=0).ravel()
        return flat / np.linalg.norm(flat)

    means = np.stack([np.mean([described(v, s) for s in range(train)], axis=0) for v in values])
    guesses = [(v, np.argmax(means @ described(v, s)) + 1) for v in values for s in range(train, train + test)]
    accuracy = np.mean([truth == guess for truth, guess in guesses])
    assert accuracy > 3 / len(values)


def test_a_drawing_fits_a_jpeg():
    drawing = draw("pant_length", 5, seed=1, size=64)
    stream = io.BytesIO()
    drawing.image.save(stream, "JPEG", quality=drawing.jpeg_quality)
    assert Image.open(io.BytesIO(stream.getvalue())).size == (64, 64)
