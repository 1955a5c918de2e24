"""Balanced batches: images of a batch, images of a value, and the loss over their pairs.

Why: the more images of a value a batch has, the fewer values it compares; the loss and its temperature or margin decide
which of the pairs count. Expected cost: one training each, 1.0 times the arithmetic of the preset's setting whatever is
drawn, because an epoch has as many images; memory up to twice. For four settings, plan 20 to 30 trials. Take it with
`--preset strong`.

Measured importance, in points of MAP between a setting's best and worst value (docs/tuning.md, short trainings on
equally many pictures): batch_size 3.6, images_per_value 2.0, pair_loss and temperature 0.4, margin 0.1.
"""

from __future__ import annotations

from optuna import Trial

from tune_spaces import losses

START = {
    "batch_size": 48,
    "images_per_value": 4,
    "pair_loss": losses.START["pair_loss"],
    "temperature": losses.START["temperature"],
}
"""The preset's setting; always trial 0."""


def space(trial: Trial) -> None:
    """Suggest values for keys of pipeline.config.schema.TrainConfig."""
    sizes(trial)
    losses.pair_loss(trial)


def sizes(trial: Trial) -> None:
    """Suggest the images of a batch and those of a value."""
    trial.suggest_categorical("batch_size", [24, 48, 96])
    trial.suggest_categorical("images_per_value", [None, 2, 4, 8])
