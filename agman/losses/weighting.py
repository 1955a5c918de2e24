"""How the two losses add up (paper, equation 9)."""

import math

import torch
from torch import Tensor, nn

WEIGHTINGS = ("fixed", "learned", "published")


class LossWeights(nn.Module):
    """Equation 9: L = w0·L_class + w1·L_triplet.

    mode "fixed":     the two weights given.
    mode "learned":   exp(-s)·L + s for either loss, s = S·tanh(t/S), S = 5, t learned from 0.
    mode "published": 0.5·exp(s)·L + s for either loss, s = 1, frozen: weights of 0.5e ≈ 1.359, and 2 on top.

    The learned form is Kendall, Gal & Cipolla's (CVPR 2018), without their factor 1/2; their s is our t. Its minimum
    lies at s = log L, and a triplet loss reaches exactly 0: with s free, it would fall without end and the weight
    exp(-s) with it grow past any number. So s is bounded, the total is above -2S for losses of 0 and more, and
    s = log L is in reach for L from 0.01 to 100. Near 0, s is t.

    The published form is for reproducing: its sign is wrong (no lower bound in s), and as its s is in no optimizer,
    it stays where it starts.

    Without branch 1 there is one loss, and neither of the two forms has anything to weigh: it comes back as it is.
    Raises ValueError for an unknown mode or negative weights.
    """

    BOUND = 5.0
    """S."""
    FARTHEST = 2 * BOUND
    """|t| is held within this. Farther out tanh is flat, and in float32 t would never find back."""
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
        """s = S·tanh(t/S)."""
        return cls.BOUND * torch.tanh(t / cls.BOUND)

    def _learned(self, t: Tensor, loss: Tensor) -> Tensor:
        with torch.no_grad():
            t.clamp_(-self.FARTHEST, self.FARTHEST)
        s = self.bounded(t)
        return torch.exp(-s) * loss + s

    def _published(self, loss: Tensor) -> Tensor:
        return 0.5 * math.exp(self.PUBLISHED_S) * loss + self.PUBLISHED_S
