"""The configuration of a training: typed, documented under every field, from a file and KEY=VALUE."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from data_prep.errors import InputError


class TrainConfig(BaseModel):
    """One training, from the backbone to the seed. Defaults are the paper's recipe, but for `weights`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )

    model: str = "agman"
    """Which model of agman.build: agman, csn, asenet, asenet_v2, attnfashion or isln."""
    backbone: str = "resnet50"
    """The convolutional network under the model: a ResNet as in the papers, or another of torchvision's."""
    weights: str | None = None
    """Start of the backbone: a torchvision weights name (IMAGENET1K_V1), a local file, or none."""
    embedding_dim: int | None = Field(default=None, ge=1)
    """Width of the embedding; at least the number of attributes. None: the model's published width (agman: 512)."""
    classify: bool | None = None
    """agman: branch 1, the attribute classification; none: with it. The paper turns it off for Zappos50k."""
    sa_kernel: int | None = Field(default=None, ge=1)
    """agman: kernel of the spatial attention; none: 7, the published code's. The paper's equation 4 has 1."""
    mask: Literal["learned", "fixed"] | None = None
    """csn: masks over the embedding; none: learned."""
    rounds: int | None = Field(default=None, ge=1)
    """isln: how often the attention is repeated; none: 3."""
    image_size: int | None = Field(default=None, ge=32)
    """Side of the input square in pixels; none: as prepared."""
    batch_size: int = Field(default=16, ge=2)
    """Triplets in a global batch, over all workers. An epoch is dealt into equal batches of at most this."""
    epochs: int = Field(default=50, ge=1)
    """Passes, each over one prepared epoch of triplets (going round them)."""
    max_triplets: int | None = Field(default=None, ge=1)
    """Triplets used of each epoch; none: all that were prepared."""
    margin: float = Field(default=0.2, ge=0, le=2)
    """Margin of the triplet loss, in cosine."""
    loss_weighting: Literal["fixed", "learned", "published"] = "fixed"
    """How the two losses add up: fixed weights, learned ones (Kendall et al. 2018), or the published code's (0.5e)."""
    triplet_weight: float = Field(default=1.0, ge=0)
    """Weight of the triplet loss when fixed."""
    class_weight: float = Field(default=1.0, ge=0)
    """Weight of the classification loss when fixed."""
    proxy_weight: float = Field(default=0.0, ge=0)
    """Weight of a softmax loss over learned proxies of the values; not in the paper. Helps from random weights."""
    mining: Literal["none", "semi_hard", "hard"] = "none"
    """Other positives and negatives for the triplets, from each worker's share of the batch; not in the paper."""
    info_nce_weight: float = Field(default=0.0, ge=0)
    """Weight of InfoNCE over the negatives in each worker's share of the batch; not in the paper."""
    info_nce_temperature: float = Field(default=0.1, gt=0)
    """What InfoNCE divides cosines by."""
    lr: float = Field(default=1e-4, gt=0)
    """Adam's learning rate."""
    lr_decay: float = Field(default=0.9, gt=0, le=1)
    """Factor on the learning rate ..."""
    lr_decay_epochs: int = Field(default=3, ge=1)
    """... after every so many epochs."""
    batch_norm: Literal["sync", "per_worker"] = "sync"
    """Statistics of the global batch (the same result on any number of workers), or each worker's own."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """bf16: autocast, with weights and losses in fp32. fp64: to check that workers compute what one would."""
    seed: int = Field(default=0, ge=0)
    """Of the weights' start and the augmentation."""

    @property
    def needing_values(self) -> list[str]:
        """The settings, as KEY=VALUE, for which the images' values must be known, not the triplets alone."""
        asked = {
            f"proxy_weight={self.proxy_weight:g}": self.proxy_weight > 0,
            f"mining={self.mining}": self.mining != "none",
            f"info_nce_weight={self.info_nce_weight:g}": self.info_nce_weight > 0,
        }
        return [setting for setting, wanted in asked.items() if wanted]

    @field_validator(
        "weights",
        "embedding_dim",
        "classify",
        "sa_kernel",
        "mask",
        "rounds",
        "image_size",
        "max_triplets",
        mode="before",
    )
    @classmethod
    def _none(cls, value: Any) -> Any:
        """`weights=none` on a command line means no weights."""
        return None if isinstance(value, str) and value.lower() in ("none", "null", "") else value

    @field_validator("weights")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        """A file's path must hold in workers too, which run in a folder of their own."""
        return str(Path(value).absolute()) if value and Path(value).is_file() else value


def load_config(file: Path | None, settings: Iterable[str]) -> TrainConfig:
    """Read a YAML file, then KEY=VALUE settings over it. Raises InputError naming the key at fault."""
    values: dict[str, Any] = {}
    if file is not None:
        values |= _read_file(file)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"{setting!r}: settings have the form KEY=VALUE, e.g. epochs=5")
        values[key.strip()] = value.strip()
    return make_config(values)


def make_config(values: dict[str, Any]) -> TrainConfig:
    """Validate values. Raises InputError for an unknown key (offering the nearest) or a value out of range."""
    known = list(TrainConfig.model_fields)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"unknown setting {key!r}; {hint}")
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{first['loc'][0]}={first['input']}: {first['msg'].lower()}") from error


def _read_file(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a YAML file ({str(error).splitlines()[0]})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected KEY: VALUE lines")
    return {str(key): value for key, value in content.items()}
