"""Approximate index of a gallery: FAISS selects candidate rows, exact scores order them.

The index of an attribute is an inverted file over the vectors in 8 bits (`IVFx,SQ8`, inner product), which is mapped
into memory. A vector is compared with the centres of all lists. A graph of the centres (`IVFx_HNSW32`) was tried for 10
million rows: it put 16 % of them into other lists, did not find most lists, and took as long.

A search takes the best candidates of every requested attribute, `oversample` times as many as are wanted, and scores
their union exactly: only the selection of candidates is approximate, never a score. Both numbers of a search are chosen
when the index is built, by recall@10 against exact search, measured on rows of the gallery itself: the smallest power
of two of lists to visit that reaches `RECALL` under every attribute, then the smallest of `OVERSAMPLES` that reaches it
under all attributes together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from data_prep import atomic
from data_prep.errors import InputError
from data_prep.progress import Progress, silent
from pipeline.retrieval.exact import best_of, exact_scores, nearest_rows
from pipeline.retrieval.states import INDEX, UNFINISHED_INDEX

DESCRIPTION = "index.json"
RECALL, RECALL_AT = 0.97, 10
"""Target of the measured recall, a little above the 0.95 that other queries should reach, and its number of rows."""
OVERSAMPLES = (5, 10, 20, 40, 80, 160, 320, 640)
"""Candidates of an attribute for each wanted row that are tried, the first for a single attribute."""
SAMPLE = 64
"""Rows with which the recall is measured; noise is added to them, otherwise each would find itself first."""
NOISE = 0.3
"""Length of the random vector that is added to a sampled row of length 1."""
TRAINING_VECTORS = 64
"""Vectors per list that the centres of the lists are computed from."""
BLOCK = 65_536
"""Rows added to an index at a time."""
SEED = 0
FEW = 50_000
"""Rows that satisfy a condition and are searched exactly: fewer than the visited lists of an index have."""


@dataclass(frozen=True)
class Measured:
    """Size and measured recall of an index."""

    rows: int
    lists: int
    probes: int
    """Lists that a search visits."""
    recall: float
    """Share of the exact first RECALL_AT rows that the index finds; the minimum over the attributes, and their sum."""
    oversample: int = OVERSAMPLES[0]
    """Candidates of an attribute, for each wanted row."""


class ApproximateIndex:
    """Indexes of a gallery, one for each attribute."""

    def __init__(self, indexes: list[Any], vectors: Sequence[np.ndarray], measured: Measured):
        self._indexes, self._vectors, self.measured = indexes, vectors, measured

    def search(
        self,
        queries_qad: np.ndarray,
        numbers: Sequence[int],
        top: int,
        weights_a: Sequence[float] | None = None,
        among: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the same as `exact.nearest_rows`, under the attributes with these numbers.

        If the index finds fewer rows than wanted, the first rows are added. A few rows `among` are searched exactly.
        """
        matrices = [self._vectors[number] for number in numbers]
        if among is not None and len(among) <= FEW:
            return nearest_rows(matrices, queries_qad, top, weights_a, among)
        weights = np.ones(len(numbers)) if weights_a is None else np.asarray(weights_a, np.float64)
        wanted = min(top, len(matrices[0] if among is None else among))
        found = [self._found(number, queries_qad[:, i], wanted, among) for i, number in enumerate(numbers)]
        best = []
        for query, of_query in zip(queries_qad, np.concatenate(found, axis=1), strict=True):
            union = _union(of_query, wanted, among)
            best.append(best_of(exact_scores(matrices, query, union, weights), union, wanted))
        return (
            np.array([scores for scores, _ in best], np.float32).reshape(-1, wanted),
            np.array([found for _, found in best], np.int64).reshape(-1, wanted),
        )

    def candidates(
        self, near: Sequence[tuple[int, np.ndarray]], top: int, among: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the rows near any of the vectors, each (index of an attribute, D), sorted; at least min(top, R).

        Only rows `among` are returned, and all of them if they are few.
        """
        if among is not None and len(among) <= FEW:
            return among
        wanted = min(top, len(self._vectors[0] if among is None else among))
        found = [self._found(number, vector[None], wanted, among)[0] for number, vector in near]
        return _union(np.concatenate(found), wanted, among)

    def _found(self, number: int, queries_qd: np.ndarray, wanted: int, among: np.ndarray | None) -> np.ndarray:
        rows, index = len(self._vectors[0]), self._indexes[number]
        parameters = None
        if among is not None:
            mask = np.zeros(rows, bool)
            mask[among] = True
            bitmap: Any = np.packbits(mask, bitorder="little")
            selector: Any = faiss.IDSelectorBitmap(bitmap)  # type: ignore[call-arg]  # its stubs are those of C++
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=index.nprobe)  # type: ignore[call-arg]
        most = min(rows, self.measured.oversample * wanted)
        return index.search(np.ascontiguousarray(queries_qd, np.float32), most, params=parameters)[1]


def _union(found: np.ndarray, wanted: int, among: np.ndarray | None) -> np.ndarray:
    union = np.unique(found[found >= 0])  # FAISS fills up with -1 if the visited lists have fewer rows
    if len(union) >= wanted:
        return union
    return np.union1d(union, np.arange(wanted) if among is None else among[:wanted])


def open_index(folder: Path, vectors: Sequence[np.ndarray]) -> ApproximateIndex | None:
    """Open the index in `folder`, that of a gallery's state; return None if none was built.

    Raises InputError if the index is damaged.
    """
    path = folder / INDEX
    if not (path / DESCRIPTION).exists():
        return None
    try:
        measured = Measured(**json.loads((path / DESCRIPTION).read_text()))
        indexes = _opened(path, len(vectors))
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged; delete it, and run `agman index` again") from error
    for index in indexes:
        index.nprobe = measured.probes
    return ApproximateIndex(indexes, vectors, measured)


def build_index(folder: Path, vectors: Sequence[np.ndarray], progress: Progress = silent) -> ApproximateIndex:
    """Build the index in `folder`, that of a gallery's state, and replace an older one once the new index is complete.

    A call after an interrupted one continues with the attribute that it was at. Raises InputError if the index cannot
    be written.
    """
    rows, staging = len(vectors[0]), folder / UNFINISHED_INDEX
    advance = progress("vectors indexed", rows * len(vectors))
    try:
        staging.mkdir(exist_ok=True)
        for number, matrix in enumerate(vectors):
            if (staging / _file(number)).exists():
                advance(rows)
                continue
            index = _built(matrix, number, advance)
            with atomic.file(staging / _file(number)) as path, path.open("wb") as file:
                # Through Python, because FAISS misses errors of closing a file.
                faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
            del index  # the next one needs its memory
        indexes = _opened(staging, len(vectors))
        built = _choose_numbers(indexes, vectors, progress)
        (staging / DESCRIPTION).write_text(json.dumps(asdict(built.measured), indent=2) + "\n")
        atomic.replace_folder(staging, folder / INDEX)
    except OSError as error:
        why = f"{error.strerror or error}; the same command continues"
        raise InputError(f"{folder}: the index cannot be written: {why}") from error
    except RuntimeError as error:  # FAISS cannot read what it is to continue with
        raise InputError(f"{staging}: damaged; delete it, and run `agman index` again") from error
    return built


def _built(matrix: np.ndarray, number: int, advance: Callable[[int], None]) -> Any:
    """Return the index of an attribute, in memory."""
    rows = len(matrix)
    lists = max(1, min(round(4 * math.sqrt(rows)), rows // 39))  # FAISS asks for at least 39 vectors per list
    index: Any = faiss.index_factory(matrix.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.spherical = SEED + 1, True
    chosen = np.random.default_rng([SEED, number]).permutation(rows)[: max(TRAINING_VECTORS * lists, 1_000)]
    index.train(np.ascontiguousarray(matrix[np.sort(chosen)]))
    for start in range(0, rows, BLOCK):
        block = np.ascontiguousarray(matrix[start : start + BLOCK])
        index.add(block)
        advance(len(block))
    return index


def _opened(folder: Path, attributes: int) -> list[Any]:
    """Map the indexes in `folder` into memory, one for each attribute. Raises RuntimeError for a damaged file."""
    files = [str(folder / _file(number)) for number in range(attributes)]
    return [faiss.read_index(file, faiss.IO_FLAG_MMAP) for file in files]


def _choose_numbers(indexes: list[Any], vectors: Sequence[np.ndarray], progress: Progress) -> ApproximateIndex:
    """Choose the lists to visit under every attribute, then the candidates for all attributes together."""
    lists = indexes[0].nlist
    settings, tried = math.ceil(math.log2(lists)) + 1 + len(OVERSAMPLES), 0
    advance = progress("search settings tried", settings)

    def count() -> None:
        nonlocal tried
        tried += 1
        advance(1)

    index = _choose_probes(indexes, vectors, lists, count)
    index = _choose_oversample(index, indexes, vectors, count)
    advance(settings - tried)  # the others are not needed
    return index


def _choose_probes(
    indexes: list[Any], vectors: Sequence[np.ndarray], lists: int, count: Callable[[], None]
) -> ApproximateIndex:
    """Double the number of visited lists until the recall under every attribute reaches RECALL."""
    queries = [sample_queries(matrix, SAMPLE, number) for number, matrix in enumerate(vectors)]
    exact = [nearest_rows([matrix], one[:, None], RECALL_AT)[1] for matrix, one in zip(vectors, queries, strict=True)]
    probes = 1
    while True:
        for index in indexes:
            index.nprobe = probes
        trial = ApproximateIndex(indexes, vectors, Measured(len(vectors[0]), lists, probes, 0.0))
        found = [trial.search(one[:, None], [number], RECALL_AT)[1] for number, one in enumerate(queries)]
        recall = min(recall_of(one, other) for one, other in zip(found, exact, strict=True))
        count()
        if recall >= RECALL or probes >= lists:
            return ApproximateIndex(indexes, vectors, Measured(len(vectors[0]), lists, probes, recall))
        probes = min(lists, 2 * probes)


def _choose_oversample(
    index: ApproximateIndex, indexes: list[Any], vectors: Sequence[np.ndarray], count: Callable[[], None]
) -> ApproximateIndex:
    """Take more candidates until the recall under all attributes together reaches RECALL."""
    every = range(len(vectors))
    queries_qad = np.stack([sample_queries(matrix, SAMPLE, 0) for matrix in vectors], axis=1)
    exact = nearest_rows(vectors, queries_qad, RECALL_AT)[1]
    for oversample in OVERSAMPLES:
        trial = ApproximateIndex(indexes, vectors, replace(index.measured, oversample=oversample))
        recall = recall_of(trial.search(queries_qad, every, RECALL_AT)[1], exact)
        count()
        if recall >= RECALL:
            break
    measured = replace(trial.measured, recall=min(recall, index.measured.recall))
    return ApproximateIndex(indexes, vectors, measured)


def sample_queries(matrix: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return `count` rows of a gallery with noise added, float32 and of unit length: queries like its own pictures."""
    generator = np.random.default_rng([SEED, seed, 1])
    rows = matrix[np.sort(generator.permutation(len(matrix))[:count])]
    noise = generator.standard_normal(rows.shape).astype(np.float32)
    queries = rows + NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)


def recall_of(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the mean share of the exact rows (Q×K) that were found."""
    return float(np.mean([np.isin(true, one).mean() for one, true in zip(found, exact, strict=True)]))


def _file(number: int) -> str:
    return f"attribute-{number:02d}.faiss"
