"""The rule of promotion, and the model card."""

from __future__ import annotations

import re

import pytest
from support.scores import first_of, scores

from pipeline.evaluation.chance import FEWEST, Scores, chance_beside, evidence, evidence_in
from pipeline.evaluation.few import FEW
from pipeline.registry import model_card
from pipeline.registry.judgement import judge


@pytest.mark.parametrize(
    ("challenger", "better", "reason"),
    [
        (scores(gain=0.02), True, r"better by \+2\.00 \[\+2\.00, \+2\.00\], and no attribute falls by more than 1\.00"),
        (scores(gain=0.02, fall=0.025), True, "better by"),  # the second attribute loses 0.5 points
        (scores(gain=0.02, fall=0.035), False, r"skirt falls by 1\.50, more than 1\.00"),
        (scores(), False, "is not beyond noise"),
        (scores(gain=0.002, noise=0.2), False, "is not beyond noise"),
        (scores(gain=-0.005), False, "is not beyond noise"),
        (scores(gain=0.02, chance=0.27), False, r"^at chance: MAP 26\.\d\d, chance 27\.00, and the difference \["),
    ],
)
def test_the_verdict(challenger: Scores, better: bool, reason: str) -> None:
    verdict = judge(scores(), challenger, tolerance=0.01)
    assert verdict.better == better and re.search(reason, verdict.reason), verdict.reason
    assert list(verdict.differences) == ["collar", "skirt", ""]


def test_an_attribute_with_few_queries_has_to_fall_beyond_noise() -> None:
    noisy, plain = scores(gain=0.02, noise=0.1), scores(gain=0.04)
    assert len(plain.of["skirt"]) < FEW <= len(plain.of["collar"])
    for fall, better in ((0.04, True), (0.2, False)):
        challenger = Scores("MAP", plain.of | {"skirt": noisy.of["skirt"] - fall}, plain.chance)
        verdict = judge(scores(), challenger, tolerance=0.01)
        assert verdict.differences["skirt"].mean < -0.01 and verdict.better == better, verdict.reason


def test_scores_of_different_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="the same queries"):
        judge(scores(), first_of(scores(), 7), tolerance=0.01)


@pytest.mark.parametrize(
    ("challenger", "better", "reason"),
    [
        (scores(), True, r"there was no champion, and it is above chance by \+1\d\.\d\d \["),
        (scores(chance=0.25), False, "^at chance: MAP 24"),
        (first_of(scores(), FEWEST // 2 - 1), False, rf"^too few queries .* noise: {2 * (FEWEST // 2 - 1)}, at least"),
        (first_of(scores(), FEWEST // 2), True, "above chance"),
    ],
)
def test_the_first_champion_has_to_beat_chance(challenger: Scores, better: bool, reason: str) -> None:
    verdict = judge(None, challenger, tolerance=0.01)
    assert verdict.better == better and re.search(reason, verdict.reason), verdict.reason
    assert verdict.differences == {}


def test_evidence_is_read_back_from_metrics() -> None:
    found = evidence(scores())
    metrics = {
        "valid/map": found.score,
        "valid/chance": found.chance,
        "valid/chance/collar": 0.2,
        "valid/chance/skirt": 0.4,
    }
    metrics |= {"valid/above_chance_low": found.low, "valid/above_chance_high": found.high}
    assert evidence_in(metrics, "valid", 250) == found
    assert evidence_in({"valid/map": 0.3}, "valid", 250) is None
    expected = {"map": found.chance, "map/collar": 0.2, "map_macro": 0.3, "map_at_r": None, "triplet_accuracy": 0.5}
    assert {name: chance_beside(f"valid/{name}", metrics) for name in expected} == pytest.approx(expected)


def test_a_card_escapes_markup_in_names() -> None:
    description = {"attributes": ["a|b", "<img src=x>"], "image_size": 32, "training": {"weights": "IMAGENET1K_V1"}}
    build = {"name": "agman", "backbone": "resnet50", "embedding_dim": 8}
    card = model_card.write_card("agman-x", build, description, {}, {})
    assert "a\\|b" in card and "<img" not in card and "ImageNet" not in card and "IMAGENET1K_V1" in card
    card = model_card.write_card("agman-x", build, description | {"initial_weights": "ra_in1k"}, {}, {})
    assert "started from the weights `ra_in1k`" in card
    long = card + "line\n" * 3_000
    assert len(model_card.as_description(long)) <= model_card.DESCRIPTION_LENGTH
