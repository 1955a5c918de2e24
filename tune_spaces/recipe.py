"""How the preset `strong` trains: rates, warm-up, decay, running average, changes of the pictures.

Why: these come from a few trainings on one collection of photographs; another collection, network or length wants
others. Expected cost: one training each, 1.0 times the time of the preset's setting; changes of the pictures add a few
per cent. For ten settings, plan 40 trials. Take it with `--preset strong`. High rates may lead early and be overtaken.

Measured importance, in points of MAP between a setting's best and worst value (docs/tuning.md, short trainings):
lr 2.8, batch_norm 1.9, schedule 1.7, backbone_lr_scale 1.3, erasing 0.8, weight_decay and warmup 0.6, ema 0.5,
jitter 0.3, crop 0.2.
"""

from __future__ import annotations

from optuna import Trial

START = {
    "lr": 2e-3,
    "backbone_lr_scale": 0.25,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "warmup": 0.1,
    "ema": None,
    "batch_norm": "frozen",
    "crop": None,
    "jitter": 0.0,
    "erasing": 0.0,
}
"""The preset's setting; always trial 0."""


def space(trial: Trial) -> None:
    """Suggest values for keys of pipeline.config.schema.TrainConfig."""
    trial.suggest_float("lr", 3e-4, 1e-2, log=True)
    trial.suggest_float("backbone_lr_scale", 0.03, 1.0, log=True)
    trial.suggest_float("weight_decay", 1e-4, 0.3, log=True)
    trial.suggest_categorical("schedule", ["cosine", "step"])
    trial.suggest_float("warmup", 0.0, 0.3)
    trial.suggest_categorical("ema", [None, 0.9, 0.99, 0.999])
    trial.suggest_categorical("batch_norm", ["per_micro_batch", "frozen"])
    trial.suggest_categorical("crop", [None, 0.7, 0.4])
    trial.suggest_float("jitter", 0.0, 0.5, step=0.1)
    trial.suggest_float("erasing", 0.0, 0.5, step=0.25)
