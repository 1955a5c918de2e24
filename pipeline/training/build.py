"""Building of a model and its objective from a configuration: fills in defaults, refuses impossible settings."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import torch

import agman
from agman.augmentation import CHANGES, Augmentation
from agman.backbone import RESNETS
from agman.losses import ValueProxies
from agman.objective import Objective
from agman.registry import options_of
from data_prep.balanced import LEAST_VALUES, undrawable
from data_prep.batches import batches_per_epoch
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline.config.schema import TrainConfig

MODEL_OPTIONS = ("embedding_dim", "classify", "sa_kernel", "without", "mask", "rounds")
"""Settings whose None stands for the model's own default."""
FASTER_IN_BFLOAT16 = ("tiny", *RESNETS)
"""Backbones that were measured to be faster in bf16 on a CPU with instructions for it. tf_efficientnet_lite0, whose
convolutions are depthwise, takes 1.7 times as long in it."""
NOT_DECISIVE = ("threads", "prefetch", "checkpoint_every", "keep_best", "log_every")
"""Settings that may change when a training is continued."""


def check(config: TrainConfig, dataset: Dataset, workers: int) -> None:
    """Raise InputError for anything that a user can correct, before anything starts."""
    info = dataset.info
    if config.micro_batches and config.micro_batches < workers:
        raise InputError(
            f"micro_batches={config.micro_batches} with --workers {workers}: each worker computes one micro-batch or "
            "more; raise micro_batches or lower --workers"
        )
    if not info.images["train"]:
        raise InputError(f"{dataset.path}: the dataset has no training images")
    if config.needing_values and not all(attribute.values for attribute in info.attributes):
        raise InputError(f"{' '.join(config.needing_values)}: {dataset.path} has triplets but no values to learn")
    if config.image_size and config.image_size > info.image_size:
        raise InputError(
            f"image_size={config.image_size}, but {dataset.path} holds images of {info.image_size} px; "
            f"use image_size={info.image_size} or prepare it again with --image-size {config.image_size}"
        )
    resolved(config)  # refuses settings that exclude each other
    try:
        side = config.image_size or info.image_size
        _check_architecture(side, config.gradient_checkpointing, **_architecture(config, dataset))
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
    steps_per_epoch(dataset, config, config.micro_batches or workers)
    if config.batches == "balanced":
        _check_balanced(config, dataset)


def _check_balanced(config: TrainConfig, dataset: Dataset) -> None:
    """Raise InputError if balanced batches of this size, or of this dataset, cannot be drawn."""
    least = LEAST_VALUES * (config.images_per_value or 1)
    if config.batch_size < least:
        raise InputError(
            f"batch_size={config.batch_size} with images_per_value={config.images_per_value}: a balanced batch has "
            f"images of two values or more, so batch_size must be at least {least}"
        )
    if found := undrawable(dataset.labels_of("train")):
        name = dataset.info.attribute_names[found[0]]
        raise InputError(
            f"batches=balanced: attribute {name!r} of {dataset.path} has fewer than two values with two training "
            "images each, so nothing can be learned under it; prepare the dataset without it"
        )


def steps_per_epoch(dataset: Dataset, config: TrainConfig, micro_batches: int) -> int:
    """Return the steps of one epoch. Raises InputError if a micro-batch would get nothing."""
    if config.batches == "balanced":
        return batches_per_epoch(dataset.info.images["train"], config.batch_size, micro_batches, "images")
    triplets = min(config.max_triplets or dataset.info.triplets, dataset.info.triplets)
    return batches_per_epoch(triplets, config.batch_size, micro_batches)


def fitted(config: TrainConfig, dataset: Dataset, micro_batches: int) -> TrainConfig:
    """Return `config` with the epochs that its `max_steps` take; the last one may be cut short."""
    if config.max_steps is None:
        return config
    epochs = -(-config.max_steps // steps_per_epoch(dataset, config, micro_batches))
    return config.model_copy(update={"epochs": epochs})


def steps_of(config: TrainConfig, dataset: Dataset, micro_batches: int) -> int:
    """Return the steps of a training of a fitted configuration, without early stopping."""
    return config.max_steps or config.epochs * steps_per_epoch(dataset, config, micro_batches)


def resolved(config: TrainConfig, device: str | None = None, workers: int = 1, threads: int = 1) -> TrainConfig:
    """Return `config` with every None that stands for a default replaced by it.

    Defaults are the model's own; the device's, as measured (docs/training.md has the table; None for any one); and
    those that follow from the number of workers and of CPU threads for each. Raises InputError for an unknown model,
    and for settings that exclude each other or the device.
    """
    try:
        defaults = options_of(config.model)
    except ValueError as error:
        raise InputError(str(error)) from error
    synced = config.batch_norm == "sync"
    if synced and config.micro_batches is not None:
        raise InputError(
            f"micro_batches={config.micro_batches} with batch_norm=sync: synchronised statistics need the whole batch "
            "at once; leave micro_batches out, or take batch_norm=per_micro_batch"
        )
    if synced and config.gradient_checkpointing:
        raise InputError("gradient_checkpointing=true with batch_norm=sync: processes would wait for each other's pass")
    on_gpu = device is not None and torch.device(device).type == "cuda"
    if synced and device and not on_gpu:
        raise InputError("batch_norm=sync needs GPUs; on CPUs take batch_norm=per_micro_batch")
    defaults = {option: defaults.get(option) for option in MODEL_OPTIONS} | {
        "precision": "bf16" if on_gpu or (config.backbone in FASTER_IN_BFLOAT16 and computes_in_bfloat16()) else "fp32",
        "compile": False,
        "micro_batches": None if synced else workers,
        "threads": threads,
    }
    return config.model_copy(update={key: value for key, value in defaults.items() if getattr(config, key) is None})


@functools.cache
def computes_in_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16; without them it is emulated, and slow."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def build_model(config: TrainConfig, dataset: Dataset) -> agman.RetrievalModel:
    """Build the model that `config` names, for the dataset's attributes.

    Raises ValueError for impossible sizes, or a setting that this model does not have.
    """
    return _build(config.gradient_checkpointing, **_architecture(config, dataset))


def build_objective(config: TrainConfig, dataset: Dataset) -> Objective:
    """Build the model and all that is learned besides it. Raises ValueError as `build_model`."""
    model = build_model(config, dataset)
    proxies = None
    if config.proxy_weight:
        value_counts = [len(attribute.values) for attribute in dataset.info.attributes]
        proxies = ValueProxies(value_counts, model.embedding_dim, config.proxy_loss, config.label_smoothing)
    weights = agman.LossWeights(config.loss_weighting, config.triplet_weight, config.class_weight)
    if config.batches == "triplets":
        return agman.TripletObjective(model, config.margin, weights, proxies, config.proxy_weight)
    return agman.LabelObjective(
        model, config.pair_loss, config.temperature, config.margin, weights, proxies, config.proxy_weight
    )


def build_augmentation(config: TrainConfig, dataset: Dataset) -> Augmentation | None:
    """Build the random changes of training pictures that `config` names; None if it names none."""
    if config.crop is None and not config.jitter and not config.erasing:
        return None
    forbidden = {
        change: [a for a, attribute in enumerate(dataset.info.attributes) if change in attribute.forbidden]
        for change in CHANGES
    }
    return Augmentation(config.crop, config.jitter, config.erasing, forbidden)


def _architecture(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Return the arguments of agman.build."""
    options = {option: getattr(config, option) for option in MODEL_OPTIONS}
    return {
        "name": config.model,
        "n_attributes": len(dataset.info.attributes),
        "backbone": config.backbone,
        "weights": config.weights,
        "stride": config.stride,
        **{option: value for option, value in options.items() if value is not None},
    }


def _build(checkpointing: bool, **arguments: Any) -> agman.RetrievalModel:
    model = agman.build(**arguments)
    if checkpointing:
        model.backbone.checkpoint_gradients()
    return model


@functools.cache
def _check_architecture(side: int, checkpointing: bool, **arguments: Any) -> None:
    """Build a model without memory for its weights, once for each architecture and side of its images.

    Raises what agman.build raises.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no-op", UserWarning)  # the weights' file is checked, but not copied
        _build(checkpointing, **arguments).backbone.check_side(side)
