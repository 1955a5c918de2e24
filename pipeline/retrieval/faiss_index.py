"""An approximate index over a gallery: FAISS finds a few rows, the exact scores order them.

For each attribute an inverted file over the vectors in 8 bits (`IVFx,SQ8`, inner product). A search takes the best
few of every asked attribute, `OVERSAMPLE` times as many as are wanted, and scores their union exactly: what is
approximate is which rows are looked at, never a score. How many lists are looked into is chosen when the index is
built: the fewest with which recall@10 on rows of the gallery itself, against exact search, reaches `RECALL`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from data_prep import atomic
from data_prep.errors import InputError
from data_prep.progress import Progress, silent
from pipeline.retrieval.exact import best_of, exact_scores, nearest_rows

INDEX, DESCRIPTION = "index", "index.json"
RECALL, RECALL_AT = 0.97, 10
"""Aimed a little above the 0.95 that one wants of other queries."""
OVERSAMPLE = 5
SAMPLE = 64
"""Rows that recall is measured with, moved a little so that they are not found by themselves alone."""
MOVED = 0.3
"""Length of the random vector that is added to such a row of length 1."""
TRAINED_ON = 64
"""Vectors for each list, to find the lists' centres."""
ADDED = 65_536
"""Rows at a time."""
SEED = 0


@dataclass(frozen=True)
class Measured:
    """What an index does."""

    rows: int
    lists: int
    probes: int
    """Lists that are looked into."""
    recall: float
    """Share of the exact first RECALL_AT that it finds, the lowest of the attributes."""


class ApproximateIndex:
    """One index file for each attribute."""

    def __init__(self, indexes: list[Any], vectors: Sequence[np.ndarray], measured: Measured):
        self._indexes, self._vectors, self.measured = indexes, vectors, measured

    def search(self, queries_qad: np.ndarray, numbers: Sequence[int], top: int) -> tuple[np.ndarray, np.ndarray]:
        """As `exact.nearest_rows`, for attributes by number. Fewer rows found are filled from row 0 on."""
        matrices = [self._vectors[number] for number in numbers]
        wanted = min(top, len(matrices[0]))
        few = min(len(matrices[0]), OVERSAMPLE * wanted)
        each = [self._candidates(number, queries_qad[:, place], few) for place, number in enumerate(numbers)]
        scores, rows = np.empty((len(queries_qad), wanted), np.float32), np.empty((len(queries_qad), wanted), np.int64)
        for place, query in enumerate(queries_qad):
            union = np.unique(np.concatenate([found[place] for found in each]))
            union = union[union >= 0]  # -1 stands where the lists had no more
            if len(union) < wanted:
                union = np.union1d(union, np.arange(wanted))
            found = exact_scores(matrices, query, union)
            scores[place], rows[place] = best_of(found, union, wanted)
        return scores, rows

    def _candidates(self, number: int, queries_qd: np.ndarray, few: int) -> np.ndarray:
        return self._indexes[number].search(np.ascontiguousarray(queries_qd), few)[1]


def open_index(folder: Path, vectors: Sequence[np.ndarray]) -> ApproximateIndex | None:
    """The gallery's index; None if none was built. Raises InputError for a damaged one."""
    place = folder / INDEX
    if not (place / DESCRIPTION).exists():
        return None
    try:
        measured = Measured(**json.loads((place / DESCRIPTION).read_text()))
        indexes: list[Any] = [faiss.read_index(str(place / _file(number))) for number in range(len(vectors))]
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{place}: damaged; delete it, and run `agman index` again") from error
    for index in indexes:
        index.nprobe = measured.probes
    return ApproximateIndex(indexes, vectors, measured)


def build_index(folder: Path, vectors: Sequence[np.ndarray], progress: Progress = silent) -> ApproximateIndex:
    """Build the index of a gallery, and replace an older one. Raises InputError if it cannot be written."""
    rows = len(vectors[0])
    lists = max(1, min(round(4 * math.sqrt(rows)), rows // 39))  # FAISS asks for 39 vectors a list
    advance = progress("vectors indexed", rows * len(vectors))
    indexes: list[Any] = []
    for number, matrix in enumerate(vectors):
        index: Any = faiss.index_factory(matrix.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.spherical = SEED + 1, True
        chosen = np.random.default_rng([SEED, number]).permutation(rows)[: max(TRAINED_ON * lists, 1_000)]
        index.train(np.ascontiguousarray(matrix[np.sort(chosen)]))
        for start in range(0, rows, ADDED):
            index.add(np.ascontiguousarray(matrix[start : start + ADDED]))
            advance(len(matrix[start : start + ADDED]))
        indexes.append(index)
    built = _tuned(indexes, vectors, lists)
    try:
        with atomic.folder(folder / INDEX) as staging:
            for number, index in enumerate(indexes):
                faiss.write_index(index, str(staging / _file(number)))
            (staging / DESCRIPTION).write_text(json.dumps(asdict(built.measured), indent=2) + "\n")
    except (OSError, RuntimeError) as error:  # FAISS raises RuntimeError if the disk is full
        raise InputError(f"{folder}: the index cannot be written ({str(error).splitlines()[-1]})") from error
    return built


def _tuned(indexes: list[Any], vectors: Sequence[np.ndarray], lists: int) -> ApproximateIndex:
    """With the fewest probes, doubled each time, that reach RECALL under every attribute."""
    queries = [sample_queries(matrix, SAMPLE, number) for number, matrix in enumerate(vectors)]
    exact = [nearest_rows([matrix], one[:, None], RECALL_AT)[1] for matrix, one in zip(vectors, queries, strict=True)]
    probes = 1
    while True:
        for index in indexes:
            index.nprobe = probes
        trial = ApproximateIndex(indexes, vectors, Measured(len(vectors[0]), lists, probes, 0.0))
        found = [trial.search(one[:, None], [number], RECALL_AT)[1] for number, one in enumerate(queries)]
        recall = min(recall_of(one, other) for one, other in zip(found, exact, strict=True))
        if recall >= RECALL or probes >= lists:
            return ApproximateIndex(indexes, vectors, Measured(len(vectors[0]), lists, probes, recall))
        probes = min(lists, 2 * probes)


def sample_queries(matrix: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows of a gallery moved a little: other pictures like its own. float32, of unit length."""
    generator = np.random.default_rng([SEED, seed, 1])
    rows = matrix[np.sort(generator.permutation(len(matrix))[:count])]
    noise = generator.standard_normal(rows.shape).astype(np.float32)
    moved = rows + MOVED * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


def recall_of(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean share of the exact rows (Q×K) that were found."""
    return float(np.mean([np.isin(true, one).mean() for one, true in zip(found, exact, strict=True)]))


def _file(number: int) -> str:
    return f"attribute-{number:02d}.faiss"
