"""Search over a million embeddings, exact and approximate: `agman bench search`.

1,000,000 × 512 in float32 (2 GB, mapped from TMPDIR), under one attribute. What embeddings of a trained model look like
is imitated by clusters: 2,000 centres, and points around them as far from their centre as the centres' own length.
The same is done with directions drawn evenly, where no row is much nearer than another: the worst case of any index.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa

from benchmarks.record import write_table
from pipeline.common.console import progress_bar, say
from pipeline.retrieval.faiss_index import RECALL_AT, recall_of, sample_queries
from pipeline.retrieval.gallery import Gallery, GalleryInfo, write_gallery
from pipeline.retrieval.image_sources import IMAGES

ROWS, WIDTH, CENTRES, BLOCK = 1_000_000, 512, 2_000, 50_000
QUERIES, TURNS, TOP = 256, 15, 10
ATTRIBUTE = ["collar_design"]


def blocks(spread: float) -> Iterator[np.ndarray]:
    """Rows×1×D of unit length: centres (of length 1) and noise of length `spread` around them; no centres if 0."""
    generator = np.random.default_rng(0)
    centres = _unit(generator.standard_normal((CENTRES, WIDTH), np.float32))
    for _ in range(0, ROWS, BLOCK):
        noise = _unit(generator.standard_normal((BLOCK, WIDTH), np.float32))
        near = centres[generator.integers(CENTRES, size=BLOCK)] + spread * noise if spread else noise
        yield _unit(near)[:, None]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_gallery(folder: Path, spread: float) -> Gallery:
    folder.mkdir()
    info = GalleryInfo(
        model="none",
        model_digest="",
        attributes=tuple(ATTRIBUTE),
        width=WIDTH,
        image_size=224,
        images=ROWS,
        root=str(folder),
    )
    names = pa.array(np.arange(ROWS)).cast(pa.string())
    images = pa.table([names, names, pa.nulls(ROWS, pa.int64())], schema=IMAGES)
    write_gallery(folder, info, images, blocks(spread))
    return Gallery.open(folder)


def seconds(search: Callable[[int], object]) -> tuple[float, float]:
    """Of the first call, and the median of those after it."""
    taken = []
    for turn in range(TURNS):
        started = time.perf_counter()
        search(turn)
        taken.append(time.perf_counter() - started)
    return taken[0], statistics.median(taken[1:])


def plain(matrix: np.ndarray, query: np.ndarray) -> np.ndarray:
    """numpy: every score, then the best."""
    scores = matrix @ query
    best = np.argpartition(-scores, TOP)[:TOP]
    return best[np.argsort(-scores[best], kind="stable")]


def measure(gallery: Gallery, matrix: np.ndarray, kind: str) -> list[list[str]]:
    queries = sample_queries(matrix, QUERIES, 7)[:, None]
    exact = gallery.search(queries, ATTRIBUTE, TOP)[1]
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(matrix)
    one: dict[str, Callable[[int], object]] = {
        "numpy: all products, argpartition": lambda turn: plain(matrix, queries[turn, 0]),
        "FAISS IndexFlatIP": lambda turn: flat.search(queries[turn], TOP),
        "agman, exact": lambda turn: gallery.search(queries[turn : turn + 1], ATTRIBUTE, TOP),
    }
    times = {name: seconds(way) for name, way in one.items()}
    flat.reset()
    started = time.perf_counter()
    measured = gallery.build_index(progress_bar).measured
    built = time.perf_counter() - started
    name = f"agman, approximate ({measured.lists:,} lists, {measured.probes} looked into)"
    times[name] = seconds(lambda turn: gallery.search(queries[turn : turn + 1], ATTRIBUTE, TOP, approximate=True))
    recall = recall_of(gallery.search(queries, ATTRIBUTE, TOP, approximate=True)[1], exact)
    base = times["agman, exact"][1]
    say(f"{kind}: {times}, recall {recall:.3f}, index built in {built:.0f} s")
    rows = []
    for way, (first, median) in times.items():
        found = f"{recall:.3f}" if "approximate" in way else "1"
        rows.append([kind, way, f"{1000 * first:.1f}", f"{1000 * median:.1f}", f"{base / median:.1f}", found])
    rows[-1][1] += f", built in {built:.0f} s"
    return rows


def main() -> None:
    rows = []
    for kind, spread in (("clusters", 1.0), ("even", 0.0)):
        with tempfile.TemporaryDirectory() as folder:
            gallery = make_gallery(Path(folder, "gallery"), spread)
            matrix = np.load(Path(folder, "gallery", "vectors", "attribute-00.npy"), mmap_mode="r").view(np.ndarray)
            rows += measure(gallery, matrix, kind)
    header = ["embeddings", "way", "first query, ms", "one query, ms", "of exact", f"recall@{RECALL_AT}"]
    notes = (
        f"{ROWS:,} × {WIDTH} in float32, queries one at a time, medians of {TURNS - 1} after the first; the files are "
        f"in the page cache. Recall over {QUERIES} queries that the index was not tuned with: rows of the gallery "
        "moved by 0.3 of their length. FAISS's flat index holds its own copy in memory."
    )
    write_table("search", header, rows, notes)
