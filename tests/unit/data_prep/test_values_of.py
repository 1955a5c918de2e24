"""Looking up the values of images: all of them, in order, for any shape of the question."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from data_prep.dataset import ValuesOf

LABELS = pd.DataFrame(
    [(7, 0, 3), (2, 1, 5), (7, 0, 1), (2, 0, 2), (11, 1, 0), (7, 1, 4), (7, 0, 2)],
    columns=["image_id", "attribute", "value"],
)


def test_all_values_of_an_image_in_order() -> None:
    images = np.array([[7, 2, 7], [2, 11, 7]])
    values = ValuesOf(LABELS, n_attributes=2)(images, np.array([0, 1, 1]))
    assert values.dtype == np.int64
    assert values[0].tolist() == [[1, 2, 3], [5, -1, -1], [4, -1, -1]]
    assert values[1].tolist() == [[2, -1, -1], [0, -1, -1], [4, -1, -1]]


def test_no_wider_than_the_question_needs() -> None:
    values = ValuesOf(LABELS, n_attributes=2)
    assert values(np.array([2, 11, 7]), np.array([1, 1, 1])).tolist() == [[5], [0], [4]]


@pytest.mark.parametrize(("image", "attribute"), [(11, 0), (3, 0), (0, 0), (99, 1)])
def test_a_pair_without_a_value_is_refused(image: int, attribute: int) -> None:
    with pytest.raises(KeyError, match="no label"):
        ValuesOf(LABELS, n_attributes=2)(np.array([7, image]), np.array([0, attribute]))


def test_nothing_is_known_without_labels() -> None:
    with pytest.raises(KeyError, match="no label"):
        ValuesOf(LABELS[:0], n_attributes=2)(np.array([7]), np.array([0]))
