"""Memory and speed of packing 2,000 and 20,000 images: `agman bench packing`.

Memory is the peak of the proportional set sizes (shared pages counted once) of the driver, Ray and its workers,
object store included.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.common import descendants, write_table
from data_prep.cluster import ray_session
from data_prep.packing import pack
from data_prep.storage import Storage

COUNTS = (2_000, 20_000)
SOURCE, SIZE, DIFFERENT = 256, 224, 200


class Memory:
    """Peak memory of this process and all below it, within a `with` block."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self.peak = proportional_set_size()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self.peak = max(self.peak, proportional_set_size())


def proportional_set_size() -> int:
    """Return the bytes of this process and its descendants."""
    return sum(_pss(process) for process in [os.getpid(), *descendants(os.getpid())])


def _pss(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def make_images(root: Path, count: int) -> pd.DataFrame:
    """Write DIFFERENT images under `count` names (links, which reading and packing do not notice)."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(DIFFERENT):
        coarse = Image.fromarray(rng.integers(0, 255, (32, 40, 3), np.uint8))
        coarse.resize((SOURCE * 5 // 4, SOURCE), Image.Resampling.BICUBIC).save(root / f"{number}.jpg", quality=90)
    for number in range(DIFFERENT, count):
        os.link(root / f"{number % DIFFERENT}.jpg", root / f"{number}.jpg")
    return pd.DataFrame({"image_id": range(count), "path": [f"{n}.jpg" for n in range(count)], "split": "train"})


def main() -> None:
    """Pack COUNTS images; write the table."""
    rows, peaks = [], []
    with tempfile.TemporaryDirectory(prefix="agman-packing-") as folder, ray_session():
        for count in (DIFFERENT, *COUNTS):  # the first starts the workers and is not reported
            root = Path(folder, f"raw-{count}").resolve()
            images = make_images(root, count)
            with Memory() as memory:
                started = time.perf_counter()
                made = pack(images, root, Storage(Path(folder, f"out-{count}")), SIZE, seed=0)
                seconds = time.perf_counter() - started
            assert len(made.sizes) == count
            if count in COUNTS:
                peaks.append(memory.peak)
                rows.append([f"{count:,}", f"{memory.peak / 2**20:,.0f}", f"{seconds:.1f}", f"{count / seconds:,.0f}"])
    ratio = peaks[1] / peaks[0]
    notes = (
        f"From JPEG files of {SOURCE * 5 // 4}x{SOURCE} px to {SIZE} px. Memory: proportional set size of driver, Ray "
        f"and workers together, object store included. Ratio of the peaks: {ratio:.2f}; wanted: at most 1.5."
    )
    write_table("packing", ["images", "peak memory, MiB", "seconds", "images/s"], rows, notes)
