"""AG-MAN, the attribute-guided multi-level attention network for fashion retrieval, in plain PyTorch.

>>> import torch, agman
>>> model = agman.build("agman", n_attributes=8, backbone="resnet18", embedding_dim=64).eval()
>>> images = torch.randn(2, 3, 64, 64)                         # normalised, any size from 32 pixels
>>> embedding, logits = model(images, torch.tensor([0, 5]))    # each image under one attribute
>>> everything = model.embed_all(images)                       # under all of them, one pass of the backbone
>>> embedding.shape, everything.shape
(torch.Size([2, 64]), torch.Size([2, 8, 64]))

Read `model.py` (the whole), `attention.py` (equations 1-6), `losses/` (7-9), `stepping.py` and `loop.py`
(a step, an epoch), `metrics.py`, `triplet_metrics.py`, `attention_score.py`, `bootstrap.py`. The systems it is
compared with: `csn.py`, `asenet.py`, `asenet_v2.py`, `attnfashion.py`, `isln.py`.
"""

from agman.asenet import ASENet
from agman.asenet_v2 import ASENetV2
from agman.attention_score import attention_mass, pointing_hits
from agman.attnfashion import AttnFashion
from agman.base import Output, RetrievalModel
from agman.batchnorm import convert_batchnorm
from agman.bootstrap import Difference, Interval, intervals, paired_differences
from agman.checkpoint import CheckpointError, load_model, save_model
from agman.csn import CSN, csn_loss
from agman.engine import Batch, embed_batches, normalise, prepare
from agman.export import Exported, ExportError, export_onnx, export_program, save_program
from agman.isln import ISLN
from agman.loop import Prefetcher, RunningMeans, embed_dataset, on_device, pinned, rank_candidates, train_epoch
from agman.losses import (
    LossWeights,
    Pairs,
    ValueProxies,
    attribute_type_bce,
    cosine,
    cosines,
    info_nce,
    mine,
    pairs_of_anchors,
    triplet_ranking,
)
from agman.memory import keep_freed_memory
from agman.metrics import (
    Retrieval,
    average_precision,
    average_precision_at_r,
    chance_average_precision,
    precision_at,
    recall_at,
    retrieval,
    similarities,
    summarise,
)
from agman.model import AGMAN
from agman.objective import Losses, TripletObjective
from agman.published import load_published
from agman.registry import MODELS, build, options_of
from agman.stepping import NonFiniteLoss, Stepper, StepResult, build_optimizer, learning_rate
from agman.triplet_metrics import (
    TripletScores,
    score_conditions,
    score_triplets,
    summarise_triplets,
    triplet_accuracy,
)

__all__ = [
    "AGMAN",
    "CSN",
    "ISLN",
    "MODELS",
    "ASENet",
    "ASENetV2",
    "AttnFashion",
    "Batch",
    "CheckpointError",
    "Difference",
    "ExportError",
    "Exported",
    "Interval",
    "LossWeights",
    "Losses",
    "NonFiniteLoss",
    "Output",
    "Pairs",
    "Prefetcher",
    "Retrieval",
    "RetrievalModel",
    "RunningMeans",
    "StepResult",
    "Stepper",
    "TripletObjective",
    "TripletScores",
    "ValueProxies",
    "attention_mass",
    "attribute_type_bce",
    "average_precision",
    "average_precision_at_r",
    "build",
    "build_optimizer",
    "chance_average_precision",
    "convert_batchnorm",
    "cosine",
    "cosines",
    "csn_loss",
    "embed_batches",
    "embed_dataset",
    "export_onnx",
    "export_program",
    "info_nce",
    "intervals",
    "keep_freed_memory",
    "learning_rate",
    "load_model",
    "load_published",
    "mine",
    "normalise",
    "on_device",
    "options_of",
    "paired_differences",
    "pairs_of_anchors",
    "pinned",
    "pointing_hits",
    "precision_at",
    "prepare",
    "rank_candidates",
    "recall_at",
    "retrieval",
    "save_model",
    "save_program",
    "score_conditions",
    "score_triplets",
    "similarities",
    "summarise",
    "summarise_triplets",
    "train_epoch",
    "triplet_accuracy",
    "triplet_ranking",
]
