"""Tagging against plain loops, and against cases that can be worked out by hand."""

import math

import pytest
import torch

from agman.tagging import (
    NEIGHBOUR_TEMPERATURE,
    UNSEEN,
    calibration_error,
    fit_temperature,
    macro_f1,
    neighbour_scores,
    probabilities,
    prototype_scores,
    prototypes,
    threshold_for,
)

Q, K, V, D = 11, 29, 5, 7


def unit(generator, *shape):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


@pytest.fixture
def labelled():
    """Queries, labelled pictures, and their values; value 3 has no picture."""
    generator = torch.Generator().manual_seed(3)
    values = torch.tensor([0, 1, 2, 4])[torch.randint(4, (K,), generator=generator)]
    return unit(generator, Q, D), unit(generator, K, D), values


def test_prototypes_are_the_means_of_their_pictures(labelled):
    queries, embeddings, values = labelled
    found = prototypes(embeddings, values, V)
    scores = prototype_scores(queries, found)
    for value in range(V):
        own = embeddings[values == value]
        if value == 3:
            assert not found[3].any() and (scores[:, 3] == UNSEEN).all()
            continue
        mean = own.mean(0) / own.mean(0).norm()
        torch.testing.assert_close(found[value], mean)
        torch.testing.assert_close(scores[:, value].float(), queries @ mean)


def test_neighbours_vote_by_their_distance(labelled):
    queries, embeddings, values = labelled
    scores = neighbour_scores(queries, embeddings, values, V, count=6)
    for query, row in zip(queries, scores, strict=True):
        cosines = (embeddings @ query).tolist()
        nearest = sorted(range(K), key=lambda i: -cosines[i])[:6]
        for value in range(V):
            vote = sum(math.exp(cosines[i] / NEIGHBOUR_TEMPERATURE) for i in nearest if values[i] == value)
            assert row[value] == pytest.approx(math.log(vote) if vote else UNSEEN, rel=1e-5)
    everyone = neighbour_scores(queries, embeddings, values, V, count=10 * K)
    assert (everyone[:, 3] == UNSEEN).all() and (everyone[:, [0, 1, 2, 4]] > UNSEEN).all()


def test_probabilities_are_a_softmax_and_those_of_unseen_values_are_0():
    scores = torch.tensor([[0.2, UNSEEN, 0.5]])
    found = probabilities(scores, 0.1)
    assert found[0, 1] == 0
    assert found.sum() == pytest.approx(1)
    assert found[0, 2] / found[0, 0] == pytest.approx(math.exp(3))


def test_the_temperature_is_the_one_that_the_labels_were_drawn_with():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(9_000, V, generator=generator)
    drawn = torch.multinomial((scores / 0.4).softmax(1), 1, generator=generator)[:, 0]
    truth = torch.nn.functional.one_hot(drawn, V).bool()
    assert fit_temperature(scores, truth) == pytest.approx(0.4, rel=0.06)
    unknown = torch.full((3, V), UNSEEN)
    assert fit_temperature(unknown, truth[:3]) == 1
    assert fit_temperature(torch.cat([scores, unknown]), torch.cat([truth, truth[:3]])) == fit_temperature(
        scores, truth
    )


def test_a_calibrated_guess_has_no_error_and_a_boaster_has_one():
    confidence = torch.tensor([0.25] * 4 + [0.75] * 4)
    correct = torch.tensor([1, 0, 0, 0, 1, 1, 1, 0]).bool()
    assert calibration_error(confidence, correct) == pytest.approx(0)
    assert calibration_error(torch.ones(8), correct) == pytest.approx(0.5)
    assert calibration_error(torch.tensor([0.9, 0.1]), torch.tensor([True, True])) == pytest.approx((0.1 + 0.9) / 2)
    with pytest.raises(ValueError, match="no pictures"):
        calibration_error(torch.empty(0), torch.empty(0))


def test_the_threshold_is_the_smallest_with_the_wanted_precision():
    confidence = torch.tensor([0.9, 0.5, 0.8, 0.7, 0.7, 0.6])
    correct = torch.tensor([True, False, True, False, True, True])
    found = threshold_for(0.75, confidence, correct)
    assert (found.confidence, found.precision, found.coverage) == (pytest.approx(0.6), 0.8, 5 / 6)
    # The two of 0.7 are answered together: 1 of 1 right is no threshold between them.
    found = threshold_for(1.0, confidence, correct)
    assert (found.confidence, found.coverage) == (pytest.approx(0.8), 2 / 6)
    none = threshold_for(0.5, confidence, torch.zeros(6).bool())
    assert none.confidence == math.inf and none.coverage == 0 and math.isnan(none.precision)


def test_macro_f1_is_the_mean_of_the_values_that_occur():
    truth = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 0]]).bool()
    guessed = torch.tensor([0, 1, 0, -1])
    # Value 0: one hit, one false alarm, one miss. Value 1: one hit, two misses. Value 2 does not occur.
    assert macro_f1(guessed, truth) == pytest.approx((2 / 4 + 2 / 4) / 2)


@pytest.mark.parametrize(
    "values", [torch.tensor([0, 5]), torch.tensor([0.0, 1.0]), torch.tensor([0]), torch.tensor([0, -1])]
)
def test_values_that_do_not_fit_are_refused(values):
    with pytest.raises(ValueError, match="values"):
        prototypes(torch.ones(2, D), values, V)
