"""Checkpoints of the published code (`.pth.tar`) as models of this library.

The files hold `{"epoch": ..., "state_dict": ..., ...}`, the state dict that of a triplet network around the
model: AG-MAN's keys are `embeddingnet.conv1.weight`, `embeddingnet.backbonenet.layer1.0.conv1.weight`, and so
on. Here the layers have the names of the equations; the tensors are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agman.base import RetrievalModel
from agman.checkpoint import CheckpointError
from agman.mask import own_blocks
from agman.registry import build
from agman.state import first_difference, read_tensors


@dataclass(frozen=True)
class Published:
    """Layout of one system's published state dict."""

    name: str
    """Name in agman.MODELS."""
    marker: str
    """Key that identifies the system, without the outermost prefix; SYSTEMS are tried in order."""
    trunk: str
    """Prefix of its ResNet."""
    attributes: tuple[str, int]
    """A key, and the dimension of its tensor that counts the attributes."""
    width: str
    """A key whose first dimension is the width of the embedding."""
    prefixes: dict[str, str]
    """Prefix of a key in this library -> prefix in the published file, except for the ResNet's."""


AGMAN = Published(
    "agman",
    marker="backbonenet.conv1_1.weight",
    trunk="backbonenet",
    attributes=("masks.weight", 0),
    width="conv1.weight",
    prefixes={
        "backbone.low.1.": "backbonenet.conv1_1.",
        "classifier.": "backbonenet.fc_embed.",
        "w": "w",
        "reduce.": "conv1.",
        "multi_level.embedding.": "attr_embedding.",
        "multi_level.asa.w1": "w1",
        "multi_level.asa.norm.": "img_bn1.",
        "multi_level.asa.project.": "attr_transform1.",
        "multi_level.sa.conv.": "sa.conv1.",
        "multi_level.aca.w2": "w2",
        "multi_level.aca.project.": "attr_transform2.",
        "multi_level.aca.fc1.": "fc1.",
        "multi_level.aca.fc2.": "fc2.",
        "mask.beta": "masks.weight",
    },
)
ASENET_V2 = Published(
    "asenet_v2",
    marker="attr_transform2.weight",
    trunk="backbonenet",
    attributes=("attr_embedding.weight", 0),
    width="feature_fc.weight",
    prefixes={
        "embedding.": "attr_embedding.",
        "image.": "conv1.",
        "norm.": "img_bn1.",
        "attribute.": "attr_transform1.",
        "channel_attribute.": "attr_transform2.",
        "fc1.": "fc1.",
        "fc2.": "fc2.",
        "project.": "feature_fc.",
    },
)
ASENET = Published(
    "asenet",
    marker="mask_fc2.weight",
    trunk="backbonenet",
    attributes=("mask_fc1.weight", 1),
    width="feature_fc.weight",
    prefixes={
        "image.": "conv1.",
        "attribute.": "mask_fc1.",
        "score.": "conv2.",
        "channel_attribute.": "mask_fc2.",
        "fc1.": "fc1.",
        "fc2.": "fc2.",
        "project.": "feature_fc.",
    },
)
CSN_VARIANT = Published(
    "csn",
    marker="embed_fc.weight",
    trunk="embeddingnet",
    attributes=("masks.weight", 0),
    width="embed_fc.weight",
    prefixes={"project.": "embed_fc.", "mask.beta": "masks.weight"},
)
CSN_ORIGINAL = Published(
    "csn",
    marker="embeddingnet.fc_embed.weight",
    trunk="embeddingnet",
    attributes=("masks.weight", 0),
    width="embeddingnet.fc_embed.weight",
    prefixes={"project.": "embeddingnet.fc_embed.", "mask.beta": "masks.weight"},
)
SYSTEMS = (AGMAN, ASENET_V2, ASENET, CSN_VARIANT, CSN_ORIGINAL)  # AG-MAN also has ASENet_V2's marker: it goes first

STEM = {"backbone.stem.0.": "conv1.", "backbone.stem.1.": "bn1.", "backbone.": ""}
UNUSED = ("fc.", "layer4.")
"""Layers of a ResNet that published models hold and do not use; AG-MAN with branch 1 does use layer4."""


def load_published(path: str | PathLike[str], *, classify: bool = True) -> RetrievalModel:
    """Return the model of a published checkpoint, on the CPU and in evaluation mode.

    AG-MAN, ASENet, ASENet_V2, the ASEN authors' CSN and the original CSN are recognised by their keys. The ResNet, the
    width, the number of attributes and SA's kernel follow from the shapes. classify=False leaves out AG-MAN's branch 1,
    which files for Zappos50k hold untrained.

    Only tensors and plain values are unpickled. Raises CheckpointError, with the first key that does not fit and both
    shapes, if the file is none of these.
    """
    path = Path(path)
    try:
        tensors = _without_wrapper(read_tensors(path))
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    system = next((system for system in SYSTEMS if system.marker in tensors), None)
    if system is None:
        first = next(iter(tensors), "nothing")
        raise CheckpointError(f"{path}: no published AG-MAN, ASENet or CSN checkpoint (its first key is {first})")
    try:
        model = build(**_configuration(system, tensors, classify))
    except ValueError as error:
        raise CheckpointError(f"{path}: not a complete {system.name} checkpoint: {error}") from error
    _copy(system, tensors, model, path)
    return model.eval()


def _without_wrapper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of DataParallel and of the triplet network from the keys."""
    for prefix in ("module.", "embeddingnet."):
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def _configuration(system: Published, tensors: Mapping[str, Tensor], classify: bool) -> dict[str, Any]:
    """Return the arguments of `build`. Raises ValueError if the tensors do not determine them."""
    config: dict[str, Any] = {
        "name": system.name,
        "n_attributes": _size(tensors, *system.attributes),
        "backbone": _resnet(system.trunk, tensors),
    }
    if system is not ASENET_V2 or system.width in tensors:
        config["embedding_dim"] = _size(tensors, system.width, 0)
    if system is AGMAN:
        config |= {"classify": classify, "sa_kernel": _size(tensors, "sa.conv1.weight", 3)}
    elif system is ASENET_V2:
        config["project"] = system.width in tensors
    elif system.name == "csn":
        blocks = own_blocks(config["n_attributes"], _size(tensors, "masks.weight", 1), elsewhere=0.0)
        config["mask"] = "fixed" if torch.equal(tensors["masks.weight"].float(), blocks) else "learned"
    return config


def _size(tensors: Mapping[str, Tensor], key: str, dimension: int) -> int:
    if key not in tensors:
        raise ValueError(f"{key} is missing")
    shape = tuple(tensors[key].shape)
    if dimension >= len(shape):
        raise ValueError(f"{key}: expected more than {dimension} dimensions, found shape {shape}")
    return shape[dimension]


def _resnet(trunk: str, tensors: Mapping[str, Tensor]) -> str:
    blocks = {
        key.split(".")[-3] for key in tensors if key.startswith(f"{trunk}.layer3.") and key.endswith("conv1.weight")
    }
    bottleneck = f"{trunk}.layer3.0.conv3.weight" in tensors
    known = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101"}
    if (len(blocks), bottleneck) not in known:
        raise ValueError(f"{trunk}.layer3 has {len(blocks)} blocks, which is no ResNet of the published code")
    return known[len(blocks), bottleneck]


def _copy(system: Published, tensors: Mapping[str, Tensor], model: RetrievalModel, path: Path) -> None:
    """Load the tensors into the model. Raises CheckpointError if one is missing or, unless UNUSED, left over."""
    names = {key: _published_key(system, key) for key in model.state_dict()}
    expected = {names[key]: tensor for key, tensor in model.state_dict().items()}
    unused = tuple(f"{system.trunk}.{part}" for part in UNUSED)
    if not model.classify:
        unused += ("backbonenet.fc_embed.",)
    found = {key: tensor for key, tensor in tensors.items() if key in expected or not key.startswith(unused)}
    for key, tensor in expected.items():
        if key.endswith("num_batches_tracked"):
            found.setdefault(key, tensor)  # files from before 2018 lack it, and nothing reads it
        elif key in found and found[key].squeeze().shape == tensor.squeeze().shape:
            found[key] = found[key].reshape(tensor.shape)  # w, w1, w2 are vectors of one number there
    difference = first_difference(expected, found)
    if difference:
        raise CheckpointError(f"{path} is not a complete {system.name} checkpoint: {difference}")
    model.load_state_dict({key: found[name] for key, name in names.items()})


def _published_key(system: Published, key: str) -> str:
    stem = {here: f"{system.trunk}.{there}" for here, there in STEM.items()}
    for here, there in (system.prefixes | stem).items():
        if key.startswith(here):
            return there + key.removeprefix(here)
    raise AssertionError(f"{system.name}: no published name for {key}")
