"""Helpers against rounding: in low precision, and in sums whose order a library chooses."""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6
LONGEST = 2.0**63
"""Upper bound of an embedding's length: the product of two that reach it would be infinite in float32."""


def at_least_float32(x: Tensor) -> Tensor:
    """Convert bfloat16 and float16 to float32; return float32 and float64 unchanged."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def unit(x: Tensor) -> Tensor:
    """Return x / max(‖x‖, ε) over the last axis, in at least float32. Zero stays zero (published code: NaN)."""
    return F.normalize(at_least_float32(x), dim=-1, eps=EPSILON)


def on_grid(name: str, embeddings: Tensor) -> Tensor:
    """Round every row to integer multiples of about 2^-26 of its length, in float64: dot products are then exact.

    With 2^e the power of two above 1.5·‖x‖, the grid is 2^(e-27). A product of two rows' entries is then an
    integer multiple of 2^(e+e'-54), and by Cauchy-Schwarz no partial sum exceeds 2^(e+e')/2.25 < 2^53 such steps:
    float64 holds every one exactly, in whatever order a matrix product adds them. The rounding itself changes a cosine
    by a few 1e-9. The factor 1.5 keeps unit lengths, which scatter about 1, away from a power of two.

    Raises ValueError, with `name` in it, if a row holds NaN or infinity, or is as long as LONGEST.
    """
    rows = embeddings.double()
    length = 1.5 * torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rankable = length[:, 0] < LONGEST  # false for NaN
    if not bool(rankable.all()):
        raise ValueError(
            f"{name} must be finite; row {int((~rankable).nonzero()[0])} holds NaN, infinity or as good as"
        )
    power = length / torch.frexp(length).mantissa  # exactly 2^e
    step = torch.where(length > 0, power, torch.ones_like(power)) * 2.0**-27
    return rows.div(step).round_().mul_(step)
