"""The losses, one file each, and their weighted sum (paper, section 3.5, equations 7-9)."""

from agman.losses.all_pairs import PAIR_LOSSES, pair_loss, semi_hard_triplet
from agman.losses.classification import attribute_type_bce, labelled_types_bce
from agman.losses.pairs import Pairs, pairs_among
from agman.losses.proxies import PROXY_LOSSES, ValueProxies
from agman.losses.triplet import cosine, cosines, triplet_ranking
from agman.losses.weighting import WEIGHTINGS, LossWeights

__all__ = [
    "PAIR_LOSSES",
    "PROXY_LOSSES",
    "WEIGHTINGS",
    "LossWeights",
    "Pairs",
    "ValueProxies",
    "attribute_type_bce",
    "cosine",
    "cosines",
    "labelled_types_bce",
    "pair_loss",
    "pairs_among",
    "semi_hard_triplet",
    "triplet_ranking",
]
