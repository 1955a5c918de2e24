"""AG-MAN, the attribute-guided multi-level attention network for fashion retrieval, in plain PyTorch.

>>> import torch, agman
>>> model = agman.build("agman", n_attributes=8, backbone="resnet18", embedding_dim=64).eval()
>>> images = torch.randn(2, 3, 64, 64)                         # normalised, any size from 32 pixels
>>> embedding, logits = model(images, torch.tensor([0, 5]))    # each image under one attribute
>>> everything = model.embed_all(images)                       # under all of them, one pass of the backbone
>>> embedding.shape, everything.shape
(torch.Size([2, 64]), torch.Size([2, 8, 64]))

Read `model.py` (the whole), `attention.py` (equations 1-6), `losses.py` (7-9), `engine.py` (a step),
`metrics.py`, `attention_score.py`.
"""

from agman.attention_score import attention_mass, pointing_hits
from agman.base import Output, RetrievalModel
from agman.batchnorm import GlobalBatchNorm2d, convert_batchnorm
from agman.checkpoint import CheckpointError, load_model, save_model
from agman.engine import (
    Batch,
    NonFiniteLoss,
    StepResult,
    build_optimizer,
    build_scheduler,
    embed_pairs,
    normalise,
    prepare,
    train_step,
)
from agman.losses import LossWeights, ValueProxies, attribute_type_bce, cosine, triplet_ranking
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
    triplet_accuracy,
)
from agman.model import AGMAN
from agman.objective import Losses, TripletObjective
from agman.registry import MODELS, build

__all__ = [
    "AGMAN",
    "MODELS",
    "Batch",
    "CheckpointError",
    "GlobalBatchNorm2d",
    "LossWeights",
    "Losses",
    "NonFiniteLoss",
    "Output",
    "Retrieval",
    "RetrievalModel",
    "StepResult",
    "TripletObjective",
    "ValueProxies",
    "attention_mass",
    "attribute_type_bce",
    "average_precision",
    "average_precision_at_r",
    "build",
    "build_optimizer",
    "build_scheduler",
    "chance_average_precision",
    "convert_batchnorm",
    "cosine",
    "embed_pairs",
    "load_model",
    "normalise",
    "pointing_hits",
    "precision_at",
    "prepare",
    "recall_at",
    "retrieval",
    "save_model",
    "similarities",
    "summarise",
    "train_step",
    "triplet_accuracy",
    "triplet_ranking",
]
