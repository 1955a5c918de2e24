"""AG-MAN, the attribute-guided multi-level attention network for fashion retrieval, in plain PyTorch.

>>> import torch, agman
>>> model = agman.build("agman", n_attributes=8, backbone="resnet18", embedding_dim=64).eval()
>>> images = torch.randn(2, 3, 64, 64)                         # normalised, any size from 32 pixels
>>> embedding, logits = model(images, torch.tensor([0, 5]))    # each image under one attribute
>>> everything = model.embed_all(images)                       # under all attributes, one pass of the backbone
>>> embedding.shape, everything.shape
(torch.Size([2, 64]), torch.Size([2, 8, 64]))

Start reading with `model.py` (the model), `attention.py` (equations 1-6), `losses/` (7-9), `stepping.py` and
`loop.py` (a step, an epoch) and `metrics.py`. The systems that it is compared with are `csn.py`, `asenet.py`,
`asenet_v2.py`, `attnfashion.py` and `isln.py`. Names that are not exported here are imported from their modules.
"""

from agman.base import RetrievalModel
from agman.checkpoint import CheckpointError, load_model, save_model
from agman.engine import Batch, LabelBatch
from agman.export import export_onnx, save_program
from agman.loop import embed_dataset, rank_candidates, train_epoch
from agman.losses import LossWeights, cosine
from agman.metrics import retrieval, summarise
from agman.model import AGMAN
from agman.objective import LabelObjective, TripletObjective
from agman.optimizer import build_optimizer
from agman.pixels import Pixels, normalise
from agman.published import load_published
from agman.registry import MODELS, build
from agman.stepping import Stepper
from agman.trained import HeatMap, TrainedModel, load

__all__ = [
    "AGMAN",
    "MODELS",
    "Batch",
    "CheckpointError",
    "HeatMap",
    "LabelBatch",
    "LabelObjective",
    "LossWeights",
    "Pixels",
    "RetrievalModel",
    "Stepper",
    "TrainedModel",
    "TripletObjective",
    "build",
    "build_optimizer",
    "cosine",
    "embed_dataset",
    "export_onnx",
    "load",
    "load_model",
    "load_published",
    "normalise",
    "rank_candidates",
    "retrieval",
    "save_model",
    "save_program",
    "summarise",
    "train_epoch",
]
