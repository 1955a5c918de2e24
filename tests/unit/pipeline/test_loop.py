"""A training in one process: stopped, saved and resumed at any step; points, early stopping, and batches of NaN."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from support.datasets import SIZE, sample_here
from torch import Tensor

import agman
from data_prep import dataset as dataset_module
from data_prep.batches import batches_per_epoch, plan_epoch
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError
from data_prep.prepare import prepare
from data_prep.storage import Storage
from data_prep.triplets import Triplets
from pipeline.config.schema import TrainConfig
from pipeline.training.build import check, computes_in_bfloat16, resolved
from pipeline.training.checkpoints import Checkpoints, Saver
from pipeline.training.trainer import STATE_FILE, EpochEnd, NonFiniteBatch, Training, WorkerContext, collapse

CONFIG = TrainConfig(
    backbone="tiny",
    embedding_dim=16,
    batch_size=12,
    max_triplets=41,  # batches of 10, 10, 11 and 10, in micro-batches of 5 and 6
    epochs=3,
    micro_batches=2,
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
TIMES = ("per_second", "data_wait_share")


def changed(**settings: Any) -> TrainConfig:
    return CONFIG.model_copy(update=settings)


@dataclass
class Ran:
    """A training, and the ends of its epochs."""

    training: Training
    ends: list[EpochEnd] = field(default_factory=list)
    ending: str = ""

    @property
    def state(self) -> dict[str, Tensor]:
        """Return all that is learned, and Adam's moments of it."""
        of_optimizer = {
            f"optimizer.{number}.{name}": tensor
            for number, tensors in self.training.optimizer.state_dict()["state"].items()
            for name, tensor in tensors.items()
        }
        return {name: tensor.clone() for name, tensor in (self.training.objective.state_dict() | of_optimizer).items()}

    def run(self, stop_after: int | None = None, saver: Saver | None = None) -> Ran:
        """Continue to the end of step `stop_after`, or of the training."""
        self.ending = self.training.run(
            stop=lambda: stop_after is not None and self.training.step + 1 >= stop_after,
            epoch_end=self.ends.append,
            saver=saver,
        )
        return self


def start(dataset: Dataset, config: TrainConfig = CONFIG, dtype: torch.dtype = torch.float32) -> Ran:
    return Ran(Training(config, dataset, WorkerContext(), dtype=dtype))


def resume(dataset: Dataset, folder: Path, config: TrainConfig = CONFIG) -> Ran:
    """Load the snapshot into a training that was begun with other weights."""
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
    """Compare bit by bit."""
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
    """It stops in mid-epoch, at an epoch's last step, at the last step of all, and several times."""
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


def test_a_dataset_larger_than_the_buffer_trains_and_resumes_the_same(
    dataset: Dataset, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "BUFFER", 0)
    stores: list[ImageStore] = []
    fill = ImageStore._fill
    monkeypatch.setattr(ImageStore, "_fill", lambda store, *rest: stores.append(store) or fill(store, *rest))  # type: ignore[func-returns-value]
    stopped = start(dataset).run(stop_after=STEPS + 2)
    resumed = resume(dataset, write(stopped.training, tmp_path / "stopped")).run()
    same(resumed.state, undisturbed.state)
    assert len(stores) == 4 and {os.fstat(store._file.fileno()).st_size for store in stores} == {0}


def test_what_is_learned_besides_the_model_is_restored(dataset: Dataset, tmp_path: Path) -> None:
    ran = start(dataset).run(stop_after=STEPS + 1)
    back = resume(dataset, write(ran.training, tmp_path / "saved"))
    fresh = start(dataset)
    learned = dict(ran.training.objective.named_parameters())
    beside = {name for name in learned if not name.startswith("model.")}
    assert {"loss_weights.t_triplet", "loss_weights.t_class"} < beside
    for name in beside:
        assert torch.equal(back.state[name], ran.state[name])
        assert not torch.equal(fresh.state[name], ran.state[name])
    assert back.training.optimizer.param_groups[0]["lr"] == pytest.approx(0.9e-3)


def test_snapshots_of_a_running_training_may_be_resumed_from(
    dataset: Dataset, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """The saver takes them while training continues, in mid-epoch and at epochs' ends."""
    kept = Checkpoints(Storage(tmp_path / "kept"), keep_best=3)
    saver = Saver(kept, every=2)
    ran = start(dataset)
    ran.run(stop_after=2 * STEPS + 1, saver=saver)
    saver.finish()
    complete = kept.complete()
    assert [checkpoint.step for checkpoint in complete] == [STEPS, 2 * STEPS, 2 * STEPS + 1]
    assert [checkpoint.epoch for checkpoint in complete] == [1, 2, 2]
    assert [checkpoint.score for checkpoint in complete] == [*(end.metrics["valid/map"] for end in ran.ends), None]
    for checkpoint in complete[1:]:
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


def test_points_that_are_not_known_to_be_logged_are_carried_by_snapshots(
    dataset: Dataset, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Those that the driver has logged are removed from the front, and none is lost or doubled."""
    logged: list[tuple[int, dict[str, float]]] = []
    ran = start(dataset)
    for step in (2, 5, STEPS + 2, 3 * STEPS):
        ran.run(stop_after=step)
        new = [point for point in ran.training.points if point[0] < step]
        logged += new
        del ran.training.points[: len(new)]
        left = list(ran.training.points)
        ran = resume(dataset, write(ran.training, tmp_path / str(step)))
        assert ran.training.points == left
    ran.run()
    logged += ran.training.points
    expected = [(step, without_times(metrics)) for step, metrics in undisturbed.ran.training.points]
    assert [(step, without_times(metrics)) for step, metrics in logged] == expected
    steps = [(step, "steps/loss" in metrics) for step, metrics in logged]
    assert steps == [(3, True), (4, False), (6, True), (8, False), (9, True), (12, True), (12, False)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that has no space exists on Linux only")
def test_a_snapshot_on_a_full_disk_says_so(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        start(dataset).training.snapshot().write(tmp_path)


def test_steps_tell_the_score_of_the_epoch_before_and_its_chance(dataset: Dataset, tmp_path: Path) -> None:
    told: list[tuple[float | None, float | None]] = []
    training = start(dataset, changed(epochs=2)).training
    training.run(
        stop=lambda: training.step == STEPS,
        step_end=lambda end: told.append((end.score, end.chance)),
    )
    resumed = resume(dataset, write(training, tmp_path / "stopped"), changed(epochs=2)).training
    resumed.run(step_end=lambda end: told.append((end.score, end.chance)))
    (_, epoch), *_ = [point for point in resumed.points if "valid/map" in point[1]]
    assert set(told[:STEPS]) == {(None, None)}
    assert set(told[STEPS:]) == {(epoch["valid/map"], epoch["valid/chance"])}


# Early stopping


@pytest.fixture(scope="module")
def scores(dataset: Dataset) -> list[float]:
    """Return the validation scores of a training that does not stop early; an epoch is one step."""
    ran = start(dataset, changed(epochs=9, max_triplets=12, lr=0.05)).run()
    return [end.metrics["valid/map"] for end in ran.ends]


def last_epoch(scores: list[float], patience: int) -> int:
    """Return the first epoch that ends `patience` epochs in a row which were no better than all before them."""
    for epoch in range(patience + 1, len(scores) + 1):
        if max(scores[epoch - patience : epoch]) <= max(scores[: epoch - patience]):
            return epoch
    return len(scores)


@pytest.mark.parametrize(("patience", "interrupted"), [(1, False), (2, True)])
def test_a_training_without_progress_stops_early(
    dataset: Dataset, scores: list[float], tmp_path: Path, patience: int, interrupted: bool
) -> None:
    config = changed(epochs=9, max_triplets=12, lr=0.05, patience=patience)
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


# Batches whose loss is not finite


def named(dataset: Dataset, epoch: int, rows: slice) -> dict[str, list[Any]]:
    """Return triplets of an epoch by the images' paths."""
    path = dict(zip(dataset.images["image_id"], dataset.images["path"], strict=True))
    columns = dataset.triplets("train", epoch).columns()
    return {name: [path[image] for image in columns[name][rows]] for name in ("anchor", "positive", "negative")}


def test_a_batch_that_makes_nan_is_named_and_changes_no_weight(dataset: Dataset) -> None:
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


def micro_batch(plan: dict[str, Any], begin: int, end: int) -> tuple[Any, ...]:
    triplets = [tuple(column) for column in plan["image_ids"][plan["index"][:, begin:end]].T.tolist()]
    return triplets, plan["attributes"][begin:end].tolist(), plan["flip"][:, begin:end].tolist()


def in_micro_batches(plans: list[list[dict[str, Any]]]) -> list[list[tuple[Any, ...]]]:
    """Return every global batch's micro-batches, over all workers in their order."""
    return [
        [micro_batch(plan, *bounds) for plan in of_batch for bounds in itertools.pairwise(plan["bounds"])]
        for of_batch in zip(*plans, strict=True)
    ]


@given(count=st.integers(4, 60), batch_size=st.integers(8, 20), cuts=st.integers(4, 7), data=st.data())
def test_every_triplet_is_used_once_in_the_same_micro_batches_on_any_number_of_workers(
    count: int, batch_size: int, cuts: int, data: st.DataObject
) -> None:
    triplets = drawn_triplets(count, seed=count)
    arguments: dict[str, Any] = {"batch_size": batch_size, "seed": 3, "epoch": 2, "micro_batches": cuts}
    batches = -(-count // batch_size)
    if count // batches < cuts:
        with pytest.raises(InputError, match=f"cannot be cut into {cuts} micro-batches"):
            batches_per_epoch(count, batch_size, cuts)
        return
    alone = in_micro_batches([list(plan_epoch(triplets, **arguments))])
    assert len(alone) == batches
    assert all(len(batch) == cuts for batch in alone)
    used = [triplet for batch in alone for one in batch for triplet in one[0]]
    assert used == list(zip(triplets.anchor, triplets.positive, triplets.negative, strict=True))
    attributes = [attribute for batch in alone for one in batch for attribute in one[1]]
    assert attributes == triplets.attribute.tolist()
    assert min(len(one[0]) for batch in alone for one in batch) >= 1
    sizes = [sum(len(one[0]) for one in batch) for batch in alone]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= batch_size
    first = data.draw(st.integers(0, batches))
    for workers in (2, 3, 4):
        plans = [list(plan_epoch(triplets, **arguments, rank=rank, workers=workers)) for rank in range(workers)]
        assert in_micro_batches(plans) == alone
        assert all(plan["bounds"][-1] == len(plan["attributes"]) > 0 for of_worker in plans for plan in of_worker)
        assert {(plan["global_size"], plan["global_micro_batches"]) for plan in plans[0]} == {(n, cuts) for n in sizes}
        later = [
            list(plan_epoch(triplets, **arguments, rank=rank, workers=workers, start=first)) for rank in range(workers)
        ]
        assert in_micro_batches(later) == alone[first:]


# Snapshots in memory


def test_the_next_snapshot_reuses_the_memory_and_the_written_one_stays(dataset: Dataset, tmp_path: Path) -> None:
    ran = start(dataset).run(stop_after=2)
    first = ran.training.snapshot()
    assert first.description["fit"] == "crop"
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


def test_adams_moments_keep_their_memory_order(dataset: Dataset, tmp_path: Path) -> None:
    """The fused kernels rely on it."""
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
    kernel = next(one for one in ran.training.model.parameters() if one.ndim == 4 and min(one.shape) > 1)
    number = [one is kernel for one in ran.training.objective.parameters()].index(True)
    moment = resumed.training.optimizer.state[list(resumed.training.objective.parameters())[number]]
    assert kernel.stride() == moment["exp_avg"].stride()
    assert moment["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    assert not moment["exp_avg"].is_contiguous()


# Validation on triplets


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    """Shoes with CSN's triplet lists, and no values."""
    folder = tmp_path_factory.mktemp("lists")
    sample_here("zappos50k", folder / "shoes", images=100, size=SIZE, seed=2)
    prepare("zappos50k", folder / "shoes", folder / "data", image_size=SIZE, triplets=40, epochs=1)
    yield Dataset(folder / "data")


def test_a_dataset_of_triplets_alone_selects_the_best_checkpoint_by_them(lists: Dataset, tmp_path: Path) -> None:
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
            pixels = agman.normalise(images.read(ids), model.pixels)
            embedded.append(model(pixels, torch.from_numpy(triplets.attribute.astype(np.int64))).embedding.double())
    anchor, positive, negative = embedded
    right = (anchor * positive).sum(1) > (anchor * negative).sum(1)
    assert max(scores) == pytest.approx(right.double().mean().item(), abs=1e-12)


# Settings that depend on where it runs


def test_defaults_follow_the_device_the_workers_and_the_model() -> None:
    here = resolved(TrainConfig(), "cpu", workers=3, threads=5)
    assert here.precision == ("bf16" if computes_in_bfloat16() else "fp32")
    assert (here.micro_batches, here.threads, here.compile) == (3, 5, False)
    assert (here.embedding_dim, here.classify, here.sa_kernel, here.mask, here.rounds) == (512, True, 7, None, None)
    assert resolved(TrainConfig(), "cuda").precision == "bf16"
    assert resolved(TrainConfig(backbone="tf_efficientnet_lite0"), "cpu").precision == "fp32"
    given = TrainConfig(micro_batches=4, threads=2, precision="fp32", compile=True)
    assert resolved(given, "cuda", workers=2, threads=8).model_dump() == given.model_dump() | {
        "embedding_dim": 512,
        "classify": True,
        "sa_kernel": 7,
    }
    assert resolved(resolved(TrainConfig(), workers=2), workers=1).micro_batches == 2


def test_synchronised_batch_norm_needs_gpus_and_takes_no_micro_batches() -> None:
    synced = TrainConfig(batch_norm="sync")
    assert resolved(synced, "cuda", workers=3).micro_batches is None
    with pytest.raises(InputError, match=r"^batch_norm=sync needs GPUs; on CPUs take batch_norm=per_micro_batch$"):
        resolved(synced, "cpu")
    with pytest.raises(InputError, match="micro_batches=2 with batch_norm=sync"):
        resolved(TrainConfig(batch_norm="sync", micro_batches=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding_dim": 3}, "embedding_dim 3 is less than n_attributes 8"),
        ({"image_size": 64}, "holds images of 32 px"),
        ({"weights": "no_such_file.pth"}, "neither a file nor a tag"),
        ({"model": "agmn"}, "did you mean 'agman'"),
        ({"batch_norm": "sync", "micro_batches": 2}, "micro_batches=2 with batch_norm=sync"),
        ({"micro_batches": 13}, "batches of 12 triplets cannot be cut into 13 micro-batches"),
        ({"micro_batches": 1}, "micro_batches=1 with --workers 2: each worker computes one micro-batch or more"),
        ({"model": "csn", "rounds": 2}, "model 'csn' has no option 'rounds'"),
    ],
)
def test_what_cannot_be_trained_is_refused(dataset: Dataset, change: dict[str, Any], message: str) -> None:
    backbone = "resnet18" if "weights" in change else "tiny"
    config = TrainConfig(backbone=backbone, embedding_dim=16, batch_size=12).model_copy(update=change)
    with pytest.raises(InputError, match=message):
        check(config, dataset, workers=2)


def test_gradient_checkpointing_needs_a_network_that_has_it(dataset: Dataset) -> None:
    check(changed(backbone="convnext_atto", gradient_checkpointing=True), dataset, workers=1)
    with pytest.raises(InputError, match="gradient_checkpointing: not with backbone 'resnet18'"):
        check(changed(backbone="resnet18", gradient_checkpointing=True), dataset, workers=1)
    with pytest.raises(InputError, match="gradient_checkpointing=true with batch_norm=sync"):
        check(changed(gradient_checkpointing=True, batch_norm="sync", micro_batches=None), dataset, workers=1)


def test_a_network_that_does_not_take_the_image_size_is_refused(dataset: Dataset) -> None:
    config = changed(backbone="samvit_base_patch16", model="csn", classify=None)
    check(config, dataset, workers=1)
    wrong = Dataset(dataset.path)
    wrong.info = wrong.info.model_copy(update={"image_size": 40})
    with pytest.raises(InputError, match="backbone 'samvit_base_patch16' does not take images of 40 px"):
        check(config, wrong, workers=1)


def test_a_check_builds_each_architecture_once_and_without_weights(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study checks every setting that its space can suggest."""
    built: list[torch.device] = []

    def build(**arguments: Any) -> agman.RetrievalModel:
        model = real(**arguments)
        built.append(next(model.parameters()).device)
        return model

    real = agman.build
    monkeypatch.setattr(agman, "build", build)
    for dim in (17, 19):
        for lr in (1e-4, 1e-3, 1e-2):
            check(changed(embedding_dim=dim, lr=lr), dataset, workers=1)
    assert built == [torch.device("meta")] * 2


@pytest.mark.parametrize("model", agman.MODELS)
def test_every_model_can_be_checked(dataset: Dataset, model: str) -> None:
    check(TrainConfig(model=model, backbone="tiny"), dataset, workers=1)


def test_a_weights_file_is_checked(dataset: Dataset, tmp_path: Path) -> None:
    fits, other = (torchvision.models.get_model(name, weights=None) for name in ("resnet18", "squeezenet1_0"))
    for name, network in (("fits", fits), ("other", other)):
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    config = TrainConfig(backbone="resnet18")
    check(config.model_copy(update={"weights": str(tmp_path / "fits.pth")}), dataset, workers=1)
    with pytest.raises(InputError, match=r"other.pth does not hold this resnet18"):
        check(config.model_copy(update={"weights": str(tmp_path / "other.pth")}), dataset, workers=1)


# How it learns


def test_training_lowers_the_loss(dataset: Dataset) -> None:
    ends = start(dataset, changed(epochs=6, max_triplets=None, loss_weighting="fixed")).run().ends
    assert ends[-1].metrics["train/loss_class"] < 0.8 * ends[0].metrics["train/loss_class"]


@pytest.mark.slow
def test_compiling_changes_no_weight_by_more_than_rounding(dataset: Dataset) -> None:
    """In float64: Adam makes a step of full size of float32's rounding errors, and a ReLU near zero a gradient."""
    config = changed(epochs=1, max_triplets=12, backbone="resnet18")
    plain, compiled = (
        start(dataset, config.model_copy(update={"compile": on}), torch.float64).run() for on in (False, True)
    )
    assert plain.training.objective.state_dict()["model.w"].dtype == torch.float64
    for name, weight in plain.training.model.state_dict().items():
        torch.testing.assert_close(compiled.training.model.state_dict()[name], weight, rtol=0, atol=1e-7)


COLLAPSED = {"train/loss_triplet": 0.2012, "train/triplet_accuracy": 0.5, "valid/mean_cosine": 0.97}


@pytest.mark.parametrize(
    ("metrics", "signs"),
    [
        (COLLAPSED, ["loss 0.2012 is at the margin 0.2", "cosine of validation embeddings is 0.970"]),
        (COLLAPSED | {"valid/mean_cosine": 0.5}, ["loss 0.2012"]),
        (COLLAPSED | {"train/loss_triplet": 0.15}, ["is 0.970"]),
        ({"train/loss_triplet": 0.2, "train/triplet_accuracy": 0.3}, ["loss 0.2000"]),  # no validation
        (COLLAPSED | {"train/triplet_accuracy": 0.7, "valid/mean_cosine": 0.5}, []),  # it passes the margin, learning
        (COLLAPSED | {"train/loss_triplet": 0.21, "valid/mean_cosine": 0.5}, []),
        (COLLAPSED | {"valid/above_chance_low": 0.01}, []),
    ],
)
def test_a_collapse_is_known_by_its_signs(metrics: dict[str, float], signs: list[str]) -> None:
    said = collapse(metrics, margin=0.2)
    assert bool(said) == bool(signs) and all(sign in said for sign in signs), said


def test_the_epoch_of_a_collapse_says_so(dataset: Dataset) -> None:
    """Weights of the backbone near 0 give all pictures one embedding."""
    training = Training(changed(epochs=3, lr=1e-12, proxy_weight=0.0), dataset, WorkerContext())
    for name, parameter in training.model.named_parameters():
        if name.startswith("backbone") and parameter.ndim > 1:
            parameter.data.mul_(1e-6)
    ends: list[EpochEnd] = []
    training.run(epoch_end=ends.append)
    assert ends[0].warning == "" and training.signs == ends[2].warning
    assert all(end.warning.startswith("the embeddings hardly differ") for end in ends[1:])
    assert ends[0].metrics["valid/mean_cosine"] > 0.95
