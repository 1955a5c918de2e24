"""Planted copies in drawn garments, and the time of comparing all pairs: `agman bench copies`.

A garment of DARN's layout has a design: collar, silhouette, length, sleeves, pattern. A copy has the design of its
original, another colour, and another person, background and light. A near miss is drawn like a copy, but differs in one
attribute of the design. A model is trained on other drawn garments; it never sees these.
"""

from __future__ import annotations

import io
import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from agman.embedder import Embedder
from agman.tagger import Tagger
from benchmarks.common import timed, write_table
from data_prep.dataset import Dataset
from data_prep.prepare import prepare
from data_prep.request import TableOptions
from data_prep.synthetic.garments import draw_catalogue
from pipeline.common.console import progress_bar, say
from pipeline.config.presets import PRESETS
from pipeline.config.schema import make_config
from pipeline.evaluation.tagging import make_tagger
from pipeline.retrieval.alike import alike_pairs
from pipeline.training.trainer import EpochEnd, Training, WorkerContext

DESIGN = {
    "collar shape": (0, 2, 3, 6, 14, 16),
    "clothes shape": (0, 1, 4, 6, 8),
    "clothes length": (0, 2, 4, 6),
    "sleeve length": (0, 2, 4, 6),
    "sleeve shape": (0, 1, 5, 10),
    "clothes pattern": (0, 1, 2, 3),
}
"""Attributes of a design, and the values that are drawn: those that differ visibly at SIZE pixels."""
COLOURS = (0, 1, 2, 3, 12, 52)
FIXED = (("clothes category", 0), ("clothes button", 0))
SIZE, TRAINED, STEPS, BATCH = 96, 1_200, 160, 48
COPIES, OTHERS = 150, 450
"""Originals, each with a copy and a near miss, and other designs."""
COUNTS = (0.25, 0.5, 1, 2, 5)
"""Numbers of pairs that are looked at, as multiples of the number of copies."""
SPEED = ((10_000, 4, 128), (50_000, 4, 128))
"""Rows, attributes and width."""


@dataclass(frozen=True)
class Garment:
    """A picture to draw."""

    design: tuple[int, ...]
    colour: int
    seed: int


def drawn(garment: Garment) -> bytes:
    """Return the picture as a JPEG file."""
    labels = [*zip(DESIGN, garment.design, strict=True), ("clothes color", garment.colour), *FIXED]
    drawing, file = draw_catalogue("darn", labels, seed=garment.seed, size=SIZE), io.BytesIO()
    drawing.image.save(file, "JPEG", quality=drawing.jpeg_quality)
    return file.getvalue()


def random_garments(count: int, seed: int) -> list[Garment]:
    """Return garments whose values are drawn independently and evenly."""
    rng = np.random.default_rng(seed)
    designs = zip(*(rng.choice(values, count).tolist() for values in DESIGN.values()), strict=True)
    colours = rng.choice(COLOURS, count).tolist()
    return [
        Garment(design, colour, 10_000 * (seed + 1) + i)
        for i, (design, colour) in enumerate(zip(designs, colours, strict=True))
    ]


def planted(seed: int) -> list[Garment]:
    """Return COPIES originals, their copies, their near misses, and others, in this order."""
    rng = np.random.default_rng(seed)
    garments = random_garments(COPIES + OTHERS, seed)
    copies, misses = [], []
    for i, one in enumerate(garments[:COPIES]):
        other = [int(rng.choice([c for c in COLOURS if c != one.colour])) for _ in range(2)]
        place = int(rng.integers(len(DESIGN)))
        value = int(rng.choice([v for v in [*DESIGN.values()][place] if v != one.design[place]]))
        copies.append(Garment(one.design, other[0], 1_000_000 + i))
        misses.append(Garment((*one.design[:place], value, *one.design[place + 1 :]), other[1], 2_000_000 + i))
    return [*garments[:COPIES], *copies, *misses, *garments[COPIES:]]


def trained(folder: Path, pictures: list[bytes], garments: list[Garment]) -> tuple[Embedder, Tagger, float]:
    """Train on labelled pictures; return the model, its prototypes and its MAP on validation."""
    (folder / "raw").mkdir()
    for i, data in enumerate(pictures):
        (folder / "raw" / f"{i:04d}.jpg").write_bytes(data)
    columns = {name: [f"v{one.design[i]}" for one in garments] for i, name in enumerate(DESIGN)}
    table = {"picture": [f"{i:04d}.jpg" for i in range(len(garments))]} | columns
    pd.DataFrame(table).to_csv(folder / "labels.csv", index=False)
    names = tuple(f"{name.replace(' ', '_')}={name}" for name in DESIGN)
    options = TableOptions(table=folder / "labels.csv", image="picture", attributes=names)
    prepare(
        "table",
        folder / "raw",
        folder / "data",
        table=options,
        image_size=SIZE,
        triplets=BATCH * STEPS,
        epochs=1,
        near_duplicates="keep",
        progress=progress_bar,
    )
    own = {"batch_size": BATCH, "max_steps": STEPS, "embedding_dim": 128, "batch_norm": "per_micro_batch"}
    config = make_config(PRESETS["strong"].settings | own | {"stride": 16, "patience": None, "threads": 2})
    dataset = Dataset(folder / "data")
    training = Training(config, dataset, WorkerContext(device="cuda" if torch.cuda.is_available() else "cpu"))
    ends: list[EpochEnd] = []
    training.run(epoch_end=ends.append)
    description = {"attributes": dataset.info.attribute_names, "image_size": SIZE, "training": {}}
    fixed = {"dataset_digest": None, "run_id": None}
    tagger, _ = make_tagger(training.judged, description, dataset, progress=progress_bar)
    return Embedder(training.judged, description | fixed, device="cpu"), tagger, ends[-1].metrics["valid/map"]


def measure(folder: Path) -> tuple[list[list[str]], float]:
    """Return the rows of the table, and the model's MAP on validation."""
    learned, gallery = random_garments(TRAINED, 1), planted(2)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        pictures = list(pool.map(drawn, [*learned, *gallery], chunksize=50))
    embedder, tagger, score = trained(folder, pictures[:TRAINED], learned)
    embeddings_rad = embedder.embed([embedder.read(one) for one in pictures[TRAINED:]])
    cosines = np.einsum("iad,jad->aij", embeddings_rad, embeddings_rad)
    named = [
        tagger.namers[name].probabilities(torch.from_numpy(np.ascontiguousarray(embeddings_rad[:, number]))).numpy()
        for number, name in enumerate(embedder.attributes)
    ]
    ways = {
        "least cosine": cosines.min(axis=0),
        "mean cosine": cosines.mean(axis=0),
        "probability of equal values": np.prod([found @ found.T for found in named], axis=0),
    }
    design = np.array([one.design for one in gallery])
    return [[way, *row] for way, similarity in ways.items() for row in judged(similarity, design)], score


def judged(similarity_rr: np.ndarray, design_ra: np.ndarray) -> list[list[str]]:
    """Return what pairs from some similarities on are: a row for each of COUNTS."""
    first, second = np.triu_indices(len(design_ra), 1)
    copies = (design_ra[first] == design_ra[second]).all(axis=1)
    originals = np.arange(COPIES)
    of_pair, misses = similarity_rr[first, second], similarity_rr[originals, originals + 2 * COPIES]
    falling, rows = np.sort(of_pair)[::-1], []
    for count in (copies.sum() * np.array(COUNTS)).astype(int):
        found = of_pair >= (limit := falling[count - 1])
        shares = [copies[found].mean(), found[copies].mean(), (misses >= limit).mean()]
        rows.append([f"{limit:.4f}", f"{count:,}", *(f"{100 * share:.1f}" for share in shares)])
    return rows


def speed() -> list[str]:
    """Return a line for each size: seconds of comparing all pairs, and the largest memory so far."""
    lines = []
    for rows, attributes, width in SPEED:
        rng = np.random.default_rng(0)
        matrices = [rng.standard_normal((rows, width), np.float32) for _ in range(attributes)]
        for matrix in matrices:
            matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        seconds, found = timed(partial(alike_pairs, matrices, 0.2, 100_000, progress=progress_bar))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        lines.append(
            f"{rows:,} × {attributes} × {width}: {seconds:.1f} s, {len(found.rows):,} pairs, peak {peak:.1f} GB"
        )
        say(lines[-1])
    return lines


def main() -> None:
    """Measure; write the table."""
    lines = speed()
    with tempfile.TemporaryDirectory() as folder:
        rows, score = measure(Path(folder))
    header = ["pairs ordered by", "similarity from", "pairs", "copies, %", "of all copies, %", "near misses taken, %"]
    notes = (
        f"{3 * COPIES + OTHERS:,} pictures: {COPIES} originals, their copies, a near miss of each, and {OTHERS} other "
        "designs. A copy is a pair of equal designs. “Probability of equal values”: of the values that the prototypes "
        f"name, multiplied over the attributes. The model: preset strong, {STEPS} steps of {BATCH} pictures of {SIZE} "
        f"px out of {TRAINED:,}, MAP {100 * score:.1f} on validation. All pairs of random embeddings (rows × "
        f"attributes × width): {'; '.join(lines)}."
    )
    write_table("copies", header, rows, notes)


if __name__ == "__main__":
    main()
