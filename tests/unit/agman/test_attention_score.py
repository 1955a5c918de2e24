"""Attention against true regions: tables by hand, and a fine grid of points as the plain reference."""

import pytest
import torch

from agman.attention_score import attention_mass, pointing_hits


def mass(cells, *box):
    return attention_mass(torch.tensor([cells]), torch.tensor([box])).item()


def hit(cells, *box):
    return pointing_hits(torch.tensor([cells]), torch.tensor([box])).item()


TWO_BY_TWO = [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.0, 0.0, 1.0, 1.0), 10 / 10),
        ((0.0, 0.0, 0.5, 0.5), 1 / 10),
        ((0.5, 0.0, 1.0, 0.5), 2 / 10),  # to the right: x is the column
        ((0.0, 0.5, 0.5, 1.0), 3 / 10),
        ((0.0, 0.0, 0.25, 0.5), 0.5 / 10),  # half of the first cell
        ((0.25, 0.25, 0.75, 0.75), (1 + 2 + 3 + 4) / 4 / 10),  # a quarter of each
        ((0.5, 0.5, 0.5, 0.5), 0.0),  # a point
    ],
)
def test_mass_by_hand(box, expected):
    assert mass(TWO_BY_TWO, *box) == pytest.approx(expected, abs=1e-15)


def test_mass_does_not_depend_on_the_maps_scale():
    assert mass([[10.0, 20.0], [30.0, 40.0]], 0.5, 0.0, 1.0, 0.5) == pytest.approx(0.2)


def random_case(maps=3, height=5, width=7):
    """Prime sizes, so that swapped axes show; boxes on a grid of 1/210, which the reference resolves exactly."""
    generator = torch.Generator().manual_seed(2)
    corners = torch.randint(211, (maps, 2, 2), generator=generator).sort(1).values / 210.0
    boxes = corners.double().flatten(1).mul(210).round() / 210  # x0, y0, x1, y1
    return torch.rand(maps, height, width, generator=generator, dtype=torch.float64), boxes


def test_mass_equals_that_of_a_fine_grid_of_points():
    maps, boxes = random_case()
    centres = (torch.arange(210) + 0.5) / 210
    fine = maps.repeat_interleave(42, 1).repeat_interleave(30, 2)  # 210 × 210 points
    for one, (x0, y0, x1, y1), found in zip(fine, boxes, attention_mass(maps, boxes), strict=True):
        inside = ((y0 < centres) & (centres < y1))[:, None] & ((x0 < centres) & (centres < x1))
        assert found.item() == pytest.approx((one[inside].sum() / one.sum()).item(), abs=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (14, 14)])
def test_an_even_map_has_the_boxes_area(size):
    _, boxes = random_case()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    found = attention_mass(torch.full((3, *size), 1 / 3), boxes)
    torch.testing.assert_close(found, area, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.5, 0.5, 1.0, 1.0), True),
        ((0.0, 0.5, 0.5, 1.0), False),
        ((0.75, 0.75, 1.0, 1.0), True),  # the centre on the edge
        ((0.76, 0.5, 1.0, 1.0), False),  # most of the cell, not its centre
        ((0.74, 0.74, 0.76, 0.76), True),
    ],
)
def test_hits_by_hand(box, expected):
    assert hit(TWO_BY_TWO, *box) is expected


def test_of_equal_maxima_the_first_is_the_point():
    cells = [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    assert hit(cells, 1 / 3, 0.0, 2 / 3, 0.5)
    assert not hit(cells, 2 / 3, 0.0, 1.0, 0.5)
    assert not hit(cells, 0.0, 0.5, 1 / 3, 1.0)


def test_answers_are_float64_and_bool_for_maps_of_any_type():
    maps, boxes = torch.ones(2, 3, 5, dtype=torch.bfloat16), torch.tensor([[0.0, 0.0, 0.5, 1.0]] * 2)
    assert attention_mass(maps, boxes).dtype == torch.float64
    assert pointing_hits(maps, boxes).dtype == torch.bool
    assert attention_mass(maps[:0], boxes[:0]).shape == pointing_hits(maps[:0], boxes[:0]).shape == (0,)


FULL = [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("score", [attention_mass, pointing_hits])
@pytest.mark.parametrize(
    ("maps", "boxes", "message"),
    [
        (torch.ones(2, 3), [FULL] * 2, "B×h×w and boxes B×4"),
        (torch.ones(2, 3, 5), [FULL], "B×h×w and boxes B×4"),
        (torch.zeros(1, 3, 5), [FULL], "map 0 must be finite"),
        (torch.tensor([[[3.0, -1.0]]]), [FULL], "without negative cells"),
        (torch.tensor([[[1.0, 1.0]], [[1.0, torch.nan]]]), [FULL] * 2, "map 1 must be finite"),
        (torch.tensor([[[1.0, torch.inf]]]), [FULL], "map 0 must be finite"),
        (torch.ones(1, 3, 5), [[0.6, 0.0, 0.5, 1.0]], "box 0 is inverted or leaves"),
        (torch.ones(1, 3, 5), [[0.0, 0.6, 1.0, 0.5]], "box 0 is inverted or leaves"),
        (torch.ones(2, 3, 5), [FULL, [0.0, 0.0, 1.1, 1.0]], "box 1 is inverted or leaves"),
        (torch.ones(1, 3, 5), [[torch.nan, 0.0, 1.0, 1.0]], "box 0 is inverted or leaves"),
    ],
)
def test_what_cannot_be_scored_is_refused(score, maps, boxes, message):
    with pytest.raises(ValueError, match=message):
        score(maps, torch.tensor(boxes))
