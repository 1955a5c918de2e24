"""Masked embedding (paper, section 3.4): which dimensions of the embedding speak of an attribute.

Shape suffixes: B images, A attributes of each, N attributes known, D embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ELSEWHERE = 0.1


class MaskedEmbedding(nn.Module):
    """x * m_a with m = ReLU(β), β learned and N×D.

    β starts at 1 on the attribute's own block of D//N dimensions and at 0.1 elsewhere (the D mod N last
    dimensions are nobody's own). The paper's introduction calls the mask fixed; its section 3.4 and the code
    learn it.
    """

    def __init__(self, n_attributes: int, width: int):
        super().__init__()
        block = width // n_attributes
        if block == 0:
            raise ValueError(f"embedding_dim {width} is less than n_attributes {n_attributes}: no dimension for each")
        beta = torch.full((n_attributes, width), ELSEWHERE)
        for attribute in range(n_attributes):
            beta[attribute, attribute * block : (attribute + 1) * block] = 1.0
        self.beta = nn.Parameter(beta)

    def forward(self, x_bad: Tensor, attributes_ba: Tensor) -> Tensor:
        return x_bad * F.relu(self.beta)[attributes_ba]
