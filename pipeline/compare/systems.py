"""The systems that `agman compare` trains. Imports nothing heavy, so that the command line can check their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.errors import InputError

BASE = "agman"
"""System that the others are compared with."""


@dataclass(frozen=True)
class System:
    """A model with its settings, as a row of the table."""

    title: str
    settings: dict[str, Any]
    interpretation: bool = False
    """Whether the paper has neither public code nor equations."""
    trained: bool = True
    """Whether there is anything to train; pretrained features are only scored."""


SYSTEMS = {
    "pretrained": System("pretrained features", {"model": "agman"}, trained=False),
    "csn": System("CSN", {"model": "csn"}),
    "asenet_v2": System("ASENet_V2", {"model": "asenet_v2"}),
    "attnfashion": System("AttnFashion", {"model": "attnfashion"}, interpretation=True),
    "isln": System("ISLN", {"model": "isln"}, interpretation=True),
    BASE: System("AG-MAN", {"model": "agman"}),
    "no_multi_level": System("without multi-level features", {"model": "agman", "without": "multi_level"}),
    "no_classification": System("without branch 1", {"model": "agman", "classify": False}),
    "no_asa": System("without ASA", {"model": "agman", "without": "asa"}),
    "no_sa": System("without SA", {"model": "agman", "without": "sa"}),
    "no_aca": System("without ACA", {"model": "agman", "without": "aca"}),
    "no_mask": System("without the mask", {"model": "agman", "without": "mask"}),
}
"""Systems in the order of the papers' tables."""


def refuse_own(settings: Sequence[str]) -> None:
    """Raise InputError if a KEY=VALUE sets what a comparison varies."""
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if key in ("model", "without", "classify", "seed"):
            raise InputError(
                f"{setting}: is what a comparison varies; leave it out, and choose by --system and --seeds"
            )
