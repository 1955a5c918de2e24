"""The configuration of a training: typed, documented under every field, read from a file and KEY=VALUE settings."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from data_prep.errors import InputError
from data_prep.hints import nearest
from pipeline.config.presets import find_preset


class TrainConfig(BaseModel):
    """Settings of one training. Defaults are the paper's recipe, except for `weights`.

    None stands for a default that depends on the model, the dataset, the device or the number of workers.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )

    model: Literal["agman", "csn", "asenet", "asenet_v2", "attnfashion", "isln"] = "agman"
    """Name of the model (agman.build)."""
    backbone: str = "resnet50"
    """Network under the model: a ResNet as in the papers, or any of timm's with maps at 1/8 and 1/16 (or 1/32)."""
    weights: str | None = None
    """Initial weights of the backbone: auto, a tag (IMAGENET1K_V1, ra_in1k ...), a local file, or none (random)."""
    stride: Literal[16, 32] = 16
    """Picture's pixels to a position of the map that the model attends over: 16 as published (a ResNet's layer3), or
    32, the network's last map."""
    embedding_dim: int | None = Field(default=None, ge=1)
    """Width of the embedding; at least the number of attributes. None: the model's published width (agman: 512)."""
    classify: bool | None = None
    """agman: branch 1, the attribute classification; none: with it. The paper turns it off for Zappos50k."""
    sa_kernel: int | None = Field(default=None, ge=1)
    """agman: kernel of the spatial attention; none: 7, the published code's. The paper's equation 4 has 1."""
    without: Literal["multi_level", "asa", "sa", "aca", "mask"] | None = None
    """agman: the component left out in an ablation (docs/model.md says what is computed instead); none: nothing."""
    mask: Literal["learned", "fixed"] | None = None
    """csn: masks over the embedding; none: learned."""
    rounds: int | None = Field(default=None, ge=1)
    """isln: number of times that the attention is repeated; none: 3."""
    image_size: int | None = Field(default=None, ge=32)
    """Side of the input square in pixels; none: as prepared."""
    batches: Literal["triplets", "balanced"] = "triplets"
    """What a batch is made of: the prepared triplets, as in the paper, or images with all their labels. Balanced
    batches have an attribute in turn, of which some values are drawn evenly, and images_per_value images of each."""
    batch_size: int = Field(default=16, ge=2)
    """Triplets, or with batches=balanced images, in a global batch, over all workers. An epoch is divided into equal
    batches of at most this size."""
    images_per_value: int | None = Field(default=4, ge=2)
    """batches=balanced: images of each value that is drawn; fewer if the value is rarer. None: every image once an
    epoch, in random order, so that common values come as often as they are."""
    epochs: int = Field(default=50, ge=1)
    """Passes over the data: over one prepared epoch of triplets each (beginning again after the last one), or with
    batches=balanced over as many images as the training split has."""
    max_steps: int | None = Field(default=None, ge=1)
    """Steps after which the training ends, instead of epochs; schedule and warm-up are fitted to it."""
    max_triplets: int | None = Field(default=None, ge=1)
    """Triplets used of each epoch; none: all that were prepared."""
    margin: float = Field(default=0.2, ge=0, le=2)
    """Margin of the triplet loss, in cosine."""
    pair_loss: Literal["supervised_contrastive", "multi_similarity", "semi_hard_triplet"] = "supervised_contrastive"
    """batches=balanced: loss over all pairs of the batch, in place of the triplet loss."""
    temperature: float = Field(default=0.1, gt=0)
    """Number by which the supervised contrastive loss divides cosines."""
    loss_weighting: Literal["fixed", "learned", "published"] = "fixed"
    """Weights of the two losses: fixed ones, learned ones (Kendall et al. 2018), or the published code's (0.5e)."""
    triplet_weight: float = Field(default=1.0, ge=0)
    """Weight of the triplet loss, or of the loss over pairs, when fixed."""
    class_weight: float = Field(default=1.0, ge=0)
    """Weight of the classification loss when fixed."""
    proxy_weight: float = Field(default=0.0, ge=0)
    """Weight of a loss on learned proxies of the values; not in the paper. Helps from random weights."""
    proxy_loss: Literal["softmax", "anchor"] = "softmax"
    """Form of the loss on proxies: a softmax over the values (Zhai & Wu 2019), or Proxy Anchor (Kim et al. 2020)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the softmax's target that all values of the attribute divide among them."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """adam, the paper's, or adamw, with weight decay."""
    weight_decay: float = Field(default=0.01, ge=0)
    """adamw: decay of weight matrices and kernels, times the learning rate at every step."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate."""
    backbone_lr_scale: float = Field(default=1.0, gt=0)
    """Factor on the learning rate of the backbone."""
    schedule: Literal["step", "cosine"] = "step"
    """Fall of the learning rate: by lr_decay every lr_decay_epochs epochs, or as half a cosine to 0 at the end."""
    lr_decay: float = Field(default=0.9, gt=0, le=1)
    """schedule=step: factor on the learning rate after every lr_decay_epochs epochs."""
    lr_decay_epochs: int = Field(default=3, ge=1)
    """schedule=step: epochs between two changes of the learning rate by lr_decay."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps in which the learning rate grows from 0 to its full size."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a running average of the weights, which is then evaluated and registered; none: the weights."""
    freeze_backbone: int = Field(default=0, ge=0)
    """Epochs at the beginning in which the backbone's weights do not change."""
    crop: float | None = Field(default=None, gt=0, le=1)
    """Smallest share of a picture's area that a random crop keeps; none: no crops. Not of pictures with a label whose
    attribute forbids it (lengths do)."""
    jitter: float = Field(default=0.0, ge=0, le=1)
    """Random change of brightness, contrast and saturation by up to this factor more or less. Not of pictures with a
    label whose attribute forbids it (colours do)."""
    erasing: float = Field(default=0.0, ge=0, le=1)
    """Probability that a random rectangle of a picture is erased."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Bound on the L2 norm of the gradient of the global batch; none: not clipped, as in the paper."""
    micro_batches: int | None = Field(default=None, ge=1)
    """Equal micro-batches of a global batch; a worker computes its own one after the other (gradient accumulation).
    The same number gives the same weights on any number of workers. None: one for each worker."""
    batch_norm: Literal["per_micro_batch", "sync", "frozen"] = "per_micro_batch"
    """Statistics of each micro-batch (anchors, positives and negatives together), of the global batch (sync; GPUs
    only), or in the backbone those that its weights came with (frozen)."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better validation score after which training stops early; none: train all epochs."""
    gradient_checkpointing: bool = False
    """Keep fewer of the backbone's activations and compute them again in the backward pass: less memory, more time.
    Networks of timm only."""
    precision: Literal["fp32", "bf16"] | None = None
    """bf16: autocast, with weights and losses in fp32. None: bf16 on GPUs and, for ResNets, on CPUs that compute in it;
    else fp32."""
    compile: bool | None = None
    """torch.compile of the model's training pass; none: false on CPUs (measured slower) and GPUs (not measured)."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a worker; none: as many as it has CPUs. Other numbers round differently."""
    prefetch: int = Field(default=2, ge=0)
    """Batches that are decoded in advance while a step computes."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps that a killed training repeats at most. Every epoch ends with a checkpoint as well."""
    keep_best: int = Field(default=2, ge=1)
    """Checkpoints of epochs that are kept, the best by validation; the latest is kept as well."""
    log_every: int = Field(default=50, ge=1)
    """Steps between two points of the curves in MLflow; points are sent when a checkpoint is complete."""
    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights and the augmentation."""

    @property
    def needing_values(self) -> list[str]:
        """Settings, as KEY=VALUE, that need the images' values, not the triplets alone."""
        asked = {
            f"batches={self.batches}": self.batches == "balanced",
            f"proxy_weight={self.proxy_weight:g}": self.proxy_weight > 0,
        }
        return [setting for setting, wanted in asked.items() if wanted]

    @field_validator("*", mode="before")
    @classmethod
    def _none(cls, value: Any, info: ValidationInfo) -> Any:
        """Read `weights=none` on a command line as None, in every field whose type admits it."""
        admits_none = type(None) in get_args(cls.model_fields[info.field_name or ""].annotation)
        return None if admits_none and isinstance(value, str) and value.lower() in ("none", "null", "") else value

    @field_validator("stride", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        """Read `stride=32` on a command line: a Literal takes no text for a number."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("weights")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        """Make a file's path absolute: workers run in folders of their own."""
        return str(Path(value).absolute()) if value and Path(value).is_file() else value


GONE = {
    "parts": "is now called 'micro_batches'",
    "mining": "is gone: take batches=balanced with pair_loss=semi_hard_triplet",
    "info_nce_weight": "is gone: take batches=balanced with pair_loss=supervised_contrastive",
    "info_nce_temperature": "is now called 'temperature'",
}
"""Former settings, and what to take instead."""


def load_config(
    file: Path | None, settings: Iterable[str], preset: str | None = None, varied: Collection[str] = ()
) -> TrainConfig:
    """Return a preset's configuration, changed by a YAML file, then by KEY=VALUE settings.

    Raises InputError naming the key and the file at fault, also for a setting that has no effect beside the others.
    A file may repeat defaults, so that it can hold every setting. `varied`: settings that will change, and may give
    others their effect.
    """
    values: dict[str, Any] = {}
    from_file: dict[str, Any] = {}
    if preset is not None:
        values |= find_preset(preset).settings
    if file is not None:
        from_file = _read_file(file)
        try:
            make_config(values | from_file)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
    typed = read_settings(settings)
    config = make_config(values | from_file | typed)
    changed = {key for key in from_file if getattr(config, key) != TrainConfig.model_fields[key].default}
    for key, cause in without_effect(config, varied).items():
        if key in changed | typed.keys():
            raise InputError(
                f"{key}={getattr(config, key)} has no effect with {cause}={getattr(config, cause)}: change one of "
                f"them, or leave {key} out"
            )
    return config


def without_effect(config: TrainConfig, varied: Collection[str] = ()) -> dict[str, str]:
    """Return the settings that nothing reads, each with the setting that is the cause, unless that one is varied."""
    balanced = config.batches == "balanced"
    causes = [
        ("batches", balanced, ["max_triplets"]),
        ("batches", not balanced, ["images_per_value", "pair_loss", "temperature"]),
        ("pair_loss", config.pair_loss != "supervised_contrastive", ["temperature"]),
        ("pair_loss", balanced and config.pair_loss != "semi_hard_triplet", ["margin"]),
        ("loss_weighting", config.loss_weighting != "fixed", ["triplet_weight", "class_weight"]),
        ("proxy_weight", not config.proxy_weight, ["proxy_loss", "label_smoothing"]),
        ("proxy_loss", config.proxy_loss != "softmax", ["label_smoothing"]),
        ("optimizer", config.optimizer != "adamw", ["weight_decay"]),
        ("schedule", config.schedule != "step", ["lr_decay", "lr_decay_epochs"]),
        ("max_steps", config.max_steps is not None, ["epochs"]),
    ]
    return {key: cause for cause, found, keys in causes if found and cause not in varied for key in keys}


def read_settings(settings: Iterable[str]) -> dict[str, str]:
    """Split KEY=VALUE settings. Raises InputError for another form, and for a key that is given two values."""
    values: dict[str, str] = {}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise InputError(f"{setting!r}: settings have the form KEY=VALUE, e.g. epochs=5")
        if values.setdefault(key, value) != value:
            raise InputError(f"{key} is given twice: {values[key]} and {value}; leave one out")
    return values


def make_config(values: dict[str, Any]) -> TrainConfig:
    """Validate settings. Raises InputError for an unknown key (naming the nearest) or a value out of range."""
    known = list(TrainConfig.model_fields)
    for key in values:
        if key in GONE:
            raise InputError(f"setting {key!r} {GONE[key]}")
        if key not in known:
            raise InputError(f"unknown setting {key!r}; {nearest(key, known)}")
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{first['loc'][0]}={first['input']}: {first['msg'].lower()}") from error


def allowed(key: str) -> str:
    """Describe the values that a setting takes."""
    described = TrainConfig.model_json_schema()["properties"][key]
    kind = next(kind for kind in described.get("anyOf", [described]) if kind["type"] != "null")
    if "enum" in kind:
        return " | ".join(map(str, kind["enum"]))
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true | false"}[kind["type"]]
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
    return ", ".join([words, *(f"{sign} {kind[name]:g}" for name, sign in signs.items() if name in kind)])


def _read_file(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _OnceEach)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{file}{line}: not a YAML file of KEY: VALUE lines ({error.problem})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a YAML file ({str(error).splitlines()[0]})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected KEY: VALUE lines")
    if "preset" in content:
        raise InputError(f"{file}: preset is an option of the command: --preset {content['preset']}")
    return {str(key): value for key, value in content.items()}


class _OnceEach(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
