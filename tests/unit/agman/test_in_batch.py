"""Mining and InfoNCE over a batch against plain loops in float64, forward and backward.

The batches have photographs that occur several times, images with several values, and an attribute with one triplet.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import agman
from agman.base import Output
from agman.losses import Pairs, ValueProxies, info_nce, mine, pairs_of_anchors

MARGIN, TEMPERATURE, DIM, PHOTOS = 0.2, 0.1, 5, 11
ATTRIBUTES = [0, 0, 0, 1, 0, 1, 2]
"""Attributes of the 7 triplets; attribute 2 has one only."""


class Case:
    """A batch of 7 triplets of 11 images; under every attribute an image has one to three of 5 values."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)

        def draw(n: int) -> int:
            return int(torch.randint(n, (), generator=generator))

        values = [[{draw(5) for _ in range(1 + draw(3))} for _ in range(PHOTOS)] for _ in range(3)]
        columns = []
        for attribute in ATTRIBUTES:
            triplet = None
            while not triplet:
                anchor, positive, negative = (draw(PHOTOS) for _ in range(3))
                a, p, n = (values[attribute][photo] for photo in (anchor, positive, negative))
                if anchor != positive and (a & p) - n:  # drawn for a value that the negative lacks
                    triplet = anchor, positive, negative
            columns.append(triplet)
        self.photos = [photo for row in zip(*columns, strict=True) for photo in row]
        self.attributes = ATTRIBUTES * 3
        self.values = [values[a][p] for a, p in zip(self.attributes, self.photos, strict=True)]
        self.vectors = torch.randn(21, DIM, generator=generator, dtype=torch.float64) + 0.5

    def embedding(self) -> torch.Tensor:
        self.vectors = self.vectors.detach().requires_grad_()
        return F.normalize(self.vectors, dim=-1)

    @property
    def padded(self) -> torch.Tensor:
        return torch.tensor([sorted(v) + [-1] * (3 - len(v)) for v in self.values])

    def pairs(self) -> Pairs:
        return pairs_of_anchors(torch.tensor(self.attributes), self.padded, torch.tensor(self.photos))

    def is_positive(self, anchor: int, image: int) -> bool:
        same = self.attributes[anchor] == self.attributes[image]
        other_photo = self.photos[anchor] != self.photos[image]
        return same and other_photo and bool(self.values[anchor] & self.values[image])

    def is_negative(self, anchor: int, image: int) -> bool:
        return self.attributes[anchor] == self.attributes[image] and not self.values[anchor] & self.values[image]


CASES = [Case(seed) for seed in range(20)]


def test_the_cases_cover_what_they_are_made_for():
    own = [(case, b) for case in CASES for b in range(7)]
    assert any(not case.is_negative(b, 14 + b) for case, b in own)  # it has another of the anchor's values
    assert any(len(values) == 3 for case in CASES for values in case.values)
    again = [(c, b, i) for c, b in own for i in range(21) if i != b and c.photos[i] == c.photos[b]]
    assert any(case.attributes[b] == case.attributes[i] for case, b, i in again)


def test_pairs_against_a_loop():
    for case in CASES:
        positive, negative = case.pairs()
        assert positive.shape == negative.shape == (7, 21)
        for b in range(7):
            for i in range(21):
                assert bool(positive[b, i]) == case.is_positive(b, i)
                assert bool(negative[b, i]) == case.is_negative(b, i)


def mined_by_a_loop(mining: str, case: Case, embedding: torch.Tensor) -> list[tuple[int, int]]:
    mined, embedding = [], embedding.detach()
    for b in range(7):
        positive, negative = 7 + b, 14 + b
        similarity = [float(embedding[b] @ embedding[i]) for i in range(21)]
        negatives = [i for i in range(21) if case.is_negative(b, i)]
        if mining == "semi_hard":
            negatives = [i for i in negatives if similarity[positive] - MARGIN < similarity[i] < similarity[positive]]
        if mining == "hard":
            positives = [i for i in range(21) if case.is_positive(b, i)]
            positive = min(positives, key=lambda i: similarity[i])
        if mining != "none" and negatives:
            negative = max(negatives, key=lambda i: similarity[i])
        mined.append((positive, negative))
    return mined


@pytest.mark.parametrize("mining", ["none", "semi_hard", "hard"])
def test_mining_against_a_loop(mining):
    moved = 0
    for case in CASES:
        embedding = case.embedding()
        positive, negative = mine(mining, embedding, case.pairs(), MARGIN)
        expected = mined_by_a_loop(mining, case, embedding)
        assert list(zip(positive.tolist(), negative.tolist(), strict=True)) == expected
        moved += sum(n != 14 + b for b, (_, n) in enumerate(expected))
    assert (moved == 0) is (mining == "none")


class Given(agman.RetrievalModel):
    """A model that returns its input, of unit length, as the embedding."""

    def __init__(self):
        super().__init__(n_attributes=7, embedding_dim=3)

    def forward(self, images, attributes):
        return Output(images.flatten(1))


@pytest.mark.parametrize("mining", ["none", "semi_hard", "hard"])
def test_the_mined_loss_and_its_gradient_against_a_loop(mining):
    for case in CASES:
        objective = agman.TripletObjective(Given(), MARGIN, mining=mining)
        attributes, photos = torch.tensor(ATTRIBUTES), torch.tensor(case.photos)
        embedding = case.embedding()
        losses = objective(embedding, attributes, case.padded, photos)
        (gradient,) = torch.autograd.grad(losses.loss, case.vectors)

        embedding = case.embedding()
        hinges = [
            (MARGIN - embedding[b] @ embedding[p] + embedding[b] @ embedding[n]).clamp(min=0)
            for b, (p, n) in enumerate(mined_by_a_loop(mining, case, embedding))
        ]
        expected = sum(hinges) / 7
        torch.testing.assert_close(losses.loss_triplet, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, case.vectors)[0])
        right = [bool(embedding[b] @ embedding[7 + b] > embedding[b] @ embedding[14 + b]) for b in range(7)]
        assert losses.correct.item() == sum(right)  # of the given triplets


def test_info_nce_and_its_gradient_against_a_loop():
    for case in CASES:
        loss = info_nce(case.embedding(), case.pairs().negative_bi, TEMPERATURE)
        (gradient,) = torch.autograd.grad(loss, case.vectors)

        embedding = case.embedding()
        terms = []
        for b in range(7):
            own = torch.exp(embedding[b] @ embedding[7 + b] / TEMPERATURE)
            others = [torch.exp(embedding[b] @ embedding[i] / TEMPERATURE) for i in range(21) if case.is_negative(b, i)]
            terms.append(-torch.log(own / (own + sum(others))))
        expected = sum(terms) / 7
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, case.vectors)[0])


def test_info_nce_by_hand():
    """Two triplets of one attribute; values 0, 0, 1 and 1, 1, 0: the negatives are the other value's images."""
    vectors = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8], [0, 1], [0, 1], [1.0, 0]])
    values = torch.tensor([0, 1, 0, 1, 1, 0])[:, None]
    pairs = of_one_attribute(values, torch.arange(6))
    # First anchor: cos(a, p) = 0.6, three negatives at 0. Second: 1, negatives at 0, 0.8 and 0.
    first = -math.log(math.exp(1.2) / (math.exp(1.2) + 3))
    second = -math.log(math.exp(2) / (math.exp(2) + math.exp(1.6) + 2))
    assert info_nce(vectors, pairs.negative_bi, 0.5).item() == pytest.approx((first + second) / 2)


def test_an_anchor_without_negatives_has_no_info_nce_loss():
    embedding = torch.randn(6, 3, dtype=torch.float64).requires_grad_()
    loss = info_nce(embedding, torch.zeros(2, 6, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(embedding.grad, torch.zeros(6, 3, dtype=torch.float64))


def test_info_nce_keeps_its_digits_under_autocast():
    case = CASES[0]
    embedding = case.embedding().detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(embedding, case.pairs().negative_bi, 0.01)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, info_nce(embedding.double(), case.pairs().negative_bi, 0.01).float())


def test_a_mirrored_anchor_is_neither_its_own_positive_nor_a_negative():
    """Image 3 is both anchors; neither the most nor the least similar image may be itself."""
    photos = torch.tensor([3, 3, 5, 7, 2, 2])
    values = torch.tensor([1, 1, 1, 1, 0, 0])[:, None]
    pairs = of_one_attribute(values, photos)
    assert pairs.positive_bi.tolist() == [[False, False, True, True, False, False]] * 2
    assert pairs.negative_bi.tolist() == [[False, False, False, False, True, True]] * 2
    embedding = F.normalize(torch.tensor([[1.0, 0], [-1, 0.1], [1, 0.2], [1, 0.3], [0, 1], [0, -1]]), dim=-1)
    positive, _ = mine("hard", embedding, pairs)
    assert positive.tolist() == [3, 2]  # not 1 and 0, which are less alike


def of_one_attribute(values, photos):
    return pairs_of_anchors(torch.zeros(6, dtype=torch.int64), values, photos)


def test_the_first_of_equal_similarities_is_chosen():
    embedding = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8], [0.6, 0.8], [0, 1], [0, 1]])
    values = torch.tensor([0, 1, 0, 0, 1, 1])[:, None]
    pairs = of_one_attribute(values, torch.arange(6))
    positive, negative = mine("hard", embedding, pairs)
    assert (positive[0].item(), negative[0].item()) == (2, 1)
    # As similar as the positive, or less so by just the margin: neither is semi-hard, and the own negative stays.
    embedding[1] = embedding[4] = embedding[5] = torch.tensor([0.6, -0.8])
    assert mine("semi_hard", embedding, pairs)[1][0].item() == 4
    embedding = torch.tensor([[1.0, 0], [0.25, 1], [0.5, 0], [0, 0], [-1, 0], [0, 0]])
    assert mine("semi_hard", embedding, pairs, margin=0.25)[1][0].item() == 4
    assert mine("semi_hard", embedding, pairs, margin=0.26)[1][0].item() == 1


def test_all_three_join_the_objective_and_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = agman.build(n_attributes=2, embedding_dim=5, backbone="tiny")
    objective = agman.TripletObjective(
        model,
        loss_weights=agman.LossWeights("learned"),
        proxies=ValueProxies([3, 2], 5),
        proxy_weight=0.7,
        mining="hard",
        info_nce_weight=0.3,
    )
    values = torch.tensor([[2, -1], [0, 1], [1, 2], [0, -1], [0, -1], [1, -1]])
    losses = objective(torch.randn(6, 3, 32, 32), torch.tensor([0, 1]), values, torch.arange(6))
    total = losses.loss_triplet + losses.loss_class + 0.7 * losses.loss_proxy + 0.3 * losses.loss_info_nce
    torch.testing.assert_close(losses.loss, total)
    assert losses.loss_info_nce.item() > 0
    losses.loss.backward()
    assert [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("arguments", [{"mining": "hard"}, {"mining": "semi_hard"}, {"info_nce_weight": 1.0}])
def test_objectives_that_need_values_and_the_image_index_say_so(arguments):
    objective = agman.TripletObjective(Given(), **arguments)
    images, attributes = torch.randn(6, 3), torch.tensor([0, 0])
    with pytest.raises(ValueError, match="need the values of the images"):
        objective(images, attributes)
    with pytest.raises(ValueError, match="and the image index"):
        objective(images, attributes, torch.zeros(6, 1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mining": "hardest"}, "mining must be one of none, semi_hard, hard, not 'hardest'"),
        ({"info_nce_weight": -1.0}, "weight must not be negative"),
        ({"info_nce_temperature": 0.0}, "temperature above 0"),
    ],
)
def test_impossible_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        agman.TripletObjective(Given(), **arguments)
    if "mining" in arguments:
        with pytest.raises(ValueError, match=message):
            mine("hardest", CASES[0].embedding(), CASES[0].pairs())


def test_a_step_passes_values_and_the_image_index_on():
    """The objective gets the image index and all values, in the order of the images."""
    generator = torch.Generator().manual_seed(2)
    batch = agman.Batch(
        images=torch.randint(256, (3, 3, 32, 32), generator=generator, dtype=torch.uint8),
        index=torch.tensor([[0, 0], [1, 1], [2, 2]]),
        flip=torch.tensor([[False, True], [False, True], [False, True]]),
        attributes=torch.tensor([0, 0]),
        global_size=2,
        values=torch.tensor([[0, 1], [1, -1], [2, -1]])[:, None].expand(3, 2, 2),
    )
    seen = {}

    class Watching(agman.TripletObjective):
        def forward(self, images, attributes, values=None, photos=None):
            seen.update(values=values, photos=photos)
            return super().forward(images, attributes, values, photos)

    model = agman.build(n_attributes=2, embedding_dim=5, backbone="tiny", classify=False)
    objective = Watching(model, mining="hard", info_nce_weight=1.0)
    result = agman.Stepper(objective, agman.build_optimizer(objective), precision="bf16").step(batch)
    assert seen["photos"].tolist() == [0, 0, 1, 1, 2, 2]
    assert seen["values"].tolist() == [[0, 1]] * 2 + [[1, -1]] * 2 + [[2, -1]] * 2
    assert result.loss == pytest.approx(result.loss_triplet + result.loss_info_nce, rel=1e-6)
