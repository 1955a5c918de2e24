"""The paper's recipe: margin of the triplet loss, learning rate, and the classification loss's weight.

Why: the paper sets the margin to 0.2 "empirically" and learns the weights; both decide how hard the
ranking loss pulls beside branch 1. Expected cost: one training each; most is decided in a third of the
epochs, so early stopping saves about half of the work. For three settings, plan 20 trials. The weight
has an effect with loss_weighting=fixed, the default.

Importance: not measured with this recipe. In balanced batches, with semi-hard triplets, the margin changes 0.1 points
of MAP (docs/tuning.md).
"""

from __future__ import annotations

from optuna import Trial

START = {"margin": 0.2, "lr": 1e-4, "class_weight": 1.0}
"""The paper's setting; always trial 0."""


def space(trial: Trial) -> None:
    """Suggest values for keys of pipeline.config.schema.TrainConfig."""
    trial.suggest_float("margin", 0.05, 0.6)
    trial.suggest_float("lr", 3e-5, 3e-3, log=True)
    trial.suggest_float("class_weight", 0.1, 3.0, log=True)
