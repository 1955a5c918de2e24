"""Balanced batches and their losses: images of a value, the loss over pairs, proxies.

Why: the more images of a value a batch has, the fewer values it compares; temperature and margin decide which pairs
count, and proxies what rare values learn. Expected cost: one training each, 1.0 times the time of the preset's setting
whatever is drawn. For seven settings, plan 30 trials. Take it with `--preset strong`.
"""

from __future__ import annotations

from optuna import Trial

START = {
    "images_per_value": 4,
    "pair_loss": "supervised_contrastive",
    "temperature": 0.1,
    "proxy_weight": 1.0,
    "proxy_loss": "softmax",
    "label_smoothing": 0.1,
    "class_weight": 1.0,
}
"""The preset's setting; always trial 0."""


def space(trial: Trial) -> None:
    """Suggest values for keys of pipeline.config.schema.TrainConfig; `temperature` or `margin` as the loss needs it."""
    trial.suggest_categorical("images_per_value", [None, 2, 4, 8])
    losses = ["supervised_contrastive", "multi_similarity", "semi_hard_triplet"]
    pair_loss = trial.suggest_categorical("pair_loss", losses)
    if pair_loss == "supervised_contrastive":
        trial.suggest_float("temperature", 0.03, 0.5, log=True)
    if pair_loss == "semi_hard_triplet":
        trial.suggest_float("margin", 0.05, 0.6)
    trial.suggest_float("proxy_weight", 0.0, 2.0, step=0.25)
    trial.suggest_categorical("proxy_loss", ["softmax", "anchor"])
    trial.suggest_float("label_smoothing", 0.0, 0.2)
    trial.suggest_float("class_weight", 0.0, 2.0)
