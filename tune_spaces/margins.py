"""Margin of the triplet loss, learning rate and the classification loss's weight.

Why: the paper sets the margin to 0.2 "empirically" and learns the weights; both decide how hard the
ranking loss pulls beside branch 1. Expected cost: one training each; most is decided in a third of the
epochs, so early stopping saves about half of the work. For three settings, plan 20 trials. The weight
has an effect with loss_weighting=fixed, the default.
"""

from __future__ import annotations

from optuna import Trial

from tune_spaces.loss_weights import class_weight
from tune_spaces.optimizer import learning_rate

START = {"margin": 0.2, "lr": 1e-4, "class_weight": 1.0}
"""The paper's setting; always trial 0."""


def space(trial: Trial) -> None:
    """Suggest values for keys of pipeline.config.schema.TrainConfig."""
    margin(trial)
    learning_rate(trial)
    class_weight(trial)


def margin(trial: Trial) -> None:
    """Suggest the margin, a difference of cosines."""
    trial.suggest_float("margin", 0.05, 0.6)
