"""A gallery of 100 thousand to 10 million rows: written, indexed and searched: `agman bench gallery`.

ROWS × 4 attributes × 128, independent clusters of 500 rows under each attribute; a thousandth of the pictures is
refused. No picture exists: the vectors are written as the workers of `agman embed` write them. AGMAN_IMAGES gives the
sizes, separated by commas. TMPDIR needs 30 GB for 10 million.

Each step runs in a process of its own, `python -m benchmarks.gallery STEP FOLDER ROWS`; `index` continues if repeated.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.common import GIB, SIZES, in_own_process, timed, write_table
from data_prep.storage import Storage
from pipeline.common.console import progress_bar, say
from pipeline.retrieval.embed import SHARD, begin, finish, write_shard
from pipeline.retrieval.faiss_index import RECALL_AT, recall_of, sample_queries
from pipeline.retrieval.gallery import Gallery, GalleryInfo
from pipeline.retrieval.image_sources import IMAGES, Source

ATTRIBUTES, WIDTH, CLUSTER = tuple("abcd"), 128, 500
REFUSED = 1_000
"""One picture of so many is refused."""
QUERIES = 64


def vectors(rows: int) -> Iterator[np.ndarray]:
    """Yield shards×N×D of unit length, at distance 1 from their centres."""
    generator = np.random.default_rng(0)
    centres = _unit(generator.standard_normal((len(ATTRIBUTES), rows // CLUSTER, WIDTH), np.float32))
    for start in range(0, rows, SHARD):
        size = (min(SHARD, rows - start), len(ATTRIBUTES))
        noise = _unit(generator.standard_normal((*size, WIDTH), np.float32))
        yield _unit(centres[np.arange(len(ATTRIBUTES)), generator.integers(centres.shape[1], size=size)] + noise)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def write(folder: Path, rows: int) -> dict[str, float]:
    """Write the gallery; return the seconds of writing the shards and of finishing."""
    names = pa.array(np.arange(rows)).cast(pa.string())
    pictures = pa.table([names, names, pa.nulls(rows, pa.int64())], schema=IMAGES)
    source = Source("parquet", Storage(folder), "image", pictures, "", names)
    about: dict[str, Any] = {"attributes": ATTRIBUTES, "width": WIDTH, "image_size": 224, "root": str(folder)}
    info = GalleryInfo(model="none", model_digest="", images=0, **about)
    begin(folder, "", rows, len(ATTRIBUTES), WIDTH)
    advance, spent = progress_bar("rows written", rows), 0.0
    for number, shard in enumerate(vectors(rows)):
        first = number * SHARD
        details = [None if (first + row) % REFUSED else "refused" for row in range(len(shard))]
        kept = shard[[detail is None for detail in details]]
        started = time.perf_counter()
        write_shard(Storage(folder), number, first, pictures.slice(first, SHARD), kept, details)
        spent += time.perf_counter() - started
        advance(len(shard))
    return {"write": spent, "finish": timed(lambda: finish(folder, info, number + 1, source))[0]}


def index(folder: Path, rows: int) -> dict[str, float]:
    """Build the index; return the seconds, and what a search looks into."""
    seconds, built = timed(lambda: Gallery.open(folder).build_index(progress_bar).measured)
    return {"build": seconds, "lists": built.lists, "probes": built.probes, "oversample": built.oversample}


def search(folder: Path, rows: int) -> dict[str, float]:
    """Search exactly and approximately, under one attribute and under all; return seconds and recalls."""
    gallery, found = Gallery.open(folder), dict[str, float]()
    queries = np.stack([sample_queries(gallery.matrix(n), QUERIES, 7) for n in range(len(ATTRIBUTES))], axis=1)
    ones = [queries[one : one + 1] for one in range(QUERIES)]
    for asked, names in (("one", ATTRIBUTES[:1]), ("all", ATTRIBUTES)):
        ask = partial(gallery.search, attributes=names, top=RECALL_AT)
        found[f"exact {asked}"], _ = timed(partial(ask, ones[0]))
        found[f"together {asked}"], (_, true) = timed(partial(ask, queries))
        answers = [timed(partial(ask, one, approximate=True)) for one in ones]
        found[f"median {asked}"] = statistics.median(seconds for seconds, _ in answers[1:])
        found[f"recall {asked}"] = recall_of(np.concatenate([best for _, (_, best) in answers]), true)
    return found


STEPS: dict[str, Callable[[Path, int], dict[str, float]]] = {step.__name__: step for step in (write, index, search)}


def watched(step: str, folder: Path, rows: int) -> dict[str, float]:
    """Run a step; return its figures, and its largest memory without mapped files, looked at every 50 ms."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak.append(int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    found = STEPS[step](folder, rows)
    done.set()
    watching.join()
    return found | {f"peak {step}": 1024 * max(peak)}


def measure(folder: Path, rows: int) -> dict[str, float]:
    """Return the figures of a gallery of this size."""
    found: dict[str, float] = {}
    for step in STEPS:
        found |= json.loads(in_own_process("gallery", step, str(folder), f"{rows}"))
        say(f"{rows:,} rows, {step}: {found}")
    return found | {part: sum(f.stat().st_size for f in (folder / part).iterdir()) for part in ("vectors", "index")}


LINES: tuple[tuple[str, str, Sequence[str], float], ...] = (
    ("rows written, s", ",.0f", ["write"], 1),
    ("names joined, gaps of refused pictures closed, s", ",.0f", ["finish"], 1),
    ("matrices, index; GB", ",.2f", ["vectors", "index"], 1e-9),
    ("index built, s", ",.0f", ["build"], 1),
    ("lists, visited, candidates for each wanted row", ",.0f", ["lists", "probes", "oversample"], 1),
    ("exact, one query: one attribute, all; s", ",.2f", ["exact one", "exact all"], 1),
    (f"exact, {QUERIES} queries together: one, all; s", ",.1f", ["together one", "together all"], 1),
    ("approximate, one query: one, all; ms", ",.1f", ["median one", "median all"], 1e3),
    (f"recall@{RECALL_AT}: one, all", ".3f", ["recall one", "recall all"], 1),
    ("memory of writing, indexing, searching; GiB", ".2f", [f"peak {step}" for step in STEPS], 1 / GIB),
)


def main() -> None:
    """Measure every size; write the table."""
    if len(sys.argv) > 3:
        return print(json.dumps(watched(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
    sizes, found = [int(size) for size in SIZES.split(",")], []
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder), rows))
    lines = [
        [title, *("; ".join(f"{one[name] * scale:{form}}" for name in names) for one in found)]
        for title, form, names, scale in LINES
    ]
    notes = (
        f"{len(ATTRIBUTES)} attributes × {WIDTH} in float32, independent clusters of {CLUSTER} rows under each; one "
        f"picture of {REFUSED:,} is refused. The vectors are generated, which is not timed. Recall over {QUERIES} "
        "queries that tuned nothing: rows of the gallery moved by 0.3 of their length. Medians of a query after the "
        "first. Memory is that of the process without mapped files, which the page cache keeps as it has room."
    )
    write_table("gallery", ["", *(f"{rows:,} rows" for rows in sizes)], lines, notes)


if __name__ == "__main__":
    main()
