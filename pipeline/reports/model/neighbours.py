"""The first candidates of every query in the metric's ranking, computed without a matrix of all pairs."""

from __future__ import annotations

import torch

from agman.numerics import on_grid

WORKING_BYTES = 64 * 2**20
BYTES_OF_A_PAIR = 24
"""Peak memory of a pair of query and candidate: similarity in float64 and float32, and the key."""


def neighbours(
    queries: torch.Tensor, candidates: torch.Tensor, k: int, chunk: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores (float32) and indices (int64) of the first k of C candidates for Q queries, both Q×min(k, C).

    `queries` are Q×D, `candidates` C×D. The ranking is that of `agman.retrieval`: by similarities summed without
    rounding; equal ones keep the order of the candidates. `chunk` queries are ranked at a time, by default as many as
    fit in WORKING_BYTES.
    """
    queries_qd, candidates_dc = on_grid("query embeddings", queries), on_grid("candidate embeddings", candidates).T
    wanted = min(k, len(candidates))
    chunk = chunk or max(1, WORKING_BYTES // (BYTES_OF_A_PAIR * max(len(candidates), 1)))
    scores = torch.empty(len(queries), wanted)
    indices = torch.empty(len(queries), wanted, dtype=torch.int64)
    for start in range(0, len(queries), chunk):
        few = slice(start, start + chunk)
        similarity_qc = (queries_qd[few] @ candidates_dc).float()
        indices[few] = _first(similarity_qc, wanted)
        scores[few] = similarity_qc.gather(1, indices[few])
    return scores, indices


def _first(similarity_qc: torch.Tensor, k: int) -> torch.Tensor:
    """Return the indices of the k highest similarities, equal ones by index, as the k smallest of one integer key."""
    bits_qc = (0.0 - similarity_qc).view(torch.int32)  # 0 − x rather than −x: −0 and 0 are equal
    rising_qc = bits_qc ^ ((bits_qc >> 31) & 0x7FFFFFFF)  # the bits of negative floats are in reverse order
    key_qc = (rising_qc.long() << 32) + torch.arange(similarity_qc.shape[1])
    return key_qc.topk(k, largest=False).values & 0xFFFFFFFF
