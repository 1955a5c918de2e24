"""One step, one evaluation: what goes in, what comes out, and that the weights move as they should."""

import pytest
import torch

import agman
from agman.engine import IMAGENET_MEAN, IMAGENET_STD


def new_model(**arguments):
    torch.manual_seed(1)
    arguments = {"n_attributes": 3, "embedding_dim": 11, "backbone": "resnet18"} | arguments
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


@pytest.mark.parametrize("channels_last", [False, True])
def test_prepare_gathers_flips_and_normalises(channels_last):
    batch = agman.Batch(
        images=torch.randint(256, (3, 3, 2, 5), dtype=torch.uint8),
        index=torch.tensor([[0, 2], [1, 1], [2, 0]]),
        flip=torch.tensor([[False, True], [True, False], [False, False]]),
        attributes=torch.tensor([2, 0]),
        global_size=2,
    )
    images, attributes = agman.prepare(batch, "cpu", channels_last)
    assert attributes.tolist() == [2, 0]
    assert images.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    # anchors, positives, negatives
    for row, (source, flipped) in enumerate([(0, False), (2, True), (1, True), (1, False), (2, False), (0, False)]):
        for channel in range(3):
            plain = (batch.images[source, channel] / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
            torch.testing.assert_close(images[row, channel], plain.flip(-1) if flipped else plain)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_lower_the_loss(precision):
    objective = agman.TripletObjective(new_model())
    optimizer = agman.build_optimizer(objective, lr=1e-3)
    options = {"device": "cpu", "precision": precision, "clip_norm": 5.0, "channels_last": True}
    results = [agman.train_step(objective, optimizer, new_batch(), **options) for _ in range(4)]
    assert results[-1].loss < results[0].loss
    assert results[0].loss.dtype == torch.float32 and not results[0].loss.requires_grad
    assert results[0].triplets == 2 and 0 <= results[0].correct <= 2
    torch.testing.assert_close(results[0].loss, results[0].loss_triplet + results[0].loss_class)


def test_clipping_bounds_the_step():
    objective = agman.TripletObjective(new_model(classify=False))
    sgd = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=1.0)
    before = [p.detach().clone() for p in objective.parameters()]
    agman.train_step(objective, sgd, new_batch(), device="cpu", clip_norm=1e-3)
    moved = sum((p - q).square().sum() for p, q in zip(objective.parameters(), before, strict=True)).sqrt()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)


def test_a_share_of_the_global_batch_counts_as_a_share():
    gradients = []
    for global_size in (2, 10):
        objective = agman.TripletObjective(new_model(classify=False))
        sgd = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.0)
        batch = new_batch()
        batch = agman.Batch(batch.images, batch.index, batch.flip, batch.attributes, global_size)
        agman.train_step(objective, sgd, batch, device="cpu", world_size=3)
        gradients.append(objective.model.reduce.bias.grad)
    torch.testing.assert_close(gradients[0], 5 * gradients[1])  # 2·3/2 and 2·3/10


def test_a_loss_that_is_not_finite_touches_no_weight():
    objective = agman.TripletObjective(new_model(classify=False))
    with torch.no_grad():
        objective.model.reduce.bias[0] = float("nan")
    before = objective.model.backbone.stem[0].weight.detach().clone()
    with pytest.raises(agman.NonFiniteLoss, match="loss_triplet nan"):
        agman.train_step(objective, agman.build_optimizer(objective), new_batch(), device="cpu")
    assert torch.equal(objective.model.backbone.stem[0].weight, before)


def test_optimizer_holds_what_is_learned_and_the_schedule_falls_every_three_epochs():
    objective = agman.TripletObjective(new_model(), loss_weights=agman.LossWeights("learned"))
    optimizer = agman.build_optimizer(objective, lr=1e-4)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in objective.parameters() if p.requires_grad}
    assert id(objective.loss_weights.t_class) in held

    scheduler = agman.build_scheduler(optimizer)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1e-4] * 3 + [0.9e-4] * 3 + [0.81e-4])


@pytest.mark.parametrize("was_training", [True, False])
def test_embed_pairs_gives_all_pairs_in_order_and_leaves_the_model_as_it_was(was_training):
    model = new_model().train(was_training)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    images = new_batch(distinct=4).images
    batches = [
        (images[:3], torch.tensor([2, 0, 2, 1]), torch.tensor([0, 1, 2, 1])),
        (images[3:], torch.tensor([0]), torch.tensor([2])),
    ]
    embeddings = agman.embed_pairs(model, iter(batches), device="cpu")

    assert embeddings.shape == (5, 11) and embeddings.dtype == torch.float32
    assert model.training is was_training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        expected = model(agman.normalise(images)[[2, 0, 2, 1, 3]], torch.tensor([0, 1, 2, 1, 2])).embedding
    torch.testing.assert_close(embeddings, expected)


def test_embed_pairs_of_nothing():
    assert agman.embed_pairs(new_model(), [], device="cpu").shape == (0, 11)


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, not 'fp16'"):
        agman.embed_pairs(new_model(), [], device="cpu", precision="fp16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": torch.zeros(0, dtype=torch.int64)}, "at least one triplet"),
        ({"images": torch.zeros(5, 3, 32, 32)}, "U×3×S×S uint8"),
        ({"flip": torch.zeros(2, 3, dtype=torch.bool)}, "index and flip of shape"),
        ({"global_size": 1}, "global_size 1 is less"),
        ({"values": torch.zeros(3, 2, dtype=torch.int64)}, "values of shape"),
    ],
)
def test_impossible_batches_are_refused(change, message):
    fields = {name: getattr(new_batch(), name) for name in ("images", "index", "flip", "attributes", "global_size")}
    with pytest.raises(ValueError, match=message):
        agman.Batch(**fields | change)


def test_what_is_normalised_already_is_refused():
    with pytest.raises(ValueError, match=r"must be uint8, not torch.float32: are they normalised already"):
        agman.normalise(torch.randn(2, 3, 32, 32))
