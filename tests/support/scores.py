"""Made-up scores of queries."""

from __future__ import annotations

import torch


def scores(gain: float = 0.0, fall: float = 0.0, noise: float = 0.0) -> dict[str, torch.Tensor]:
    """Return scores of 200 and 50 queries; all gain `gain`, the second attribute loses `fall`, both have `noise`."""
    generator = torch.Generator().manual_seed(0)
    base = [torch.rand(size, generator=generator, dtype=torch.float64) * 0.5 for size in (200, 50)]
    drawn = [torch.randn(size, generator=generator, dtype=torch.float64) for size in (200, 50)]
    first, second = (gain + noise * (one - one.mean()) for one in drawn)
    return {"collar": base[0] + first, "skirt": base[1] + second - fall}
