"""Reading training images: packed shards against 512 px JPEG files decoded one by one. `python -m benchmarks.loader`.

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
from data_prep.samples import sample

IMAGES, BATCH, SIZE, SOURCE = 1_200, 48, 224, 512
ROUNDS = 3


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


def images_per_second(read: Callable[[np.ndarray], torch.Tensor], count: int) -> float:
    """The best of ROUNDS passes over all images in shuffled batches; the first pass is a warm-up."""
    best = 0.0
    for number in range(ROUNDS + 1):
        order = np.random.default_rng(number).permutation(count)
        started = time.perf_counter()
        for start in range(0, count, BATCH):
            assert read(order[start : start + BATCH]).shape[1:] == (3, SIZE, SIZE)
        if number:
            best = max(best, count / (time.perf_counter() - started))
    return best


@contextmanager
def on_cores(cores: int) -> Iterator[None]:
    """Keep this process, and the threads it starts in the block, to so many cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(allowed)[:cores]))
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
        plain = images_per_second(lambda rows: read_files([files[i] for i in rows], pool), len(files))
        packed = images_per_second(lambda rows: store.read(ids[rows]), len(files))
    return [f"{cores}", f"{plain:,.0f}", f"{packed:,.0f}", f"{packed / plain:.1f}"]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="agman-loader-") as folder:
        files, dataset = make(Path(folder))
        rows = [measure(files, dataset, cores) for cores in (1, 2)]
    header = ["cores", f"files of {SOURCE} px, images/s", "packed, images/s", "ratio"]
    notes = f"{len(files)} drawn garments, to {SIZE} px, batches of {BATCH}, all in the page cache. Wanted: at least 3."
    write_table("loader", header, rows, notes)


if __name__ == "__main__":
    main()
