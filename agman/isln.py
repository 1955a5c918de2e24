"""ISLN: iterative similarity learning network (Yan, Yan, Zhang, Wan & Zhu, ICME 2022): an interpretation.

There is no public code, and the article's equations were not available. Sources of the interpretation:

- its title: "Attribute-guided fashion image retrieval by iterative similarity learning";
- AG-MAN's section 1: "employed an iterative learning manner to make up for the shortcomings of the traditional
  attention mechanism, resulting in a more accurate attribute positioning";
- AG-MAN's section 2.2: "employed an iterative learning manner to the channel attention module for a more accurate
  attribute positioning".

Hence: channel attention guided by the attribute, in several rounds. The attended feature of one round guides the next,
and the attention over positions is computed anew for each guide. The article fuses feature and guide by more than a
concatenation. How they are fused (both added and multiplied) and the number of rounds are ours. Results of this model
say little about the published one.

Shape suffixes: B images, A attributes of each, N attributes known, D embedding width, C channels,
J width of the joint space, S positions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agman.attention import sum_over_positions
from agman.backbone import Backbone
from agman.base import RetrievalModel
from agman.numerics import at_least_float32, unit
from agman.weights import Weights

JOINT = 512


class ISLN(RetrievalModel):
    """`rounds` rounds of attention over the backbone's map x; the attribute's embedding guides the first, g_1 = e_a.

        map_t     = softmax_positions((W_q g_t)·tanh(BN(W_k x)) / √512)
        x_t       = Σ_positions map_t·x
        f_t       = ReLU([W_f x_t + W_g g_t,  W_f x_t * W_g g_t])
        v_t       = σ(W_2 f_t) * x_t
        g_{t+1}   = LayerNorm(g_t + W_v v_t)
        embedding = unit(W v_rounds)

    The layers are the same in every round.

    Args:
        n_attributes, embedding_dim, backbone, weights, stride: those of `AGMAN`; the width of 1024 is ASENet's.
        rounds: at least 1.
    """

    def __init__(
        self,
        n_attributes: int,
        embedding_dim: int = 1024,
        backbone: str = "resnet50",
        weights: Weights = None,
        stride: int = 16,
        rounds: int = 3,
    ):
        super().__init__(n_attributes, embedding_dim, name="isln", backbone=backbone, rounds=rounds)
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {rounds}")
        self.rounds = rounds
        self.backbone = Backbone(backbone, weights, stride)
        channels = self.backbone.channels
        self.embedding = nn.Embedding(n_attributes, JOINT)
        self.query = nn.Linear(JOINT, JOINT)
        self.key = nn.Conv2d(channels, JOINT, 1, bias=False)  # batch norm would remove a bias
        self.norm = nn.BatchNorm2d(JOINT)
        self.feature = nn.Linear(channels, JOINT)
        self.guide = nn.Linear(JOINT, JOINT)
        self.gate = nn.Linear(2 * JOINT, channels)
        # A single round guides no next one, and layers without a gradient would break DDP.
        self.next = nn.Linear(channels, JOINT) if rounds > 1 else None
        self.next_norm = nn.LayerNorm(JOINT) if rounds > 1 else None
        self.project = nn.Linear(channels, embedding_dim)

    def maps(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the last round's map, B×A×S."""
        return self._iterate(x_bchw, attributes_ba)[0]

    def embed(self, x_bchw: Tensor, attributes_ba: Tensor) -> Tensor:
        """Return the embeddings, B×A×D, unit length."""
        return unit(self.project(self._iterate(x_bchw, attributes_ba)[1]))

    def _iterate(self, x_bchw: Tensor, attributes_ba: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last round's map B×A×S and attended feature v, B×A×C."""
        key_bjs = torch.tanh(self.norm(self.key(x_bchw))).flatten(2)
        guide_baj = self.embedding.weight[attributes_ba]
        map_bas, v_bac = self._round(x_bchw, key_bjs, guide_baj)
        for _ in range(self.rounds - 1):
            assert self.next is not None and self.next_norm is not None
            guide_baj = self.next_norm(guide_baj + self.next(v_bac))
            map_bas, v_bac = self._round(x_bchw, key_bjs, guide_baj)
        return map_bas, v_bac

    def _round(self, x_bchw: Tensor, key_bjs: Tensor, guide_baj: Tensor) -> tuple[Tensor, Tensor]:
        query_baj = self.query(guide_baj)
        map_bas = at_least_float32(query_baj @ key_bjs / math.sqrt(JOINT)).softmax(-1)
        x_bac = sum_over_positions(map_bas, x_bchw)
        feature_baj, guided_baj = self.feature(x_bac), self.guide(guide_baj)
        fused = F.relu(torch.cat((feature_baj + guided_baj, feature_baj * guided_baj), dim=-1))
        return map_bas, torch.sigmoid(self.gate(fused)) * x_bac
