"""A training in one process: stopped, saved and resumed anywhere; its points, early stopping, and batches of NaN."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.datasets import SIZE
from torch import Tensor

import agman
from data_prep.batches import BatchPlan, batches_per_epoch, plan_epoch
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError
from data_prep.prepare import prepare
from data_prep.storage import Storage
from data_prep.synthetic.samples import sample
from data_prep.triplets import Triplets
from pipeline.config.schema import TrainConfig
from pipeline.training.checkpoints import Checkpoints, Saver
from pipeline.training.trainer import EpochEnd, NonFiniteBatch, Training, WorkerContext, computes_in_bfloat16, resolved

CONFIG = TrainConfig(
    backbone="resnet18",
    embedding_dim=16,
    batch_size=12,
    max_triplets=41,  # batches of 10, 10, 11 and 10, in parts of 5 and 6
    epochs=3,
    parts=2,
    threads=1,
    precision="fp32",
    loss_weighting="learned",
    proxy_weight=0.5,
    lr=1e-3,
    lr_decay_epochs=1,
    log_every=3,
    seed=11,
)
STEPS = 4
"""In an epoch of CONFIG."""
TIMES = ("triplets_per_second", "data_wait_share")


def changed(**settings: Any) -> TrainConfig:
    return CONFIG.model_copy(update=settings)


@dataclass
class Ran:
    """A training, and what it told of."""

    training: Training
    ends: list[EpochEnd] = field(default_factory=list)
    ending: str = ""

    @property
    def state(self) -> dict[str, Tensor]:
        """All that is learned, and what Adam remembers of it."""
        of_optimizer = {
            f"optimizer.{number}.{name}": tensor
            for number, tensors in self.training.optimizer.state_dict()["state"].items()
            for name, tensor in tensors.items()
        }
        return {name: tensor.clone() for name, tensor in (self.training.objective.state_dict() | of_optimizer).items()}

    def run(self, stop_after: int | None = None, saver: Saver | None = None) -> Ran:
        """Train on, to the end of step `stop_after` or of the training."""
        self.ending = self.training.run(
            stop=lambda: stop_after is not None and self.training.step + 1 >= stop_after,
            epoch_end=self.ends.append,
            saver=saver,
        )
        return self


def start(dataset: Dataset, config: TrainConfig = CONFIG) -> Ran:
    return Ran(Training(config, dataset, WorkerContext()))


def resume(dataset: Dataset, folder: Path, config: TrainConfig = CONFIG) -> Ran:
    """In a training that starts from other weights than the saved one did."""
    training = Training(config.model_copy(update={"seed": 99}), dataset, WorkerContext())
    training.load(folder)
    training.config = resolved(config)  # the seed of the augmentation must be the same
    return Ran(training)


def write(training: Training, folder: Path) -> Path:
    folder.mkdir()
    training.snapshot().write(folder)
    return folder


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.endswith(TIMES)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit by bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@dataclass
class Undisturbed:
    ran: Ran
    state: dict[str, Tensor]


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset) -> Undisturbed:
    ran = start(dataset).run()
    assert ran.ending == "finished"
    assert [(end.epoch, end.step) for end in ran.ends] == [(1, STEPS), (2, 2 * STEPS), (3, 3 * STEPS)]
    return Undisturbed(ran, ran.state)


# Stopping and resuming


@pytest.mark.slow  # a resumed one, which must end so too, says the same and more
def test_the_same_training_twice_gives_the_same_weights(dataset: Dataset, undisturbed: Undisturbed) -> None:
    again = start(dataset).run()
    same(again.state, undisturbed.state)
    assert [without_times(end.metrics) for end in again.ends] == [
        without_times(end.metrics) for end in undisturbed.ran.ends
    ]


@pytest.mark.parametrize("stops", [(6,), (1, 3, STEPS, 9, 3 * STEPS)])
def test_a_resumed_training_ends_as_an_undisturbed_one(
    dataset: Dataset, undisturbed: Undisturbed, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    """In mid-epoch, at an epoch's last step, at the last step of all, and again and again."""
    ran, ends = start(dataset), []
    for step in stops:
        ran.run(stop_after=step)
        assert (ran.ending, ran.training.step) == ("stopped", step)
        ends += ran.ends
        ran = resume(dataset, write(ran.training, tmp_path / str(step)))
        assert ran.training.step == step
    ran.run()
    assert ran.ending == "finished" and ran.training.ended
    same(ran.state, undisturbed.state)
    ends += ran.ends
    assert [(end.epoch, end.step) for end in ends] == [(end.epoch, end.step) for end in undisturbed.ran.ends]
    for end, expected in zip(ends, undisturbed.ran.ends, strict=True):
        assert without_times(end.metrics) == without_times(expected.metrics)
    assert [(step, without_times(metrics)) for step, metrics in ran.training.points] == [
        (step, without_times(metrics)) for step, metrics in undisturbed.ran.training.points
    ]


def test_what_a_training_learned_beside_the_model_comes_back(dataset: Dataset, tmp_path: Path) -> None:
    ran = start(dataset).run(stop_after=STEPS + 1)
    back = resume(dataset, write(ran.training, tmp_path / "saved"))
    fresh = start(dataset)
    learned = dict(ran.training.objective.named_parameters())
    beside = {name for name in learned if not name.startswith("model.")}
    assert {"loss_weights.t_triplet", "loss_weights.t_class"} < beside
    for name in beside:
        assert torch.equal(back.state[name], ran.state[name])
        assert not torch.equal(fresh.state[name], ran.state[name])
    assert back.training.scheduler.get_last_lr() == [pytest.approx(0.9e-3)]
    assert back.training.optimizer.param_groups[0]["lr"] == pytest.approx(0.9e-3)


def test_snapshots_of_a_running_training_may_be_resumed_from(
    dataset: Dataset, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Those that the saver takes while training goes on, of mid-epoch and of epochs' ends."""
    kept = Checkpoints(Storage(tmp_path / "kept"), keep_best=3)
    saver = Saver(kept, every=2)
    ran = start(dataset)
    ran.run(stop_after=2 * STEPS + 1, saver=saver)
    saver.finish()
    whole = kept.whole()
    assert [checkpoint.step for checkpoint in whole] == [STEPS, 2 * STEPS, 2 * STEPS + 1]
    assert [checkpoint.epoch for checkpoint in whole] == [1, 2, 2]
    assert [checkpoint.score for checkpoint in whole] == [*(end.metrics["valid/map"] for end in ran.ends), None]
    for checkpoint in whole[1:]:
        with kept.opened(checkpoint) as folder:
            resumed = resume(dataset, folder).run()
        same(resumed.state, undisturbed.state)


def test_a_snapshot_of_a_finished_training_has_nothing_left_to_do(dataset: Dataset, tmp_path: Path) -> None:
    config = changed(epochs=1, max_triplets=12)
    ran = start(dataset, config).run()
    back = resume(dataset, write(ran.training, tmp_path / "saved"), config).run()
    assert (back.ending, back.training.step, back.ends) == ("finished", 1, [])
    same(back.state, ran.state)


# Points of the curves


def test_every_point_comes_once_through_snapshots(dataset: Dataset, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """As the driver logs them: until a checkpoint's step, when it stands."""
    logged: list[tuple[int, dict[str, float]]] = []
    ran = start(dataset)
    for step in (2, 5, STEPS + 2, 3 * STEPS):
        ran.run(stop_after=step)
        saved = write(ran.training, tmp_path / str(len(list(tmp_path.iterdir()))))
        new = ran.training.points_until(step - 1)
        logged += new
        ran.training.forget_points(new)
        assert all(point_step >= step for point_step, _ in ran.training.points)
        carried = resume(dataset, saved)
        carried.training.forget_points(new)
        ran = carried
    ran.run()
    logged += ran.training.points
    expected = [(step, without_times(metrics)) for step, metrics in undisturbed.ran.training.points]
    assert [(step, without_times(metrics)) for step, metrics in logged] == expected
    steps = [(step, "steps/loss" in metrics) for step, metrics in logged]
    assert steps == [(3, True), (4, False), (6, True), (8, False), (9, True), (12, True), (12, False)]


def test_points_that_are_not_known_to_be_logged_travel_with_a_snapshot(dataset: Dataset, tmp_path: Path) -> None:
    ran = start(dataset).run(stop_after=7)
    before = list(ran.training.points)
    assert [step for step, _ in before] == [3, 4, 6]
    assert resume(dataset, write(ran.training, tmp_path / "all")).training.points == before
    ran.training.forget_points(before[:1])
    assert resume(dataset, write(ran.training, tmp_path / "later")).training.points == before[1:]
    assert ran.training.points_until(4) == before[1:2]


# Early stopping


@pytest.fixture(scope="module")
def scores(dataset: Dataset) -> list[float]:
    """Validation scores of a training that does not stop early, an epoch being one step."""
    ran = start(dataset, changed(epochs=9, max_triplets=12)).run()
    return [end.metrics["valid/map"] for end in ran.ends]


def last_epoch(scores: list[float], patience: int) -> int:
    """The first after which `patience` epochs in a row, it being the last of them, were not better than all before."""
    for epoch in range(patience + 1, len(scores) + 1):
        if max(scores[epoch - patience : epoch]) <= max(scores[: epoch - patience]):
            return epoch
    return len(scores)


@pytest.mark.parametrize(("patience", "interrupted"), [(1, False), (2, True)])
def test_a_training_without_progress_stops_early(
    dataset: Dataset, scores: list[float], tmp_path: Path, patience: int, interrupted: bool
) -> None:
    config = changed(epochs=9, max_triplets=12, patience=patience)
    expected = last_epoch(scores, patience)
    assert patience < expected < 9, "this case tests nothing"
    ran, ends = start(dataset, config), []
    while ran.run(stop_after=ran.training.step + 1 if interrupted else None).ending == "stopped":
        ends += ran.ends
        ran = resume(dataset, write(ran.training, tmp_path / str(len(list(tmp_path.iterdir())))), config)
    ends += ran.ends
    assert [end.metrics["valid/map"] for end in ends] == scores[:expected]
    assert ran.training.best == max(scores[:expected])
    assert resume(dataset, write(ran.training, tmp_path / "end"), config).run().ends == []


# Batches that cannot be learned from


def named(dataset: Dataset, epoch: int, rows: slice) -> dict[str, list[Any]]:
    """Triplets of an epoch by the pictures' paths."""
    path = dict(zip(dataset.images["image_id"], dataset.images["path"], strict=True))
    columns = dataset.triplets("train", epoch).columns()
    return {name: [path[image] for image in columns[name][rows]] for name in ("anchor", "positive", "negative")}


def test_a_batch_that_makes_nan_is_named_and_touches_no_weight(dataset: Dataset) -> None:
    ran = start(dataset, changed(lr=1e30, loss_weighting="fixed"))
    after_steps: list[dict[str, Tensor]] = []

    def learned() -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in ran.training.objective.named_parameters()}

    with pytest.raises(NonFiniteBatch, match=r"^step 2 \(epoch 1\): the loss or its gradient is not finite") as error:
        ran.training.run(step_end=lambda end: after_steps.append(learned()))
    record = error.value.record
    assert (record["step"], record["epoch"]) == (2, 1)
    rows = slice(10, 20)
    columns = dataset.triplets("train", 0).columns()
    assert record["triplets"] == {name: column[rows].tolist() for name, column in columns.items()}
    assert record["paths"] == named(dataset, 0, rows)
    assert record["error"] in str(error.value) and "\n" not in str(error.value)
    assert json.loads(json.dumps(record)) == record
    assert len(after_steps) == 1
    same(learned(), after_steps[0])


def test_the_failing_batch_of_a_resumed_training_is_named_too(dataset: Dataset, tmp_path: Path) -> None:
    ran = start(dataset).run(stop_after=STEPS + 2)
    resumed = resume(dataset, write(ran.training, tmp_path / "saved"))
    with torch.no_grad():
        next(resumed.training.model.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteBatch) as error:
        resumed.run()
    record = error.value.record
    assert (record["step"], record["epoch"]) == (STEPS + 3, 2)
    assert record["paths"] == named(dataset, 1, slice(20, 31))


# Who computes what


def drawn_triplets(count: int, seed: int) -> Triplets:
    ids = np.random.default_rng(seed).integers(0, 17, (4, count))
    return Triplets(*ids)


def of_part(plan: BatchPlan, begin: int, end: int) -> tuple[Any, ...]:
    triplets = [tuple(column) for column in plan.image_ids[plan.index[:, begin:end]].T.tolist()]
    return triplets, plan.attributes[begin:end].tolist(), plan.flip[:, begin:end].tolist()


def in_parts(plans: list[list[BatchPlan]]) -> list[list[tuple[Any, ...]]]:
    """Every global batch's parts, over all workers in their order."""
    return [
        [of_part(plan, *bounds) for plan in shares for bounds in zip(plan.bounds, plan.bounds[1:], strict=False)]
        for shares in zip(*plans, strict=True)
    ]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(4, 60), batch_size=st.integers(8, 20), parts=st.integers(4, 7), data=st.data())
def test_every_triplet_is_used_once_in_the_same_parts_on_any_number_of_workers(
    count: int, batch_size: int, parts: int, data: st.DataObject
) -> None:
    triplets = drawn_triplets(count, seed=count)
    arguments: dict[str, Any] = {"batch_size": batch_size, "seed": 3, "epoch": 2, "parts": parts}
    batches = -(-count // batch_size)
    if count // batches < parts:
        with pytest.raises(InputError, match=f"cannot be cut into {parts} parts"):
            batches_per_epoch(count, batch_size, parts)
        return
    alone = in_parts([list(plan_epoch(triplets, **arguments))])
    assert len(alone) == batches
    assert all(len(batch) == parts for batch in alone)
    used = [triplet for batch in alone for part in batch for triplet in part[0]]
    assert used == list(zip(triplets.anchor, triplets.positive, triplets.negative, strict=True))
    attributes = [attribute for batch in alone for part in batch for attribute in part[1]]
    assert attributes == triplets.attribute.tolist()
    sizes = [len(part[0]) for batch in alone for part in batch]
    assert min(sizes) >= 1
    of_batches = [sum(len(part[0]) for part in batch) for batch in alone]
    assert max(of_batches) - min(of_batches) <= 1 and max(of_batches) <= batch_size
    first = data.draw(st.integers(0, batches))
    for workers in (2, 3, 4):
        plans = [list(plan_epoch(triplets, **arguments, rank=rank, workers=workers)) for rank in range(workers)]
        assert in_parts(plans) == alone
        assert all(plan.bounds[-1] == len(plan.attributes) > 0 for shares in plans for plan in shares)
        assert {(plan.global_size, plan.global_parts) for plan in plans[0]} == {(size, parts) for size in of_batches}
        later = [
            list(plan_epoch(triplets, **arguments, rank=rank, workers=workers, start=first)) for rank in range(workers)
        ]
        assert in_parts(later) == alone[first:]


# Snapshots in memory


def test_the_next_snapshot_takes_the_memory_and_the_written_one_stays(dataset: Dataset, tmp_path: Path) -> None:
    ran = start(dataset).run(stop_after=2)
    first = ran.training.snapshot()
    (tmp_path / "first").mkdir()
    first.write(tmp_path / "first")
    then = ran.state
    of_first = {name: tensor.clone() for name, tensor in first.model.items()}
    ran.run(stop_after=3)
    assert all(torch.equal(first.model[name], of_first[name]) for name in of_first), "training changed a snapshot"
    second = ran.training.snapshot()
    assert {name: tensor.data_ptr() for name, tensor in first.model.items()} == {
        name: tensor.data_ptr() for name, tensor in second.model.items()
    }
    now = ran.training.model.state_dict()
    assert all(torch.equal(first.model[name], now[name]) for name in now)
    assert any(not torch.equal(of_first[name], now[name]) for name in now)
    same(resume(dataset, tmp_path / "first").state, then)


def test_the_moments_keep_their_order_in_memory(dataset: Dataset, tmp_path: Path) -> None:
    """The fused kernels go by it."""
    ran = start(dataset).run(stop_after=1)
    resumed = resume(dataset, write(ran.training, tmp_path / "saved"))

    def strides(training: Training) -> list[tuple[int, ...]]:
        return [
            training.optimizer.state[parameter][moment].stride()
            for parameter in training.objective.parameters()
            for moment in ("exp_avg", "exp_avg_sq")
            if parameter in training.optimizer.state
        ]

    assert strides(resumed.training) == strides(ran.training)
    kernel = ran.training.model.get_parameter("backbone.layer1.0.conv1.weight")
    moment = resumed.training.optimizer.state[resumed.training.model.get_parameter("backbone.layer1.0.conv1.weight")]
    assert kernel.stride() == moment["exp_avg"].stride()
    assert moment["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    assert not moment["exp_avg"].is_contiguous()


# Validation on triplets


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    """Shoes with CSN's triplet lists, and no values."""
    folder = tmp_path_factory.mktemp("lists")
    sample("zappos50k", folder / "shoes", images=150, size=SIZE, seed=2)
    prepare("zappos50k", folder / "shoes", folder / "data", image_size=SIZE, triplets=40, epochs=1)
    yield Dataset(folder / "data")


def test_where_there_are_triplets_alone_they_pick_the_best_checkpoint(lists: Dataset, tmp_path: Path) -> None:
    config = changed(classify=False, loss_weighting="fixed", proxy_weight=0.0, max_triplets=24, epochs=4)
    kept = Checkpoints(Storage(tmp_path / "kept"), keep_best=4)
    saver = Saver(kept, every=100)
    ran = start(lists, config).run(saver=saver)
    saver.finish()
    scores = [end.metrics["valid/triplet_accuracy"] for end in ran.ends]
    assert len(set(scores)) > 1, "this case tests nothing"
    assert not [name for name in ran.ends[0].metrics if name.startswith("valid/map")]
    best = kept.best()
    assert best and best.epoch == 1 + scores.index(max(scores))
    assert best.score == ran.training.best == max(scores)

    with kept.opened(best) as folder:
        model, _ = agman.load_model(folder)
    triplets = lists.triplets("valid")
    images = ImageStore(lists, "valid", SIZE)
    embedded = []
    model.eval()
    with torch.no_grad():
        for ids in (triplets.anchor, triplets.positive, triplets.negative):
            pixels = agman.normalise(images.read(ids))
            embedded.append(model(pixels, torch.from_numpy(triplets.attribute.astype(np.int64))).embedding.double())
    anchor, positive, negative = embedded
    right = (anchor * positive).sum(1) > (anchor * negative).sum(1)
    assert max(scores) == pytest.approx(right.double().mean().item(), abs=1e-12)


# Settings that depend on where it runs


def test_defaults_follow_the_device_the_workers_and_the_model() -> None:
    here = resolved(TrainConfig(), "cpu", workers=3, threads=5)
    assert here.precision == ("bf16" if computes_in_bfloat16() else "fp32")
    assert (here.parts, here.threads, here.channels_last, here.fused, here.compile) == (3, 5, True, True, False)
    assert (here.embedding_dim, here.classify, here.sa_kernel, here.mask, here.rounds) == (512, True, 7, None, None)
    assert resolved(TrainConfig(), "cuda").precision == "bf16"
    given = TrainConfig(parts=4, threads=2, precision="fp64", channels_last=False, fused=False, compile=True)
    assert resolved(given, "cuda", workers=2, threads=8).model_dump() == given.model_dump() | {
        "embedding_dim": 512,
        "classify": True,
        "sa_kernel": 7,
    }
    assert resolved(resolved(TrainConfig(), workers=2), workers=1).parts == 2
    with pytest.raises(InputError, match="did you mean 'agman'"):
        resolved(TrainConfig(model="agmn"))


def test_synchronised_batch_norm_takes_no_parts() -> None:
    assert resolved(TrainConfig(batch_norm="sync"), workers=3).parts is None
    with pytest.raises(InputError, match="parts=2 with batch_norm=sync"):
        resolved(TrainConfig(batch_norm="sync", parts=2))


@pytest.mark.slow
def test_compiling_changes_no_weight_by_more_than_rounding(dataset: Dataset) -> None:
    """In float64: Adam makes a step of full size of float32's rounding errors, and a ReLU near zero a gradient."""
    config = changed(epochs=1, max_triplets=12, precision="fp64")
    plain, compiled = (start(dataset, config.model_copy(update={"compile": on})).run() for on in (False, True))
    for name, weight in plain.training.model.state_dict().items():
        torch.testing.assert_close(compiled.training.model.state_dict()[name], weight, rtol=0, atol=1e-7)
