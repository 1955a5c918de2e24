"""Triplet accuracy and loss against plain loops, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import agman
from agman import triplet_metrics
from agman.losses import triplet_ranking
from agman.triplet_metrics import score_conditions, score_triplets, summarise_triplets

NAMES = ["class", "closure", "never asked", "heel"]
MARGIN = 0.3


def case(triplets: int = 101, pairs: int = 37, width: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of unit length, index and attributes of triplets; "never asked" has none."""
    generator = torch.Generator().manual_seed(2)
    embeddings = normalize(torch.randn(pairs, width, generator=generator), dim=1)
    index = torch.randint(pairs, (3, triplets), generator=generator)
    attributes = torch.tensor([0, 1, 3])[torch.randint(3, (triplets,), generator=generator)]
    return embeddings, index, attributes


def plain(embeddings: Tensor, index: Tensor, margin: float) -> list[tuple[bool, float]]:
    """Return by the definitions, in a loop, whether each triplet is right, and its loss."""
    rows = embeddings.double().tolist()
    found = []
    for anchor, positive, negative in index.T.tolist():
        similar, different = (
            sum(a * b for a, b in zip(rows[anchor], rows[other], strict=True)) for other in (positive, negative)
        )
        found.append((similar > different, max(0.0, margin - similar + different)))
    return found


def test_every_condition_equals_the_definition() -> None:
    embeddings, index, attributes = case()
    scores = score_conditions(embeddings, index, attributes, NAMES, MARGIN)
    expected = plain(embeddings, index, MARGIN)
    assert list(scores) == ["class", "closure", "heel"]
    for number, name in enumerate(NAMES):
        mine = [one for one, attribute in zip(expected, attributes.tolist(), strict=True) if attribute == number]
        if mine:
            assert scores[name].correct.tolist() == [correct for correct, _ in mine]
            assert scores[name].loss.tolist() == pytest.approx([loss for _, loss in mine], abs=1e-7)

    summary = summarise_triplets(scores)
    assert summary["triplets"] == 101
    assert summary["triplet_accuracy"] == pytest.approx(sum(correct for correct, _ in expected) / 101)
    assert summary["triplet_loss"] == pytest.approx(sum(loss for _, loss in expected) / 101, abs=1e-7)
    heel = [one for one, attribute in zip(expected, attributes.tolist(), strict=True) if attribute == 3]
    assert summary["triplet_accuracy/heel"] == pytest.approx(sum(correct for correct, _ in heel) / len(heel))
    assert summary["triplet_loss/heel"] == pytest.approx(sum(loss for _, loss in heel) / len(heel), abs=1e-7)
    assert not {name for name in summary if "never asked" in name}


def test_the_loss_is_the_one_that_is_trained() -> None:
    embeddings, index, _ = case()
    anchor, positive, negative = embeddings[index].unbind()
    trained = triplet_ranking(agman.cosine(anchor, positive), agman.cosine(anchor, negative), MARGIN)
    scores = score_triplets(anchor, positive, negative, MARGIN)
    assert float(scores.loss.mean()) == pytest.approx(float(trained), abs=1e-6)


def test_by_hand() -> None:
    anchor = torch.tensor([[1.0, 0.0]] * 4)
    positive = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.8, 0.6]])
    negative = torch.tensor([[0.6, 0.8], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    scores = score_triplets(anchor, positive, negative, margin=0.5)
    assert scores.correct.tolist() == [True, False, False, True]  # right, a tie, wrong, right
    assert scores.loss.tolist() == pytest.approx([0.1, 0.5, 1.5, 0.0], abs=1e-7)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score_conditions(*case(), NAMES, MARGIN)
    monkeypatch.setattr(triplet_metrics, "CHUNK", 13)
    cut = score_conditions(*case(), NAMES, MARGIN)
    for name, one in whole.items():
        assert torch.equal(one.correct, cut[name].correct) and torch.equal(one.loss, cut[name].loss)


def test_what_cannot_be_scored_is_refused() -> None:
    embeddings, index, attributes = case()
    with pytest.raises(ValueError, match="no triplets"):
        summarise_triplets({})
    with pytest.raises(ValueError, match="with B >= 1"):
        score_conditions(embeddings, index[:, :0], attributes[:0], NAMES)
    embeddings[int(index[1, 5])] = torch.nan
    with pytest.raises(ValueError, match="must be finite"):
        score_conditions(embeddings, index, attributes, NAMES)
