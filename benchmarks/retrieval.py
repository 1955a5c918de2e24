"""Ranking and scoring against the published way, a sort and a loop per query: `agman bench retrieval`.

Sizes are those of DeepFashion's test split as one attribute: 5,525 queries, 22,100 candidates, D = 512, 200 values with
a long tail. Each way runs in its own process, so that its peak memory can be measured.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import agman
from benchmarks.common import in_own_process, write_table

QUERIES, CANDIDATES, WIDTH, VALUES = 5_525, 22_100, 512, 200
Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def case() -> Case:
    """Make embeddings of unit length that lean towards their value's direction, as those of a trained model do."""
    generator = torch.Generator().manual_seed(0)
    share = 1 / torch.arange(1, VALUES + 1)
    centre = torch.randn(VALUES, WIDTH, generator=generator)

    def embedded(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        values = share.multinomial(n, replacement=True, generator=generator)
        noise = torch.randn(n, WIDTH, generator=generator)
        return torch.nn.functional.normalize(centre[values] + 3 * noise, dim=1), values

    (queries, query_values), (candidates, candidate_values) = embedded(QUERIES), embedded(CANDIDATES)
    return queries, candidates, query_values, candidate_values


def ours(case: Case) -> float:
    """Return MAP from `agman.retrieval`."""
    return float(agman.retrieval(*case).average_precision.mean())


def torch_sort(case: Case, chunk: int = 256) -> float:
    """Return MAP from a stable sort of the similarities and cumulative sums over all ranks."""
    queries, candidates, query_values, candidate_values = case
    candidates_dc, rank_c = candidates.double().T, torch.arange(1, len(candidates) + 1)
    total = 0.0
    for embedding_qd, value_q in zip(queries.split(chunk), query_values.split(chunk), strict=True):
        similarity_qc = (embedding_qd.double() @ candidates_dc).float()
        order_qc = similarity_qc.sort(dim=1, descending=True, stable=True).indices
        hits_qc = (candidate_values == value_q[:, None]).gather(1, order_qc)
        sums_q = (hits_qc * hits_qc.cumsum(1) / rank_c.double()).sum(1)
        total += float((sums_q / hits_qc.sum(1).clamp(min=1)).sum())
    return total / len(queries)


def plain_loop(case: Case) -> float:
    """Return MAP from an argsort and a Python loop over the ranks for each query, in float32."""
    queries, candidates, query_values, candidate_values = (tensor.numpy() for tensor in case)
    similarity = queries @ candidates.T
    precisions = []
    for scores, value in zip(similarity, query_values, strict=True):
        found, total = 0, 0.0
        for rank, row in enumerate(np.argsort(-scores), start=1):
            if candidate_values[row] == value:
                found += 1
                total += found / rank
        precisions.append(total / max(found, 1))
    return float(np.mean(precisions))


WAYS: dict[str, tuple[str, Callable[[Case], float]]] = {
    "ours": ("`agman.retrieval`: all its scores", ours),
    "torch_sort": ("a stable `torch.sort`, cumulative sums: AP only", torch_sort),
    "plain_loop": ("`np.argsort` and a Python loop for each query: AP only", plain_loop),
}


def measure(way: str) -> None:
    """Run one way in this process; print seconds (clock, CPU), peak memory above its input in MiB, and MAP."""
    given = case()
    warm_up = tuple(tensor[:300] for tensor in given)
    WAYS[way][1](warm_up)  # type: ignore[arg-type]
    before = _held_mib()
    started, worked = time.perf_counter(), time.process_time()
    found = WAYS[way][1](given)
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    print(json.dumps({"s": seconds, "cpu_s": worked, "MiB": _peak_mib() - before, "map": found}))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def _held_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    """Run every way in its own process; write the table."""
    one_core = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    found = {name: json.loads(in_own_process("retrieval", name, environment=one_core)) for name in WAYS}
    slowest = found["plain_loop"]["cpu_s"]
    rows = [
        [title, *(f"{one[key]:.1f}" for key in ("s", "cpu_s")), f"{slowest / one['cpu_s']:.1f} ×"]
        for (title, _), one in zip(WAYS.values(), found.values(), strict=True)
    ]
    for row, one in zip(rows, found.values(), strict=True):
        row += [f"{one['MiB']:,.0f}", f"{one['map']:.8f}"]
    notes = (
        f"{QUERIES:,} queries × {CANDIDATES:,} candidates, D = {WIDTH}, {VALUES} values; one run of each in a fresh "
        "process with one thread. Seconds of CPU leave out waiting for other programs; speed is computed from them. "
        "Memory: peak of the process above its memory before ranking; wanted: at most 1,024 MiB. The last digits of "
        "MAP differ where rounding decides between nearly equal similarities."
    )
    write_table("retrieval", ["way", "s", "s of CPU", "speed", "peak, MiB more", "MAP"], rows, notes)


if __name__ == "__main__":  # one way in a process of its own
    measure(sys.argv[1])
