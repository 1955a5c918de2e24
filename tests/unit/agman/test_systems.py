"""The other systems against their equations: image by image, attribute by attribute, in plain form.

The models are compared from the backbone's map on, in float64. The references use the layers' weights instead of
calling the layers where that is plainer.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import agman
from agman.csn import csn_loss
from agman.pooled import PooledFeatures

N_ATTRIBUTES, WIDTH = 3, 11
ATTRIBUTES = torch.tensor([2, 0, 0, 1, 2])


def new_model(name, **options):
    torch.manual_seed(1)
    options = {"n_attributes": N_ATTRIBUTES, "embedding_dim": WIDTH, "backbone": "tiny"} | options
    return agman.build(name, **options).double()


@pytest.fixture
def images():
    return torch.randn(5, 3, 33, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def conv1x1(layer, x_bchw):
    """Multiply the vector of channels of each position by the matrix of weights."""
    y_bdhw = torch.einsum("dc,bchw->bdhw", layer.weight.flatten(1), x_bchw)
    return y_bdhw if layer.bias is None else y_bdhw + layer.bias[:, None, None]


def softmax_over_positions(score_hw):
    weight_hw = (score_hw - score_hw.max()).exp()
    return weight_hw / weight_hw.sum()


def linear(layer, x_c):
    return layer.weight @ x_c if layer.bias is None else layer.weight @ x_c + layer.bias


def unit_length(x_d):
    return x_d / x_d.square().sum().sqrt()


def one_hot(attribute):
    return torch.eye(N_ATTRIBUTES, dtype=torch.float64)[attribute]


def plain_csn(model, x_bchw):
    height, width = x_bchw.shape[2:]

    def one(x_chw, attribute):
        general_d = linear(model.project, x_chw.sum((1, 2)) / (height * width))
        map_hw = torch.full((height, width), 1 / (height * width), dtype=torch.float64)
        return unit_length(F.relu(model.mask.beta[attribute]) * general_d), map_hw

    return lambda b, attribute: one(x_bchw[b], attribute)


def plain_asenet(model, x_bchw):
    image_bjhw = torch.tanh(conv1x1(model.image, x_bchw))

    def one(x_chw, attribute, image_jhw):
        joint_jhw = image_jhw * torch.tanh(linear(model.attribute, one_hot(attribute)))[:, None, None]
        score_hw = torch.tanh((joint_jhw * model.score.weight[0][:, None, None]).sum(0) + model.score.bias)
        map_hw = softmax_over_positions(score_hw)
        x_c = (x_chw * map_hw).sum((1, 2))
        attribute_c = F.relu(linear(model.channel_attribute, one_hot(attribute)))
        hidden = F.relu(linear(model.fc1, torch.cat((x_c, attribute_c))))
        return unit_length(linear(model.project, x_c * torch.sigmoid(linear(model.fc2, hidden)))), map_hw

    return lambda b, attribute: one(x_bchw[b], attribute, image_bjhw[b])


def plain_asenet_v2(model, x_bchw):
    image_bjhw = torch.tanh(model.norm(conv1x1(model.image, x_bchw)))

    def one(x_chw, attribute, image_jhw):
        embedded = model.embedding.weight[attribute]
        attribute_j = torch.tanh(linear(model.attribute, embedded))
        map_hw = softmax_over_positions((image_jhw * attribute_j[:, None, None]).sum(0) / math.sqrt(512))
        x_c = (x_chw * map_hw).sum((1, 2))
        attribute_j = F.relu(linear(model.channel_attribute, embedded))
        hidden = F.relu(linear(model.fc1, torch.cat((x_c, attribute_j))))
        x_c = x_c * torch.sigmoid(linear(model.fc2, hidden))
        return unit_length(linear(model.project, x_c) if model.config["project"] else x_c), map_hw

    return lambda b, attribute: one(x_bchw[b], attribute, image_bjhw[b])


def plain_attnfashion(model, x_bchw):
    key_bjhw = model.norm(conv1x1(model.key, x_bchw))

    def one(x_chw, attribute, key_jhw):
        embedded = model.embedding.weight[attribute]
        query_j = linear(model.query, embedded)
        map_hw = softmax_over_positions((key_jhw * query_j[:, None, None]).sum(0) / math.sqrt(512))
        x_c = (x_chw * map_hw).sum((1, 2))
        squeezed_j = F.relu(linear(model.squeeze, x_c) * linear(model.guide, embedded))
        gate_c = torch.sigmoid(linear(model.excite, squeezed_j))
        return unit_length(linear(model.project, gate_c * x_c)), map_hw

    return lambda b, attribute: one(x_bchw[b], attribute, key_bjhw[b])


def isln_step(model, x_chw, key_jhw, guide_j):
    query_j = linear(model.query, guide_j)
    map_hw = softmax_over_positions((key_jhw * query_j[:, None, None]).sum(0) / math.sqrt(512))
    x_c = (x_chw * map_hw).sum((1, 2))
    feature_j, guided_j = linear(model.feature, x_c), linear(model.guide, guide_j)
    fused = torch.cat((F.relu(feature_j + guided_j), F.relu(feature_j * guided_j)))
    return torch.sigmoid(linear(model.gate, fused)) * x_c, map_hw


def next_guide(model, guide_j, v_c):
    moved_j = guide_j + linear(model.next, v_c)
    centred_j = moved_j - moved_j.mean()
    norm = model.next_norm
    return norm.weight * centred_j / (centred_j.square().mean() + norm.eps).sqrt() + norm.bias


def plain_isln(model, x_bchw):
    key_bjhw = torch.tanh(model.norm(conv1x1(model.key, x_bchw)))

    def one(x_chw, attribute, key_jhw):
        guide_j = model.embedding.weight[attribute]
        v_c, map_hw = isln_step(model, x_chw, key_jhw, guide_j)
        if model.rounds == 3:  # by hand, not in a loop
            second_j = next_guide(model, guide_j, v_c)
            v_c, _ = isln_step(model, x_chw, key_jhw, second_j)
            third_j = next_guide(model, second_j, v_c)
            v_c, map_hw = isln_step(model, x_chw, key_jhw, third_j)
        return unit_length(linear(model.project, v_c)), map_hw

    return lambda b, attribute: one(x_bchw[b], attribute, key_bjhw[b])


PLAIN = {
    "csn": plain_csn,
    "asenet": plain_asenet,
    "asenet_v2": plain_asenet_v2,
    "attnfashion": plain_attnfashion,
    "isln": plain_isln,
}


def plain_model(model, x_bchw):
    """Return embeddings and maps, each image under its own attribute of ATTRIBUTES."""
    one = PLAIN[model.config["name"]](model, x_bchw)
    embeddings, maps = zip(*(one(b, attribute) for b, attribute in enumerate(ATTRIBUTES.tolist())), strict=True)
    return torch.stack(embeddings), torch.stack(maps)


def assert_equal_with_gradients(model, ours, theirs):
    """Return two tensors, and their gradients for every parameter along one random direction."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    direction = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(3))
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = [
        torch.autograd.grad((tensor * direction).sum(), list(parameters.values()), allow_unused=True)
        for tensor in (ours, theirs)
    ]
    for name, one, other in zip(parameters, *gradients, strict=True):
        assert one is not None, f"{name}: nothing reaches it"
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("csn", {}),
        ("csn", {"mask": "fixed"}),
        ("asenet", {}),
        ("asenet_v2", {"embedding_dim": None}),
        ("asenet_v2", {"embedding_dim": 256, "project": True}),
        ("asenet_v2", {}),
        ("attnfashion", {}),
        ("isln", {"rounds": 1}),
        ("isln", {}),
    ],
)
def test_model_equals_its_equations_forward_and_backward(images, name, options, training):
    model = new_model(name, **options).train(training)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms' weights 1 and biases 0 would hide mistakes
                parameter += 0.1 * torch.randn_like(parameter)
        if options.get("mask") != "fixed" and name == "csn":
            model.mask.beta[0, 1] = -0.2  # ReLU has something to cut
    plain, plain_maps = plain_model(model, model.backbone(images))

    torch.testing.assert_close(model.attention(images, ATTRIBUTES), plain_maps, rtol=0, atol=1e-12)
    assert name == "csn" or plain_maps.std() > 1e-4  # an even map would prove little
    assert_equal_with_gradients(model, model(images, ATTRIBUTES).embedding, plain)


def test_isln_repeats_in_rounds():
    assert new_model("isln").rounds == 3
    assert new_model("isln", rounds=1).next is None
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        new_model("isln", rounds=-1)


def test_asenet_v2_projects_to_other_widths_than_the_maps():
    assert new_model("asenet_v2").config["project"] is True
    assert new_model("asenet_v2", embedding_dim=32).config["project"] is False
    assert new_model("asenet_v2", embedding_dim=None, project=True).project.weight.shape == (32, 32)


def test_csn_masks_start_as_published():
    torch.manual_seed(7)
    learned = agman.mask.MaskedEmbedding(101, 211, "random").beta
    assert learned.mean().item() == pytest.approx(0.9, abs=0.02)
    assert learned.std().item() == pytest.approx(0.7, abs=0.02)
    fixed = new_model("csn", mask="fixed").mask.beta
    assert not fixed.requires_grad
    expected = [[1, 1, 1] + [0] * 8, [0] * 3 + [1, 1, 1] + [0] * 5, [0] * 6 + [1, 1, 1] + [0] * 2]
    assert fixed.tolist() == expected


def plain_csn_loss(model, images, attributes):
    """Return the original's loss, triplet by triplet; the norms are those of whole batches."""
    triplets = len(attributes)
    maps = model.backbone(images)  # one batch, as ours: the original's three would differ in batch norm
    general = [linear(model.project, x_chw.mean((1, 2))) for x_chw in maps]
    masks = [F.relu(model.mask.beta[attribute]) for attribute in attributes.tolist()]
    hinges = []
    for t in range(triplets):
        anchor, closer, farther = (masks[t] * general[role * triplets + t] for role in range(3))
        distance_farther = (anchor - farther + 1e-6).square().sum().sqrt()
        distance_closer = (anchor - closer + 1e-6).square().sum().sqrt()
        hinges.append(max(0.2 - (distance_farther - distance_closer), torch.zeros_like(distance_closer)))
    norms = [sum(general[role * triplets + t].square().sum() for t in range(triplets)).sqrt() for role in range(3)]
    mask_norm = sum(mask.abs().sum() for mask in masks)
    loss_triplet = sum(hinges) / triplets
    return loss_triplet + 5e-3 * (sum(norms) / 3) / math.sqrt(triplets) + 5e-4 * mask_norm / triplets, hinges


@pytest.mark.parametrize("mask", ["learned", "fixed"])
def test_csn_loss_equals_the_originals(mask):
    model = new_model("csn", mask=mask)
    with torch.no_grad():
        model.project.weight *= 3.0  # distances of the size of the margin, so that some triplets are done with
        if mask == "learned":
            model.mask.beta[0, 1] = -0.2
    images = torch.randn(21, 3, 32, 32, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    attributes = torch.tensor([2, 0, 0, 1, 2, 1, 0])
    plain, hinges = plain_csn_loss(model, images, attributes)
    assert 0 < sum(hinge > 0 for hinge in hinges) < 7
    assert_equal_with_gradients(model, csn_loss(model, images, attributes), plain)


def test_csn_loss_weights_its_parts():
    model = new_model("csn")
    images, attributes = torch.randn(6, 3, 32, 32, dtype=torch.float64), torch.tensor([2, 0])
    masked, general = model.masked(images, attributes.repeat(3))
    torch.testing.assert_close(F.normalize(masked), model(images, attributes.repeat(3)).embedding)
    part = csn_loss(model, images, attributes, margin=-100.0, embedding_weight=0.0, mask_weight=7.0)
    torch.testing.assert_close(part, 7.0 * F.relu(model.mask.beta)[attributes].sum() / 2)
    part = csn_loss(model, images, attributes, margin=-100.0, embedding_weight=3.0, mask_weight=0.0)
    expected = sum(rows.square().sum().sqrt() for rows in (general[:2], general[2:4], general[4:])) / 3
    torch.testing.assert_close(part, 3.0 * expected / 2**0.5)


def test_csn_loss_needs_three_images_for_each_attribute():
    with pytest.raises(ValueError, match="2 triplets need 6 images, not 5"):
        csn_loss(new_model("csn"), torch.zeros(5, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1]))


def test_pooled_features_are_the_backbones_average_under_every_attribute(images):
    torch.manual_seed(1)
    model = PooledFeatures(N_ATTRIBUTES, "tiny").double().eval()
    assert not [parameter for parameter in model.parameters() if parameter.requires_grad]
    stages = model.backbone
    x = images
    for stage in (stages.stem, stages.layer1, stages.layer2, stages.layer3, stages.layer4):
        x = stage(x)
    expected = torch.stack([unit_length(one.mean((1, 2))) for one in x])
    torch.testing.assert_close(model(images, ATTRIBUTES).embedding, expected)
    assert model.embed_all(images).shape == (5, N_ATTRIBUTES, model.embedding_dim)
