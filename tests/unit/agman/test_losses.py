"""Losses against numbers worked out by hand."""

import math

import pytest
import torch

import agman
from agman.base import Output
from agman.losses import ValueProxies, attribute_type_bce, triplet_ranking


def test_triplet_ranking_by_hand():
    positive = torch.tensor([0.9, 0.5, 0.30])
    negative = torch.tensor([0.1, 0.4, 0.35])
    # 0.2 - 0.9 + 0.1 < 0: 0;   0.2 - 0.5 + 0.4 = 0.1;   0.2 - 0.3 + 0.35 = 0.25;   mean 0.35 / 3
    assert triplet_ranking(positive, negative).item() == pytest.approx(0.35 / 3)


def test_cosine_of_unit_vectors():
    x, y = torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([[0.8, 0.6], [-1.0, 0.0]])
    torch.testing.assert_close(agman.cosine(x, y), torch.tensor([0.96, -1.0]))


def test_attribute_type_bce_by_hand():
    logits = torch.tensor([[math.log(3), 0.0, -math.log(3)]])  # σ = 3/4, 1/2, 1/4
    # type 0: -ln(3/4) - ln(1/2) - ln(3/4), over three elements
    expected = -(2 * math.log(3 / 4) + math.log(1 / 2)) / 3
    assert attribute_type_bce(logits, torch.tensor([0])).item() == pytest.approx(expected)
    # type 2: -ln(1/4) - ln(1/2) - ln(1/4)
    expected = -(2 * math.log(1 / 4) + math.log(1 / 2)) / 3
    assert attribute_type_bce(logits, torch.tensor([2])).item() == pytest.approx(expected)


class Lookup(agman.RetrievalModel):
    """A model whose embedding of an image is its first two pixels."""

    classify = True

    def __init__(self):
        super().__init__(n_attributes=5, embedding_dim=2)

    def forward(self, images, attributes):
        return Output(images[:, 0, 0, :2], torch.zeros(len(images), 5))


def test_objective_by_hand():
    # two triplets: cosines (0.6, 1.0), wrong by 0.4, and (1.0, 1.0), a tie: losses 0.6 and 0.2, none correct
    vectors = [[1.0, 0], [0, 1], [0.6, 0.8], [0, 1], [1.0, 0], [0, 1]]
    images = torch.zeros(6, 3, 1, 2)
    images[:, 0, 0] = torch.tensor(vectors)
    losses = agman.TripletObjective(Lookup(), margin=0.2)(images, torch.tensor([4, 1]))
    assert losses.terms["loss_triplet"].item() == pytest.approx(0.4)
    assert losses.terms["loss_class"].item() == pytest.approx(math.log(2))  # logits 0
    assert losses.loss.item() == pytest.approx(0.4 + math.log(2))
    assert losses.terms["triplet_accuracy"].item() == 0

    images[[2, 4]] = images[[4, 2]]  # swap the first triplet's positive and negative
    losses = agman.TripletObjective(Lookup(), margin=0.2)(images, torch.tensor([4, 1]))
    assert losses.terms["loss_triplet"].item() == pytest.approx((0.0 + 0.2) / 2)
    assert losses.terms["triplet_accuracy"].item() == 0.5


def test_objective_refuses_images_that_are_no_triplets():
    with pytest.raises(ValueError, match="2 triplets need 6 images, not 5"):
        agman.TripletObjective(Lookup())(torch.zeros(5, 3, 1, 2), torch.tensor([0, 1]))


def test_value_proxies_are_a_softmax_over_the_attributes_own_values() -> None:
    proxies = ValueProxies([2, 3], embedding_dim=2)
    with torch.no_grad():
        # Lengths do not matter: only the directions east, north; east, north, west.
        proxies.proxies.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.5], [2.0, 0.0], [0.0, 7.0], [-1.0, 0.0]]))
    embedding = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = proxies(embedding, torch.tensor([0, 1]), torch.tensor([[1], [1]]))
    # First: east, but its value is north of attribute 0: scores 16 and 0, -log(e^0 / (e^16 + e^0)) = 16.0000001.
    # Second: north is its value; scores 0, 16, 0: -log(e^16 / (e^16 + 2)) = 2e^-16.
    expected = (math.log(math.exp(16) + 1) + math.log(1 + 2 * math.exp(-16))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_an_images_other_values_are_no_negatives_of_its_lowest() -> None:
    torch.manual_seed(1)
    proxies = ValueProxies([2, 5], embedding_dim=3).double()
    embedding = torch.nn.functional.normalize(torch.randn(3, 3, dtype=torch.float64), dim=1)
    values = torch.tensor([[0, 2, 4], [1, 3, -1], [3, -1, -1]])
    loss = proxies(embedding, torch.tensor([1, 1, 1]), values)
    directions = torch.nn.functional.normalize(proxies.proxies[2:], dim=1)
    total = 0.0
    for vector, own in zip(embedding, ([0, 2, 4], [1, 3], [3]), strict=True):
        kept = [value for value in range(5) if value == own[0] or value not in own]
        scores = [16 * (vector @ directions[value]).item() for value in kept]
        total += math.log(sum(map(math.exp, scores))) - scores[kept.index(own[0])]
    assert loss.item() == pytest.approx(total / 3, rel=1e-9)


def test_proxies_keep_their_digits_under_autocast() -> None:
    torch.manual_seed(1)
    proxies = ValueProxies([3, 4], embedding_dim=11)
    embedding = torch.nn.functional.normalize(torch.randn(5, 11), dim=1)
    given = (embedding, torch.tensor([0, 1, 1, 0, 1]), torch.tensor([[2], [3], [0], [1], [2]]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = proxies(*given)
    assert low.item() == pytest.approx(proxies(*given).item(), rel=1e-6)


def test_proxies_join_the_objective_and_learn() -> None:
    torch.manual_seed(0)
    model = agman.build("agman", n_attributes=2, embedding_dim=5, backbone="tiny", classify=False)
    proxies = ValueProxies([3, 2], 5)
    objective = agman.TripletObjective(model, proxies=proxies, proxy_weight=0.7)
    images, attributes = torch.randn(6, 3, 32, 32), torch.tensor([0, 1])
    values = torch.tensor([2, 0, 2, 0, 1, 1])[:, None]
    losses = objective(images, attributes, values)
    assert losses.loss.item() == pytest.approx(
        (losses.terms["loss_triplet"] + 0.7 * losses.terms["loss_proxy"]).item(), rel=1e-6
    )
    losses.loss.backward()
    assert proxies.proxies.grad is not None
    assert (proxies.proxies.grad.abs().sum(1) > 0).all()
    with pytest.raises(ValueError, match="need the values"):
        objective(images, attributes)
