"""One training step and one evaluation: inputs, outputs, and the change of the weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import agman
from agman.engine import embed_batches, prepare
from agman.loop import Prefetcher, RunningMeans
from agman.optimizer import step_decay
from agman.pixels import IMAGENET, Pixels
from agman.stepping import NonFiniteLoss


def new_model(**arguments):
    torch.manual_seed(1)
    arguments = {"n_attributes": 3, "embedding_dim": 11, "backbone": "tiny"} | arguments
    return agman.build(**arguments)


def new_batch(triplets=2, distinct=5, size=32, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return agman.Batch(
        images=torch.randint(256, (distinct, 3, size, size), generator=generator, dtype=torch.uint8),
        index=torch.randint(distinct, (3, triplets), generator=generator),
        flip=torch.rand(3, triplets, generator=generator) < 0.5,
        attributes=torch.randint(3, (triplets,), generator=generator),
        global_size=triplets,
    )


def fields_of(batch):
    return {name: getattr(batch, name) for name in ("images", "index", "flip", "attributes", "global_size")}


PIXELS = Pixels((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))


def test_prepare_gathers_flips_and_normalises():
    batch = agman.Batch(
        images=torch.randint(256, (3, 3, 2, 5), dtype=torch.uint8),
        index=torch.tensor([[0, 2], [1, 1], [2, 0]]),
        flip=torch.tensor([[False, True], [True, False], [False, False]]),
        attributes=torch.tensor([2, 0]),
        global_size=2,
    )
    images, attributes = prepare(batch, PIXELS, "cpu")
    assert attributes.tolist() == [2, 0]
    assert images.is_contiguous(memory_format=torch.channels_last)
    # anchors, positives, negatives
    for row, (source, flipped) in enumerate([(0, False), (2, True), (1, True), (1, False), (2, False), (0, False)]):
        for channel in range(3):
            plain = (batch.images[source, channel] / 255 - PIXELS.mean[channel]) / PIXELS.std[channel]
            torch.testing.assert_close(images[row, channel], plain.flip(-1) if flipped else plain)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_lower_the_loss(precision):
    objective = agman.TripletObjective(new_model())
    optimizer = agman.build_optimizer(objective, lr=1e-3)
    stepper = agman.Stepper(objective, optimizer, precision=precision, clip_norm=5.0)
    results = [stepper.step(new_batch()) for _ in range(4)]
    assert results[-1].loss < results[0].loss
    means = results[0].means
    assert (results[0].triplets, results[0].images) == (2, 6) and means["triplet_accuracy"] in (0, 0.5, 1)
    assert results[0].loss == pytest.approx(means["loss_triplet"] + means["loss_class"])
    assert results[0].gradient_norm > 0 and results[0].votes == 0


def test_clipping_bounds_the_step():
    objective = agman.TripletObjective(new_model(classify=False))
    sgd = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=1.0)
    before = [p.detach().clone() for p in objective.parameters()]
    result = agman.Stepper(objective, sgd, clip_norm=1e-3).step(new_batch())
    assert result.gradient_norm > 1e-3
    moved = sum((p - q).square().sum() for p, q in zip(objective.parameters(), before, strict=True)).sqrt()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)


def test_micro_batches_are_weighted_by_their_triplets():
    """Two unequal ones: the gradient is that of the mean over all triplets; each is normalised by itself."""
    batch = agman.Batch(**fields_of(new_batch(triplets=3)) | {"bounds": (0, 1, 3), "global_micro_batches": 2})
    assert [len(one.attributes) for one in batch.micro_batches] == [1, 2]
    objective = agman.TripletObjective(new_model()).double()
    stepper = agman.Stepper(objective, torch.optim.SGD(objective.parameters(), lr=0.0))
    result = stepper.step(batch)
    plain = agman.TripletObjective(new_model()).double()
    losses = [plain(*prepare(one, IMAGENET, "cpu", dtype=torch.float64)).loss for one in batch.micro_batches]
    loss = losses[0] / 3 + losses[1] * 2 / 3
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-12)
    for one, other in zip(objective.parameters(), plain.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-12)


def test_random_numbers_of_a_model_follow_the_micro_batchs_seed():
    """Some backbones drop paths at random; here a dropout layer represents them."""
    batch = agman.Batch(**fields_of(new_batch(triplets=3)) | {"bounds": (0, 1, 3), "global_micro_batches": 2})
    losses = []
    for seeds in ((5, 6), (5, 6), (5, 7)):
        objective = agman.TripletObjective(new_model())
        objective.model.backbone.layer1.append(torch.nn.Dropout(0.5))
        torch.rand(len(losses))  # another state of the generator each time
        stepper = agman.Stepper(objective, agman.build_optimizer(objective))
        losses.append(stepper.step(replace(batch, seeds=seeds)).loss)
    assert losses[0] == losses[1] != losses[2]


def test_a_loss_that_is_not_finite_changes_no_weight():
    objective = agman.TripletObjective(new_model(classify=False))
    with torch.no_grad():
        objective.model.reduce.bias[0] = float("nan")
    before = objective.model.backbone.stem[0].weight.detach().clone()
    with pytest.raises(NonFiniteLoss, match="loss_triplet nan"):
        agman.Stepper(objective, agman.build_optimizer(objective)).step(new_batch())
    assert torch.equal(objective.model.backbone.stem[0].weight, before)


def test_optimizer_holds_what_is_learned_and_the_schedule_falls_every_three_epochs():
    objective = agman.TripletObjective(new_model(), loss_weights=agman.LossWeights("learned"))
    optimizer = agman.build_optimizer(objective, lr=1e-4)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in objective.parameters() if p.requires_grad}
    assert id(objective.loss_weights.t_class) in held

    assert [step_decay(epoch) for epoch in range(7)] == pytest.approx([1.0] * 3 + [0.9] * 3 + [0.81])


@pytest.mark.parametrize("was_training", [True, False])
def test_embed_batches_returns_all_pairs_in_order_and_restores_the_models_mode(was_training):
    model = new_model().train(was_training)
    model.backbone.stem.eval()  # as frozen batch norm is
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    images = new_batch(distinct=4).images
    batches = [
        (images[:3], torch.tensor([2, 0, 2, 1]), torch.tensor([0, 1, 2, 1])),
        (images[3:], torch.tensor([0]), torch.tensor([2])),
    ]
    embeddings = embed_batches(model, iter(batches), device="cpu")

    assert embeddings.shape == (5, 11) and embeddings.dtype == torch.float32
    assert model.training is model.reduce.training is was_training and not model.backbone.stem[1].training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        expected = model(
            agman.normalise(images, model.pixels)[[2, 0, 2, 1, 3]], torch.tensor([0, 1, 2, 1, 2])
        ).embedding
    torch.testing.assert_close(embeddings, expected)


def test_embed_batches_of_nothing():
    assert embed_batches(new_model(), [], device="cpu").shape == (0, 11)


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, not 'fp16'"):
        embed_batches(new_model(), [], device="cpu", precision="fp16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": torch.zeros(0, dtype=torch.int64)}, "at least one triplet"),
        ({"images": torch.zeros(5, 3, 32, 32)}, "U×3×S×S uint8"),
        ({"flip": torch.zeros(2, 3, dtype=torch.bool)}, "index and flip of shape"),
        ({"global_size": 1}, "global_size 1 is less"),
        ({"values": torch.zeros(3, 2, dtype=torch.int64)}, "values of shape"),
        ({"bounds": (0, 1)}, "do not cut 2 triplets"),
        ({"bounds": (0, 0, 2), "global_micro_batches": 2}, "do not cut 2 triplets"),
        ({"bounds": (0, 1, 2)}, "global_micro_batches 1 is less"),
        ({"seeds": (1, 2)}, "2 seeds for 1 micro-batches"),
    ],
)
def test_impossible_batches_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        agman.Batch(**fields_of(new_batch()) | change)


def test_images_that_are_normalised_already_are_refused():
    with pytest.raises(ValueError, match=r"must be uint8, not torch.float32: are they normalised already"):
        agman.normalise(torch.randn(2, 3, 32, 32), IMAGENET)


# The loop around the steps


def test_the_prefetcher_keeps_the_order_makes_no_more_than_asked_and_passes_errors_on():
    made = []

    def items():
        for number in range(5):
            made.append(number)
            yield number
        raise OSError("broken")

    for depth in (0, 1, 3):
        made.clear()
        taken = Prefetcher(items(), depth)
        assert next(taken) == 0
        assert [next(taken) for _ in range(4)] == [1, 2, 3, 4]
        with pytest.raises(OSError, match="broken"):
            next(taken)
        taken.close()
    assert list(Prefetcher([1, 2, 3], 2)) == list(Prefetcher([1, 2, 3], 0)) == [1, 2, 3]
    made.clear()
    endless = Prefetcher(iter(lambda: made.append(0) or 1, 2), 2)
    assert next(endless) == 1
    endless.close()
    assert len(made) <= 4


def test_an_epoch_adds_up_and_can_be_stopped():
    objective = agman.TripletObjective(new_model())
    stepper = agman.Stepper(objective, agman.build_optimizer(objective))
    running = RunningMeans()
    batches = [new_batch(), new_batch(triplets=3), new_batch(triplets=2, seed=5)]
    steps = list(agman.train_epoch(stepper, batches, [running]))
    assert (len(steps), running.steps, running.triplets) == (3, 3, 7)
    means = running.means()
    assert means["loss"] == pytest.approx(sum(step.loss * step.triplets for step in steps) / 7)
    right = sum(step.means["triplet_accuracy"] * step.triplets for step in steps)
    assert means["triplet_accuracy"] == pytest.approx(right / 7)
    assert means["gradient_norm_max"] == max(step.gradient_norm for step in steps)
    assert 0 <= means["data_wait_share"] < 1
    assert means["images_per_second"] == pytest.approx(3 * means["triplets_per_second"]) and running.images == 21
    again = RunningMeans(**running.as_dict())
    assert again.means() == {name: means[name] for name in again.means()}
    (last,) = agman.train_epoch(stepper, batches, [again], stop=lambda: True)
    assert (last.votes, again.steps) == (1, 4)
    again.clear()
    assert again == RunningMeans()


def test_ranking_over_a_dataset_is_ranking_by_hand():
    model, generator = new_model(), np.random.default_rng(4)
    pictures = torch.randint(256, (7, 3, 32, 32), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    ids = np.array([13, 2, 5, 13, 3, 11, 2, 5, 7, 17, 3, 11])
    where = {number: row for row, number in enumerate(np.unique(ids))}
    attributes = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0])
    values = generator.integers(0, 2, 12)
    is_query = np.arange(12) % 3 == 0
    embeddings = agman.embed_dataset(
        model, ids, attributes, lambda wanted: pictures[[where[i] for i in wanted]], device="cpu", batch_size=3
    )
    model.eval()
    with torch.no_grad():
        images = agman.normalise(pictures[[where[i] for i in ids]], model.pixels)
        torch.testing.assert_close(embeddings, model(images, torch.from_numpy(attributes)).embedding)
    ranked = agman.rank_candidates(embeddings, attributes, values, is_query, ["a", "b", "none"])
    assert list(ranked) == ["a", "b"]
    for attribute, name in enumerate(("a", "b")):
        query, candidate = ((attributes == attribute) & role for role in (is_query, ~is_query))
        expected = agman.retrieval(
            embeddings[query], embeddings[candidate], torch.tensor(values[query]), torch.tensor(values[candidate])
        )
        assert torch.equal(ranked[name].average_precision, expected.average_precision)
