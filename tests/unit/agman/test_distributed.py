"""Several processes (gloo, CPU) against one, unequal shares: batch norm, whole training steps, a NaN, a vote."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

import agman

SHARES = (2, 5)  # of 7 images, or triplets


def on_processes(count, functions, folder):
    """What each of `functions` (of the rank) returned on each process: name -> one result a rank."""
    arguments = (count, functions, str(folder))
    multiprocessing.start_processes(_process, args=arguments, nprocs=count, start_method="forkserver")
    results = [torch.load(folder / f"result{rank}.pt") for rank in range(count)]
    return {name: [result[name] for result in results] for name in results[0]}


def _process(rank, count, functions, folder):
    torch.set_num_threads(1)
    agman.keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count)
    try:
        torch.save({function.__name__: function(rank) for function in functions}, f"{folder}/result{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    """One start of two processes serves several tests."""
    functions = (share_of_norm, share_of_training, share_of_parts, share_of_a_nan, share_of_a_vote)
    return on_processes(2, functions, tmp_path_factory.mktemp("two"))


# Batch norm alone


def norm_case():
    generator = torch.Generator().manual_seed(3)
    x, target = (torch.randn(7, 3, 5, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    norm = nn.BatchNorm2d(3, momentum=0.3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.5, -2.0]))
        norm.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return 3 * x + 100, target, norm


def run_norm(x, target, norm, rounds=2):
    x = x.clone().requires_grad_()
    for _ in range(rounds):  # the running statistics move twice
        y = norm(x)
    (y * target).sum().backward()
    tensors = {"y": y.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    return tensors | dict(norm.named_buffers())


def share_of_norm(rank):
    x, target, norm = norm_case()
    norm = agman.convert_batchnorm(nn.Sequential(norm), "sync")[0]
    return run_norm(x.split(SHARES)[rank], target.split(SHARES)[rank], norm)


def test_batch_norm_of_two_processes_is_that_of_one(shares):
    whole = run_norm(*norm_case())
    first, second = shares["share_of_norm"]
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
    close(torch.cat((first["y"], second["y"])), whole["y"])
    close(torch.cat((first["x"], second["x"])), whole["x"])
    for name in ("weight", "bias"):
        close(first[name] + second[name], whole[name])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        close(first[name], whole[name])
        close(second[name], whole[name])


def test_alone_it_is_plain_batch_norm():
    x, target, norm = norm_case()
    plain = run_norm(x, target, norm)
    x, target, norm = norm_case()
    synced = agman.convert_batchnorm(norm, "sync")
    assert isinstance(synced, agman.GlobalBatchNorm2d)
    for name, tensor in run_norm(x, target, synced).items():
        assert torch.equal(tensor, plain[name]), name
    assert torch.equal(synced.eval()(x), norm.eval()(x))


def test_conversion_keeps_names_and_parameters():
    model = agman.build(n_attributes=3, embedding_dim=11, backbone="resnet18")
    names, parameters = list(model.state_dict()), list(model.parameters())
    assert agman.convert_batchnorm(model, "per_part") is model
    assert not any(isinstance(module, agman.GlobalBatchNorm2d) for module in model.modules())
    assert agman.convert_batchnorm(model, "sync") is model
    assert list(model.state_dict()) == names
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    assert all(
        isinstance(module, agman.GlobalBatchNorm2d) for module in model.modules() if isinstance(module, nn.BatchNorm2d)
    )


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="per_part, sync, not 'global'"):
        agman.convert_batchnorm(nn.Identity(), "global")


# Whole steps


def training_batch(step, triplets):
    """The triplets `triplets` (a slice) of step's global batch of 7."""
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
    model = agman.build(n_attributes=3, embedding_dim=11, backbone="resnet18")
    return agman.TripletObjective(model, loss_weights=agman.LossWeights(weighting))


def synced_training(share_of_step):
    """The state after three steps."""
    objective = agman.convert_batchnorm(new_objective().double(), "sync")
    stepper = agman.Stepper(objective, agman.build_optimizer(objective, lr=1e-3), clip_norm=1.0)
    for step in range(3):
        stepper.step(training_batch(step, share_of_step(step)))
    return objective.state_dict()


def share_of_training(rank):
    def share(step):
        cut = (2, 5, 4)[step]  # 2 and 5 triplets, 5 and 2, 4 and 3
        return slice(0, cut) if rank == 0 else slice(cut, 7)

    return synced_training(share)


def test_two_processes_train_the_weights_of_one(shares):
    alone = synced_training(lambda step: slice(0, 7))
    first, second = shares["share_of_training"]
    assert alone.keys() == first.keys() == second.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
        assert torch.equal(first[name], second[name]), name
    assert alone["loss_weights.t_class"].item() != 0


# The same parts on any number of processes, in float32

PARTS = (0, 2, 4, 5, 7)
STEPS = 4


def parts_of(step, parts):
    """The parts (a slice of all four) of step's global batch, as a process's batch."""
    bounds = PARTS[parts.start : parts.stop + 1]
    batch = training_batch(step, slice(bounds[0], bounds[-1]))
    return replace(batch, bounds=tuple(bound - bounds[0] for bound in bounds), global_parts=4)


def training_in_parts(parts, precision="fp32"):
    """(state, results) after some steps of full size: Adam makes as much of a rounding error as of a gradient."""
    torch.set_num_threads(1)
    objective = new_objective()
    optimizer = agman.build_optimizer(objective, lr=1e-2)
    stepper = agman.Stepper(objective, optimizer, precision=precision, channels_last=True, clip_norm=1.0)
    results = [tuple(stepper.step(parts_of(step, parts))) for step in range(STEPS)]
    return objective.state_dict(), results


def share_of_parts(rank):
    count = dist.get_world_size()
    cuts = {2: (0, 2, 4), 3: (0, 1, 3, 4), 4: (0, 1, 2, 3, 4)}[count]
    return training_in_parts(slice(cuts[rank], cuts[rank + 1]))


@pytest.fixture(scope="module")
def alone_in_parts():
    return training_in_parts(slice(0, 4))


@pytest.fixture(params=[2, pytest.param(3, marks=pytest.mark.slow), 4])
def states_and_results(request, tmp_path):
    if request.param == 2:
        return request.getfixturevalue("shares")["share_of_parts"]
    return on_processes(request.param, (share_of_parts,), tmp_path)["share_of_parts"]


def test_the_same_parts_give_the_same_weights_on_any_number_of_processes(alone_in_parts, states_and_results):
    expected, expected_results = alone_in_parts
    for state, results in states_and_results:
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
        for result, expected_result in zip(results, expected_results, strict=True):
            assert result == pytest.approx(expected_result, abs=1e-6)
    assert expected["model.backbone.stem.1.num_batches_tracked"] == STEPS


def test_parts_are_what_a_plain_loop_over_them_gives(alone_in_parts):
    """Plain: every part by itself from the same running statistics, gradients weighed by size, statistics averaged."""
    torch.set_num_threads(1)
    objective = new_objective().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        before = {name: tensor.clone() for name, tensor in objective.named_buffers() if "running" in name}
        after = []
        for begin, end in itertools.pairwise(PARTS):
            for name, tensor in objective.named_buffers():
                if name in before:
                    tensor.copy_(before[name])
            images, attributes = agman.prepare(training_batch(step, slice(begin, end)), "cpu", channels_last=True)
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
    stepper = agman.Stepper(once, agman.build_optimizer(once, lr=1e-2), channels_last=True, clip_norm=1.0)
    stepper.step(parts_of(0, slice(0, 4)))
    different = [
        ((once.state_dict()[name] - tensor).abs() > 1e-4).float().mean().item()
        for name, tensor in first.items()
        if tensor.is_floating_point()
    ]
    assert max(different) < 0.01
    for name, tensor in first.items():
        if "running" in name:
            torch.testing.assert_close(once.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_parts_under_synchronised_batch_norm_are_refused():
    objective = agman.convert_batchnorm(new_objective(), "sync")
    stepper = agman.Stepper(objective, agman.build_optimizer(objective))
    with pytest.raises(ValueError, match="one part from each process"):
        stepper.step(parts_of(0, slice(0, 4)))


# One process's NaN, one process's vote


def share_of_a_nan(rank):
    objective = new_objective()
    stepper = agman.Stepper(objective, agman.build_optimizer(objective))
    before = objective.model.backbone.stem[0].weight.detach().clone()
    if rank == 1:
        with torch.no_grad():
            objective.model.reduce.bias[0] = float("nan")
    try:
        stepper.step(training_batch(0, slice(0, 3) if rank == 0 else slice(3, 7)))
    except agman.NonFiniteLoss:
        return torch.equal(before, objective.model.backbone.stem[0].weight)
    return False


def test_a_nan_on_one_process_stops_both_at_the_same_step(shares):
    assert shares["share_of_a_nan"] == [True, True]


def share_of_a_vote(rank):
    objective = new_objective()
    stepper = agman.Stepper(objective, agman.build_optimizer(objective))
    batches = [training_batch(step, slice(0, 3) if rank == 0 else slice(3, 7)) for step in range(3)]
    totals, steps = agman.Totals(), []
    whole = agman.train_epoch(
        stepper, batches, [totals], stop=lambda: rank == 1 and len(steps) == 1, after_step=steps.append
    )
    return whole, totals.steps, totals.triplets


def test_one_process_may_stop_all_after_the_same_step(shares):
    assert shares["share_of_a_vote"] == [(False, 2, 14), (False, 2, 14)]
