"""Several processes (gloo, CPU) against one, with unequal numbers of triplets: training steps, a NaN, a vote."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

import agman
from agman.backbone import Backbone
from agman.batchnorm import convert_batchnorm
from agman.engine import prepare, prepare_labelled
from agman.loop import RunningMeans
from agman.losses import ValueProxies
from agman.memory import keep_freed_memory
from agman.pixels import IMAGENET
from agman.stepping import NonFiniteLoss

torch.optim.SGD([torch.zeros(1)])  # the first optimizer imports for a second: here once for all processes


def on_processes(count, functions, folder):
    """Call each of `functions` with its rank in every process; return name -> the results in the order of ranks."""
    # The server of the forks imports once what all processes of these tests need; they are forked without importing.
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    arguments = (count, functions, str(folder))
    multiprocessing.start_processes(_process, args=arguments, nprocs=count, start_method="forkserver")
    results = [torch.load(folder / f"result{rank}.pt") for rank in range(count)]
    return {name: [result[name] for result in results] for name in results[0]}


def _process(rank, count, functions, folder):
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count)
    try:
        torch.save({function.__name__: function(rank) for function in functions}, f"{folder}/result{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Results of two processes, which are started once for several tests."""
    functions = (train_own_micro_batches, train_own_labels, meet_a_nan, vote)
    return on_processes(2, functions, tmp_path_factory.mktemp("two"))


# Batch norm


def test_synchronised_batch_norm_is_refused_on_cpus_and_other_modes_everywhere():
    model = new_objective().model
    assert convert_batchnorm(model, "per_micro_batch") is model
    with pytest.raises(ValueError, match="synchronised batch norm needs GPUs"):
        convert_batchnorm(model, "sync")
    with pytest.raises(ValueError, match="per_micro_batch, sync, frozen, not 'global'"):
        convert_batchnorm(nn.Identity(), "global")


@torch.no_grad()
def test_synchronised_layers_keep_the_activation_of_timms(monkeypatch):
    """Timm's batch norm holds the activation behind it."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    torch.manual_seed(1)
    backbone = Backbone("tf_efficientnet_lite0").eval()
    images = torch.randn(2, 3, 64, 64)
    expected = backbone(images)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in convert_batchnorm(backbone, "sync").modules())
    torch.testing.assert_close(backbone.eval()(images), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="synchronised batch norm needs a GPU")
def test_synchronised_batch_norm_keeps_names_and_parameters_on_a_gpu():
    model = new_objective().model.cuda()
    names, parameters = list(model.state_dict()), list(model.parameters())
    assert convert_batchnorm(model, "sync") is model
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert list(model.state_dict()) == names
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))


def test_micro_batches_under_synchronised_batch_norm_are_refused():
    objective = nn.SyncBatchNorm.convert_sync_batchnorm(new_objective())
    stepper = agman.Stepper(objective, agman.build_optimizer(objective))
    with pytest.raises(ValueError, match="one micro-batch on each process"):
        stepper.step(micro_batches_of(0, slice(0, 4)))


# Whole steps


def training_batch(step, triplets):
    """Return `triplets` (a slice) of step's global batch of 7."""
    generator = torch.Generator().manual_seed(step)
    return agman.Batch(
        images=torch.randint(256, (9, 3, 32, 37), generator=generator, dtype=torch.uint8),
        index=torch.randint(9, (3, 7), generator=generator)[:, triplets],
        flip=(torch.rand(3, 7, generator=generator) < 0.5)[:, triplets],
        attributes=torch.randint(3, (7,), generator=generator)[triplets],
        global_size=7,
    )


def new_objective(weighting="learned"):
    torch.manual_seed(1)
    model = agman.build(n_attributes=3, embedding_dim=11, backbone="tiny")
    return agman.TripletObjective(model, loss_weights=agman.LossWeights(weighting))


# The same micro-batches on any number of processes, in float32

BOUNDS = (0, 2, 4, 5, 7)
STEPS = 4


def micro_batches_of(step, numbers):
    """Return the micro-batches `numbers` (a slice of all four) of step's global batch, as a process's batch."""
    bounds = BOUNDS[numbers.start or 0 : numbers.stop + 1]
    batch = training_batch(step, slice(bounds[0], bounds[-1]))
    return replace(batch, bounds=tuple(bound - bounds[0] for bound in bounds), global_micro_batches=4)


def train_micro_batches(numbers):
    """Return (state, results) after some steps of full size: Adam scales a rounding error up to a gradient's size."""
    torch.set_num_threads(1)
    objective = new_objective()
    optimizer = agman.build_optimizer(objective, lr=1e-2)
    stepper = agman.Stepper(objective, optimizer, clip_norm=1.0)
    results = [as_numbers(stepper.step(micro_batches_of(step, numbers))) for step in range(STEPS)]
    return objective.state_dict(), results


def as_numbers(result):
    return result.means | result._asdict() | {"means": 0}


IMAGE_INDEX = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6, 6])
PAIRS = {
    "image_index": IMAGE_INDEX,
    "attributes": torch.tensor([0, 1, 0, 0, 1, 2, 1, 0, 2, 0, 1, 2]),
    "values": torch.tensor([[0, 1], [1, -1], [1, -1], [0, -1], [0, -1], [1, -1]] * 2),
}
"""Labels of the 7 images of a global batch: some have one, some three, and one attribute's pairs have two values."""


def labels_of(step, numbers):
    """Return the micro-batches `numbers` of step's global batch of labelled images, as a process's batch."""
    bounds = BOUNDS[numbers.start or 0 : numbers.stop + 1]
    generator = torch.Generator().manual_seed(step)
    own = slice(bounds[0], bounds[-1])
    return agman.LabelBatch(
        images=torch.randint(256, (7, 3, 32, 37), generator=generator, dtype=torch.uint8)[own],
        flip=(torch.rand(7, generator=generator) < 0.5)[own],
        begin=bounds[0],
        global_size=7,
        bounds=tuple(bound - bounds[0] for bound in bounds),
        global_micro_batches=4,
        **PAIRS,
    )


def label_objective(pairs="semi_hard_triplet"):  # the one that a process need not import a library for
    torch.manual_seed(1)
    model = agman.build(n_attributes=3, embedding_dim=11, backbone="tiny")
    proxies = ValueProxies([2, 2, 2], 11)
    return agman.LabelObjective(model, pairs, loss_weights=agman.LossWeights("learned"), proxies=proxies)


def train_labels(numbers):
    torch.set_num_threads(1)
    objective = label_objective()
    stepper = agman.Stepper(objective, agman.build_optimizer(objective, lr=1e-2), clip_norm=1.0)
    results = [as_numbers(stepper.step(labels_of(step, numbers))) for step in range(STEPS)]
    return objective.state_dict(), results


def own_micro_batches(rank):
    cuts = {2: (0, 2, 4), 3: (0, 1, 3, 4), 4: (0, 1, 2, 3, 4)}[dist.get_world_size()]
    return slice(cuts[rank], cuts[rank + 1])


def train_own_micro_batches(rank):
    return train_micro_batches(own_micro_batches(rank))


def train_own_labels(rank):
    return train_labels(own_micro_batches(rank))


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow), 4])
def of_processes(request, tmp_path_factory):
    if request.param == 2:
        return request.getfixturevalue("two_processes")
    folder = tmp_path_factory.mktemp("processes")
    return on_processes(request.param, (train_own_micro_batches, train_own_labels), folder)


@pytest.mark.parametrize("train", [train_own_micro_batches, train_own_labels])
def test_the_same_micro_batches_give_the_same_weights_on_any_number_of_processes(train, of_processes):
    expected, expected_results = (train_micro_batches if train is train_own_micro_batches else train_labels)(slice(4))
    for state, results in of_processes[train.__name__]:
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
        for result, expected_result in zip(results, expected_results, strict=True):
            assert result == pytest.approx(expected_result, abs=1e-6)
    assert expected["model.backbone.stem.1.num_batches_tracked"] == STEPS


def test_micro_batches_equal_a_plain_loop_over_them():
    """Plain: each one by itself from the same running statistics, gradients weighted by size, statistics averaged."""
    torch.set_num_threads(1)
    objective = new_objective().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        before = {name: tensor.clone() for name, tensor in objective.named_buffers() if "running" in name}
        after = []
        for begin, end in itertools.pairwise(BOUNDS):
            for name, tensor in objective.named_buffers():
                if name in before:
                    tensor.copy_(before[name])
            images, attributes = prepare(training_batch(step, slice(begin, end)), IMAGENET, "cpu")
            (objective(images, attributes).loss * ((end - begin) / 7)).backward()
            after.append({name: tensor.clone() for name, tensor in objective.named_buffers() if name in before})
        for name, tensor in objective.named_buffers():
            if name in before:
                tensor.copy_(torch.stack([one[name] for one in after]).mean(0))
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        if step == 0:  # later, what rounding did to gradients near zero has grown
            first = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    once = new_objective()
    stepper = agman.Stepper(once, agman.build_optimizer(once, lr=1e-2), clip_norm=1.0)
    stepper.step(micro_batches_of(0, slice(0, 4)))
    different = [
        ((once.state_dict()[name] - tensor).abs() > 1e-4).float().mean().item()
        for name, tensor in first.items()
        if tensor.is_floating_point()
    ]
    assert max(different) < 0.01
    for name, tensor in first.items():
        if "running" in name:
            torch.testing.assert_close(once.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_step_on_labelled_images_has_the_gradient_of_the_whole_batchs_loss():
    """Plain: the embeddings of all micro-batches, each normalised by itself, under one loss; float64."""
    batch = labels_of(0, slice(4))
    objective, plain = (label_objective("supervised_contrastive").double() for _ in range(2))
    result = agman.Stepper(objective, torch.optim.SGD(objective.parameters(), lr=0.0)).step(batch)
    outputs = []
    for micro_batch in batch.micro_batches:
        own = micro_batch.own_pairs
        images = prepare_labelled(micro_batch, IMAGENET, "cpu", torch.float64)
        outputs.append(plain.embed(images, IMAGE_INDEX[own] - micro_batch.begin, batch.attributes[own]))
    assert [len(output.embedding) for output in outputs] == [3, 4, 2, 3]
    embedding, logits = (torch.cat(one) for one in zip(*outputs, strict=True))
    loss = plain.losses(embedding, logits, **PAIRS).loss
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-12) and (result.triplets, result.images) == (0, 7)
    for (name, one), other in zip(objective.named_parameters(), plain.parameters(), strict=True):
        if one.grad is not None:
            assert torch.allclose(one.grad, other.grad, rtol=0, atol=1e-12), name


# One process's NaN, one process's vote


def meet_a_nan(rank):
    objective = new_objective()
    stepper = agman.Stepper(objective, agman.build_optimizer(objective))
    before = objective.model.backbone.stem[0].weight.detach().clone()
    if rank == 1:
        with torch.no_grad():
            objective.model.reduce.bias[0] = float("nan")
    try:
        stepper.step(training_batch(0, slice(0, 3) if rank == 0 else slice(3, 7)))
    except NonFiniteLoss:
        return torch.equal(before, objective.model.backbone.stem[0].weight)
    return False


def test_a_nan_on_one_process_stops_both_at_the_same_step(two_processes):
    assert two_processes["meet_a_nan"] == [True, True]


def vote(rank):
    objective = new_objective()
    stepper = agman.Stepper(objective, agman.build_optimizer(objective))
    batches = [training_batch(step, slice(0, 3) if rank == 0 else slice(3, 7)) for step in range(3)]
    means, votes = RunningMeans(), []
    for result in agman.train_epoch(stepper, batches, [means], stop=lambda: rank == 1 and len(votes) == 1):
        votes.append(result.votes)
    return votes, means.triplets


def test_one_process_may_stop_all_after_the_same_step(two_processes):
    assert two_processes["vote"] == [([0, 1], 14), ([0, 1], 14)]
