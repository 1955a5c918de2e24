"""Intervals and paired differences against a plain loop of resamples, and against what theory says."""

from __future__ import annotations

import math

import pytest
import torch

from agman.bootstrap import intervals, paired_differences, resampled_means


def scores(*sizes: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"a{place}": torch.rand(size, generator=generator, dtype=torch.float64) for place, size in enumerate(sizes)}


def test_resampled_means_are_those_of_a_plain_loop():
    given = scores(3, 7)
    means = resampled_means(given, seed=5, resamples=11)
    generator = torch.Generator().manual_seed(5)
    drawn = {name: torch.randint(len(one), (11, len(one)), generator=generator) for name, one in given.items()}
    for resample in range(11):
        chosen = {name: [float(given[name][place]) for place in drawn[name][resample]] for name in given}
        for name, of_attribute in chosen.items():
            assert float(means[name][resample]) == pytest.approx(sum(of_attribute) / len(of_attribute))
        every = [value for of_attribute in chosen.values() for value in of_attribute]
        assert float(means[""][resample]) == pytest.approx(sum(every) / 10)


def test_an_interval_is_as_wide_as_the_standard_error_says():
    given = scores(400)
    found = intervals(given)[""]
    error = float(given["a0"].std()) / math.sqrt(400)
    assert found.mean == pytest.approx(float(given["a0"].mean()))
    assert found.high - found.mean == pytest.approx(1.96 * error, rel=0.1)
    assert found.mean - found.low == pytest.approx(1.96 * error, rel=0.1)


def test_a_small_gain_on_every_query_is_beyond_noise_only_if_paired():
    first = scores(50, 30)
    second = {name: one + 0.01 for name, one in first.items()}
    found = paired_differences(first, second)
    assert found[""].mean == pytest.approx(0.01) and found[""].beyond_noise and found[""].p_not_better == 0
    apart = intervals(first)[""]
    assert apart.high > intervals(second)[""].mean  # their own intervals overlap by far


def test_no_gain_is_within_noise():
    first, second = scores(200, seed=1), scores(200, seed=2)
    found = paired_differences(first, {"a0": first["a0"] + (second["a0"] - second["a0"].mean())})
    assert not found[""].beyond_noise and found[""].low < 0 < found[""].high
    assert 0.2 < found[""].p_not_better < 0.8


def test_the_same_seed_gives_the_same_interval_and_another_gives_another():
    given = scores(20, 5)
    assert intervals(given, seed=3) == intervals(given, seed=3)
    assert intervals(given, seed=3)["a1"] != intervals(given, seed=4)["a1"]


@pytest.mark.parametrize("given", [{}, {"a0": torch.empty(0)}])
def test_nothing_to_resample_is_refused(given):
    with pytest.raises(ValueError, match="no queries"):
        intervals(given)


def test_other_queries_are_refused():
    with pytest.raises(ValueError, match="the same queries"):
        paired_differences(scores(3), scores(4))
