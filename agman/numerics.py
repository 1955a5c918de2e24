"""Two small things that keep low precision harmless."""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6


def at_least_float32(x: Tensor) -> Tensor:
    """bfloat16 and float16 become float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def unit(x: Tensor) -> Tensor:
    """x / max(‖x‖, ε) over the last axis, in at least float32. Zero stays zero (published code: NaN)."""
    return F.normalize(at_least_float32(x), dim=-1, eps=EPSILON)
