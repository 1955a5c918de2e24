"""Search over a million embeddings, exact and approximate: `agman bench search`.

1,000,000 × 512 in float32 (2 GB, memory-mapped from TMPDIR), for one attribute. Clusters imitate the embeddings of a
trained model: 2,000 centres of length 1, and points at distance 1 from their centre. Evenly distributed directions,
where no row is much nearer than another, are the worst case of any index.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa

from benchmarks.common import repeat, timed, write_table
from pipeline.common.console import progress_bar, say
from pipeline.retrieval.faiss_index import RECALL_AT, recall_of, sample_queries
from pipeline.retrieval.gallery import Gallery, GalleryInfo, write_gallery
from pipeline.retrieval.image_sources import IMAGES

ROWS, WIDTH, CENTRES, BLOCK = 1_000_000, 512, 2_000, 50_000
QUERIES, TURNS, TOP = 256, 15, 10
ATTRIBUTE = ["collar_design"]


def blocks(spread: float) -> Iterator[np.ndarray]:
    """Yield blocks×1×D of unit length: centres and noise of length `spread` around them; without centres if 0."""
    generator = np.random.default_rng(0)
    centres = _unit(generator.standard_normal((CENTRES, WIDTH), np.float32))
    for _ in range(0, ROWS, BLOCK):
        noise = _unit(generator.standard_normal((BLOCK, WIDTH), np.float32))
        near = centres[generator.integers(CENTRES, size=BLOCK)] + spread * noise if spread else noise
        yield _unit(near)[:, None]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_gallery(folder: Path, spread: float) -> Gallery:
    """Write a gallery of these embeddings, without images."""
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
    """Return the seconds of the first call, and the median of the calls after it."""
    turn = count()
    first, *others = repeat(lambda: search(next(turn)), TURNS)
    return first, statistics.median(others)


def plain(matrix: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Compute every score with numpy, then select the best."""
    scores = matrix @ query
    best = np.argpartition(-scores, TOP)[:TOP]
    return best[np.argsort(-scores[best], kind="stable")]


def measure(gallery: Gallery, matrix: np.ndarray, kind: str) -> list[list[str]]:
    """Return the table's rows for one kind of embeddings."""
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
    built, index = timed(lambda: gallery.build_index(progress_bar))
    measured = index.measured
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
    """Measure both kinds of embeddings; write the table."""
    rows = []
    for kind, spread in (("clusters", 1.0), ("even", 0.0)):
        with tempfile.TemporaryDirectory() as folder:
            gallery = make_gallery(Path(folder, "gallery"), spread)
            matrix = np.load(Path(folder, "gallery", "vectors", "attribute-00.npy"), mmap_mode="r").view(np.ndarray)
            rows += measure(gallery, matrix, kind)
    header = ["embeddings", "way", "first query, ms", "one query, ms", "of exact", f"recall@{RECALL_AT}"]
    notes = (
        f"{ROWS:,} × {WIDTH} in float32, queries one at a time, medians of {TURNS - 1} after the first; the files are "
        f"in the page cache. Recall over {QUERIES} queries that did not tune the index: rows of the gallery "
        "moved by 0.3 of their length. FAISS's flat index holds its own copy in memory."
    )
    write_table("search", header, rows, notes)
