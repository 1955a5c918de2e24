"""AG-MAN as published against this library: a training step, and evaluation under several attributes.

The published way is written out here: three forward passes in float32, every map built in full; for evaluation one
pass of the backbone, with gradients, for every (image, attribute) pair. Each way runs in its own process.
`agman bench model`
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import agman
from agman.memory import keep_freed_memory
from benchmarks.common import in_own_process, repeat, write_table
from pipeline.common.console import say

TRIPLETS, IMAGES, SIZE = 16, 16, 224
ATTRIBUTES, ASKED = 8, 5
"""Attributes of the model, and attributes that evaluation asks of every image."""
WARM_UP, REPEATS = 4, 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Way:
    """One way of doing the work, and the parts of this library that it uses."""

    title: str
    published: bool = False
    keep_memory: bool = True
    bf16: bool = False
    compiled: bool = False


PUBLISHED = Way("published, fp32", published=True, keep_memory=False)
WAYS = {
    "training": (
        PUBLISHED,
        Way("published, fp32, freed memory kept", published=True),
        Way("one merged forward, channels_last, fp32"),
        Way("the same in bf16", bf16=True),
        Way("the same in bf16, torch.compile", bf16=True, compiled=True),
    ),
    "evaluation": (
        PUBLISHED,
        Way("published, fp32, freed memory kept", published=True),
        Way("one pass for each image, channels_last, fp32"),
        Way("the same in bf16", bf16=True),
        Way("the same in fp32, torch.compile", compiled=True),
        Way("the same in bf16, torch.compile", bf16=True, compiled=True),
    ),
}
ITEMS = {"training": TRIPLETS, "evaluation": IMAGES * ASKED}


def published_forward(model: agman.AGMAN, images: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
    """Return embeddings and logits, with every map built as B×D×H×W."""
    trunk, attention, mask = model.backbone, model.multi_level, model.mask
    asa, sa, aca = attention.asa, attention.sa, attention.aca
    assert trunk.low and asa and sa and aca and mask, "of a whole model"
    layer2 = trunk.layer2(trunk.layer1(trunk.stem(images)))
    low, mid = trunk.low(layer2), trunk.layer3(layer2)
    fused = low + mid
    assert model.classifier is not None
    logits = model.classifier(trunk.top(fused))

    x = model.reduce(model.w * torch.cat((mid, fused), 1))
    embedded = attention.embedding(attributes)
    attribute = asa.project(embedded)
    attribute = (attribute * attribute.sigmoid())[:, :, None, None].expand_as(x)
    score = (attribute * asa.norm(x).tanh()).sum(1, keepdim=True) / x.shape[1] ** 0.5
    x = x * (asa.w1 * score.flatten(2).softmax(2).view_as(score))
    pooled = torch.cat((x.mean(1, keepdim=True), x.max(1, keepdim=True).values), 1)
    x = (x * sa.conv(pooled).sigmoid()).sum((2, 3))
    attribute = aca.project(embedded)
    gate = aca.fc2(aca.fc1(torch.cat((x, attribute * attribute.sigmoid()), 1)).relu()).sigmoid()
    x = x * (aca.w2 * gate) * mask.beta[attributes].relu()
    return x / x.norm(dim=1, keepdim=True), logits


def published_step(model: agman.AGMAN, optimizer: torch.optim.Optimizer, images: Tensor, attributes: Tensor) -> None:
    """Embed anchor, positive and negative one after the other; step on the triplet and the classification loss."""
    anchor, positive, negative = (published_forward(model, part, attributes) for part in images.chunk(3))
    difference = (anchor[0] * negative[0]).sum(1) - (anchor[0] * positive[0]).sum(1)
    target = F.one_hot(attributes, ATTRIBUTES).float()
    parts = [F.binary_cross_entropy_with_logits(logits, target) for _, logits in (anchor, positive, negative)]
    loss = F.relu(difference + 0.2).mean() + torch.stack(parts).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def training_job(way: Way) -> Callable[[], object]:
    """Return a function that does one step of TRIPLETS triplets with Adam."""
    images = torch.randn(3 * TRIPLETS, 3, SIZE, SIZE, device=DEVICE)
    attributes = torch.arange(TRIPLETS, device=DEVICE) % ATTRIBUTES
    if way.published:
        plain = new_model()
        plain_optimizer = torch.optim.Adam(plain.parameters(), lr=1e-4)
        return lambda: published_step(plain, plain_optimizer, images, attributes)

    images = images.contiguous(memory_format=torch.channels_last)
    objective = agman.TripletObjective(new_model()).to(memory_format=torch.channels_last)
    optimizer = agman.build_optimizer(objective)
    if way.compiled:
        objective.model.compile()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=way.bf16):
            loss = objective(images, attributes).loss
        loss.backward()
        optimizer.step()

    return step


def evaluation_job(way: Way) -> Callable[[], object]:
    """Return a function that embeds IMAGES images under ASKED attributes each."""
    images = torch.randn(IMAGES, 3, SIZE, SIZE, device=DEVICE)
    every = [torch.full((IMAGES,), attribute, device=DEVICE) for attribute in range(ASKED)]
    model = new_model().eval()
    if way.published:
        return lambda: [published_forward(model, images, attributes) for attributes in every]

    model.requires_grad_(False).to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    index, attributes = torch.arange(IMAGES, device=DEVICE).repeat(ASKED), torch.cat(every)
    embed = torch.compile(model.embed_pairs) if way.compiled else model.embed_pairs

    def pass_over() -> Tensor:
        with torch.inference_mode(), torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=way.bf16):
            return embed(images, index, attributes)

    return pass_over


JOBS = {"training": training_job, "evaluation": evaluation_job}


def new_model() -> agman.AGMAN:
    """Build the model with fixed random weights."""
    torch.manual_seed(0)
    return agman.AGMAN(ATTRIBUTES).to(DEVICE)


def check() -> float:
    """Return the largest difference of both ways' embeddings. Raises AssertionError if it is above 1e-5."""
    model, images = new_model().eval(), torch.randn(4, 3, SIZE, SIZE, device=DEVICE)
    attributes = torch.arange(4, device=DEVICE)
    with torch.inference_mode():
        difference = published_forward(model, images, attributes)[0] - model(images, attributes).embedding
    largest = float(difference.abs().max())
    if largest > 1e-5:
        raise AssertionError(f"the two ways differ by {largest}")
    return largest


def peak(dtype: torch.dtype, side: int = 4096) -> float:
    """Return the FLOP/s of the fastest of several square matrix products."""
    a, b = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b))


def seconds(job: Callable[[], object]) -> list[float]:
    """Return the seconds of REPEATS runs, after WARM_UP runs that warm up (and compile)."""

    def complete() -> None:
        job()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return repeat(complete, REPEATS, WARM_UP)


def flops(job: Callable[[], object]) -> int:
    """Return the FLOP of convolutions and matrix products in one run."""
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops()


def measure(work: str, number: int) -> None:
    """Time one way in this process; print its seconds and FLOP as JSON."""
    way = WAYS[work][number]
    if way.keep_memory:
        keep_freed_memory()
    took = seconds(JOBS[work](way))
    counted = Way(way.title, published=way.published)  # compiling hides operations from the counter
    print(json.dumps({"s": took, "flop": flops(JOBS[work](counted))}))


def main() -> None:
    """Run every way in its own process; write the table."""
    difference = check()
    peaks = {False: peak(torch.float32), True: peak(torch.bfloat16)}
    rows = []
    for work, ways in WAYS.items():
        published = 0.0
        for number, way in enumerate(ways):
            found = json.loads(in_own_process("model", work, str(number)))
            took = statistics.median(found["s"])
            published = published or took
            say(f"{work}, {way.title}: {took:.2f} s, {published / took:.2f} ×")
            rows.append(
                [
                    work,
                    way.title,
                    f"{took:.2f} ({min(found['s']):.2f} to {max(found['s']):.2f})",
                    f"{ITEMS[work] / took:.1f}",
                    f"{published / took:.2f} ×",
                    f"{found['flop'] / took / 1e12:.3f}",
                    f"{100 * found['flop'] / took / peaks[way.bf16]:.0f} %",
                ]
            )
    notes = (
        f"AG-MAN on ResNet-50, {SIZE} px, {ATTRIBUTES} attributes; {torch.get_num_threads()} threads; medians (and "
        f"range) of {REPEATS} runs after {WARM_UP} that warm up, each way in a fresh process. Training: a step of "
        f"{TRIPLETS} triplets with Adam; an item is a triplet. Evaluation: {IMAGES} images under {ASKED} attributes "
        f"each; an item is an (image, attribute) pair.\n\n"
        f"Peak, measured by products of 4,096 × 4,096 matrices: {peaks[False] / 1e12:.2f} TFLOP/s in fp32, "
        f"{peaks[True] / 1e12:.2f} in bf16; FLOP counted for convolutions and matrix products. Above "
        "100 %: convolutions may be faster than the matrix product that stands for the peak. The two ways' "
        f"embeddings differ by at most {difference:.0e} in fp32; what bf16 does to MAP is in the table `precision`. "
        "Wanted on a CPU: training 2.5 × eager and 3.2 × compiled, evaluation 15 ×; on a GPU: training 5 ×."
    )
    header = ["work", "how", "s", "items/s", "speed", "TFLOP/s", "of the peak"]
    write_table("model" if DEVICE == "cpu" else "model-gpu", header, rows, notes)


if __name__ == "__main__":  # one way in a process of its own
    measure(sys.argv[1], int(sys.argv[2]))
