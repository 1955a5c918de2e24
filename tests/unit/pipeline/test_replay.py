"""Searches replayed on a surrogate: encoding, noise, cost and choice of a search, and the figures of the table."""

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from benchmarks import replay, searches
from benchmarks.curves import POINTS, SIDE
from pipeline.tuning.spaces import draw, find_space

SETTINGS, REPEATED, NOISE = 40, 12, 0.005


@pytest.fixture(scope="module")
def curves():
    """Curves whose end depends on `lr` alone, best at 2e-3; some with other seeds, on smaller pictures, or failed."""
    rng = np.random.default_rng(0)
    rows = []
    for number, setting in enumerate(draw(find_space("full"), SETTINGS, seed=1)):
        end = 0.7 - 0.1 * abs(np.log10(setting["lr"] / 2e-3))
        course = end - 0.1 * (1 - np.arange(1, POINTS + 1) / POINTS)
        row = {"number": number, "side": SIDE, "seed": 0, "seconds": 20.0, "failed": "", "chance": 0.5} | setting
        rows.append(row | {"map": course})
        if number < REPEATED:
            rows += [row | {"map": course + rng.normal(0, NOISE), "seed": seed} for seed in (1, 2)]
            rows.append(row | {"map": course - 0.1, "side": 32, "seconds": 5.0})
    rows.append(rows[-1] | {"number": SETTINGS, "side": SIDE, "map": [], "failed": "loss is NaN"})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def learned(curves):
    return replay.Surrogate(curves)


@pytest.fixture
def surrogate(learned, monkeypatch):
    monkeypatch.setattr(replay, "surrogate", lambda: learned)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield learned
    optuna.logging.set_verbosity(before)


def test_the_surrogate_learns_what_decides_and_how_large_the_noise_is(surrogate):
    assert replay.effects_table(surrogate).splitlines()[2].startswith("| lr | ")
    # Of three seeds one is without noise: the variance expected within them is 2/3 of that of a seed.
    assert surrogate.noise == pytest.approx(100 * NOISE * (2 / 3) ** 0.5, rel=0.5)
    assert surrogate.chance == 50


def test_effects_have_every_choice_and_only_the_settings_that_know_them(surrogate):
    assert list(surrogate.effects("crop")) == [None, 0.7, 0.4]
    assert all(0.05 <= value <= 0.6 for value in surrogate.effects("margin"))
    effects = surrogate.effects("lr")
    best = max(effects, key=effects.__getitem__)
    assert 1e-3 < best < 4e-3


def test_a_setting_that_its_loss_does_not_have_is_told_from_its_smallest_value(surrogate):
    inputs = surrogate._inputs([{"margin": None}, {"margin": float("nan")}, {"margin": 0.05}, {"margin": 0.6}])
    assert (inputs[0] == inputs[1]).all()
    (column,) = np.flatnonzero(inputs[0] != inputs[2])
    assert inputs[:, column].tolist() == [replay.MISSING, replay.MISSING, 0, 1]


def test_numbers_on_a_logarithmic_scale_are_spread_evenly_and_choices_are_told_apart():
    rate, crop = FloatDistribution(1e-4, 1e-2, log=True), CategoricalDistribution([None, 0.7, 0.4])
    assert replay._columns(rate, 1e-3) == pytest.approx([0.5])
    assert replay._columns(crop, float("nan")) == replay._columns(crop, None) == [1.0, 0.0, 0.0]
    assert replay._columns(crop, 0.4) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("search", "scheduler", "concurrent"), [("random", "none", 1), ("tpe", "asha", 4), ("tpe", "median", 3)]
)
def test_a_replay_costs_its_budget_and_can_be_repeated(surrogate, search, scheduler, concurrent):
    way = replay.Way(search, scheduler, concurrent, budget=5)
    found = replay.replay(way, seed=2)
    assert len(found.worths) == 5 * POINTS
    assert found == replay.replay(way, seed=2) != replay.replay(way, seed=3)


def test_a_replay_of_random_search_is_worth_the_setting_that_looked_best(surrogate, monkeypatch):
    monkeypatch.setattr(surrogate, "noise", 0.0)
    found = replay.replay(replay.Way("random", "none", 1, budget=3), seed=5)
    ends = [one[-1] for one in np.split(np.array(found.worths), 3)]
    study = optuna.create_study(direction="maximize", sampler=replay.sampler_of("random", 5))
    for end in (ends[0], max(ends[:2]), max(ends)):
        trial = study.ask()
        find_space("full").define(trial)
        (course,) = surrogate.curve_of([trial.params])
        study.tell(trial, course[-1])
        assert end == pytest.approx(study.best_value)
    assert list(found.chosen.values()) == pytest.approx([ends[-1]] * len(replay.REPEATS))


def test_repeats_with_other_seeds_find_out_who_was_lucky():
    rng = np.random.default_rng(0)
    done = [(72.0, 60.0), (71.0, 70.0), (69.0, 65.0), (68.0, 99.0)]
    assert replay.repeated(done, 0, 1.0, rng) == 60
    assert replay.repeated(done, 2, 1.0, rng) == 70  # the fourth is not repeated


def test_random_searchs_end_is_looked_for_in_the_median_of_the_others():
    plain, other = replay.Way("random", "none", 4, 20), replay.Way("tpe", "asha", 4, 20)
    fall = np.linspace(6, 0, 20 * POINTS)
    results = {plain: np.stack([fall + 2] * 3), other: np.stack([fall, fall + 9, fall - 9])}
    first, last = replay.rows_of(results)
    assert first == ["20", "4", "tpe", "asha", "0.00 (-4.50 to 4.50)", f"1/{120 / 80:.1f}"]
    assert last[-1] == "1/1.0"
    assert replay.reaches(np.array([3.0, 2.0, 1.0]), 0.5) is None


def test_cheaper_trainings_are_ranked_beside_the_full_ones(curves):
    found = {what: (rank, share) for what, rank, share in replay.fidelities(curves)}
    assert found["32 px"] == (pytest.approx(1), pytest.approx(0.25))
    assert found[f"3/{POINTS} of the steps"] == (pytest.approx(1), 0.5)


def test_a_search_chooses_the_best_that_was_trained_to_its_end():
    curves = [[0.3, 0.9], [0.2, 0.3, 0.4, 0.5, 0.6, 0.55], [0.7], [0.2, 0.3, 0.4, 0.5, 0.58, 0.59], []]
    best, number = searches.course(curves)
    assert number == 1
    assert best == [0.3, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, *[0.6] * 8]
    assert searches.course([[0.3], [0.5, 0.4]]) == ([0.3, 0.5, 0.5], 1)
