"""Weights of the losses: fixed or learned, the classification's weight if fixed, the proxies' weight.

Why: the paper learns the two weights of equation 9, its published code leaves them at 1 : 1, and the first version's
tables do not compare. The proxies are not in the paper; they help a network that starts from random weights. The
triplet loss keeps its weight of 1: a factor on the whole loss means nothing to Adam, only the losses' shares do.
Expected cost: one training each, 1.0 times the time of the paper's setting whatever is drawn. For two or three
settings, plan 20 trials. Proxies need the images' values, which triplet lists alone (Zappos50k's) do not give.
"""

from __future__ import annotations

from optuna import Trial

START = {"loss_weighting": "fixed", "class_weight": 1.0, "proxy_weight": 0.0}
"""Equal weights, as in the published code (both 0.5e: a factor means nothing to Adam), and no proxies."""


def space(trial: Trial) -> None:
    """Suggest values for keys of pipeline.config.schema.TrainConfig; `class_weight` only if weights are fixed."""
    if trial.suggest_categorical("loss_weighting", ["fixed", "learned"]) == "fixed":
        class_weight(trial)
    trial.suggest_float("proxy_weight", 0.0, 2.0, step=0.25)  # steps, so that none at all is drawn too


def class_weight(trial: Trial) -> None:
    """Suggest the weight of the classification loss; that of the triplet loss is 1."""
    trial.suggest_float("class_weight", 0.1, 3.0, log=True)
