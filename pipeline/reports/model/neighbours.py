"""The first candidates of every query, ranked as the metric ranks them, without a matrix of all pairs."""

from __future__ import annotations

import torch

from agman.numerics import on_grid

WORKING_BYTES = 64 * 2**20
BYTES_OF_A_PAIR = 24
"""A pair of query and candidate at its peak: similarity in float64 and float32, and the key."""


def neighbours(
    queries: torch.Tensor, candidates: torch.Tensor, k: int, chunk: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (float32) and places (int64) of the first k of C candidates (C×D) for Q queries (Q×D), both Q×min(k, C).

    As `agman.retrieval` ranks: by similarities summed without rounding, equal ones as they stand. `chunk` queries
    are ranked at a time; without it, as many as WORKING_BYTES hold.
    """
    queries_qd, candidates_dc = on_grid("query embeddings", queries), on_grid("candidate embeddings", candidates).T
    wanted = min(k, len(candidates))
    chunk = chunk or max(1, WORKING_BYTES // (BYTES_OF_A_PAIR * max(len(candidates), 1)))
    scores = torch.empty(len(queries), wanted)
    places = torch.empty(len(queries), wanted, dtype=torch.int64)
    for start in range(0, len(queries), chunk):
        few = slice(start, start + chunk)
        similarity_qc = (queries_qd[few] @ candidates_dc).float()
        places[few] = _first(similarity_qc, wanted)
        scores[few] = similarity_qc.gather(1, places[few])
    return scores, places


def _first(similarity_qc: torch.Tensor, k: int) -> torch.Tensor:
    """Places of the k highest, the first of equal ones first: the smallest keys of falling similarity, then place."""
    bits_qc = (0.0 - similarity_qc).view(torch.int32)  # 0 − x rather than −x: −0 and 0 are equal
    rising_qc = bits_qc ^ ((bits_qc >> 31) & 0x7FFFFFFF)  # negative floats' bits count the wrong way
    key_qc = (rising_qc.long() << 32) + torch.arange(similarity_qc.shape[1])
    return key_qc.topk(k, largest=False).values & 0xFFFFFFFF
