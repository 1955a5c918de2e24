"""The model against the equations, written out plainly; shapes are primes so that swapped axes show."""

import doctest

import pytest
import torch
import torch.nn.functional as F

import agman
from agman.attention import MultiLevelAttention, SpatialAttention
from agman.mask import MaskedEmbedding
from agman.model import PARTS

N_ATTRIBUTES, WIDTH = 3, 11


def new_model(**arguments):
    torch.manual_seed(1)
    arguments = {"n_attributes": N_ATTRIBUTES, "embedding_dim": WIDTH, "backbone": "tiny"} | arguments
    return agman.build(**arguments).double()


@pytest.fixture(scope="module")
def model():
    """Return a shared model in evaluation mode. It must not be changed."""
    return new_model().eval()


@pytest.fixture
def images():
    return torch.randn(5, 3, 33, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def attributes_of(*numbers):
    return torch.tensor(numbers)


def plain_embedding(model, mid, fused, attributes):
    """Return steps 4 to 10 of the published model, line by line, all tensors B×D×H×W."""
    attention = model.multi_level
    x = F.conv2d(model.w * torch.cat((mid, fused), 1), model.reduce.weight, model.reduce.bias)  # 4
    embedded = attention.embedding(attributes)

    image = torch.tanh(attention.asa.norm(x))  # 5, eq. 1
    attribute = attention.asa.project(embedded)
    attribute = attribute * torch.sigmoid(attribute)  # eq. 2
    score = (attribute[:, :, None, None] * image).sum(1) / x.shape[1] ** 0.5
    asa_map = torch.softmax(score.reshape(len(x), -1), 1).reshape(score.shape)
    x = x * (attention.asa.w1 * asa_map)[:, None]  # eq. 3

    pooled = torch.stack((x.mean(1), x.max(1).values), 1)
    x = x * torch.sigmoid(attention.sa.conv(pooled))  # 6, eq. 4
    x = x.sum((2, 3))  # 7

    attribute = attention.aca.project(embedded)
    attribute = attribute * torch.sigmoid(attribute)  # 8, eq. 5
    gate = torch.sigmoid(attention.aca.fc2(F.relu(attention.aca.fc1(torch.cat((x, attribute), 1)))))
    x = x * (attention.aca.w2 * gate)  # eq. 6
    x = x * F.relu(model.mask.beta)[attributes]  # 9
    return x / x.norm(dim=1, keepdim=True), asa_map  # 10


def test_published_number_of_parameters():
    with torch.device("meta"):  # counts without drawing 26 million numbers
        model = agman.build("agman", n_attributes=8)
    assert sum(parameter.numel() for parameter in model.parameters()) == 26_420_909


@pytest.mark.parametrize("w1", [1.0, 0.3, -0.7])
@pytest.mark.parametrize("sa_kernel", [1, 7])
def test_fast_path_equals_the_equations_forward_and_backward(images, w1, sa_kernel):
    model = new_model(sa_kernel=sa_kernel, classify=False)
    with torch.no_grad():
        model.multi_level.asa.w1.fill_(w1)
        model.w.fill_(1.3)
        model.mask.beta[0, 1] = -0.2  # ReLU has something to cut
    attributes = attributes_of(2, 0, 0, 1, 2)
    target = torch.randn(5, WIDTH, dtype=torch.float64)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    fast, _ = model(images, attributes)
    plain, plain_map = plain_embedding(model, *model.backbone(images), attributes)

    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.attention(images, attributes), plain_map, rtol=0, atol=1e-12)
    fast_gradients = torch.autograd.grad((fast * target).sum(), parameters, allow_unused=True)
    plain_gradients = torch.autograd.grad((plain * target).sum(), parameters, allow_unused=True)
    for ours, theirs in zip(fast_gradients, plain_gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def plain_ablation(model, without, levels, attributes):
    """Return the model's equations without one part, whose parameters are not used."""
    attention = model.multi_level
    x = levels.mid_bchw if without == "multi_level" else torch.cat(levels, 1)
    x = F.conv2d(model.w * x, model.reduce.weight, model.reduce.bias)
    embedded = attention.embedding(attributes)

    asa_map = torch.full_like(x[:, 0], 1 / x[0, 0].numel())
    if without != "asa":
        score = (F.silu(attention.asa.project(embedded))[:, :, None, None] * torch.tanh(attention.asa.norm(x))).sum(1)
        asa_map = torch.softmax(score.flatten(1) / x.shape[1] ** 0.5, 1).view_as(score)
    x = x * (asa_map if without == "asa" else attention.asa.w1 * asa_map)[:, None]
    if without != "sa":
        x = x * torch.sigmoid(attention.sa.conv(torch.stack((x.mean(1), x.max(1).values), 1)))
    x = x.sum((2, 3))
    if without != "aca":
        joint = torch.cat((x, F.silu(attention.aca.project(embedded))), 1)
        x = x * (attention.aca.w2 * torch.sigmoid(attention.aca.fc2(F.relu(attention.aca.fc1(joint)))))
    if without != "mask":
        x = x * F.relu(model.mask.beta)[attributes]
    return x / x.norm(dim=1, keepdim=True), asa_map


LEFT_OUT = {
    "multi_level": ("backbone.low.",),
    "asa": ("multi_level.asa.",),
    "sa": ("multi_level.sa.",),
    "aca": ("multi_level.aca.",),
    "mask": ("mask.",),
}
"""The parameters of each part."""


@pytest.mark.parametrize("without", PARTS)
def test_an_ablation_is_the_equations_without_that_part_forward_and_backward(images, without):
    model = new_model(without=without)
    with torch.no_grad():
        model.w.fill_(1.3)
        if model.mask is not None:
            model.mask.beta[0, 1] = -0.2  # ReLU has something to cut
    attributes = attributes_of(2, 0, 0, 1, 2)
    target = torch.randn(5, WIDTH, dtype=torch.float64)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    fast, logits = model(images, attributes)
    levels = model.backbone(images)
    plain, plain_map = plain_ablation(model, without, levels, attributes)

    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.attention(images, attributes), plain_map, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits, model.classifier(model.backbone.layer4(levels.fused_bchw).mean((2, 3))))
    assert (levels.fused_bchw is levels.mid_bchw) is (without == "multi_level")
    fast_gradients = torch.autograd.grad((fast * target).sum(), parameters, allow_unused=True)
    plain_gradients = torch.autograd.grad((plain * target).sum(), parameters, allow_unused=True)
    for ours, theirs in zip(fast_gradients, plain_gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("without", PARTS)
def test_an_ablation_lacks_the_parameters_of_its_part_alone(without):
    whole, left = new_model().state_dict(), new_model(without=without).state_dict()
    assert set(left) == {key for key in whole if not key.startswith(LEFT_OUT[without])}
    other_shapes = [key for key in left if left[key].shape != whole[key].shape]
    assert other_shapes == (["reduce.weight"] if without == "multi_level" else [])


@pytest.mark.parametrize("part", ["sa", "aca", "mask"])
@torch.no_grad()
def test_an_ablation_equals_the_model_with_that_part_made_an_identity(images, part):
    """Both have the same weights otherwise."""
    whole, left, attributes = new_model().eval(), new_model(without=part).eval(), attributes_of(2, 0, 0, 1, 2)
    left.load_state_dict({key: tensor for key, tensor in whole.state_dict().items() if key in left.state_dict()})
    assert (left(images, attributes).embedding - whole(images, attributes).embedding).abs().max() > 1e-3
    {
        "sa": lambda: (whole.multi_level.sa.conv.weight.zero_(), whole.multi_level.asa.w1.mul_(2)),  # gates of 1/2
        "aca": lambda: (whole.multi_level.aca.fc2.weight.zero_(), whole.multi_level.aca.fc2.bias.zero_()),
        "mask": lambda: whole.mask.beta.fill_(1),
    }[part]()
    torch.testing.assert_close(left(images, attributes), whole(images, attributes), rtol=0, atol=1e-12)


def test_embeddings_have_unit_length_and_maps_sum_to_one(model, images):
    attributes = attributes_of(0, 1, 2, 1, 0)
    embedding, logits = model(images, attributes)
    maps = model.attention(images, attributes)
    assert logits.shape == (5, N_ATTRIBUTES)
    assert maps.shape == (5, 3, 4)  # ceil(33 / 16), ceil(64 / 16)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(5, dtype=torch.float64))


def test_low_and_mid_agree_on_every_size():
    with torch.device("meta"):
        backbone = agman.build(n_attributes=2, embedding_dim=5, backbone="resnet18", classify=False).backbone
        low, first = backbone.low[0], backbone.layer3[0].conv1  # the layers of either path that change the size
        for size in range(4, 40):  # layer2's sizes for images of 32 to 320 pixels
            layer2 = torch.zeros(1, 128, size, size + 1)
            assert low(layer2).shape[2:] == first(layer2).shape[2:]


@pytest.mark.parametrize(("backbone", "width"), [("tiny", 3), ("tiny", 64), ("resnet34", 11), ("resnet50", 11)])
def test_any_width_and_backbone(backbone, width):
    model = agman.build(n_attributes=3, embedding_dim=width, backbone=backbone).eval()
    with torch.inference_mode():
        assert model.embed_all(torch.randn(1, 3, 32, 32)).shape == (1, 3, width)


@pytest.mark.parametrize("classify", [True, False])
def test_w2_is_frozen_and_layer4_exists_for_branch_1_alone(classify):
    model = new_model(classify=classify)
    assert model.multi_level.aca.w2.requires_grad is False
    assert any("layer4" in name for name in model.state_dict()) is classify


def test_mask_starts_with_a_block_of_its_own_for_every_attribute():
    beta = MaskedEmbedding(3, 11).beta
    one, tenth = [1.0] * 3, [0.1] * 3
    expected = torch.tensor([one + tenth + tenth, tenth + one + tenth, tenth + tenth + one])
    torch.testing.assert_close(beta[:, :9].detach(), expected)
    torch.testing.assert_close(beta[:, 9:].detach(), torch.full((3, 2), 0.1))  # the last 11 - 3·3 are in no block


def test_zero_features_give_zero_and_no_nan():
    attention, mask = MultiLevelAttention(3, 11), MaskedEmbedding(3, 11)
    x = torch.zeros(2, 11, 3, 5, requires_grad=True)
    attributes = attributes_of(0, 2)[:, None]
    embedding = agman.numerics.unit(mask(attention(x, attributes), attributes))
    embedding.square().sum().backward()
    assert (embedding == 0).all()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in attention.parameters() if p.grad is not None)


def test_w2_cancels_under_normalisation(images):
    model, attributes = new_model(classify=False).eval(), attributes_of(0, 1, 2, 1, 0)
    before, _ = model(images, attributes)
    model.multi_level.aca.w2.fill_(2.5)
    after, _ = model(images, attributes)
    torch.testing.assert_close(before, after, rtol=0, atol=1e-12)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="odd"):
        SpatialAttention(2)


def test_the_example_in_the_package_docstring():
    result = doctest.testmod(agman)
    assert result.attempted >= 6 and result.failed == 0
