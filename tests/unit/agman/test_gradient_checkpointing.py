"""Gradient checkpointing: the same step, with some of the activations computed twice."""

from copy import deepcopy
from functools import cache

import pytest
import torch

import agman

NETWORKS = ["tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"]


def triplets(images, bounds):
    return agman.Batch(
        images=images,
        index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4], [4, 3, 0, 1]]),
        flip=torch.zeros(3, 4, dtype=torch.bool),
        attributes=torch.tensor([0, 1, 2, 0]),
        global_size=4,
        bounds=bounds,
        global_micro_batches=max(1, len(bounds) - 1),
    )


def labels(images, bounds):
    return agman.LabelBatch(
        images=images[:4],
        flip=torch.zeros(4, dtype=torch.bool),
        begin=0,
        global_size=4,
        image_index=torch.tensor([0, 0, 1, 1, 2, 3]),
        attributes=torch.tensor([0, 1, 0, 1, 0, 1]),
        values=torch.tensor([[0], [1], [0], [0], [1], [1]]),
        bounds=bounds,
        global_micro_batches=max(1, len(bounds) - 1),
    )


@cache
def built(name):
    torch.manual_seed(1)
    return agman.build(n_attributes=3, embedding_dim=11, backbone=name)


def train(name, batch, bounds, checkpointing):
    """Make two steps; return what was learned, batch norm's statistics included, and the passes of the last stage."""
    model = deepcopy(built(name))
    torch.manual_seed(1)
    objective = agman.TripletObjective(model) if batch is triplets else agman.LabelObjective(model, "semi_hard_triplet")
    backbone, passes = objective.double().model.backbone, []
    if checkpointing:
        backbone.checkpoint_gradients()
    backbone.layer4.blocks[0].register_forward_pre_hook(lambda *_: passes.append(1))
    stepper = agman.Stepper(objective, torch.optim.SGD(objective.parameters(), lr=0.1))
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        stepper.step(batch(torch.randint(256, (5, 3, 32, 32), generator=generator, dtype=torch.uint8), bounds))
    return objective.state_dict(), len(passes)


@pytest.mark.parametrize(
    ("name", "batch", "bounds"),
    [
        # the one with batch norm, whose statistics a second pass must not see again
        ("tf_efficientnet_lite0", triplets, ()),
        ("tf_efficientnet_lite0", triplets, (0, 2, 4)),
        ("tf_efficientnet_lite0", labels, (0, 2, 4)),
        ("convnext_atto", triplets, (0, 2, 4)),
        ("vit_tiny_patch16_224", labels, (0, 2, 4)),
    ],
)
def test_a_training_learns_the_same(name, batch, bounds):
    plain, once = train(name, batch, bounds, checkpointing=False)
    again, twice = train(name, batch, bounds, checkpointing=True)
    assert twice == 2 * once > 0
    for key, tensor in plain.items():
        torch.testing.assert_close(again[key], tensor, rtol=0, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_fewer_activations_are_kept(name):
    """Count the bytes that autograd saves in the forward pass."""

    def saved(checkpointing):
        backbone = deepcopy(built(name)).backbone
        if checkpointing:
            backbone.checkpoint_gradients()
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            mid, fused = backbone(torch.randn(2, 3, 96, 96))
            (mid.sum() + backbone.top(fused).sum()).backward()
        return sum(sizes.values())

    assert saved(True) < 0.6 * saved(False)


@pytest.mark.parametrize("name", ["resnet18", "tiny"])
def test_networks_without_it_are_refused(name):
    model = agman.build(n_attributes=3, embedding_dim=11, backbone=name)
    with pytest.raises(ValueError, match=f"^gradient_checkpointing: not with backbone '{name}' .only networks of timm"):
        model.backbone.checkpoint_gradients()
