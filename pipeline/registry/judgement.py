"""The rule of promotion, as a function of scores; see promotion.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from agman.bootstrap import Difference, paired_differences

Scores = Mapping[str, Tensor]
"""Attribute -> score of each of its queries (AP) or triplets (1 if right)."""


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison of scores."""

    better: bool
    reason: str
    differences: dict[str, Difference]
    """Attribute -> challenger minus champion; over all queries under ""."""


def judge(champion: Scores, challenger: Scores, tolerance: float, seed: int = 0) -> Verdict:
    """Decide whether the challenger is better, from both models' scores of the same queries in the same order.

    Raises ValueError if the queries differ.
    """
    differences = paired_differences(champion, challenger, seed)
    total = differences[""]
    interval = f"{100 * total.mean:+.2f} [{100 * total.low:+.2f}, {100 * total.high:+.2f}]"
    worst = min((name for name in differences if name), key=lambda name: differences[name].mean)
    most = f"{100 * tolerance:.2f}"
    if differences[worst].mean < -tolerance:
        return Verdict(False, f"{worst} falls by {-100 * differences[worst].mean:.2f}, more than {most}", differences)
    if not total.beyond_noise:
        return Verdict(False, f"the gain {interval} is not beyond noise", differences)
    return Verdict(True, f"better by {interval}, and no attribute falls by more than {most}", differences)
