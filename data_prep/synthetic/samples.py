"""Draw a dataset in its official layout: images, raw annotation, split files and the true regions."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from data_prep import atomic
from data_prep.errors import InputError
from data_prep.progress import Progress, silent
from data_prep.synthetic.sample_layouts import Drawn, Sketch, layout_of
from data_prep.tables import DRAWN_REGIONS_FILE


@dataclass(frozen=True)
class Sampled:
    """Numbers of images and labels that were drawn."""

    images: int
    labels: int


def sample(
    layout: str,
    out: Path,
    *,
    images: int = 2_000,
    size: int = 224,
    seed: int = 0,
    split_files: Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Sampled:
    """Draw `images` images of `size`×`size` px in `layout`'s official files below `out`.

    `split_files` is a folder of the layout's own annotation: split files, triplet lists or raw files. If given, exactly
    its images are drawn and the files are copied unchanged. Equal arguments give equal files. Raises InputError if the
    annotation cannot be drawn.
    """
    if split_files and not split_files.is_dir():
        raise InputError(f"{split_files}: no such folder")
    sampler = layout_of(layout)
    with atomic.output_folder(out, marker=DRAWN_REGIONS_FILE, overwrite=overwrite, inputs=(split_files,)) as staging:
        sketches = sampler.copy(split_files, staging) if split_files else sampler.make(images, seed, staging)
        drawn = _draw_all(layout, sketches, staging, size, seed, progress)
        sampler.finish(staging, drawn, size)
    return Sampled(images=len(sketches), labels=sum(len(sketch.labels) for sketch in sketches))


def _draw_all(
    layout: str, sketches: list[Sketch], staging: Path, size: int, seed: int, progress: Progress
) -> list[Drawn]:
    """Draw every image, on all cores, and write the regions."""
    advance = progress("images drawn", len(sketches))
    drawn: list[Drawn] = []
    job = partial(_draw_some, layout=layout, folder=staging, size=size, seed=seed)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for regions in pool.map(job, [sketches[start : start + 50] for start in range(0, len(sketches), 50)]):
            drawn += regions
            advance(50)
    rows = [(path, attribute, *region) for path, attribute, region in drawn]
    columns = ["path", "attribute", "x0", "y0", "x1", "y1"]
    pd.DataFrame(rows, columns=columns).to_parquet(staging / DRAWN_REGIONS_FILE, index=False)
    return drawn


def _draw_some(sketches: list[Sketch], layout: str, folder: Path, size: int, seed: int) -> list[Drawn]:
    drawn = []
    for sketch in sketches:
        # The path decides the image, so that it does not depend on the other images of the dataset.
        image_seed = int.from_bytes(hashlib.sha256(f"{seed}/{sketch.path}".encode()).digest()[:8])
        drawing = layout_of(layout).draw(sketch, image_seed, size)
        target = folder / sketch.path
        target.parent.mkdir(parents=True, exist_ok=True)
        drawing.image.save(target, "JPEG", quality=drawing.jpeg_quality)
        drawn += [Drawn(sketch.path, name, region) for name, region in drawing.regions.items()]
    return drawn
