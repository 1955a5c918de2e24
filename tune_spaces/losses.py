"""Losses of balanced batches: over pairs, on proxies, of branch 1, and their weights.

Why: temperature and margin decide which pairs count, proxies what rare values learn, and the weights how much branch 1
has to say. The loss over pairs keeps its weight of 1: a factor on the whole loss means nothing to Adam, only the
losses' shares do. Expected cost: one training each, 1.0 times the time of the preset's setting whatever is drawn. For
six settings, plan 30 trials. Take it with `--preset strong`.

Measured importance, in points of MAP between a setting's best and worst value (docs/tuning.md, short trainings):
proxy_loss 1.8, class_weight 1.1 (the less the better), pair_loss, temperature and label_smoothing 0.4,
proxy_weight 0.2, margin 0.1.
"""

from __future__ import annotations

from optuna import Trial

START = {
    "pair_loss": "supervised_contrastive",
    "temperature": 0.1,
    "proxy_weight": 1.0,
    "proxy_loss": "softmax",
    "label_smoothing": 0.1,
    "class_weight": 1.0,
}
"""The preset's setting; always trial 0."""


def space(trial: Trial) -> None:
    """Suggest values for keys of pipeline.config.schema.TrainConfig."""
    pair_loss(trial)
    trial.suggest_float("proxy_weight", 0.0, 2.0, step=0.25)  # steps, so that none at all is drawn too
    trial.suggest_categorical("proxy_loss", ["softmax", "anchor"])
    trial.suggest_float("label_smoothing", 0.0, 0.2)
    trial.suggest_float("class_weight", 0.0, 2.0)


def pair_loss(trial: Trial) -> None:
    """Suggest the loss over pairs, and `temperature` or `margin` if that loss has it."""
    losses = ["supervised_contrastive", "multi_similarity", "semi_hard_triplet"]
    chosen = trial.suggest_categorical("pair_loss", losses)
    if chosen == "supervised_contrastive":
        trial.suggest_float("temperature", 0.03, 0.5, log=True)
    if chosen == "semi_hard_triplet":
        trial.suggest_float("margin", 0.05, 0.6)
