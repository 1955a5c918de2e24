"""The losses, one file each, and their weighted sum (paper, section 3.5, equations 7-9)."""

from agman.losses.classification import attribute_type_bce
from agman.losses.info_nce import info_nce
from agman.losses.mining import MININGS, mine
from agman.losses.pairs import Pairs, pairs_of_anchors
from agman.losses.proxies import ValueProxies
from agman.losses.triplet import cosine, cosines, triplet_ranking
from agman.losses.weighting import WEIGHTINGS, LossWeights

__all__ = [
    "MININGS",
    "WEIGHTINGS",
    "LossWeights",
    "Pairs",
    "ValueProxies",
    "attribute_type_bce",
    "cosine",
    "cosines",
    "info_nce",
    "mine",
    "pairs_of_anchors",
    "triplet_ranking",
]
