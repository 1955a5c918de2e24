"""The rule of promotion, as a function of scores; see promotion.py."""

from __future__ import annotations

from dataclasses import dataclass

from agman.bootstrap import Difference, paired_differences
from pipeline.evaluation.chance import Scores, evidence
from pipeline.evaluation.few import is_few


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison of scores."""

    better: bool
    reason: str
    differences: dict[str, Difference]
    """Attribute -> challenger minus champion; over all queries under "". Empty without a champion."""


def judge(champion: Scores | None, challenger: Scores, tolerance: float, seed: int = 0) -> Verdict:
    """Decide whether the challenger beats chance and, if there is one, the champion.

    Both models' scores are of the same queries in the same order. Raises ValueError if the queries differ.
    """
    differences = paired_differences(champion.of, challenger.of, seed) if champion else {}
    found = evidence(challenger)
    if found.doubt:
        return Verdict(False, found.doubt, differences)
    if not champion:
        above = f"{100 * (found.score - found.chance):+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
        return Verdict(True, f"there was no champion, and it is above chance by {above}", {})
    total = differences[""]
    interval = f"{100 * total.mean:+.2f} [{100 * total.low:+.2f}, {100 * total.high:+.2f}]"
    most = f"{100 * tolerance:.2f}"
    # An attribute with few queries falls by chance with almost every training: it has to fall beyond noise.
    falls = {
        name: one.high if is_few(len(challenger.of[name])) else one.mean for name, one in differences.items() if name
    }
    worst = min(falls, key=lambda name: falls[name])
    if falls[worst] < -tolerance:
        return Verdict(False, f"{worst} falls by {-100 * differences[worst].mean:.2f}, more than {most}", differences)
    if not total.beyond_noise:
        return Verdict(False, f"the gain {interval} is not beyond noise", differences)
    return Verdict(True, f"better by {interval}, and no attribute falls by more than {most}", differences)
