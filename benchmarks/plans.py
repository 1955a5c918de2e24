"""Triplets and batches for 100 thousand to 10 million images under 20 attributes: `agman bench plans`.

The drawing of triplets with the plan of their batches, and the plan of balanced batches: each for each size in a
process of its own, with a table of labels as `agman prep` writes it; no image exists, because a plan reads none.
AGMAN_IMAGES gives the sizes, separated by commas.
"""

from __future__ import annotations

import itertools
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
from data_prep.balanced import BalancedSampler, undrawable
from data_prep.batches import batches_per_epoch, plan_epoch
from data_prep.tables import LABELS, read_labels
from data_prep.triplets import TripletSampler
from pipeline.common.console import say

BLOCK = 100_000
BATCH, BATCHES, TRIPLETS = 48, 2_000, 16
"""Images of a batch, and batches that are planned; an epoch's time is calculated from theirs. Triplets of a batch."""


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


def balanced(labels: pd.DataFrame, images: int) -> dict[str, float]:
    """Return the seconds of making the sampler, with its check, and of planning an epoch."""
    making, sampler = timed(lambda: (undrawable(labels), BalancedSampler(labels))[1])
    plans = sampler.plan_epoch(batch_size=BATCH, images_per_value=4, seed=0, epoch=0)
    first, _ = timed(lambda: next(plans))
    rest, _ = timed(lambda: list(itertools.islice(plans, BATCHES)))
    return {"sampler": making, "drawing": first, "planning": rest / BATCHES * batches_per_epoch(images, BATCH)}


def triplets(labels: pd.DataFrame, images: int) -> dict[str, float]:
    """Return the seconds of making the sampler, and of drawing and planning an epoch of a third as many triplets."""
    making, sampler = timed(lambda: TripletSampler(labels))
    drawing, drawn = timed(lambda: sampler.sample(images // 3, seed=0))
    plans = plan_epoch(drawn, batch_size=TRIPLETS, seed=0, epoch=0)
    rest, planned = timed(lambda: len(list(itertools.islice(plans, BATCHES))))
    return {
        "sampler": making,
        "drawing": drawing,
        "planning": rest / planned * batches_per_epoch(len(drawn), TRIPLETS),
    }


KINDS = {kind.__name__: kind for kind in (triplets, balanced)}


def measure(kind: str, file: Path, images: int) -> dict[str, float]:
    """Return the seconds of reading and those of a kind of batches, and the peak in bytes."""
    with pa.OSFile(str(file)) as opened:
        reading, labels = timed(lambda: read_labels(opened, "train"))
    found = {"reading": reading} | KINDS[kind](labels, images)
    return found | {"peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def main() -> None:
    """Measure every size; write the table."""
    if len(sys.argv) > 3:
        return print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for images in map(int, SIZES.split(",")):
            file = Path(folder, "labels.parquet")
            write_labels(file, images)
            for kind in KINDS:
                found = json.loads(in_own_process("plans", kind, str(file), f"{images}"))
                seconds = [f"{found[name]:.2f}" for name in ("reading", "sampler", "drawing", "planning")]
                epoch = found["drawing"] + found["planning"]
                size = [f"{epoch:,.1f}", f"{1e6 * epoch / images:.1f}", f"{found['peak'] / GIB:.2f}"]
                rows.append([f"{images:,}", kind, *seconds, *size])
                say(f"{images:,} images: {rows[-1]}")
    header = ["images", "batches of", "labels read, s", "sampler, s", "drawn (balanced: first batch), s", "planned, s"]
    header += ["an epoch, s", "an epoch, µs an image", "peak, GiB"]
    notes = (
        f"Every image has a label under each of {ATTRIBUTES} attributes, one of {VALUES} values. Balanced batches have "
        f"{BATCH} images, 4 of a value; batches of triplets {TRIPLETS}, and an epoch a third as many triplets as "
        f"images. The time of planning an epoch is that of {BATCHES:,} batches, times their number. One core."
    )
    write_table("plans", header, rows, notes)


if __name__ == "__main__":
    main()
