"""Recipes by name, for `agman train --preset NAME`: the published ones with their published score, and ours.

The published recipes (paper, section IV; the published code where the paper is silent) are Adam at 1e-4, times 0.9
every 3 epochs, batches of 16 triplets, margin 0.2, images of 224 pixels, a ResNet-50 that starts from ImageNet's
weights. 100,000 triplets are drawn for every epoch: prepare with `--epochs 50`, or training repeats fewer epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_prep.errors import InputError
from data_prep.hints import nearest

PUBLISHED = {
    "model": "agman",
    "backbone": "resnet50",
    "weights": "IMAGENET1K_V1",
    "embedding_dim": 512,
    "image_size": 224,
    "batch_size": 16,
    "epochs": 50,
    "margin": 0.2,
    "lr": 1e-4,
    "lr_decay": 0.9,
    "lr_decay_epochs": 3,
    # The published code means to learn the weights, but no optimizer holds them: both stay at 0.5e.
    "loss_weighting": "published",
    "precision": "fp32",
}


@dataclass(frozen=True)
class Preset:
    """Settings with a description."""

    about: str
    """Description: the recipe, its requirements and the expected score."""
    settings: dict[str, Any]


PRESETS = {
    "paper-fashionai": Preset(
        "AG-MAN on FashionAI as published: test MAP 62.88 (final version of the paper). The published code's default "
        "for this dataset is 150 epochs (epochs=150). Data: agman prep fashionai --triplets 100000 --epochs 50",
        PUBLISHED,
    ),
    "paper-deepfashion": Preset(
        "AG-MAN on DeepFashion as published: test MAP 8.98 (final version of the paper). "
        "Data: agman prep deepfashion --triplets 100000 --epochs 50",
        PUBLISHED,
    ),
    "paper-zappos50k": Preset(
        "AG-MAN on Zappos50k as published, without the classification: triplet accuracy 93.32 % on test "
        "(final version of the paper). Data: agman prep zappos50k with CSN's triplet lists, all 200,000 a condition",
        PUBLISHED | {"classify": False},
    ),
    "strong": Preset(
        "ours for photographs: balanced batches of all labels, a pretrained network, AdamW with a cosine; "
        "see docs/quality.md for what it reaches beside the published recipe. Data: any with labels",
        {
            "backbone": "tf_efficientnet_lite0",
            "weights": "auto",
            "stride": 32,
            "embedding_dim": 512,
            "batches": "balanced",
            "batch_size": 48,
            "images_per_value": 4,
            "epochs": 8,
            "pair_loss": "supervised_contrastive",
            "temperature": 0.1,
            "proxy_weight": 1.0,
            "label_smoothing": 0.1,
            "optimizer": "adamw",
            "lr": 2e-3,
            "backbone_lr_scale": 0.25,
            "schedule": "cosine",
            "warmup": 0.1,
            "batch_norm": "frozen",
        },
    ),
}


def find_preset(name: str) -> Preset:
    """Return the preset of this name. Raises InputError for an unknown one, naming the nearest."""
    if name not in PRESETS:
        raise InputError(f"--preset {name}: no such preset; {nearest(name, PRESETS)}")
    return PRESETS[name]
