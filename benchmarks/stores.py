"""Compare exact search, FAISS, LanceDB and Qdrant on equal vectors: `agman bench stores`.

A gallery of ROWS × 2 attributes × WIDTH: under each attribute CENTRES clusters, and points at distance 1 from their
centre; the two attributes are independent, so that the best sums are hard to find from the best of each.

Qdrant's client computes every product in Python in its local mode, and commits every point: on a disk it writes 55 rows
a second, so give TMPDIR=/dev/shm. The server is in no Python package, but its engine is: with `pip install
qdrant-edge-py`, the server's own library in process, it is measured too.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.common import timed, write_table
from data_prep.progress import Progress
from pipeline.common.console import progress_bar, say
from pipeline.retrieval.faiss_index import RECALL_AT, recall_of, sample_queries
from pipeline.retrieval.gallery import Gallery, GalleryInfo, write_gallery
from pipeline.retrieval.image_sources import IMAGES
from pipeline.retrieval.store_index import Record, StoreIndex
from pipeline.retrieval.stores import Layout, Near, Store
from pipeline.retrieval.where import Condition
from pipeline.retrieval.write_store import measured, write_rows, write_store

ROWS, WIDTH, CENTRES, BLOCK = 100_000, 128, 1_000, 10_000
ATTRIBUTES = ("collar_design", "lapel_design")
QUERIES, TIMED = 128, 40
ASKED = (ATTRIBUTES[:1], ATTRIBUTES)

Search = Callable[[np.ndarray, Sequence[str]], np.ndarray]
"""Takes queries Q×N×D and names of attributes; returns rows Q×K."""


def blocks() -> Iterator[np.ndarray]:
    """Yield blocks×2×D of unit length."""
    generator = np.random.default_rng(0)
    centres = _unit(generator.standard_normal((len(ATTRIBUTES), CENTRES, WIDTH), np.float32))
    for _ in range(0, ROWS, BLOCK):
        noise = _unit(generator.standard_normal((BLOCK, len(ATTRIBUTES), WIDTH), np.float32))
        chosen = generator.integers(CENTRES, size=(BLOCK, len(ATTRIBUTES)))
        yield _unit(centres[np.arange(len(ATTRIBUTES)), chosen] + noise)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make_gallery(folder: Path) -> Gallery:
    """Write a gallery of these embeddings, without images."""
    folder.mkdir()
    info = GalleryInfo(
        model="none",
        model_digest="",
        attributes=ATTRIBUTES,
        width=WIDTH,
        image_size=224,
        images=ROWS,
        root=str(folder),
    )
    names = pa.array(np.arange(ROWS)).cast(pa.string())
    write_gallery(folder, info, pa.table([names, names, pa.nulls(ROWS, pa.int64())], schema=IMAGES), blocks())
    return Gallery.open(folder)


class EdgeStore(Store):
    """Qdrant's engine in process, for this comparison: no columns, and written in one go."""

    batch = 1_000
    efforts = (64, 128, 256, 512, 1024, None)

    def __init__(self, folder: Path, layout: Layout):
        import qdrant_edge

        self._edge: Any = qdrant_edge
        self._layout = layout
        vector = self._edge.EdgeVectorParams(layout.width, self._edge.Distance.Dot)
        config = self._edge.EdgeConfig(
            vectors=dict.fromkeys(layout.attributes, vector),
            hnsw_config=self._edge.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10_000),
        )
        self._shard = self._edge.EdgeShard.create(str(folder), config)

    def rows(self) -> int:
        """See `Store`."""
        return int(self._shard.count(self._edge.CountRequest(exact=True)))

    def create(self) -> None:
        """See `Store`."""

    def add(self, start: int, images: Sequence[str], cells: pa.Table, block_rnd: np.ndarray) -> None:
        """See `Store`."""
        points = [
            self._edge.Point(start + row, dict(zip(self._layout.attributes, vectors, strict=True)), {"image": image})
            for row, (image, vectors) in enumerate(zip(images, block_rnd.tolist(), strict=True))
        ]
        self._shard.update(self._edge.UpdateOperation.upsert_points(points))

    def finish(self, progress: Progress) -> None:
        """See `Store`."""
        self._shard.flush()
        self._shard.optimize()

    def near(
        self,
        number: int,
        query_d: np.ndarray,
        limit: int,
        effort: int | None,
        condition: Condition | None,
        numbers: Sequence[int],
    ) -> Near:
        """See `Store`."""
        names = [self._layout.attributes[one] for one in numbers]
        parameters = self._edge.SearchParams(hnsw_ef=effort and max(effort, limit), exact=effort is None)
        query = self._edge.Query.Nearest(query_d.tolist(), using=self._layout.attributes[number])
        asked = self._edge.QueryRequest(limit, query=query, with_vector=names, params=parameters)
        points = self._shard.query(asked)
        rows = np.array([point.id for point in points], np.int64)
        return Near(rows, [np.array([point.vector[name] for point in points], np.float32) for name in names])

    def vectors(self, number: int, rows_c: np.ndarray) -> np.ndarray:
        """See `Store`."""
        raise NotImplementedError("this comparison needs none")

    def drop(self, table: str) -> None:
        """See `Store`."""

    def close(self) -> None:
        """See `Store`."""
        self._shard.close()


def write_edge(gallery: Gallery, folder: Path) -> StoreIndex:
    """Write a gallery into Qdrant's engine in process, and choose its effort as `write_store` does."""
    folder.mkdir()
    store = EdgeStore(folder, gallery.layout)
    write_rows(gallery, store, progress_bar)
    store.finish(progress_bar)
    record = Record(engine="qdrant", uri=str(folder), table="", version=gallery.version)
    return StoreIndex(store, gallery.layout, measured(gallery, store, record))


def search_of(gallery: Gallery, approximate: bool) -> Search:
    """Return the search of a newly opened gallery, exact or in its index or store."""
    opened = Gallery.open(gallery.folder)
    return lambda queries, names: opened.search(queries, names, RECALL_AT, approximate)[1]


def edge_search(gallery: Gallery, edge: StoreIndex) -> Search:
    """Return the search in Qdrant's engine in process."""

    def search(queries: np.ndarray, names: Sequence[str]) -> np.ndarray:
        numbers = gallery.numbers(names)
        return edge.search(queries[:, numbers], numbers, RECALL_AT, [1.0] * len(numbers))[1]

    return search


def described(record: Record) -> str:
    """Return how an engine searches, in words."""
    looks = "all rows" if record.effort is None else f"effort {record.effort}"
    return f"{looks}, {record.oversample} candidates for each wanted row"


def ways(gallery: Gallery, folder: Path) -> Iterator[tuple[str, str, Search, float, Path]]:
    """Yield, for each engine, its name, how it searches, its search, the seconds it was written in, and its files."""
    yield "exact", "all rows", search_of(gallery, False), 0.0, gallery.folder / "vectors"
    seconds, index = timed(lambda: gallery.build_index(progress_bar).measured)
    looks = f"{index.probes} of {index.lists:,} lists, {index.oversample} candidates for each wanted row"
    yield "FAISS", looks, search_of(gallery, True), seconds, gallery.files / "index"
    seconds, record = timed(lambda: write_store(gallery, "lancedb", folder / "lancedb", progress_bar))
    yield "LanceDB", described(record), search_of(gallery, True), seconds, folder / "lancedb"
    if find_spec("qdrant_edge"):
        seconds, edge = timed(lambda: write_edge(gallery, folder / "edge"))
        yield (
            "Qdrant's engine, in process",
            described(edge.record),
            edge_search(gallery, edge),
            seconds,
            folder / "edge",
        )
    seconds, record = timed(lambda: write_store(gallery, "qdrant", folder / "qdrant", progress_bar))
    yield "Qdrant's client, local mode", described(record), search_of(gallery, True), seconds, folder / "qdrant"


def megabytes(folder: Path) -> float:
    """Return the size of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def cells(search: Search, queries: np.ndarray, names: Sequence[str], exact: np.ndarray) -> list[str]:
    """Return the recall, and the median milliseconds of a query."""
    ones = [queries[one : one + 1] for one in range(len(queries))]
    found = np.concatenate([search(one, names) for one in ones])
    times = [timed(partial(search, one, names))[0] for one in ones[:TIMED]]
    return [f"{recall_of(found, exact):.3f}", f"{1000 * statistics.median(times):.1f}"]


def main() -> None:
    """Measure every engine; write the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        gallery = make_gallery(Path(folder, "gallery"))
        queries = np.stack([sample_queries(gallery.matrix(n), QUERIES, 7) for n in range(len(ATTRIBUTES))], axis=1)
        true = [gallery.search(queries, names, RECALL_AT)[1] for names in ASKED]
        for name, looks, search, seconds, files in ways(gallery, Path(folder)):
            found = [
                cell for names, one in zip(ASKED, true, strict=True) for cell in cells(search, queries, names, one)
            ]
            rows.append([name, looks, *found, f"{seconds:.0f}", f"{megabytes(files):.0f}"])
            say(" | ".join(rows[-1]))
    header = ["engine", "searches", "recall@10, one attribute", "ms a query", "recall@10, sum of two", "ms a query"]
    notes = (
        f"{ROWS:,} rows × 2 attributes × {WIDTH} in float32, {CENTRES:,} clusters under each attribute, in memory "
        f"(/dev/shm); queries one at a time, medians of {TIMED} after {QUERIES} others. Recall over {QUERIES} queries "
        "that tuned nothing: rows of the gallery moved by 0.3 of their length. Writing includes index and measuring "
        f"its recall. LanceDB {version('lancedb')}, qdrant-client {version('qdrant-client')}: their files have the "
        "vectors; FAISS's index is beside the gallery's. No Qdrant server was available."
    )
    write_table("stores", [*header, "written in, s", "files, MB"], rows, notes)
