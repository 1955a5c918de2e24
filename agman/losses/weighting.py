"""The weighted sum of the two losses (paper, equation 9)."""

import math

import torch
from torch import Tensor, nn

WEIGHTINGS = ("fixed", "learned", "published")


class LossWeights(nn.Module):
    """Equation 9: L = w0·L_class + w1·L_triplet.

    mode "fixed":     the two weights given.
    mode "learned":   exp(-s)·L + s for either loss, s = S·tanh(t/S), S = 5, t learned from 0.
    mode "published": 0.5·exp(s)·L + s for either loss, s = 1, frozen: weights of 0.5e ≈ 1.359, plus a constant of 2.

    The learned form is Kendall, Gal & Cipolla's (CVPR 2018), without their factor 1/2; their s is our t. Its minimum is
    at s = log L, and a triplet loss reaches exactly 0: an unbounded s would fall without end, and the weight exp(-s)
    would grow without end. With s bounded, the total is above -2S for losses of 0 and more, and s = log L can be
    reached for L from 0.01 to 100. Near 0, s is t.

    The published form is for reproduction. Its sign is wrong (it has no lower bound in s), and as the published code
    gives s to no optimizer, s keeps its first value.

    Without branch 1 there is one loss, which the learned and the published form return unchanged. Raises ValueError if
    the mode is unknown or a weight is negative.
    """

    BOUND = 5.0
    """S."""
    FARTHEST = 2 * BOUND
    """Largest |t|. Beyond it tanh is flat, and in float32 t would never return."""
    PUBLISHED_S = 1.0

    def __init__(self, mode: str = "fixed", w_triplet: float = 1.0, w_class: float = 1.0):
        super().__init__()
        if mode not in WEIGHTINGS:
            raise ValueError(f"loss weights must be one of {', '.join(WEIGHTINGS)}, not {mode!r}")
        if min(w_triplet, w_class) < 0:
            raise ValueError(f"loss weights must not be negative: w_triplet {w_triplet}, w_class {w_class}")
        self.mode = mode
        self.w_triplet = w_triplet
        self.w_class = w_class
        if mode == "learned":
            self.t_triplet = nn.Parameter(torch.zeros(()))
            self.t_class = nn.Parameter(torch.zeros(()))

    def forward(self, loss_triplet: Tensor, loss_class: Tensor | None) -> Tensor:
        """Return the weighted sum; loss_class is None without branch 1."""
        if self.mode == "fixed":
            weighted = self.w_triplet * loss_triplet
            return weighted if loss_class is None else weighted + self.w_class * loss_class
        if loss_class is None:
            return loss_triplet
        if self.mode == "published":
            return self._published(loss_triplet) + self._published(loss_class)
        return self._learned(self.t_triplet, loss_triplet) + self._learned(self.t_class, loss_class)

    @classmethod
    def bounded(cls, t: Tensor) -> Tensor:
        """Return s = S·tanh(t/S)."""
        return cls.BOUND * torch.tanh(t / cls.BOUND)

    def _learned(self, t: Tensor, loss: Tensor) -> Tensor:
        with torch.no_grad():
            t.clamp_(-self.FARTHEST, self.FARTHEST)
        s = self.bounded(t)
        return torch.exp(-s) * loss + s

    def _published(self, loss: Tensor) -> Tensor:
        return 0.5 * math.exp(self.PUBLISHED_S) * loss + self.PUBLISHED_S
