"""Reading training images: packed shards against JPEG files of 512 px decoded one by one: `agman bench loader`.

Both give uint8 squares of 224 px, on the same number of cores, in the same shuffled batches of 48. The files are a
dataset before `agman prep`; the shards are the dataset after it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common import drawn_dataset, write_table
from data_prep.dataset import Dataset, ImageStore

IMAGES, BATCH, SIZE, SOURCE = 600, 48, 224, 512
ROUNDS = 4


def read_files(files: list[Path], pool: ThreadPoolExecutor) -> torch.Tensor:
    """Read as a plain PyTorch dataset does: open, RGB, resize the short side, cut the middle."""

    def read(file: Path) -> torch.Tensor:
        with Image.open(file) as image:
            picture = image.convert("RGB")
        scale = SIZE / min(picture.size)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        left, top = (picture.width - SIZE) // 2, (picture.height - SIZE) // 2
        return torch.from_numpy(np.array(picture.crop((left, top, left + SIZE, top + SIZE)))).permute(2, 0, 1)

    return torch.stack(list(pool.map(read, files)))


Read = Callable[[np.ndarray], torch.Tensor]


def compare(reads: list[Read], count: int) -> list[tuple[float, float]]:
    """Return images per second of wall-clock and of CPU time, the best of ROUNDS passes, for each of `reads`.

    A pass is all images in shuffled batches; the first pass warms up. The ways take turns, so that other work on the
    machine slows both.
    """
    best = [(0.0, 0.0)] * len(reads)
    for number in range(ROUNDS + 1):
        order = np.random.default_rng(number).permutation(count)
        for way, read in enumerate(reads):
            started, used = time.perf_counter(), time.process_time()
            for start in range(0, count, BATCH):
                assert read(order[start : start + BATCH]).shape[1:] == (3, SIZE, SIZE)
            wall, cpu = count / (time.perf_counter() - started), count / (time.process_time() - used)
            if number:
                best[way] = max(best[way][0], wall), max(best[way][1], cpu)
    return best


@contextmanager
def on_cores(cores: int) -> Iterator[None]:
    """Restrict this process, and threads that it starts in the block, to `cores` cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(allowed)[:cores]))
    torch.set_num_threads(cores)  # more than there are cores would wait for each other, spinning
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def measure(files: list[Path], dataset: Dataset, cores: int) -> list[str]:
    """Return the table's row for `cores` cores."""
    with on_cores(cores), ThreadPoolExecutor(cores) as pool:
        store = ImageStore(dataset, "train", SIZE, threads=cores)
        ids = np.sort(store.image_ids)
        plain, packed = compare(
            [lambda rows: read_files([files[i] for i in rows], pool), lambda rows: store.read(ids[rows])], len(files)
        )
    speeds = [f"{plain[0]:,.0f}", f"{packed[0]:,.0f}", f"{packed[0] / plain[0]:.1f}"]
    return [f"{cores}", *speeds, f"{plain[1]:,.0f}", f"{packed[1]:,.0f}", f"{packed[1] / plain[1]:.1f}"]


def main() -> None:
    """Compare on one and two cores; write the table."""
    with tempfile.TemporaryDirectory(prefix="agman-loader-") as folder:
        dataset = drawn_dataset(Path(folder), images=IMAGES, size=SOURCE, triplets=64, packed_size=SIZE)
        train = dataset.images[dataset.images["split"] == "train"].sort_values("image_id")
        files = [Path(folder, "raw", path) for path in train["path"]]
        rows = [measure(files, dataset, cores) for cores in (1, 2)]
    header = ["cores", f"files of {SOURCE} px, images/s", "packed, images/s", "ratio"]
    header += ["files, images/CPU s", "packed, images/CPU s", "ratio"]
    notes = f"{len(files)} drawn garments, to {SIZE} px, batches of {BATCH}, all in the page cache. Wanted: at least 3."
    write_table("loader", header, rows, notes)
