"""Equation 9: weights against numbers worked out by hand; learned ones stay bounded, whatever the losses do."""

import math

import pytest
import torch

import agman

BOUND = agman.LossWeights.BOUND


def test_fixed_weights():
    weights = agman.LossWeights("fixed", w_triplet=2.0, w_class=0.5)
    assert weights(torch.tensor(0.3), torch.tensor(0.8)).item() == pytest.approx(2 * 0.3 + 0.5 * 0.8)
    assert weights(torch.tensor(0.3), None).item() == pytest.approx(0.6)
    assert list(weights.parameters()) == []


def test_published_weights_are_half_e_and_one_on_top_of_either_loss():
    weights = agman.LossWeights("published")
    losses = [torch.tensor(value, requires_grad=True) for value in (0.3, 0.8)]
    total = weights(*losses)
    assert total.item() == pytest.approx(1.3591409 * 0.3 + 1 + 1.3591409 * 0.8 + 1)
    total.backward()
    assert [loss.grad.item() for loss in losses] == pytest.approx([1.3591409, 1.3591409])
    assert list(weights.parameters()) == [] and weights.state_dict() == {}


@pytest.mark.parametrize("mode", ["learned", "published"])
def test_a_single_loss_is_returned_unchanged(mode):
    assert agman.LossWeights(mode)(torch.tensor(0.3), None).item() == pytest.approx(0.3)


@pytest.mark.parametrize("arguments", [{"mode": "learnt"}, {"w_class": -1.0}])
def test_impossible_weights_are_refused(arguments):
    with pytest.raises(ValueError, match="loss weights must"):
        agman.LossWeights(**arguments)


def test_learned_weights_start_as_a_plain_sum_with_kendalls_gradient():
    weights = agman.LossWeights("learned").double()
    loss = weights(torch.tensor(0.3), torch.tensor(0.8))
    assert loss.item() == pytest.approx(1.1)
    loss.backward()
    # d/ds (exp(-s)·L + s) = 1 - exp(-s)·L, which is 1 - L at s = 0, where ds/dt = 1
    assert weights.t_triplet.grad.item() == pytest.approx(0.7)
    assert weights.t_class.grad.item() == pytest.approx(0.2)


def test_s_is_bounded_and_near_0_it_is_t():
    t = torch.tensor([-1e9, -0.1, 0.0, 0.1, 5.0, 1e9], dtype=torch.float64)
    expected = [-5.0, -0.1, 0.0, 0.1, 5 * (math.e**2 - 1) / (math.e**2 + 1), 5.0]
    assert agman.LossWeights.bounded(t).tolist() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("losses", [(0.011, 90.0), (0.5, 2.0)])
def test_descent_settles_at_the_logarithm_of_either_loss(losses):
    weights = agman.LossWeights("learned").double()
    settle(weights, losses, steps=3000, optimizer=torch.optim.SGD(weights.parameters(), lr=0.1))
    assert s_of(weights) == pytest.approx([math.log(loss) for loss in losses], abs=1e-3)


def test_learned_weights_stay_bounded_and_come_back():
    """A hinge of exactly 0 and a huge loss, for 600 steps that could carry t 60 away; then both losses are 1.

    From 0 the way back takes no longer than the steps' own size. From a huge loss it takes until Adam has forgotten
    how large that gradient was, with this β₂ a factor of e in 200 steps.
    """
    weights = agman.LossWeights("learned")
    optimizer = torch.optim.Adam(weights.parameters(), lr=1e-1, betas=(0.9, 0.99))
    lowest = settle(weights, (0.0, 1e4), steps=600, optimizer=optimizer)
    assert all(4.5 < abs(s) < BOUND for s in s_of(weights))
    assert weights.t_triplet.item() < 0 < weights.t_class.item()
    assert lowest > -2 * BOUND
    settle(weights, (1.0, 1.0), steps=200, optimizer=optimizer)
    assert s_of(weights)[0] == pytest.approx(0.0, abs=0.02)
    settle(weights, (1.0, 1.0), steps=1_200, optimizer=optimizer)
    assert s_of(weights)[1] == pytest.approx(0.0, abs=0.2)


def test_steps_of_any_size_stay_within_the_bound():
    weights = agman.LossWeights("learned")
    settle(weights, (0.0, 1e9), steps=50, optimizer=torch.optim.Adam(weights.parameters(), lr=100.0))
    assert all(4.5 < abs(s) <= BOUND for s in s_of(weights))
    assert math.isfinite(weights(torch.tensor(0.0), torch.tensor(1e9)).item())


def test_the_total_has_a_lower_bound():
    weights = agman.LossWeights("learned").double()
    zero = torch.zeros((), dtype=torch.float64)
    for t in torch.linspace(-1e3, 1e3, 101):
        torch.nn.init.constant_(weights.t_triplet, float(t))
        torch.nn.init.constant_(weights.t_class, float(-t))
        assert weights(zero, zero).item() > -2 * BOUND
        torch.nn.init.constant_(weights.t_class, -1e3)
        assert weights(zero, zero).item() > -2 * BOUND


def settle(weights, losses, steps, optimizer):
    """Take steps with the same two losses, and return the lowest total."""
    losses = [torch.tensor(loss, dtype=weights.t_class.dtype) for loss in losses]
    lowest = math.inf
    for _ in range(steps):
        optimizer.zero_grad()
        total = weights(*losses)
        total.backward()
        optimizer.step()
        lowest = min(lowest, total.item())
    return lowest


def s_of(weights):
    return [agman.LossWeights.bounded(t).item() for t in (weights.t_triplet, weights.t_class)]
