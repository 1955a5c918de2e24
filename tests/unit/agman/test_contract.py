"""The contract of every model of the registry; sizes are primes, so that swapped axes show."""

import inspect

import pytest
import torch

import agman
from agman.base import Output
from agman.model import PARTS
from agman.registry import options_of

N_ATTRIBUTES, WIDTH = 3, 11
VARIANTS = [
    ("agman", {}),
    ("agman", {"classify": False, "sa_kernel": 1}),
    *(("agman", {"without": part}) for part in PARTS),
    ("csn", {}),
    ("csn", {"mask": "fixed"}),
    ("asenet", {}),
    ("asenet_v2", {}),
    ("asenet_v2", {"embedding_dim": None}),
    ("attnfashion", {}),
    ("isln", {}),
    ("isln", {"rounds": 1}),
    ("agman", {"backbone": "resnet18"}),
]
PUBLISHED_WIDTHS = {"agman": 512, "csn": 1024, "asenet": 1024, "asenet_v2": 1024, "attnfashion": 1024, "isln": 1024}

every_model = pytest.mark.parametrize("name", agman.MODELS)
every_variant = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=["-".join([name, *map(str, options.values())]) for name, options in VARIANTS]
)


def new_model(name, seed=1, **options):
    torch.manual_seed(seed)
    options = {"n_attributes": N_ATTRIBUTES, "embedding_dim": WIDTH, "backbone": "tiny"} | options
    return agman.build(name, **options)


@pytest.fixture(scope="module")
def model_of():
    """Return the model of a name, in float64 and evaluation mode. Models are shared and must not be changed."""
    models = {name: new_model(name).double().eval() for name in agman.MODELS}
    return models.__getitem__


@pytest.fixture
def images():
    return torch.randn(5, 3, 33, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def attributes_of(*numbers):
    return torch.tensor(numbers)


def small(n=2):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def assert_equal(ours, theirs, atol=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def test_every_model_is_among_the_variants():
    assert {name for name, _ in VARIANTS} == set(agman.MODELS) == set(PUBLISHED_WIDTHS)


@every_variant
@torch.no_grad()
def test_embeddings_logits_and_maps(images, name, options):
    model = new_model(name, **options).double().eval()
    attributes = attributes_of(0, 1, 2, 1, 0)
    output = model(images, attributes)
    maps = model.attention(images, attributes)

    assert isinstance(output, Output)
    assert output.embedding.shape == (5, model.embedding_dim) and output.embedding.dtype == torch.float64
    assert_equal(output.embedding.norm(dim=1), torch.ones(5, dtype=torch.float64))
    assert (output.logits is not None) is model.classify
    if output.logits is not None:
        assert output.logits.shape == (5, N_ATTRIBUTES)
    assert maps.shape == (5, 3, 4)  # ceil(33 / 16), ceil(64 / 16)
    assert maps.min() >= 0
    assert_equal(maps.sum((1, 2)), torch.ones(5, dtype=torch.float64))


NETWORKS = ("tf_efficientnet_lite0", "convnext_atto", "resnet18", "vit_tiny_patch16_224")
TOGETHER = [("agman", backbone, stride) for backbone in NETWORKS for stride in (16, 32)] + [
    case
    for number, name in enumerate(name for name in agman.MODELS if name != "agman")
    for case in (
        (name, NETWORKS[number % 3], (32, 16)[number % 2]),
        (name, NETWORKS[3], (16, 32)[number % 2]),
    )
]
"""AG-MAN, which alone takes a feature from behind the map, with every network at both strides. The others see only a
map and its width: each at both strides, with a transformer and with one of the convolutional networks."""


@pytest.mark.parametrize(("name", "backbone", "stride"), TOGETHER)
def test_every_model_works_on_every_kind_of_network(name, backbone, stride):
    """Embeddings, maps, logits, gradients of all that is learned, and the same network again from its description."""
    model = new_model(name, backbone=backbone, stride=stride)
    images, attributes = small(3), attributes_of(0, 2, 1)
    output = model(images, attributes)
    assert output.embedding.shape == (3, WIDTH)
    assert_equal(output.embedding.norm(dim=1), torch.ones(3), atol=1e-5)
    side = 2 if backbone.startswith("vit") else 32 // stride
    assert model.attention(images, attributes).shape == (3, side, side)
    logits = 0 if output.logits is None else output.logits.square().sum()
    (output.embedding[:, 0].sum() + logits).backward()
    lacking = [key for key, tensor in model.named_parameters() if tensor.requires_grad and tensor.grad is None]
    assert lacking == []
    with torch.device("meta"):
        again = agman.build(**model.config)
    assert again.pixels == model.pixels and again.config == model.config
    assert again.backbone.stride == stride
    assert {key: tensor.shape for key, tensor in again.state_dict().items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }


@every_model
@torch.no_grad()
def test_all_attributes_at_once_equal_one_by_one(model_of, images, name):
    model = model_of(name)
    everything = model.embed_all(images)
    assert everything.shape == (5, N_ATTRIBUTES, WIDTH)
    for attribute in range(N_ATTRIBUTES):
        assert_equal(everything[:, attribute], model(images, torch.full((5,), attribute)).embedding)
    assert (everything[:, 0] - everything[:, 1]).abs().max() > 1e-3  # the attribute counts


@every_model
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@torch.no_grad()
def test_pairs_equal_one_by_one(model_of, images, name, dtype):
    model = model_of(name)
    index, attributes = attributes_of(4, 0, 0, 3, 4, 4, 1).to(dtype), attributes_of(0, 2, 0, 1, 2, 0, 1).to(dtype)
    expected = model(images[index], attributes).embedding
    assert_equal(model.embed_pairs(images, index, attributes), expected)
    assert model.embed_pairs(images, index[:0], attributes[:0]).shape == (0, WIDTH)


@every_model
@torch.no_grad()
def test_evaluation_is_deterministic_and_independent_of_the_batch(model_of, images, name):
    model, attributes = model_of(name), attributes_of(0, 1, 2, 1, 0)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    embedding = model(images, attributes).embedding
    assert torch.equal(embedding, model(images, attributes).embedding)
    for image in range(5):
        alone = slice(image, image + 1)
        assert_equal(model(images[alone], attributes[alone]).embedding, embedding[alone])
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@every_model
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 40), (97, 65), (224, 130)])
@torch.no_grad()
def test_any_image_size(model_of, name, size):
    model, attributes = model_of(name), attributes_of(0, 2)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    assert torch.isfinite(model(images, attributes).embedding).all()
    assert model.attention(images, attributes).shape == (2, -(-size[0] // 16), -(-size[1] // 16))


@every_variant
def test_every_trainable_parameter_gets_a_gradient(name, options):
    """DDP would wait for ever for a parameter without one."""
    objective = agman.TripletObjective(new_model(name, **options), loss_weights=agman.LossWeights("learned"))
    objective(small(6), attributes_of(2, 0)).loss.backward()
    trainable = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in trainable.values())


@every_variant
def test_no_trainable_parameter_has_a_gradient_of_rounding_errors_alone(name, options):
    """Adam would blow them up into steps of full size. Margin 3 keeps every triplet in the loss."""
    objective = agman.TripletObjective(new_model(name, **options).double(), margin=3.0)
    objective(small(21).double(), attributes_of(2, 0, 1, 0, 1, 2, 2)).loss.backward()
    trainable = {name: p for name, p in objective.model.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad.abs().max() < 1e-12] == []


@every_variant
def test_the_config_builds_an_equal_architecture(name, options):
    model = new_model(name, **options)
    again = agman.build(**model.config)
    assert type(again) is type(model) is agman.MODELS[name]
    assert again.config == model.config
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in again.state_dict().items()} == shapes
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in again.named_parameters() if p.requires_grad] == trainable


@every_variant
@torch.no_grad()
def test_saved_and_loaded_models_embed_equally(tmp_path, name, options):
    model = new_model(name, **options)
    model(small(), attributes_of(0, 1))  # batch norm's statistics are worth saving
    model.eval()
    loaded, config = agman.load_model(agman.save_model(tmp_path / "m", model, {"size": 32}))
    assert config == {"size": 32} and loaded.config == model.config and not loaded.training
    assert torch.equal(loaded.embed_all(small()), model.embed_all(small()))


@every_model
def test_the_same_seed_gives_the_same_weights(name):
    one, same, other = (new_model(name, seed).state_dict() for seed in (3, 3, 5))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@every_model
@torch.no_grad()
def test_bf16_gives_float32_near_full_precision(name):
    model, attributes = new_model(name).eval(), attributes_of(0, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, low_maps = model(small(), attributes), model.attention(small(), attributes)
        low_all = model.embed_all(small())
    exact, exact_maps = model(small(), attributes), model.attention(small(), attributes)
    for tensor in (low.embedding, low_all, low_maps):
        assert tensor.dtype == torch.float32 and torch.isfinite(tensor).all()
    assert low.logits is None or low.logits.dtype == torch.float32
    assert agman.cosine(low.embedding, exact.embedding).min() > 0.99
    assert_equal(low_maps.sum((1, 2)), torch.ones(2), atol=1e-5)
    assert_equal(low_maps, exact_maps, atol=0.05)


@every_model
def test_bf16_training_gives_finite_gradients(name):
    objective = agman.TripletObjective(new_model(name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = objective(small(6), attributes_of(2, 0))
    losses.loss.backward()
    assert losses.loss.dtype == torch.float32
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.parameters() if p.requires_grad)


@every_variant
def test_blank_images_through_zero_weights_give_no_nan(name, options):
    model = new_model(name, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    losses = agman.TripletObjective(model)(torch.zeros(6, 3, 32, 32), attributes_of(2, 0))
    losses.loss.backward()
    assert torch.isfinite(losses.loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        assert (model.eval().embed_all(torch.zeros(2, 3, 32, 32)) == 0).all()


BLANK = torch.zeros(2, 3, 32, 32)
ONE_NAN = BLANK.index_put(tuple(torch.tensor([1, 2, 7, 0]).chunk(4)), torch.tensor(float("nan")))
INFINITE = BLANK.index_put(tuple(torch.tensor([0, 0, 0, 0]).chunk(4)), torch.tensor(float("-inf")))


@every_model
@pytest.mark.parametrize(
    ("images", "attributes", "message"),
    [
        (BLANK[0], attributes_of(0), r"images must be B×3×H×W.*\(3, 32, 32\)"),
        (BLANK[:, :1], attributes_of(0, 1), r"images must be B×3×H×W.*\(2, 1, 32, 32\)"),
        (BLANK.movedim(1, 3), attributes_of(0, 1), r"images must be B×3×H×W.*\(2, 32, 32, 3\)"),
        (BLANK[:, :, 1:], attributes_of(0, 1), r"H, W >= 32, not \(2, 3, 31, 32\)"),
        (BLANK.to(torch.uint8), attributes_of(0, 1), r"normalised floats, not torch\.uint8"),
        (ONE_NAN, attributes_of(0, 1), "NaN or infinite pixels, first in image 1 of 2"),
        (INFINITE, attributes_of(0, 1), "NaN or infinite pixels, first in image 0 of 2"),
        (BLANK, attributes_of(0), r"attributes must have shape \(2,\), not \(1,\)"),
        (BLANK, attributes_of(0, 1)[:, None], r"attributes must have shape \(2,\), not \(2, 1\)"),
        (BLANK, torch.tensor(0), r"attributes must have shape \(2,\), not \(\)"),
        (BLANK, torch.zeros(2), r"attributes must be int64 or int32, not torch\.float32"),
        (BLANK, torch.zeros(2, dtype=torch.bool), r"attributes must be int64 or int32, not torch\.bool"),
        (BLANK, attributes_of(0, 3), r"attributes must lie in 0\.\.2, found 3"),
        (BLANK, attributes_of(-1, 0), r"attributes must lie in 0\.\.2, found -1"),
    ],
)
def test_wrong_inputs_say_what_is_wrong(model_of, name, images, attributes, message):
    model = model_of(name)
    for call in (model, model.attention):
        with pytest.raises(ValueError, match=message):
            call(images, attributes)
    if message.startswith("attributes"):
        return
    with pytest.raises(ValueError, match=message):
        model.embed_all(images)


@every_model
def test_wrong_pairs_say_what_is_wrong(model_of, images, name):
    model = model_of(name)
    for index, attributes, message in (
        (attributes_of(5), attributes_of(0), r"image_index must lie in 0\.\.4, found 5"),
        (attributes_of(-1), attributes_of(0), r"image_index must lie in 0\.\.4, found -1"),
        (attributes_of(1), attributes_of(0, 1), r"attributes must have shape \(1,\), not \(2,\)"),
        (attributes_of(1)[None], attributes_of(0), r"image_index must have shape \(1,\), not \(1, 1\)"),
        (torch.tensor(1), attributes_of(0), r"image_index must have shape \(1,\), not \(\)"),
        (torch.tensor([1.0]), attributes_of(0), "image_index must be int64 or int32"),
        (attributes_of(1), attributes_of(3), r"attributes must lie in 0\.\.2, found 3"),
    ):
        with pytest.raises(ValueError, match=message):
            model.embed_pairs(images, index, attributes)


def test_pixels_whose_sum_overflows_are_accepted():
    agman.base.check_images(torch.full((1, 3, 32, 32), 3e38))


@every_model
def test_a_wrong_option_is_refused_with_the_list_of_options(name):
    options = ", ".join(agman.registry.options_of(name)) or "none"
    with pytest.raises(ValueError, match=f"it has: {options}$"):
        new_model(name, beta=1)


IMPOSSIBLE = [
    ("agman", {"sa_kernel": 4}, "sa_kernel must be odd and positive, not 4"),
    ("agman", {"without": "acs"}, "without must be one of multi_level, asa, sa, aca, mask, not 'acs'"),
    ("agman", {"embedding_dim": 2}, "embedding_dim 2 is less than n_attributes 3"),
    ("csn", {"mask": "random"}, "mask must be one of learned, fixed, not 'random'"),
    ("csn", {"embedding_dim": 2}, "embedding_dim 2 is less than n_attributes 3"),
    ("isln", {"rounds": 0}, "rounds must be at least 1, not 0"),
    *(
        (name, option, message)
        for name in agman.MODELS
        for option, message in [
            ({"n_attributes": 0}, "n_attributes must be at least 1, not 0"),
            ({"embedding_dim": 0}, "embedding_dim must be at least 1, not 0"),
            ({"beta": 1}, f"model '{name}' has no option 'beta'; it has: "),
            ({"backbone": "resnet20"}, "unknown backbone 'resnet20'; the nearest of timm's: "),
            (
                {"backbone": "levit_128"},
                "backbone 'levit_128' has maps at 1/16, 1/32, 1/64 of",
            ),
            ({"backbone": "resnet18", "weights": "V9"}, "weights 'V9': neither a file nor a tag of resnet18 "),
        ]
    ),
]


@pytest.mark.parametrize(("name", "option", "message"), IMPOSSIBLE)
def test_impossible_models_are_refused_with_and_without_weights(name, option, message):
    """Building on the meta device raises the same, without allocating a weight."""
    arguments = {"n_attributes": N_ATTRIBUTES, "embedding_dim": WIDTH, "backbone": "tiny"} | option
    refusals = []
    for device in ("cpu", "meta"):
        with torch.device(device), pytest.raises(ValueError, match=message) as refusal:
            agman.build(name, **arguments)
        refusals.append(str(refusal.value))
    assert refusals[0] == refusals[1] and "\n" not in refusals[0]


@every_variant
def test_possible_models_are_built_on_the_meta_device(name, options):
    """A real backbone: nothing is allocated for it."""
    with torch.device("meta"):
        model = new_model(name, **options | {"backbone": "resnet34"})
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize(("wrong", "near"), [("AGMAN", "agman"), ("asenetv2", "asenet_v2"), ("attn", "attnfashion")])
def test_unknown_models_name_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"unknown model '{wrong}'; did you mean '{near}'.*known: agman, csn"):
        agman.build(wrong, n_attributes=3)
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        options_of(wrong)


@every_model
def test_the_default_width_is_the_published_one_and_meta_models_allocate_nothing(name):
    with torch.device("meta"):
        model = agman.build(name, n_attributes=8)
    assert model.embedding_dim == model.config["embedding_dim"] == PUBLISHED_WIDTHS[name]
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@every_model
def test_options_of_returns_the_constructors_parameters_and_defaults(name):
    options, parameters = options_of(name), inspect.signature(agman.MODELS[name]).parameters
    assert {"n_attributes", "backbone", "weights"}.isdisjoint(options)
    assert all(parameters[option].default == default for option, default in options.items())
    config = new_model(name, embedding_dim=None).config
    assert all(config[option] == default for option, default in options.items() if default is not None)
    assert config["name"] == name


def test_a_mistyped_option_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="model 'csn' has no option 'backbon'; did you mean 'backbone'"):
        agman.build("csn", n_attributes=2, backbon="resnet18")


def test_lists_and_arrays_are_refused():
    model = new_model("csn")
    with pytest.raises(ValueError, match="attributes must be a tensor, not list"):
        model(torch.randn(2, 3, 32, 32, dtype=torch.float64), [0, 1])
    with pytest.raises(ValueError, match="images must be a tensor, not ndarray"):
        model(torch.randn(2, 3, 32, 32).numpy(), torch.tensor([0, 1]))
