"""Numbers as a user reads them."""

from __future__ import annotations

import pytest

from pipeline.common.console import counted, mean_and_deviation


@pytest.mark.parametrize(
    ("values", "shown"), [([0.509], "50.90"), ([0.3, 0.5], "40.00 ± 14.14"), ([0.5, 0.5], "50.00 ± 0.00")]
)
def test_a_single_value_has_no_deviation(values: list[float], shown: str) -> None:
    assert mean_and_deviation(values) == shown


def test_one_thing_is_not_several() -> None:
    assert [counted(number, "seed") for number in (0, 1, 1200)] == ["0 seeds", "1 seed", "1,200 seeds"]
