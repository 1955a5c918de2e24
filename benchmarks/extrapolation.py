"""What the simulation says of GPUs that nobody here owns, and of galleries that fit no machine: assumptions and tables.

Nothing below was measured on a GPU. What is assumed has a name here, with its source; docs/scale.md discusses it.
"""

from __future__ import annotations

import math

from benchmarks.simulation import Data, Link, Outcome, Store, Work, simulate, start_seconds
from benchmarks.sizes import Sizes, buckets_of, sizes_of

PEAK, MEMORY = 312e12, 2.0e12
"""Of an A100 80 GB SXM by its data sheet: FLOP/s of dense matrix products in bf16, bytes/s of its memory."""
PUBLISHED = 2_470
"""Images a second that NVIDIA measured training ResNet-50 in mixed precision on one (DeepLearningExamples,
PyTorch/Classification/ConvNets/resnet50v1.5, NGC 21.03)."""
RESNET50 = 24.5e9
"""FLOP for each of them: 3 × 8.2e9, less the first convolution's gradient of the image."""
USED = PUBLISHED * RESNET50 / PEAK
"""0.19 of the peak, taken for AG-MAN too, whose backbone this is."""
OPERATION = 30e-6
"""Seconds in which a host starts one of PyTorch's operations, autocast's casts among them. Assumed."""
JITTER = 0.03
"""Assumed."""
GPUS_OF_NODE, CORES_OF_GPU = 8, 12
NVLINK, NETWORK = 0.7 * 300e9, 0.7 * 50e9
"""Bytes/s: 0.7 (assumed) of 300 GB/s each way, of 400 Gbit/s a node."""
HOP, HOP_OVER_NETWORK = 5e-6, 20e-6
"""Seconds of a message. Assumed."""
PHOTO = 20_000
"""Bytes of a packed photograph of 224 px. Assumed: drawn ones are smaller."""
READ, COPY, UPLOAD = 2e9, 20e9, 200e6
"""Bytes/s from a local disk, from GPU to host, to an object store. Assumed."""
STORAGE = 10e9
"""Bytes/s that a shared store gives to all workers together. Assumed."""

TRIPLETS, BATCH, IMAGES = 100_000, 64, 144_335
"""Of an epoch; of a step, as preset `fast` has it; FashionAI's for training."""
EVERY = 500

RECORDS, WIDTH, ATTRIBUTES = 1_000_000_000, 512, 8
SCAN = 1_000_000 * 512 * 4 / 0.0859
"""Bytes/s of an exact search on two cores: table search, 2026-11-26."""
EMBEDDED = 16 / 0.25
"""Images a second on two cores, eager bf16: table model, 2026-11-22 (16 images, five attributes each)."""
FILES_DECODED, PACKED_DECODED = 358, 2_944
"""Images a second and core: files of 512 px, packed ones of 224 px. Table loader, 2026-11-22."""


def link_of(gpus: int) -> Link:
    """A ring through all GPUs, whose slowest hop leaves a node once there are several."""
    if gpus <= GPUS_OF_NODE:
        return Link(NVLINK, HOP)
    return Link(NETWORK, HOP + (HOP_OVER_NETWORK - HOP) / GPUS_OF_NODE)  # one hop of eight is over the network


def work_of(sizes: Sizes, images: float) -> Work:
    forward, backward = (
        max(images * flop / (USED * PEAK), operations * OPERATION)
        for flop, operations in zip((sizes.forward, sizes.backward), sizes.operations, strict=True)
    )
    optimizer = 7 * 4 * sizes.parameters / MEMORY  # Adam reads weight, gradient and two moments, and writes three
    return Work(forward, backward, optimizer, buckets_of(sizes.gradients, 1), 8.0 * sizes.statistics, JITTER)


def run(sizes: Sizes, gpus: int, batch: int, decode_rate: float) -> tuple[Work, Outcome]:
    """A step of `batch` triplets over all GPUs; the workers of a node share its disk."""
    images = 3 * batch / gpus
    work = work_of(sizes, images)
    data = Data(images, PHOTO, READ / min(gpus, GPUS_OF_NODE), decode_rate, threads=CORES_OF_GPU // 2)
    store = Store(12.0 * sizes.parameters, COPY, UPLOAD, EVERY)
    return work, simulate(work, gpus, link_of(gpus), data, store, steps=2 * EVERY)


def training_rows(decode_rate: float, shard_rate: float) -> list[list[str]]:
    sizes = sizes_of("resnet50", ATTRIBUTES, WIDTH, 224)
    _, alone = run(sizes, 1, BATCH, decode_rate)
    rows = []
    for gpus, batch in ((1, BATCH), (8, BATCH), (8, 8 * BATCH), (64, BATCH), (64, 64 * BATCH)):
        work, found = run(sizes, gpus, batch, decode_rate)
        link, rate = link_of(gpus), batch / found.step
        sent = sum(bucket.bytes for bucket in work.buckets) + work.statistics
        busy = sum(link.all_reduce(size, gpus) for size in (*(one.bytes for one in work.buckets), work.statistics))
        epoch, local = TRIPLETS / rate, min(gpus, GPUS_OF_NODE)
        rows.append(
            [
                f"{gpus}",
                f"{batch:,}",
                f"{1000 * found.step:.1f}",
                f"{rate:,.0f}",
                f"{rate / gpus * alone.step / BATCH:.0%}",
                f"{2 * (gpus - 1) / gpus * sent / 1e6:.0f}",
                f"{1000 * busy:.1f} ({1000 * found.exposed:.1f})",
                f"{3 * rate * local / gpus / decode_rate:.1f}",
                f"{3 * rate * local / gpus * PHOTO / 1e6:,.0f}",
                f"{epoch:.0f}",
                f"{gpus * epoch / 3600:.3f}",
                f"{start_seconds(IMAGES * PHOTO, gpus, STORAGE, shard_rate):.0f}",
                f"{(16 * sizes.parameters + 3 * batch / gpus * sizes.activations) / 1e9:.1f}",
            ]
        )
    return rows


TRAINING = ["GPUs", "triplets a step", "ms a step", "triplets/s", "of 1 GPU, each", "MB sent by each a step"]
TRAINING += ["all-reduces, ms (not hidden)", "cores decoding, a node", "MB/s read, a node", "s an epoch"]
TRAINING += ["GPU-hours an epoch", "s to start", "GB of memory, a GPU"]


def gallery_rows(machine: float = 256e9, wanted: float = 0.1) -> list[list[str]]:
    """Machines of 2 cores that hold one attribute in memory, and that scan it in `wanted` seconds."""
    rows = []
    for name, size in (("float32", 4 * WIDTH), ("float16", 2 * WIDTH), ("8 bits (SQ8)", WIDTH), ("PQ, 64 bytes", 64)):
        whole = RECORDS * size
        rows.append(
            [
                name,
                f"{size:,}",
                f"{whole / 1e12:.2f}",
                f"{ATTRIBUTES * whole / 1e12:.2f}",
                f"{whole / SCAN:.1f}",
                f"{math.ceil(whole / machine)}",
                f"{math.ceil(whole / SCAN / wanted)}",
            ]
        )
    return rows


GALLERY = ["a number as", "bytes an embedding", "TB an attribute", "TB of 8 attributes", "s an exact scan, 2 cores"]
GALLERY += ["machines of 256 GB, one attribute", "of 2 cores, a scan in 0.1 s"]


def embedding_rows() -> list[list[str]]:
    """A billion pictures through the model once, for all attributes."""
    forward = sizes_of("resnet50", ATTRIBUTES, WIDTH, 224).forward
    of_gpu = USED * PEAK / forward
    ways = [("2 cores, measured", EMBEDDED)] + [
        (f"{gpus} GPU{'s' * (gpus > 1)}, assumed", gpus * of_gpu) for gpus in (1, 8, 64)
    ]
    return [
        [
            name,
            f"{rate:,.0f}",
            f"{RECORDS / rate / 3600:,.1f}",
            f"{rate / FILES_DECODED:,.1f}",
            f"{rate / PACKED_DECODED:,.1f}",
            f"{rate * PHOTO / 1e9:.2f}",
            f"{rate * ATTRIBUTES * WIDTH * 4 / 1e9:.2f}",
        ]
        for name, rate in ways
    ]


EMBEDDING = ["by", "images/s", "hours", "cores decoding files of 512 px", "packed ones of 224 px", "GB/s read (packed)"]
EMBEDDING += ["GB/s written"]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(decode_rate: float, shard_rate: float) -> str:
    """All of it as Markdown. `decode_rate`: packed images of 224 px a second and core; `shard_rate`: bytes/s."""
    sizes = sizes_of("resnet50", ATTRIBUTES, WIDTH, 224)
    counted = (
        f"AG-MAN on ResNet-50, 224 px, {ATTRIBUTES} attributes, counted: {sizes.parameters:,} parameters; an image in "
        f"training {sizes.forward / 1e9:.1f} + {sizes.backward / 1e9:.1f} GFLOP, {sizes.moved / 1e6:.0f} MB moved, "
        f"{sizes.activations / 1e6:.0f} MB of activations kept (float32); an epoch of {TRIPLETS:,} triplets "
        f"{3 * TRIPLETS * (sizes.forward + sizes.backward) / 1e15:.1f} PFLOP. FashionAI's {IMAGES:,} images are "
        f"{IMAGES * PHOTO / 1e9:.1f} GB packed, at {PHOTO:,} bytes; an epoch reads {3 * TRIPLETS * PHOTO / 1e9:.1f} GB."
    )
    assumed = (
        f"GPUs are **assumed, not measured**: A100 80 GB, {USED:.0%} of {PEAK / 1e12:.0f} TFLOP/s, "
        f"{OPERATION * 1e6:.0f} µs an operation at least, {NVLINK / 1e9:.0f} GB/s in a node, "
        f"{NETWORK / 1e9:.0f} GB/s between nodes of {GPUS_OF_NODE}, workers uneven by {JITTER:.0%}; "
        "`benchmarks/extrapolation.py` has every one and its source."
    )
    return "\n\n".join(
        [
            counted,
            assumed,
            markdown(TRAINING, training_rows(decode_rate, shard_rate)),
            f"A gallery of {RECORDS:,} pictures, D = {WIDTH}; scans at the {SCAN / 1e9:.1f} GB/s of the search table:",
            markdown(GALLERY, gallery_rows()),
            markdown(EMBEDDING, embedding_rows()),
        ]
    )
