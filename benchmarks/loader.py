"""Reading training images: packed shards against 512 px JPEG files decoded one by one. `agman bench loader`.

Both sides give uint8 squares of 224 px, on the same number of cores, in the same shuffled batches of 48. The files
are what a dataset looks like before `agman prep`; the packed ones what it looks like after.
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

from benchmarks.record import write_table
from data_prep.dataset import Dataset, ImageStore
from data_prep.prepare import prepare
from data_prep.synthetic.samples import sample

IMAGES, BATCH, SIZE, SOURCE = 600, 48, 224, 512
ROUNDS = 4


def read_files(files: list[Path], pool: ThreadPoolExecutor) -> torch.Tensor:
    """As a plain PyTorch dataset does it: open, RGB, resize the short side, cut the middle."""

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
    """Images per second, and per second of CPU time, of each of `reads`: the best of ROUNDS passes after a warm-up.

    A pass is all images in shuffled batches. The ways take turns, so that whatever else the machine does meets both.
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
    """Keep this process, and the threads it starts in the block, to so many cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(allowed)[:cores]))
    torch.set_num_threads(cores)  # more than there are cores would wait for each other, spinning
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def make(folder: Path) -> tuple[list[Path], Dataset]:
    """Pictures of SOURCE px as files, and packed."""
    sample("fashionai", folder / "raw", images=IMAGES, size=SOURCE)
    prepare("fashionai", folder / "raw", folder / "data", triplets=64, epochs=1, image_size=SIZE)
    dataset = Dataset(folder / "data")
    train = dataset.images[dataset.images["split"] == "train"].sort_values("image_id")
    return [folder / "raw" / path for path in train["path"]], dataset


def measure(files: list[Path], dataset: Dataset, cores: int) -> list[str]:
    with on_cores(cores), ThreadPoolExecutor(cores) as pool:
        store = ImageStore(dataset, "train", SIZE, threads=cores)
        ids = np.sort(store.image_ids)
        plain, packed = compare(
            [lambda rows: read_files([files[i] for i in rows], pool), lambda rows: store.read(ids[rows])], len(files)
        )
    speeds = [f"{plain[0]:,.0f}", f"{packed[0]:,.0f}", f"{packed[0] / plain[0]:.1f}"]
    return [f"{cores}", *speeds, f"{plain[1]:,.0f}", f"{packed[1]:,.0f}", f"{packed[1] / plain[1]:.1f}"]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="agman-loader-") as folder:
        files, dataset = make(Path(folder))
        rows = [measure(files, dataset, cores) for cores in (1, 2)]
    header = ["cores", f"files of {SOURCE} px, images/s", "packed, images/s", "ratio"]
    header += ["files, images/CPU s", "packed, images/CPU s", "ratio"]
    notes = f"{len(files)} drawn garments, to {SIZE} px, batches of {BATCH}, all in the page cache. Wanted: at least 3."
    write_table("loader", header, rows, notes)
