"""A training on balanced batches: stopped and resumed with every part of its recipe, schedules, averages, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.datasets import with_labels
from torch import Tensor

from agman.checkpoint import load_model
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline.config.schema import TrainConfig
from pipeline.training.build import check, resolved
from pipeline.training.trainer import EpochEnd, NonFiniteBatch, Training, WorkerContext

CONFIG = TrainConfig(
    backbone="tiny",
    embedding_dim=16,
    batches="balanced",
    batch_size=50,
    images_per_value=3,
    max_steps=20,
    pair_loss="semi_hard_triplet",
    proxy_weight=0.5,
    label_smoothing=0.1,
    optimizer="adamw",
    lr=1e-3,
    backbone_lr_scale=0.5,
    schedule="cosine",
    warmup=0.2,
    ema=0.9,
    freeze_backbone=1,
    batch_norm="frozen",
    crop=0.5,
    jitter=0.3,
    erasing=0.5,
    micro_batches=2,
    threads=1,
    precision="fp32",
    seed=11,
)

PLAIN: dict[str, Any] = {"crop": None, "jitter": 0.0, "erasing": 0.0}
"""Pictures as they are: to change them takes most of a small step's time."""


def changed(**settings: Any) -> TrainConfig:
    return CONFIG.model_copy(update=settings)


def start(dataset: Dataset, config: TrainConfig = CONFIG) -> Training:
    return Training(config, dataset, WorkerContext())


def stop_after(training: Training, step: int) -> Training:
    assert training.run(stop=lambda: training.step + 1 >= step) == "stopped"
    return training


def resume(dataset: Dataset, training: Training, folder: Path) -> Training:
    """Write a snapshot and load it into a training that was begun with other weights."""
    folder.mkdir()
    training.snapshot().write(folder)
    resumed = start(dataset, changed(seed=99))
    resumed.load(folder)
    resumed.config = training.config
    return resumed


def state_of(training: Training) -> dict[str, Tensor]:
    assert training.averaged is not None
    of_optimizer = {
        f"optimizer.{number}.{name}": tensor
        for number, tensors in training.optimizer.state_dict()["state"].items()
        for name, tensor in tensors.items()
    }
    state = training.objective.state_dict() | of_optimizer | dict(training.averaged.state_dict(prefix="averaged."))
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset) -> tuple[dict[str, Tensor], list[EpochEnd]]:
    training, ends = start(dataset), []
    assert training.run(epoch_end=ends.append) == "finished"
    return state_of(training), ends


def test_the_last_epoch_of_a_training_by_steps_is_cut_short(
    dataset: Dataset, undisturbed: tuple[dict[str, Tensor], list[EpochEnd]]
) -> None:
    images = dataset.info.images["train"]
    per_epoch = math.ceil(images / 50)
    steps = [end.step for end in undisturbed[1]]
    assert steps == [*range(per_epoch, 20, per_epoch), 20] and 20 % per_epoch
    metrics = undisturbed[1][-1].metrics
    assert {"train/loss", "train/loss_pairs", "train/loss_class", "train/loss_proxy"} < metrics.keys()
    assert 0 <= metrics["train/nearest_accuracy"] <= 1 and "train/triplets_per_second" not in metrics
    assert "valid/map" in metrics and metrics["train/images_per_second"] > 0


@pytest.mark.parametrize("stops", [(4,), (1, 11, 19)])
def test_a_resumed_training_ends_as_an_undisturbed_one(
    dataset: Dataset, undisturbed: tuple[dict[str, Tensor], list[EpochEnd]], tmp_path: Path, stops: tuple[int, ...]
) -> None:
    """It stops with the backbone frozen, in mid-epoch, and before the last step."""
    training = start(dataset)
    for step in stops:
        training = resume(dataset, stop_after(training, step), tmp_path / str(step))
    assert training.run() == "finished"
    state = state_of(training)
    assert state.keys() == undisturbed[0].keys()
    assert [name for name in state if not torch.equal(state[name], undisturbed[0][name])] == []


def test_the_average_is_what_is_evaluated_and_saved(dataset: Dataset, tmp_path: Path) -> None:
    training = stop_after(start(dataset), 9)
    assert training.averaged is not None
    training.snapshot().write(tmp_path)
    saved, _ = load_model(tmp_path)
    averaged, learned = training.averaged.module.state_dict(), training.model.state_dict()
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in saved.state_dict().items())
    assert any(not torch.equal(averaged[name], learned[name]) for name in averaged)


def test_the_average_is_that_of_the_weights_after_every_step(dataset: Dataset) -> None:
    training, expected = start(dataset, changed(max_steps=5)), None
    weights: list[Tensor] = []
    name = "classifier.weight"
    training.run(step_end=lambda end: weights.append(training.model.state_dict()[name].double().clone()))
    for t, weight in enumerate(weights):
        decay = min(0.9, (1 + t) / (10 + t))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    assert training.averaged is not None and expected is not None
    torch.testing.assert_close(training.averaged.module.state_dict()[name].double(), expected, rtol=0, atol=1e-6)


def test_a_frozen_backbone_and_frozen_statistics_stay_as_they_are(dataset: Dataset) -> None:
    training = start(dataset)
    before = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    per_epoch = training.steps_per_epoch

    def moved() -> set[str]:
        return {n for n, tensor in training.model.state_dict().items() if not torch.equal(tensor, before[n])}

    stop_after(training, per_epoch)
    assert "classifier.weight" in moved() and "backbone.low.1.weight" in moved()
    assert not [name for name in moved() if name.startswith("backbone.") and not name.startswith("backbone.low.")]
    stop_after(training, per_epoch + 2)
    assert "backbone.layer2.0.weight" in moved()
    assert not [name for name in moved() if name.startswith("backbone") and "running" in name]
    assert [name for name in moved() if not name.startswith("backbone") and "running" in name]


def test_the_learning_rate_warms_up_falls_as_a_cosine_and_is_scaled_for_the_backbone(dataset: Dataset) -> None:
    training, rates = start(dataset, changed(warmup=0.1, freeze_backbone=0, **PLAIN)), []
    groups = training.optimizer.param_groups
    training.run(step_end=lambda end: rates.append({group["lr"] for group in groups}))
    # step_end sees the rate of the next step
    expected = [1e-3 * min(1, (n + 1) / 3) * (1 + math.cos(math.pi * max(0, n - 2) / 18)) / 2 for n in range(1, 20)]
    for rate, full in zip(rates, expected, strict=False):
        assert sorted(rate) == pytest.approx([full / 2, full])
    decays = {(group["lr_scale"], group["weight_decay"]) for group in groups}
    assert decays == {(0.5, 0.01), (0.5, 0.0), (1.0, 0.01), (1.0, 0.0)}
    assert all((parameter.ndim > 1) == (group["weight_decay"] > 0) for group in groups for parameter in group["params"])


def test_a_batch_that_makes_nan_names_its_pictures(dataset: Dataset) -> None:
    training = stop_after(start(dataset), 8)
    with torch.no_grad():
        next(training.model.classifier.parameters()).fill_(float("nan"))  # type: ignore[union-attr,operator]
    with pytest.raises(NonFiniteBatch, match="step 9 ") as error:
        training.run()
    record = error.value.record
    paths = dict(zip(dataset.images["image_id"], dataset.images["path"], strict=True))
    assert len(record["images"]["image"]) == 48
    assert record["paths"]["image"] == [paths[image] for image in record["images"]["image"]]


def test_it_learns(dataset: Dataset) -> None:
    config = changed(max_steps=36, freeze_backbone=0, batch_norm="per_micro_batch", lr=3e-3, **PLAIN)
    ends: list[EpochEnd] = []
    start(dataset, config).run(epoch_end=ends.append)
    first, last = ends[0].metrics, ends[-1].metrics
    assert last["train/loss_proxy"] < 0.9 * first["train/loss_proxy"]
    assert last["train/loss_class"] < first["train/loss_class"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"batch_size": 5},
            "batch_size=5 with images_per_value=3: a balanced batch has images of two values or more, ",
        ),
        ({"micro_batches": 49}, "images cannot be cut into 49 micro-batches"),
    ],
)
def test_balanced_batches_that_cannot_be_drawn_are_refused(
    dataset: Dataset, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check(changed(**change), dataset, workers=2)


def test_an_attribute_of_one_value_is_refused_by_name(dataset: Dataset, tmp_path: Path) -> None:
    labels = dataset.labels
    same = labels.assign(value=labels["value"].mask(labels["attribute"] == 2, 1))
    one_value = with_labels(dataset, tmp_path / "data", same)
    name = dataset.info.attribute_names[2]
    with pytest.raises(
        InputError, match=f"attribute '{name}' of .* has fewer than two values with two training images"
    ):
        check(CONFIG, one_value, workers=1)


def test_frozen_statistics_need_no_gpu() -> None:
    assert resolved(TrainConfig(batch_norm="frozen"), "cpu", workers=2).micro_batches == 2
