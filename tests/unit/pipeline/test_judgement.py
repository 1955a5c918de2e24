"""The rule of promotion, and the model card."""

from __future__ import annotations

import re

import pytest
import torch
from support.scores import scores

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
    ],
)
def test_the_verdict(challenger: dict[str, torch.Tensor], better: bool, reason: str) -> None:
    verdict = judge(scores(), challenger, tolerance=0.01)
    assert verdict.better == better and re.search(reason, verdict.reason), verdict.reason
    assert list(verdict.differences) == ["collar", "skirt", ""]


def test_scores_of_different_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="the same queries"):
        judge(scores(), {"collar": torch.rand(7)}, tolerance=0.01)


def test_a_card_escapes_markup_in_names() -> None:
    description = {"attributes": ["a|b", "<img src=x>"], "image_size": 32, "training": {"weights": "IMAGENET1K_V1"}}
    build = {"name": "agman", "backbone": "resnet50", "embedding_dim": 8}
    card = model_card.write_card("agman-x", build, description, {}, {})
    assert "a\\|b" in card and "<img" not in card and "ImageNet" not in card and "IMAGENET1K_V1" in card
    long = card + "line\n" * 3_000
    assert len(model_card.as_description(long)) <= model_card.DESCRIPTION_LENGTH
