"""Memory and time of a training step of AG-MAN by backbone, with and without gradient checkpointing.

Each one runs in its own process, from random weights. `agman bench backbones`
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time

import torch

import agman
from agman.memory import keep_freed_memory
from benchmarks.common import in_own_process, write_table
from pipeline.common.console import say

BACKBONES = {
    "resnet50": (False,),
    "tf_efficientnet_lite0": (False, True),
    "convnext_tiny": (False, True),
    "vit_small_patch16_224": (False, True),
}
"""Backbones, and whether their gradients are checkpointed."""
TRIPLETS, SIZE, ATTRIBUTES = 8, 224, 8
WARM_UP, REPEATS = 1, 3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOCK = time.perf_counter if DEVICE == "cuda" else time.process_time
"""On CPUs the time of one thread is counted, which other work on the machine changes little."""


def measure(backbone: str, checkpointing: bool) -> None:
    """Time steps of TRIPLETS triplets in bf16 in this process; print seconds, memory in MB and parameters as JSON."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = agman.build(n_attributes=ATTRIBUTES, backbone=backbone)
    if checkpointing:
        model.backbone.checkpoint_gradients()
    objective = agman.TripletObjective(model).to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = agman.build_optimizer(objective)
    images = torch.randn(3 * TRIPLETS, 3, SIZE, SIZE, device=DEVICE).contiguous(memory_format=torch.channels_last)
    attributes = torch.arange(TRIPLETS, device=DEVICE) % ATTRIBUTES

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = objective(images, attributes).loss
        loss.backward()
        optimizer.step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    before, took = _megabytes(), []
    for _ in range(WARM_UP + REPEATS):
        started = CLOCK()
        step()
        took.append(CLOCK() - started)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({"s": took[WARM_UP:], "megabytes": _megabytes() - before, "parameters": parameters}))


def _megabytes() -> float:
    """Return the most memory that was used so far: the GPU's, or this process's."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # Linux counts in KiB


def main() -> None:
    """Run every backbone in its own process; write the table."""
    rows = []
    for backbone, ways in BACKBONES.items():
        for checkpointing in ways:
            found = json.loads(in_own_process("backbones", backbone, str(int(checkpointing))))
            took = statistics.median(found["s"])
            say(f"{backbone}{', checkpointed' if checkpointing else ''}: {took:.2f} s, {found['megabytes']:,.0f} MB")
            rows.append(
                [
                    backbone,
                    "yes" if checkpointing else "no",
                    f"{found['parameters'] / 1e6:.1f}",
                    f"{took:.2f} ({min(found['s']):.2f} to {max(found['s']):.2f})",
                    f"{3 * TRIPLETS / took:.1f}",
                    f"{found['megabytes']:,.0f}",
                ]
            )
    clock = "on the GPU" if DEVICE == "cuda" else "CPU time of one thread"
    notes = (
        f"A step of AG-MAN on {TRIPLETS} triplets ({3 * TRIPLETS} images of {SIZE} px) with Adam, bf16, {clock}; "
        f"median (and range) of {REPEATS} steps after {WARM_UP} that warms up, each backbone in a fresh process. "
        "Memory: what the steps add to the most that was used before them, Adam's moments included."
    )
    header = ["backbone", "gradient_checkpointing", "million parameters", "s a step", "images/s", "MB"]
    write_table("backbones" if DEVICE == "cpu" else "backbones-gpu", header, rows, notes)


if __name__ == "__main__":  # one backbone in a process of its own
    measure(sys.argv[1], bool(int(sys.argv[2])))
