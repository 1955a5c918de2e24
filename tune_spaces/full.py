"""Everything that the other spaces vary: margin, loss weights, embedding and backbone, optimizer.

Why: settings interact (a larger batch bears a larger rate, a narrow embedding another margin), and spaces searched one
after the other miss it. Expected cost: one training each, 0.75 times the arithmetic of the paper's setting on average
when drawn evenly, because of the smaller ResNets; memory up to that of 64 triplets, see `optimizer`. Eleven or twelve
settings need many trials: plan 100 or more, the first ten of which a TPE sampler draws blindly. With less to spend,
take `margins` or `optimizer`. The limits that `loss_weights` and `embedding` state for datasets and models apply here.
"""

from __future__ import annotations

from optuna import Trial

from tune_spaces import embedding, loss_weights, margins, optimizer

START = {"margin": margins.START["margin"], **loss_weights.START, **embedding.START, **optimizer.START}
"""The paper's setting; always trial 0."""


def space(trial: Trial) -> None:
    """Suggest values for keys of pipeline.config.schema.TrainConfig."""
    margins.margin(trial)
    loss_weights.space(trial)
    embedding.space(trial)
    optimizer.space(trial)
