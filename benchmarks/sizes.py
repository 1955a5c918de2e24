"""What a training step weighs, counted on the real model without computing it: parameters, FLOP, bytes, gradients.

torch's meta device runs forward and backward pass on shapes alone, so that any model and image size can be counted
anywhere, in no time. Bytes are those of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import agman
from benchmarks.simulation import Bucket

FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20
"""Bytes at which torch's DistributedDataParallel closes its first bucket of gradients, and every other one."""
FLOP_PER_BYTE = 80
"""Of float32: below it an operation takes as long as its bytes do. An A100's 312 TFLOP/s over 2 TB/s is 156 FLOP for
a byte of bfloat16, which is two bytes here. It weighs the operations of a backward pass against each other."""
TRIPLETS = 4


@dataclass(frozen=True)
class Gradient:
    """Of one parameter."""

    ready: float
    """Share of the backward pass after which it stands."""
    bytes: int


@dataclass(frozen=True)
class Sizes:
    """Of a model, and for one image in training."""

    parameters: int
    gradients: tuple[Gradient, ...]
    """In the order of the backward pass."""
    forward: float
    """FLOP for an image, of convolutions and matrix products; a multiplication and an addition are two."""
    backward: float
    moved: float
    """Bytes that the operations of both passes read and write, for an image."""
    activations: float
    """Bytes kept from the forward pass for the backward pass, for an image."""
    operations: tuple[int, int]
    """That the forward and the backward pass start: on a GPU each costs its host some time."""
    statistics: int
    """Numbers of batch norm's running statistics."""


class _Counter(TorchDispatchMode):
    """Counts the operations below it."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = self.moved = self.cost = 0.0
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view:
            return out
        packet = func._overloadpacket
        flop = flop_registry[packet](*args, **(kwargs or {}), out_val=out) if packet in flop_registry else 0
        moved = sum(one.numel() * one.element_size() for one in _tensors((args, kwargs, out)))
        self.operations += 1
        self.flop += flop
        self.moved += moved
        self.cost += max(flop, FLOP_PER_BYTE * moved)
        return out


def sizes_of(backbone: str, attributes: int, width: int, size: int) -> Sizes:
    """Of AG-MAN with so many attributes and an embedding of `width`, on images of `size` pixels."""
    with torch.device("meta"):
        objective = agman.TripletObjective(agman.AGMAN(attributes, width, backbone))
        images, asked = torch.zeros(3 * TRIPLETS, 3, size, size), torch.zeros(TRIPLETS, dtype=torch.int64)
    learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    own = {parameter.untyped_storage()._cdata for parameter in objective.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}
    costs: list[tuple[float, int]] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with _Counter() as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = objective(images, asked).loss
        forward, before, begun = counter.flop, counter.cost, counter.operations
        for parameter in learned:
            parameter.register_post_accumulate_grad_hook(lambda one: costs.append((counter.cost - before, one.nbytes)))
        loss.backward()
        whole = counter.cost - before
    return Sizes(
        parameters=sum(parameter.numel() for parameter in learned),
        gradients=tuple(Gradient(cost / whole, nbytes) for cost, nbytes in costs),
        forward=forward / len(images),
        backward=(counter.flop - forward) / len(images),
        moved=counter.moved / len(images),
        operations=(begun, counter.operations - begun),
        activations=sum(storage.nbytes() for storage in kept.values()) / len(images),
        statistics=sum(one.numel() for name, one in objective.named_buffers() if "running_" in name),
    )


def buckets_of(gradients: Sequence[Gradient], wire: float) -> tuple[Bucket, ...]:
    """As DistributedDataParallel makes them after its first step; `wire`: bytes sent for each byte of a gradient."""
    buckets, limit, size = [], FIRST_BUCKET, 0
    for number, gradient in enumerate(gradients, 1):
        size += gradient.bytes
        if size >= limit or number == len(gradients):
            buckets.append(Bucket(gradient.ready, wire * size))
            limit, size = BUCKET, 0
    return tuple(buckets)


def _tensors(tree: Any) -> list[Tensor]:
    leaves, _ = torch.utils._pytree.tree_flatten(tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
