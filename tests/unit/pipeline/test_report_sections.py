"""What the sections of the report compute: rankings, confusions, maps, attention."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from agman.metrics import similarities
from pipeline.evaluation.attention import measure
from pipeline.reports.charts import MARKERS, heat_over, mark_single_points
from pipeline.reports.model.confusion import shares
from pipeline.reports.model.embedding_map import FEW, flattened, grouped
from pipeline.reports.model.galleries import chosen
from pipeline.reports.model.neighbours import neighbours


def test_chosen_queries() -> None:
    precision = torch.tensor([0.5, 0.0, 0.9, 0.9, 0.1, 0.3])
    relevant = torch.tensor([2, 0, 1, 1, 1, 1])
    assert chosen(precision, relevant) == {"best": 2, "typical": 0, "worst": 4}
    assert chosen(precision[:1], relevant[:1]) == {"best": 0}
    assert chosen(precision[4:], relevant[4:]) == {"best": 1, "worst": 0}
    assert chosen(precision[1:2], relevant[1:2]) == {"best": 0}


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_neighbours_are_ranked_as_the_metric_ranks(chunk: int) -> None:
    torch.manual_seed(0)
    queries, candidates = torch.randn(5, 3), torch.randn(11, 3)
    candidates[7] = candidates[2]  # a tie
    scores, places = neighbours(queries, candidates, 4, chunk)
    similarity = similarities(queries, candidates)
    order = similarity.sort(dim=1, descending=True, stable=True).indices[:, :4]
    assert torch.equal(places, order) and torch.equal(scores, similarity.gather(1, order))
    assert neighbours(queries, candidates, 99)[1].shape == (5, 11)


def test_confusion_is_counted_as_by_hand() -> None:
    asked, found = np.array([0, 2, 0]), np.array([[0, 1], [2, 2], [1, 1]])
    counted = np.zeros((4, 4))
    for value, neighbour_values in zip(asked, found, strict=True):
        for neighbour in neighbour_values:
            counted[value, neighbour] += 1
    expected = [[row / sum(of_value) if sum(of_value) else np.nan for row in of_value] for of_value in counted]
    np.testing.assert_array_equal(shares(asked, found, 4), expected)


def test_a_map_is_the_same_every_time_and_keeps_groups_apart() -> None:
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((3, 20)) * 9
    points = (centres[np.arange(60) % 3] + generator.standard_normal((60, 20))).astype(np.float32)
    places = flattened(points)
    assert np.array_equal(places, flattened(points))
    nearest = np.linalg.norm(places[:, None] - places[None], axis=2).argsort(axis=1)[:, 1]
    assert (nearest % 3 == np.arange(60) % 3).all()
    for few in (0, 1, 2, 3, FEW - 1):
        assert flattened(points[:few]).shape == (few, 2)
    names = [f"value {number // 2}" for number in range(40)]
    assert len(set(grouped(names))) == len(MARKERS) and grouped(names[:8]) == names[:8]


def test_share_of_even_attention_is_the_area() -> None:
    pairs = pd.DataFrame({"attribute": [0], "x0": 0.25, "y0": 0.0, "x1": 0.75, "y1": 0.55})
    even = measure(torch.full((1, 2, 2), 1 / 4), pairs)
    assert even[["mass", "area"]].iloc[0].tolist() == pytest.approx([0.275] * 2)
    corner = torch.zeros(1, 8, 8)
    corner[0, 7, 7] = 1
    assert measure(corner, pairs)[["mass", "hits"]].to_numpy().tolist() == [[0, 0]]


def test_heat_leaves_the_cold_picture_visible() -> None:
    picture = np.full((4, 4, 3), 200, np.uint8)
    heat = np.zeros((4, 4))
    heat[0, 0] = 1
    shown = heat_over(picture, heat)
    assert abs(shown[1:].astype(int) - 160).max() <= 1  # four fifths of the grey
    assert shown[0, 0, 0] > shown[0, 0, 2]  # yellow


def test_a_curve_of_one_point_shows_it() -> None:
    axes = (figure := Figure()).subplots()
    for steps, look in (([3], "--"), ([1, 2], "-"), ([4], "s")):
        axes.plot(steps, [0.5] * len(steps), look)
    axes.axhline(0.2)
    mark_single_points(figure)
    assert [line.get_marker() for line in axes.get_lines()] == ["o", "None", "s", "None"]
