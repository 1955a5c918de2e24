"""The tables of `agman prep table` for 100 thousand to 10 million pictures under 20 attributes: `agman bench prep`.

The catalogue is a Parquet file; no picture exists, so that the pictures' part is left out: looking for their files and
near-duplicates, and packing. Each size is prepared in a process of its own, whose peak memory is measured.
AGMAN_IMAGES gives the sizes, separated by commas; each is also prepared with a split that leaves products of four
pictures undivided.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import ATTRIBUTES, GIB, SIZES, VALUES, in_own_process, timed, write_table
from data_prep.corrections import labels_digest
from data_prep.layouts.table import annotated
from data_prep.request import Request, TableOptions
from data_prep.storage import Storage
from data_prep.write import write_annotation, write_triplets
from pipeline.common.console import say

BLOCK = 100_000
GROUP, OF_GROUP = "product", 4
NAMES = tuple(f"attribute {number}" for number in range(ATTRIBUTES))


def write_catalogue(file: Path, images: int) -> None:
    """Write a catalogue in which every picture has a label under every attribute, in blocks."""
    rng = np.random.default_rng(0)
    values = pa.array([f"value {number}" for number in range(VALUES)])
    types = {"path": pa.string(), GROUP: pa.string()} | dict.fromkeys(NAMES, pa.dictionary(pa.int8(), pa.string()))
    with pq.ParquetWriter(file, schema := pa.schema(types)) as writer:
        for start in range(0, images, BLOCK):
            numbers = range(start, min(start + BLOCK, images))
            columns: list[pa.Array] = [pa.array([f"images/{n // 1000:05d}/{n:09d}.jpg" for n in numbers])]
            columns.append(pa.array([f"{n // OF_GROUP:08d}" for n in numbers]))
            for _ in NAMES:
                codes = rng.integers(0, VALUES, len(numbers)).astype(np.int8)
                columns.append(pa.DictionaryArray.from_arrays(codes, values))
            writer.write_table(pa.table(columns, schema=schema))


def read_and_write(file: Path, out: Storage, group: str | None) -> tuple[dict[str, float], pd.DataFrame]:
    """Return the seconds of each part but the triplets, the number of labels, and the pictures."""
    options = TableOptions(table=file, image="path", attributes=NAMES, group=group)
    reading, annotation = timed(lambda: annotated(Request(file.parent, table=options)))
    digesting, _ = timed(lambda: labels_digest(annotation))
    images = annotation.images()
    images = images.assign(image_id=np.arange(len(images)), group=None, width=300, height=400)
    writing, _ = timed(lambda: write_annotation(out, annotation, images, None))
    return {"reading": reading, "digesting": digesting, "writing": writing, "labels": len(annotation.rows)}, images


def measure(file: Path, out: Storage, group: str | None) -> dict[str, float]:
    """Return the seconds of each part, the number of labels, and the peak in bytes."""
    found, images = read_and_write(file, out, group)
    drawing, _ = timed(lambda: write_triplets(out, None, images, None, None, 0))
    return found | {"drawing": drawing, "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def main() -> None:
    """Measure every size; write the table."""
    if len(sys.argv) > 3:  # one size, in a process of its own
        file, out, *group = sys.argv[2:]
        return print(json.dumps(measure(Path(file), Storage(Path(out)), group[0] if group else None)))
    rows = []
    for images in map(int, SIZES.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            catalogue = Path(folder, "catalogue.parquet")
            write_catalogue(catalogue, images)
            for what, group in (("", []), (f", {GROUP}s of {OF_GROUP}", [GROUP])):
                arguments = ["measure", str(catalogue), str(Path(folder, f"out{what}")), *group]
                found = json.loads(in_own_process("prep", *arguments))
                parts = [found[name] for name in ("reading", "digesting", "writing", "drawing")]
                seconds = [f"{part:,.1f}" for part in (*parts, sum(parts))]
                of_label = f"{1e6 * sum(parts) / found['labels']:.2f}"
                peak = f"{found['peak'] / GIB:.2f}"
                rows.append([f"{images:,}{what}", f"{found['labels']:,}", *seconds, of_label, peak])
                say(f"{rows[-1]}")
    header = ["images", "labels", "read and split, s", "digest, s", "tables written, s", "triplets, s", "all, s"]
    header += ["µs a label", "peak, GiB"]
    notes = (
        f"Every picture has a label under each of {ATTRIBUTES} attributes, one of {VALUES} values; 10 epochs of "
        "100,000 triplets. Looking at the pictures and packing them is not part of it. One core. Wanted: 8 GiB."
    )
    write_table("prep", header, rows, notes)


if __name__ == "__main__":
    main()
