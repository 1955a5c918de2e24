"""Learning rate and its decay, batch size, bound on the gradient.

Why: the published recipe (1e-4, times 0.9 every 3 epochs, batches of 16, no bound) comes without a comparison, and the
best rate depends on the batch, so they vary together. Expected cost: one training each, with the same arithmetic
whatever is drawn; small batches keep a GPU less busy. Memory grows with the batch: for ResNet-50 in fp32 the
activations of a triplet take 0.27 GB, so 64 take 17 GB (about half in bf16). For five settings, plan 30 to 40 trials.
High rates may lead early and be overtaken: give a study enough epochs before it stops trials.
"""

from __future__ import annotations

from optuna import Trial

START = {"lr": 1e-4, "lr_decay": 0.9, "lr_decay_epochs": 3, "batch_size": 16, "clip_norm": None}
"""The paper's setting; always trial 0."""


def space(trial: Trial) -> None:
    """Suggest values for keys of pipeline.config.schema.TrainConfig."""
    learning_rate(trial)
    trial.suggest_float("lr_decay", 0.7, 1.0)
    trial.suggest_int("lr_decay_epochs", 1, 10)
    trial.suggest_int("batch_size", 8, 64, log=True)
    trial.suggest_categorical("clip_norm", [None, 1.0, 10.0])


def learning_rate(trial: Trial) -> None:
    """Suggest Adam's learning rate.

    The published rate is 1e-4, from pretrained weights; the preset `demo` takes 1e-3, from random weights.
    """
    trial.suggest_float("lr", 3e-5, 3e-3, log=True)
