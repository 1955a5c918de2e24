"""Two processes (gloo, CPU) against one, unequal shares, float64: batch norm, whole training steps, a NaN."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import agman

SHARES = (2, 5)  # of 7 images, or triplets


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    """What each `share_of_…` below returned on either process; one start of the two serves them all."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(_process, args=(str(folder),), nprocs=2)
    first, second = (torch.load(folder / f"result{rank}.pt") for rank in range(2))
    return {name: (first[name], second[name]) for name in first}


def _process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        results = {share.__name__: share(rank) for share in (share_of_norm, share_of_training, share_of_a_nan)}
        torch.save(results, f"{folder}/result{rank}.pt")
    finally:
        dist.destroy_process_group()


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
    assert agman.convert_batchnorm(model, "per_worker") is model
    assert not any(isinstance(module, agman.GlobalBatchNorm2d) for module in model.modules())
    assert agman.convert_batchnorm(model, "sync") is model
    assert list(model.state_dict()) == names
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    assert all(
        isinstance(module, agman.GlobalBatchNorm2d) for module in model.modules() if isinstance(module, nn.BatchNorm2d)
    )


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="sync, per_worker, not 'global'"):
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


def train(wrap, share_of_step, world_size):
    """The state after three steps."""
    torch.manual_seed(1)
    model = agman.build(n_attributes=3, embedding_dim=11, backbone="resnet18")
    objective = agman.TripletObjective(model, loss_weights=agman.LossWeights("learned")).double()
    trained = wrap(objective)
    optimizer = agman.build_optimizer(trained, lr=1e-3)
    for step in range(3):
        batch = training_batch(step, share_of_step(step))
        agman.train_step(trained, optimizer, batch, device="cpu", world_size=world_size, clip_norm=1.0)
    return objective.state_dict()


def share_of_training(rank):
    def share(step):
        cut = (2, 5, 4)[step]  # 2 and 5 triplets, 5 and 2, 4 and 3
        return slice(0, cut) if rank == 0 else slice(cut, 7)

    return train(lambda o: DistributedDataParallel(agman.convert_batchnorm(o, "sync")), share, world_size=2)


def test_two_processes_train_the_weights_of_one(shares):
    alone = train(lambda objective: objective, lambda step: slice(0, 7), world_size=1)
    first, second = shares["share_of_training"]
    assert alone.keys() == first.keys() == second.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
        assert torch.equal(first[name], second[name]), name
    assert alone["loss_weights.t_class"].item() != 0


# One process's NaN


def share_of_a_nan(rank):
    torch.manual_seed(1)
    model = agman.build(n_attributes=3, embedding_dim=11, backbone="resnet18", classify=False)
    trained = DistributedDataParallel(agman.TripletObjective(model))
    if rank == 1:
        with torch.no_grad():
            model.reduce.bias[0] = float("nan")
    try:
        cut = slice(0, 3) if rank == 0 else slice(3, 7)
        agman.train_step(trained, agman.build_optimizer(trained), training_batch(0, cut), device="cpu", world_size=2)
    except agman.NonFiniteLoss:
        return True
    return False


def test_a_nan_on_one_process_stops_both_at_the_same_step(shares):
    assert shares["share_of_a_nan"] == (True, True)
