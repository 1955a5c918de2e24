"""AG-MAN as published against this library: a training step, and evaluation under several attributes.

The published way, written out plainly here: three forwards in float32, every map built in full, and for evaluation
one pass of the backbone, with gradients, for every (image, attribute) pair.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import agman
from benchmarks.record import write_table

TRIPLETS, IMAGES, SIZE = 16, 16, 224
ATTRIBUTES, ASKED = 8, 5
"""Attributes known, and those asked of every image in evaluation."""
REPEATS = 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Work:
    """What is timed, how many items it makes, and which matmul peak it could reach."""

    title: str
    job: Callable[[], object]
    items: int
    precision: str


def published_forward(model: agman.AGMAN, images: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings and logits, line by line, everything B×D×H×W."""
    trunk, attention = model.backbone, model.multi_level
    layer2 = trunk.layer2(trunk.layer1(trunk.stem(images)))
    low, mid = trunk.low(layer2), trunk.layer3(layer2)
    fused = low + mid
    logits = model.classifier(trunk.top(fused)) if model.classifier else fused.new_zeros(())

    x = model.reduce(model.w * torch.cat((mid, fused), 1))
    embedded = attention.embedding(attributes)
    attribute = attention.asa.project(embedded)
    attribute = (attribute * attribute.sigmoid())[:, :, None, None].expand_as(x)
    score = (attribute * attention.asa.norm(x).tanh()).sum(1, keepdim=True) / x.shape[1] ** 0.5
    x = x * (attention.asa.w1 * score.flatten(2).softmax(2).view_as(score))
    pooled = torch.cat((x.mean(1, keepdim=True), x.max(1, keepdim=True).values), 1)
    x = (x * attention.sa.conv(pooled).sigmoid()).sum((2, 3))
    attribute = attention.aca.project(embedded)
    gate = attention.aca.fc2(attention.aca.fc1(torch.cat((x, attribute * attribute.sigmoid()), 1)).relu()).sigmoid()
    x = x * (attention.aca.w2 * gate) * model.mask.beta[attributes].relu()
    return x / x.norm(dim=1, keepdim=True), logits


def published_step(model: agman.AGMAN, optimizer: torch.optim.Optimizer, images: Tensor, attributes: Tensor) -> None:
    """Anchor, negative and positive one after the other; the triplet loss and the classification loss."""
    anchor, positive, negative = (published_forward(model, part, attributes) for part in images.chunk(3))
    difference = (anchor[0] * negative[0]).sum(1) - (anchor[0] * positive[0]).sum(1)
    target = F.one_hot(attributes, ATTRIBUTES).float()
    parts = [F.binary_cross_entropy_with_logits(logits, target) for _, logits in (anchor, positive, negative)]
    loss = F.relu(difference + 0.2).mean() + torch.stack(parts).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def our_step(
    objective: agman.TripletObjective, optimizer: torch.optim.Optimizer, images: Tensor, attributes: Tensor, bf16: bool
) -> None:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=bf16):
        loss = objective(images, attributes).loss
    loss.backward()
    optimizer.step()


def training_work() -> list[Work]:
    images = torch.randn(3 * TRIPLETS, 3, SIZE, SIZE, device=DEVICE)
    attributes = torch.arange(TRIPLETS, device=DEVICE) % ATTRIBUTES
    plain = new_model()
    plain_optimizer = torch.optim.Adam(plain.parameters(), lr=1e-4)
    works = [
        Work(
            "published: three forwards, fp32",
            lambda: published_step(plain, plain_optimizer, images, attributes),
            TRIPLETS,
            "fp32",
        )
    ]
    channels_last = images.contiguous(memory_format=torch.channels_last)
    for title, bf16, compiled in (
        ("one merged forward, fp32, channels_last", False, False),
        ("the same in bf16", True, False),
        ("the same in bf16 with torch.compile", True, True),
    ):
        objective = agman.TripletObjective(new_model()).to(memory_format=torch.channels_last)
        optimizer = agman.build_optimizer(objective)
        if compiled:
            objective.model.compile()
        works.append(Work(title, _step(objective, optimizer, channels_last, attributes, bf16), TRIPLETS, _name(bf16)))
    return works


def _step(
    objective: agman.TripletObjective, optimizer: torch.optim.Optimizer, images: Tensor, attributes: Tensor, bf16: bool
) -> Callable[[], object]:
    return lambda: our_step(objective, optimizer, images, attributes, bf16)


def evaluation_work() -> list[Work]:
    images = torch.randn(IMAGES, 3, SIZE, SIZE, device=DEVICE)
    plain = new_model().eval()
    every = [torch.full((IMAGES,), attribute, device=DEVICE) for attribute in range(ASKED)]
    works = [
        Work(
            "published: one pass for each pair, fp32, with gradients",
            lambda: [published_forward(plain, images, attributes) for attributes in every],
            IMAGES * ASKED,
            "fp32",
        )
    ]
    index = torch.arange(IMAGES, device=DEVICE).repeat(ASKED)
    attributes = torch.cat(every)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    for title, bf16, compiled in (
        ("one pass for each image, fp32, channels_last", False, False),
        ("the same in bf16", True, False),
        ("the same in fp32 with torch.compile", False, True),
        ("the same in bf16 with torch.compile", True, True),
    ):
        model = new_model().eval().to(memory_format=torch.channels_last)
        embed = torch.compile(model.embed_pairs) if compiled else model.embed_pairs
        works.append(Work(title, _embed(embed, channels_last, index, attributes, bf16), IMAGES * ASKED, _name(bf16)))
    return works


def _embed(
    embed: Callable[..., Tensor], images: Tensor, index: Tensor, attributes: Tensor, bf16: bool
) -> Callable[[], object]:
    def job() -> Tensor:
        with torch.inference_mode(), torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=bf16):
            return embed(images, index, attributes)

    return job


def _name(bf16: bool) -> str:
    return "bf16" if bf16 else "fp32"


def new_model() -> agman.AGMAN:
    torch.manual_seed(0)
    return agman.AGMAN(ATTRIBUTES).to(DEVICE)


def check() -> float:
    """Largest difference of the two ways' embeddings: what is compared computes the same."""
    model, images = new_model().eval(), torch.randn(4, 3, SIZE, SIZE, device=DEVICE)
    attributes = torch.arange(4, device=DEVICE)
    with torch.inference_mode():
        difference = published_forward(model, images, attributes)[0] - model(images, attributes).embedding
    largest = float(difference.abs().max())
    if largest > 1e-5:
        raise AssertionError(f"the two ways differ by {largest}")
    return largest


def peak(dtype: torch.dtype, side: int = 4096) -> float:
    """The best of several square matrix products, in FLOP/s."""
    a, b = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, repeats=5))


def seconds(job: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Durations of `repeats` runs, after one that warms up (and compiles)."""
    times = []
    for number in range(repeats + 1):
        started = time.perf_counter()
        job()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        if number:
            times.append(time.perf_counter() - started)
    return times


def flops(job: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops()


def main() -> None:
    difference = check()
    peaks = {"fp32": peak(torch.float32), "bf16": peak(torch.bfloat16)}
    rows = []
    for kind, works in (("training", training_work()), ("evaluation", evaluation_work())):
        operations = {"published": flops(works[0].job), "ours": flops(works[1].job)}
        published = 0.0
        for number, work in enumerate(works):
            took = statistics.median(seconds(work.job))
            published = published or took
            done = operations["ours" if number else "published"] / took
            rows.append(
                [
                    kind,
                    work.title,
                    f"{took:.2f}",
                    f"{work.items / took:.1f}",
                    f"{published / took:.2f} ×",
                    f"{done / 1e12:.3f}",
                    f"{100 * done / peaks[work.precision]:.0f} %",
                ]
            )
    notes = (
        f"AG-MAN on ResNet-50, {SIZE} px, {ATTRIBUTES} attributes; {torch.get_num_threads()} threads; medians of "
        f"{REPEATS} runs after one that warms up. Training: a step of {TRIPLETS} triplets with Adam; an item is a "
        f"triplet. Evaluation: {IMAGES} images under {ASKED} attributes each; an item is an (image, attribute) pair."
        f"\n\nPeak, measured by products of 4,096 × 4,096 matrices: {peaks['fp32'] / 1e12:.2f} TFLOP/s in fp32, "
        f"{peaks['bf16'] / 1e12:.2f} in bf16; FLOP counted for convolutions and matrix products. The two ways' "
        f"embeddings differ by at most {difference:.0e} in fp32. Wanted on a CPU: training 2.5 × eager and 3.2 × "
        "compiled, evaluation 15 ×; on a GPU: training 5 ×."
    )
    header = ["work", "how", "s", "items/s", "speed", "TFLOP/s", "of the peak"]
    write_table("model" if DEVICE == "cpu" else "model-gpu", header, rows, notes)
