"""The arithmetic of one to 64 GPUs and of a gallery of a billion images: `agman bench scale`, docs/scale.md.

A step is counted on the model, on torch's meta device, and timed by formula: both passes, a ring all-reduce for each
of DistributedDataParallel's buckets during the backward pass, and the optimizer. Nothing was measured on a GPU: each
assumption is a constant below, with its source. Times are seconds, sizes bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

import agman
from benchmarks.common import table, write_table

PEAK, MEMORY = 312e12, 2.0e12  # A100 80 GB SXM, data sheet: FLOP/s of dense bf16 matrix products; memory bytes/s
# NVIDIA's measured images/s of ResNet-50 in mixed precision (DeepLearningExamples, resnet50v1.5, NGC 21.03) times
# 24.5e9 FLOP (3 × 8.2e9, less the first convolution's gradient of the image): 0.19 of the peak, taken for AG-MAN too.
USED = 2_470 * 24.5e9 / PEAK
OPERATIONS, LAUNCH = (352, 284), 30e-6  # kernels of a forward and a backward pass (counted); seconds for each (assumed)
JITTER, GPUS_OF_NODE = 0.03, 8  # assumed: a worker's passes take up to this much longer, evenly distributed
NVLINK, NETWORK = 0.7 * 300e9, 0.7 * 50e9  # bytes/s: 0.7 (assumed) of NVLink each way, of 400 Gbit/s a node
HOP, NETWORK_HOP = 5e-6, 20e-6  # assumed seconds of a message, within a node and between nodes
PACKED = 20_000  # assumed bytes of a packed photograph of 224 px; drawn images are smaller
COPY, STORAGE = 20e9, 10e9  # assumed bytes/s: from GPU to host; from shared storage to all workers together
SHARDS_READ = 671e6  # bytes/s at which a worker reads its shards at the start: table scale, 2026-11-26
TRIPLETS, BATCH, IMAGES, EVERY = 100_000, 64, 144_335, 500  # of an epoch; a step; FashionAI; steps per checkpoint
ROWS, WIDTH, ATTRIBUTES = 1_000_000_000, 512, 8
SCAN = 1_000_000 * 512 * 4 / 0.0859  # bytes/s of exact search on two cores: table search, 2026-11-26
EMBEDDED = 16 / 0.25  # images/s embedded on two cores in bf16: table model, 2026-11-22
FILES_DECODED, PACKED_DECODED = 358, 2_944  # images/s and core, of 512 px; packed, of 224: table loader, 2026-11-22
DECODED = 2_447  # images/s and core beside a training, packed images of 224 px: table scale, 2026-11-26
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes at which DistributedDataParallel closes the first, any other bucket


class Link(NamedTuple):
    """Slowest hop of the ring that the workers form."""

    bytes_per_second: float
    latency: float
    overlap: bool = True
    """Whether it works while the workers compute; on CPUs the cores that compute also move the bytes."""

    def all_reduce(self, size: float, workers: int) -> float:
        """Return the seconds of a ring all-reduce: 2(n-1) messages of 1/n of the size (Patarasuk & Yuan 2009)."""
        return 2 * (workers - 1) * (size / workers / self.bytes_per_second + self.latency)


class Bucket(NamedTuple):
    """Gradients that are all-reduced together."""

    ready: float
    """Fraction of the backward pass after which they are complete."""
    bytes: float


class Counts(NamedTuple):
    """Size of a model, and of one image in training; bytes are those of float32."""

    parameters: int
    gradients: tuple[Bucket, ...]
    """One for each parameter, in the order of the backward pass."""
    forward: float
    """FLOP for one image in convolutions and matrix products; a multiplication and an addition are two."""
    backward: float
    activations: float
    """Bytes kept for the backward pass, for one image."""
    statistics: int
    """Numbers in batch norm's running statistics."""


def count(backbone: str, attributes: int, width: int, size: int, triplets: int = 4) -> Counts:
    """Count AG-MAN with an embedding of `width` on images of `size` pixels; nothing is computed."""
    with torch.device("meta"):
        objective = agman.TripletObjective(agman.AGMAN(attributes, width, backbone))
        images, asked = torch.zeros(3 * triplets, 3, size, size), torch.zeros(triplets, dtype=torch.int64)
    learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    own = {StorageWeakRef(parameter.untyped_storage()) for parameter in objective.parameters()}
    kept: dict[StorageWeakRef, torch.UntypedStorage] = {}
    ready: list[tuple[int, int]] = []  # FLOP of the backward pass so far, and bytes, of every gradient

    def keep(tensor: Tensor) -> Tensor:
        kept[StorageWeakRef(tensor.untyped_storage())] = tensor.untyped_storage()
        return tensor

    def note(parameter: Tensor) -> None:
        ready.append((counter.get_total_flops() - forward, parameter.nbytes))

    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = objective(images, asked).loss
        forward = counter.get_total_flops()
        for parameter in learned:
            parameter.register_post_accumulate_grad_hook(note)
        loss.backward()
        backward = counter.get_total_flops() - forward
    parameters = sum(parameter.numel() for parameter in learned)
    gradients = tuple(Bucket(flop / backward, nbytes) for flop, nbytes in ready)
    activations = sum(storage.nbytes() for ref, storage in kept.items() if ref not in own)
    numbers = sum(one.numel() for name, one in objective.named_buffers() if "running_" in name)
    n = len(images)
    return Counts(parameters, gradients, forward / n, backward / n, activations / n, numbers)


def buckets_of(gradients: Sequence[Bucket], wire: float = 1) -> list[Bucket]:
    """Group gradients as DistributedDataParallel does; `wire`: bytes sent for each byte of a gradient."""
    buckets, limit, size = [], FIRST_BUCKET, 0.0
    for number, gradient in enumerate(gradients, 1):
        size += gradient.bytes
        if size >= limit or number == len(gradients):
            buckets.append(Bucket(gradient.ready, wire * size))
            limit, size = BUCKET, 0.0
    return buckets


def exposed(backward: float, buckets: Sequence[Bucket], statistics: float, workers: int, link: Link) -> float:
    """Return the seconds of all-reduces that the backward pass does not hide; `statistics`: bytes sent after it."""
    if workers == 1:
        return 0.0
    free = 0.0 if link.overlap else backward
    for bucket in buckets:
        free = max(free, bucket.ready * backward) + link.all_reduce(bucket.bytes, workers)
    return max(free, backward) - backward + link.all_reduce(statistics, workers)


def training_rows(counts: Counts) -> list[list[str]]:
    """Return the table of GPUs."""
    rows, alone = [], 0.0
    for gpus, batch in ((1, BATCH), (8, BATCH), (8, 8 * BATCH), (64, BATCH), (64, 64 * BATCH)):
        images, local = 3 * batch / gpus, min(gpus, GPUS_OF_NODE)
        link = Link(NVLINK, HOP) if gpus == local else Link(NETWORK, (7 * HOP + NETWORK_HOP) / GPUS_OF_NODE)
        slowest = 1 + JITTER * gpus / (gpus + 1)  # expected maximum of n even draws
        forward = slowest * max(images * counts.forward / USED / PEAK, LAUNCH * OPERATIONS[0])
        backward = slowest * max(images * counts.backward / USED / PEAK, LAUNCH * OPERATIONS[1])
        buckets, numbers = buckets_of(counts.gradients), 8.0 * counts.statistics
        shown = exposed(backward, buckets, numbers, gpus, link)
        optimizer = 7 * 4 * counts.parameters / MEMORY  # Adam reads weight, gradient, two moments and writes three
        step = forward + backward + shown + optimizer + 12 * counts.parameters / COPY / EVERY  # with its snapshots
        rate = batch / step
        alone, decoded, sizes = alone or rate, 3 * rate * local / gpus, [numbers, *(bucket.bytes for bucket in buckets)]
        busy = sum(link.all_reduce(size, gpus) for size in sizes)
        row = [f"{gpus}", f"{batch:,}", f"{1000 * step:.1f}", f"{rate:,.0f}", f"{rate / gpus / alone:.0%}"]
        row += [f"{2 * (gpus - 1) / gpus * sum(sizes) / 1e6:.0f}", f"{1000 * busy:.1f} ({1000 * shown:.1f})"]
        row += [f"{decoded / DECODED:.1f}", f"{decoded * PACKED / 1e6:,.0f}", f"{TRIPLETS / rate:.1f}"]
        row += [
            f"{gpus * TRIPLETS / rate / 3600:.3f}",
            f"{max(IMAGES * PACKED / SHARDS_READ, IMAGES * PACKED * gpus / STORAGE):.0f}",
        ]
        rows.append([*row, f"{(16 * counts.parameters + images * counts.activations) / 1e9:.1f}"])
    return rows


TRAINING = ["GPUs", "triplets a step", "ms a step", "triplets/s", "of 1 GPU, each", "MB sent by each a step"]
TRAINING += ["all-reduces, ms (not hidden)", "cores decoding, a node", "MB/s read, a node", "s an epoch"]
TRAINING += ["GPU-hours an epoch", "s to start", "GB of memory, a GPU"]
GALLERY = ["a number as", "bytes an embedding", "TB an attribute", f"TB of {ATTRIBUTES} attributes"]
GALLERY += ["s an exact scan, 2 cores", "machines of 256 GB, one attribute", "of 2 cores, a scan in 0.1 s"]
EMBEDDING = ["by", "images/s", "hours", "cores decoding 512 px", "cores for packed 224 px", "GB/s read", "GB/s written"]


def gallery_rows() -> list[list[str]]:
    """Return the table of a gallery of ROWS embeddings."""
    rows = []
    for name, size in (("float32", 4 * WIDTH), ("float16", 2 * WIDTH), ("8 bits (SQ8)", WIDTH), ("PQ, 64 bytes", 64)):
        total = ROWS * size
        row = [name, f"{size:,}", f"{total / 1e12:.2f}", f"{ATTRIBUTES * total / 1e12:.2f}", f"{total / SCAN:.1f}"]
        rows.append([*row, f"{math.ceil(total / 256e9)}", f"{math.ceil(total / SCAN / 0.1)}"])
    return rows


def embedding_rows(forward: float) -> list[list[str]]:
    """Return the table of embedding ROWS images, of `forward` FLOP each."""
    ways = [(f"{gpus} GPU{'s' * (gpus > 1)}, assumed", gpus * USED * PEAK / forward) for gpus in (1, 8, 64)]
    rows = []
    for name, rate in [("2 cores, measured", EMBEDDED), *ways]:
        row = [name, f"{rate:,.0f}", f"{ROWS / rate / 3600:,.1f}", f"{rate / FILES_DECODED:,.1f}"]
        row += [f"{rate / PACKED_DECODED:,.1f}", f"{rate * PACKED / 1e9:.2f}"]
        rows.append([*row, f"{rate * ATTRIBUTES * WIDTH * 4 / 1e9:.2f}"])
    return rows


def main() -> None:
    """Write all tables."""
    found = count("resnet50", ATTRIBUTES, WIDTH, 224)
    counted = (
        f"AG-MAN on ResNet-50, 224 px, {ATTRIBUTES} attributes: {found.parameters:,} parameters; an image in training "
        f"{found.forward / 1e9:.1f} + {found.backward / 1e9:.1f} GFLOP, {found.activations / 1e6:.0f} MB kept "
        f"in float32; an epoch {3 * TRIPLETS * (found.forward + found.backward) / 1e15:.1f} PFLOP."
    )
    assumed = "GPUs are **assumed, not measured**: `benchmarks/scale.py` has every assumption and its source."
    gallery = f"A gallery of {ROWS:,} images, D = {WIDTH}; scans at {SCAN / 1e9:.1f} GB/s:"
    notes = [counted, assumed, gallery, table(GALLERY, gallery_rows()), table(EMBEDDING, embedding_rows(found.forward))]
    write_table("scale", TRAINING, training_rows(found), "\n\n".join(notes))
