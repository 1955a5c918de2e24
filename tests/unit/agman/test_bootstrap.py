"""Intervals and paired differences against a plain loop of resamples, and against what theory says."""

from __future__ import annotations

import math

import pytest
import torch

from agman.bootstrap import differences_of_trainings, intervals, paired_differences, resampled_means


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


def trainings(count: int, shift: float = 0.0, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    level = shift + 0.1 * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    return {f"a{n}": level + torch.rand(count, n, generator=generator, dtype=torch.float64) for n in (3, 7)}


def test_differences_of_trainings_are_those_of_a_plain_loop() -> None:
    first, second = trainings(2), trainings(3, seed=1)
    found = differences_of_trainings(first, second, seed=5, resamples=11)
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randint(count, (11, count), generator=generator) for count in (2, 3)]
    queries = {
        name: torch.randint(first[name].shape[1], (11, first[name].shape[1]), generator=generator) for name in first
    }
    every = []
    for resample in range(11):
        gains = []
        for name, of_name in queries.items():
            for query in of_name[resample]:
                means = [
                    one[name][rows[resample], query].mean() for one, rows in zip((first, second), drawn, strict=True)
                ]
                gains.append(float(means[1] - means[0]))
        every.append(sum(gains) / 10)
    bounds = torch.quantile(torch.tensor(every, dtype=torch.float64), torch.tensor([0.025, 0.975], dtype=torch.float64))
    assert [found[""].low, found[""].high] == pytest.approx(bounds.tolist())
    assert found[""].mean == pytest.approx(
        sum(float(second[n].mean() - first[n].mean()) * first[n].shape[1] / 10 for n in first)
    )
    assert found[""].p_not_better == sum(one <= 0 for one in every) / 11


def test_seeds_that_differ_widen_the_interval() -> None:
    """Two systems whose trainings differ more from each other than the systems do."""
    spread = torch.tensor([[0.0], [0.2], [0.4]], dtype=torch.float64)
    first = {"a": spread.expand(3, 400)}
    second = {"a": (spread + 0.05).expand(3, 400)}
    assert paired_differences({"a": first["a"].mean(0)}, {"a": second["a"].mean(0)})[""].beyond_noise
    assert not differences_of_trainings(first, second)[""].beyond_noise


def test_differences_of_trainings_need_the_same_queries() -> None:
    with pytest.raises(ValueError, match="the same queries are needed, not of 3 and 4"):
        differences_of_trainings({"a": torch.rand(2, 3)}, {"a": torch.rand(2, 4)})
