"""Everything that `recipe`, `batches`, `losses` and `embedding` vary, except for the network.

Why: settings interact (a larger batch bears a larger rate, a narrow embedding another margin), and spaces searched one
after the other miss it. The network stays: the best rates belong to it. Expected cost: one training each, 1.0 times the
time of the preset's setting, memory up to twice. Twenty settings need many trials: plan 100. With less to spend, take
`recipe`. Take it with `--preset strong`.

Measured importance, in points of MAP between a setting's best and worst value (docs/tuning.md, short trainings):
embedding_dim 4.8, batch_size 3.6, lr 2.8, images_per_value 2.0, batch_norm 1.9, proxy_loss 1.8, schedule 1.7,
backbone_lr_scale 1.3, sa_kernel and class_weight 1.1; all others less than 1, the margin least (0.1).
"""

from __future__ import annotations

from optuna import Trial

from tune_spaces import batches, embedding, losses, recipe

START = {
    **recipe.START,
    **batches.START,
    **losses.START,
    **{key: value for key, value in embedding.START.items() if key != "backbone"},
}
"""The preset's setting; always trial 0."""


def space(trial: Trial) -> None:
    """Suggest values for keys of pipeline.config.schema.TrainConfig."""
    recipe.space(trial)
    batches.sizes(trial)
    losses.space(trial)
    embedding.sizes(trial)
