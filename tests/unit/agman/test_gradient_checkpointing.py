"""Gradient checkpointing: the same step, with some of the activations computed twice."""

import pytest
import torch

import agman
from agman.engine import Batch


def step(name, checkpointing, bounds):
    """Make two steps; return what was learned, batch norm's statistics included, and the passes of the last stage."""
    torch.manual_seed(1)
    objective = agman.TripletObjective(agman.build(n_attributes=3, embedding_dim=11, backbone=name)).double()
    backbone, passes = objective.model.backbone, []
    if checkpointing:
        backbone.checkpoint_gradients()
    backbone.layer4.blocks[0].register_forward_pre_hook(lambda *_: passes.append(1))
    stepper = agman.Stepper(objective, torch.optim.SGD(objective.parameters(), lr=0.1))
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        stepper.step(
            Batch(
                images=torch.randint(256, (5, 3, 32, 32), generator=generator, dtype=torch.uint8),
                index=torch.randint(5, (3, 4), generator=generator),
                flip=torch.zeros(3, 4, dtype=torch.bool),
                attributes=torch.tensor([0, 1, 2, 0]),
                global_size=4,
                bounds=bounds,
                global_micro_batches=max(1, len(bounds) - 1),
            )
        )
    return objective.state_dict(), len(passes)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("bounds", [(), (0, 2, 4)])
def test_a_step_learns_the_same(name, bounds):
    plain, once = step(name, False, bounds)
    again, twice = step(name, True, bounds)
    assert twice == 2 * once > 0
    for key, tensor in plain.items():
        torch.testing.assert_close(again[key], tensor, rtol=0, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"])
def test_fewer_activations_are_kept(name):
    """Count the bytes that autograd saves in the forward pass."""

    def saved(checkpointing):
        backbone = agman.build(n_attributes=3, backbone=name, embedding_dim=11).backbone
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
