"""Masks over an embedding: which of its dimensions belong to an attribute.

Shape suffixes: B images, A attributes of each, N attributes known, D embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ELSEWHERE = 0.1
STARTS = ("own_block", "random", "fixed")


class MaskedEmbedding(nn.Module):
    """x * m_a with m = ReLU(β), β of shape N×D (AG-MAN's section 3.4; first in CSN, Veit et al., CVPR 2017).

    start:
        "own_block"  learned, from 1 on the attribute's own block of D//N dimensions and 0.1 elsewhere (the
                     last D mod N dimensions are in no block). AG-MAN's: its introduction calls the mask
                     fixed; its section 3.4 and the code learn it.
        "random"     learned, from N(0.9, 0.7): CSN's learned masks.
        "fixed"      1 on the attribute's own block, 0 elsewhere, never learned: CSN's disjoint masks.
    """

    def __init__(self, n_attributes: int, width: int, start: str = "own_block"):
        super().__init__()
        if start not in STARTS:
            raise ValueError(f"masks start as one of {', '.join(STARTS)}, not {start!r}")
        if width < n_attributes:
            raise ValueError(f"embedding_dim {width} is less than n_attributes {n_attributes}: no dimension for each")
        if start == "random":
            beta = torch.empty(n_attributes, width).normal_(0.9, 0.7)
        else:
            beta = own_blocks(n_attributes, width, elsewhere=ELSEWHERE if start == "own_block" else 0.0)
        self.beta = nn.Parameter(beta, requires_grad=start != "fixed")

    def forward(self, x_bad: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return x with each attribute's mask, B×A×D."""
        return x_bad * F.relu(self.beta)[attributes_ba]


def own_blocks(n_attributes: int, width: int, elsewhere: float) -> Tensor:
    """Return N×D: 1 on each attribute's own block of D//N dimensions, `elsewhere` on the others."""
    block = width // n_attributes
    beta = torch.full((n_attributes, width), elsewhere)
    for attribute in range(n_attributes):
        beta[attribute, attribute * block : (attribute + 1) * block] = 1.0
    return beta
