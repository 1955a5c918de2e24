"""What synchronised batch norm costs on the CPU: `agman bench batch_norm`.

Steps of the demo's training (ResNet-18, 64 px, 32 triplets, bf16) in 1 and 2 processes with one thread
each, without Ray, with each worker's own statistics and with those of the global batch.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import agman
from benchmarks.record import write_table

TRIPLETS, SIZE, STEPS, WARM_UP = 32, 64, 20, 4


def measure(rank: int, workers: int, mode: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    objective = agman.TripletObjective(agman.build("agman", n_attributes=8, embedding_dim=64, backbone="resnet18"))
    objective.to(memory_format=torch.channels_last)
    agman.convert_batchnorm(objective, mode)
    step_module: torch.nn.Module = objective
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
        step_module = DistributedDataParallel(objective)
    optimizer = agman.build_optimizer(objective)
    mine = TRIPLETS // workers
    batch = agman.Batch(
        images=torch.randint(0, 255, (3 * mine, 3, SIZE, SIZE), dtype=torch.uint8),
        index=torch.arange(3 * mine).view(3, mine),
        flip=torch.zeros(3, mine, dtype=torch.bool),
        attributes=torch.arange(mine) % 8,
        global_size=TRIPLETS,
    )
    started = 0.0
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            started = time.perf_counter()
        agman.train_step(
            step_module, optimizer, batch, device="cpu", precision="bf16", world_size=workers, channels_last=True
        )
    if rank == 0:
        seconds = (time.perf_counter() - started) / STEPS
        Path(folder, "seconds").write_text(str(seconds))
    if workers > 1:
        dist.destroy_process_group()


def main() -> None:
    rows = []
    for workers, mode in ((1, "per_worker"), (2, "per_worker"), (2, "sync")):
        with tempfile.TemporaryDirectory() as folder:
            spawn(measure, args=(workers, mode, folder), nprocs=workers)
            seconds = float(Path(folder, "seconds").read_text())
        rows.append([str(workers), mode, f"{1000 * seconds:.0f}", f"{TRIPLETS / seconds:.0f}"])
    header = ["workers, one thread each", "batch norm", "ms a step", "triplets/s"]
    write_table("batch_norm", header, rows, "The global batch is the same in every row.")
