"""The plan of balanced batches for 100 thousand to 10 million images under 20 attributes: `agman bench plans`.

Each size in a process of its own, with a table of labels as `agman prep` writes it; no image exists, because a plan
reads none. AGMAN_IMAGES gives the sizes, separated by commas.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import in_own_process, timed, write_table
from data_prep.balanced import BalancedSampler, undrawable
from data_prep.batches import batches_per_epoch
from data_prep.tables import LABELS
from pipeline.common.console import say

SIZES = os.environ.get("AGMAN_IMAGES", "100000,1000000,10000000")
ATTRIBUTES, VALUES = 20, 12
BATCH, BATCHES = 48, 2_000
"""Images of a batch, and batches that are planned; an epoch's time is calculated from theirs."""
BLOCK = 100_000
GIB = 2**30


def write_labels(file: Path, images: int) -> None:
    """Write a table in which every image has a label under every attribute, in blocks: it need not fit into memory."""
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(file, LABELS) as writer:
        for start in range(0, images, BLOCK):
            ids = np.arange(start, min(start + BLOCK, images))
            columns = {
                "image_id": np.repeat(ids, ATTRIBUTES),
                "attribute": np.tile(np.arange(ATTRIBUTES), len(ids)),
                "value": rng.integers(0, VALUES, ATTRIBUTES * len(ids)),
                "split": np.repeat("train", ATTRIBUTES * len(ids)),
            }
            writer.write_table(pa.table({name: pa.array(column) for name, column in columns.items()}).cast(LABELS))


def read_labels(file: Path) -> pd.DataFrame:
    """Read labels as `Dataset.labels_of` does."""
    columns = ["image_id", "attribute", "value"]
    table = pq.read_table(file, columns=columns, filters=[("split", "=", "train")])
    return table.to_pandas(split_blocks=True, self_destruct=True)


def measure(file: Path) -> dict[str, float]:
    """Return the seconds of reading, checking, building the sampler and planning a batch, and the peak in bytes."""
    reading, labels = timed(lambda: read_labels(file))
    checking, _ = timed(lambda: undrawable(labels))
    building, sampler = timed(lambda: BalancedSampler(labels))
    plans = sampler.plan_epoch(batch_size=BATCH, images_per_value=4, seed=0, epoch=0)
    first, _ = timed(lambda: next(plans))
    rest, _ = timed(lambda: list(itertools.islice(plans, BATCHES)))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"reading": reading, "checking": checking, "building": building, "first": first, "batch": rest / BATCHES} | {
        "peak": peak
    }


def main() -> None:
    """Measure every size; write the table."""
    if len(sys.argv) > 1:
        return print(json.dumps(measure(Path(sys.argv[1]))))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for images in map(int, SIZES.split(",")):
            file = Path(folder, "labels.parquet")
            write_labels(file, images)
            found = json.loads(in_own_process("plans", str(file)))
            batches = batches_per_epoch(images, BATCH)
            rows.append(
                [
                    f"{images:,}",
                    f"{file.stat().st_size / 1e6:,.0f}",
                    *(f"{found[name]:.2f}" for name in ("reading", "checking", "building", "first")),
                    f"{1000 * found['batch']:.2f}",
                    f"{found['batch'] * batches:,.0f}",
                    f"{found['peak'] / GIB:.2f}",
                ]
            )
            say(f"{images:,} images: {rows[-1]}")
    header = ["images", "labels, MB", "read, s", "check, s", "sampler, s", "first batch, s"]
    header += ["a batch, ms", "an epoch, s", "peak, GiB"]
    notes = (
        f"Every image has a label under each of {ATTRIBUTES} attributes, one of {VALUES} values. Batches of {BATCH} "
        f"images, 4 of a value; an epoch's time is that of {BATCHES:,} batches, times their number. One core."
    )
    write_table("plans", header, rows, notes)


if __name__ == "__main__":
    main()
