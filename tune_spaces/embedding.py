"""AG-MAN's size: width of the embedding, kernel of the spatial attention, depth of the ResNet under it.

Why: the published width is 512, without a comparison; equation 4 has a kernel of 1 and the code one of 7; and a
shallower ResNet may be what a small dataset or a fast service wants. Expected cost: the ResNet decides. Beside the
paper's ResNet-50, a training with ResNet-34 has 0.85 times the arithmetic and 0.4 times the activations in memory,
with ResNet-18 0.4 and 0.3 times; width 64 saves and 1024 adds up to 5 %, the kernel nothing. Trials drawn evenly
take 0.75 of a ResNet-50 training on average. For 60 combinations, plan 20 to 30 trials. Small networks may lead
early, which early stopping rewards. For model=agman; weights=auto fits all three ResNets, a file only one.
"""

from __future__ import annotations

from optuna import Trial

START = {"backbone": "resnet50", "embedding_dim": 512, "sa_kernel": 7}
"""The published code's setting; always trial 0."""


def space(trial: Trial) -> None:
    """Suggest values for keys of pipeline.config.schema.TrainConfig."""
    trial.suggest_categorical("backbone", ["resnet18", "resnet34", "resnet50"])
    # Not any number: in bf16, GPUs are made for widths that are multiples of 8.
    trial.suggest_categorical("embedding_dim", [64, 128, 256, 512, 1024])
    trial.suggest_int("sa_kernel", 1, 7, step=2)
