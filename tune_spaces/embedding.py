"""AG-MAN's size: the network under it, the stage that it attends over, width of the embedding, kernel of SA.

Why: the published width is 512, without a comparison; equation 4 has a kernel of 1 and the code one of 7; the last
stage of a pretrained network knows most and has the smallest map; and a service may want a narrow vector or a fast
network. Expected cost: the network decides. On a CPU, at 224 px, a step with ResNet-50 takes 1.5 times and one with
ConvNeXt-T 2.4 times that of EfficientNet-Lite0 (`agman bench backbones`); width and kernel add up to 5 %. For 120
combinations, plan 30 trials. Small networks may lead early, which early stopping rewards. Take it with
`--preset strong`; its weights=auto fits all three networks, but those of the larger two have to be fetched.

Measured importance, in points of MAP between a setting's best and worst value (docs/tuning.md, short trainings on
EfficientNet-Lite0): embedding_dim 4.8, sa_kernel 1.1, stride 0.0 at 64 px. The networks were not compared.
"""

from __future__ import annotations

from optuna import Trial

START = {"backbone": "tf_efficientnet_lite0", "stride": 32, "embedding_dim": 512, "sa_kernel": 7}
"""The preset's setting; always trial 0."""


def space(trial: Trial) -> None:
    """Suggest values for keys of pipeline.config.schema.TrainConfig."""
    trial.suggest_categorical("backbone", ["tf_efficientnet_lite0", "resnet50", "convnext_tiny"])
    sizes(trial)


def sizes(trial: Trial) -> None:
    """Suggest what does not depend on the network."""
    trial.suggest_categorical("stride", [16, 32])
    # Not any number: in bf16, GPUs are made for widths that are multiples of 8.
    trial.suggest_categorical("embedding_dim", [64, 128, 256, 512, 1024])
    trial.suggest_int("sa_kernel", 1, 7, step=2)
