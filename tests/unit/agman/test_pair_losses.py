"""Losses over all pairs of a batch, and on proxies, against their formulas as plain loops: float64, with gradients.

Batches have images with several values, values with one image, and an attribute under which no two images are alike.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import agman
from agman.losses import PAIR_LOSSES, Pairs, ValueProxies, pair_loss, pairs_among
from agman.objective import nearest_accuracy

MARGIN, TEMPERATURE, DIM = 0.2, 0.1, 5
N_VALUES = [5, 3, 7]


class Case:
    """17 pairs of three attributes; under attribute 0 an image has one to three values."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)

        def draw(n: int) -> int:
            return int(torch.randint(n, (), generator=generator))

        self.attributes = sorted([0] * 7 + [1] * 6 + [2] * 4, key=lambda _: draw(100))
        unlike = iter((6, 0, 3, 2))
        self.values = []
        for attribute in self.attributes:
            values = {draw(5) for _ in range(1 + draw(3))} if attribute == 0 else {draw(3)}
            self.values.append({next(unlike)} if attribute == 2 else values)
        self.vectors = torch.randn(17, DIM, generator=generator, dtype=torch.float64) + 0.5

    def embedding(self) -> torch.Tensor:
        self.vectors = self.vectors.detach().requires_grad_()
        return F.normalize(self.vectors, dim=-1)

    @property
    def padded(self) -> torch.Tensor:
        return torch.tensor([sorted(v) + [-1] * (3 - len(v)) for v in self.values])

    def pairs(self) -> Pairs:
        return pairs_among(torch.tensor(self.attributes), self.padded)

    def positives(self, k: int) -> list[int]:
        return [j for j in self.others(k) if self.values[k] & self.values[j]]

    def negatives(self, k: int) -> list[int]:
        return [j for j in self.others(k) if not self.values[k] & self.values[j]]

    def others(self, k: int) -> list[int]:
        return [j for j in range(17) if j != k and self.attributes[j] == self.attributes[k]]


CASES = [Case(seed) for seed in range(8)]


def supervised_contrastive(case: Case, s: torch.Tensor) -> torch.Tensor:
    of_anchors = []
    for k in range(17):
        total = sum(torch.exp(s[k, j] / TEMPERATURE) for j in case.others(k))
        terms = [-torch.log(torch.exp(s[k, p] / TEMPERATURE) / total) for p in case.positives(k)]
        of_anchors += [sum(terms) / len(terms)] if terms else []
    return sum(of_anchors) / len(of_anchors)


def multi_similarity(case: Case, s: torch.Tensor) -> torch.Tensor:
    total = 0.0
    for k in range(17):
        pull = sum(torch.exp(-2 * (s[k, p] - 0.5)) for p in case.positives(k))
        push = sum(torch.exp(50 * (s[k, n] - 0.5)) for n in case.negatives(k))
        total = total + torch.log(1 + torch.as_tensor(pull)) / 2 + torch.log(1 + torch.as_tensor(push)) / 50
    return total / 17


def semi_hard(case: Case, s: torch.Tensor) -> torch.Tensor:
    losses = []
    for k in range(17):
        for p in case.positives(k):
            fitting = [n for n in case.negatives(k) if s[k, p] - MARGIN < s[k, n] < s[k, p]]
            if fitting:
                losses.append(MARGIN - s[k, p] + max(s[k, n] for n in fitting))
    return sum(losses) / len(losses) if losses else s.sum() * 0


FORMULAS = {
    "supervised_contrastive": supervised_contrastive,
    "multi_similarity": multi_similarity,
    "semi_hard_triplet": semi_hard,
}


def test_pairs_against_a_loop() -> None:
    for case in CASES:
        positive, negative = case.pairs()
        for k in range(17):
            assert positive[k].nonzero().flatten().tolist() == case.positives(k)
            assert negative[k].nonzero().flatten().tolist() == case.negatives(k)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_losses_over_all_pairs_and_their_gradients_against_their_formulas(name: str) -> None:
    loss_of, positive_losses = pair_loss(name, TEMPERATURE, MARGIN), 0
    for case in CASES:
        loss = loss_of(case.embedding(), case.pairs())
        (gradient,) = torch.autograd.grad(loss, case.vectors)
        embedding = case.embedding()
        expected = FORMULAS[name](case, embedding @ embedding.T)
        (expected_gradient,) = torch.autograd.grad(expected, case.vectors)
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-11)
        positive_losses += loss.item() > 0
    assert positive_losses >= 6


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_a_batch_without_positive_pairs_has_finite_losses_and_gradients(name: str) -> None:
    vectors = torch.randn(3, DIM, requires_grad=True)
    pairs = pairs_among(torch.zeros(3, dtype=torch.int64), torch.tensor([[0], [1], [2]]))
    loss = pair_loss(name)(F.normalize(vectors, dim=-1), pairs)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(vectors.grad).all()


def test_an_unknown_pair_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=f"one of {', '.join(PAIR_LOSSES)}, not 'x'"):
        pair_loss("x")


def test_nearest_accuracy_against_a_loop() -> None:
    for case in CASES:
        embedding = case.embedding().detach()
        s, right = embedding @ embedding.T, []
        for k in range(17):
            if case.positives(k) and case.negatives(k):
                right.append(max(case.others(k), key=lambda j: s[k, j]) in case.positives(k))
        assert nearest_accuracy(embedding, case.pairs()).item() == pytest.approx(sum(right) / len(right))


# Proxies


def new_proxies(**options: object) -> ValueProxies:
    torch.manual_seed(3)
    return ValueProxies(N_VALUES, DIM, **options).double()


def rows_of(attribute: int) -> range:
    return range(sum(N_VALUES[:attribute]), sum(N_VALUES[: attribute + 1]))


def smoothed_softmax(case: Case, cosines: torch.Tensor) -> torch.Tensor:
    losses = []
    for k in range(17):
        rows = rows_of(case.attributes[k])
        lowest = rows[min(case.values[k])]
        taking_part = [row for row in rows if row == lowest or row - rows.start not in case.values[k]]
        likely = torch.log_softmax(16 * cosines[k, taking_part], 0)
        losses.append(-0.9 * likely[taking_part.index(lowest)] - 0.1 * likely.mean())
    return sum(losses) / 17


def proxy_anchor(case: Case, cosines: torch.Tensor) -> torch.Tensor:
    pull, push = [], []
    for attribute in range(3):
        of_attribute = [k for k in range(17) if case.attributes[k] == attribute]
        for value, row in enumerate(rows_of(attribute)):
            own = [k for k in of_attribute if value in case.values[k]]
            others = [k for k in of_attribute if k not in own]
            push.append(torch.log(1 + torch.as_tensor(sum(torch.exp(32 * (cosines[k, row] + 0.1)) for k in others))))
            if own:
                pull.append(torch.log(1 + sum(torch.exp(-32 * (cosines[k, row] - 0.1)) for k in own)))
    return sum(pull) / len(pull) + sum(push) / len(push)


@pytest.mark.parametrize(
    ("options", "formula"), [({"smoothing": 0.1}, smoothed_softmax), ({"loss": "anchor"}, proxy_anchor)]
)
def test_proxy_losses_and_their_gradients_against_their_formulas(options: dict, formula: object) -> None:
    for case in CASES:
        proxies, plain = new_proxies(**options), new_proxies().proxies
        loss = proxies(case.embedding(), torch.tensor(case.attributes), case.padded)
        gradients = torch.autograd.grad(loss, (case.vectors, proxies.proxies))
        expected = formula(case, case.embedding() @ F.normalize(plain, dim=-1).T)
        expected_gradients = torch.autograd.grad(expected, (case.vectors, plain))
        assert math.isfinite(loss.item())
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-8, atol=1e-11)


def test_an_unknown_proxy_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="one of softmax, anchor, not 'x'"):
        ValueProxies([2], DIM, loss="x")


# The objective


def test_the_label_objective_adds_its_losses_and_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = agman.build(n_attributes=2, embedding_dim=5, backbone="tiny")
    objective = agman.LabelObjective(
        model, loss_weights=agman.LossWeights("learned"), proxies=ValueProxies([3, 2], 5), proxy_weight=0.7
    )
    image_index, attributes = torch.tensor([0, 0, 1, 2, 2, 3]), torch.tensor([0, 1, 0, 0, 1, 1])
    values = torch.tensor([[2, -1], [0, -1], [1, 2], [0, -1], [0, -1], [1, -1]])
    output = objective.embed(torch.randn(4, 3, 32, 32), image_index, attributes)
    losses = objective.losses(*output, image_index, attributes, values)
    terms = losses.terms
    torch.testing.assert_close(
        losses.loss.detach(), terms["loss_pairs"] + terms["loss_class"] + 0.7 * terms["loss_proxy"]
    )
    labelled = torch.tensor([[1.0, 1], [1, 0], [1, 1], [0, 1]])
    torch.testing.assert_close(
        terms["loss_class"], F.binary_cross_entropy_with_logits(output.logits, labelled).detach()
    )
    losses.loss.backward()
    assert [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []
