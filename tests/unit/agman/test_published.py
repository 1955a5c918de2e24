"""Checkpoints with the published names and shapes, made by plain modules written here, give the same numbers.

The plain modules compute what the equations say, step by step; only their parameters' names are the published ones.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet
from torchvision.models.resnet import BasicBlock, Bottleneck

import agman

N = 5
RESNETS = {"resnet18": (BasicBlock, [2, 2, 2, 2]), "resnet50": (Bottleneck, [3, 4, 6, 3])}


class Trunk(resnet.ResNet):
    """A ResNet up to layer3. What is not used stays in the state dict, as in the published files."""

    def __init__(self, name):
        super().__init__(*RESNETS[name])
        self.width = self.layer3[-1].bn2.num_features * self.layer3[0].expansion

    def layers(self, x):
        layer2 = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x))))))
        return layer2, self.layer3(layer2)

    def forward(self, x):
        return self.layers(x)[1]


class FusedTrunk(Trunk):
    def __init__(self, name, n_attributes):
        super().__init__(name)
        del self.fc
        self.conv1_1 = nn.Conv2d(self.width // 2, self.width, 1)
        self.fc_embed = nn.Linear(2 * self.width, n_attributes)

    def forward(self, x):
        layer2, mid = self.layers(x)
        fused = self.conv1_1(F.max_pool2d(layer2, 3, stride=2, padding=1)) + mid
        return mid, fused, self.fc_embed(self.layer4(fused).mean((2, 3)))


class SpatialGate(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x):
        pooled = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
        return x * torch.sigmoid(self.conv1(pooled))


class PlainAGMAN(nn.Module):
    def __init__(self, name="resnet18", n_attributes=N, width=23, kernel=7):
        super().__init__()
        self.backbonenet = FusedTrunk(name, n_attributes)
        self.attr_embedding = nn.Embedding(n_attributes, width)
        self.w, self.w1, self.w2 = (nn.Parameter(torch.ones(1)) for _ in range(3))
        self.conv1 = nn.Conv2d(2 * self.backbonenet.width, width, 1)
        self.img_bn1 = nn.BatchNorm2d(width)
        self.attr_transform1 = nn.Linear(width, width)
        self.sa = SpatialGate(kernel)
        self.attr_transform2 = nn.Linear(width, width)
        self.fc1 = nn.Linear(2 * width, width)
        self.fc2 = nn.Linear(width, width)
        self.masks = nn.Embedding(n_attributes, width)

    def forward(self, images, attributes):
        """Embedding, the published heat map w1·map, logits."""
        mid, fused, logits = self.backbonenet(images)
        x = self.conv1(torch.cat((mid, fused), 1) * self.w)
        attribute = self.attr_transform1(self.attr_embedding(attributes))
        attribute = (attribute * torch.sigmoid(attribute))[:, :, None, None]
        score = (torch.tanh(self.img_bn1(x)) * attribute).sum(1) / math.sqrt(x.shape[1])
        heat = torch.softmax(score.flatten(1), 1).view_as(score) * self.w1
        x = self.sa(x * heat[:, None]).sum((2, 3))
        attribute = self.attr_transform2(self.attr_embedding(attributes))
        attribute = attribute * torch.sigmoid(attribute)
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(torch.cat((x, attribute), 1)))))
        x = x * (gate * self.w2) * torch.relu(self.masks(attributes))
        return x / x.norm(dim=1, keepdim=True), heat, logits


class PlainASENet(nn.Module):
    def __init__(self, name="resnet18", n_attributes=N, width=23):
        super().__init__()
        self.backbonenet = Trunk(name)
        channels = self.backbonenet.width
        self.n_attributes = n_attributes
        self.conv1, self.conv2 = nn.Conv2d(channels, 512, 1), nn.Conv2d(512, 1, 1)
        self.mask_fc1 = nn.Linear(n_attributes, 512, bias=False)
        self.mask_fc2 = nn.Linear(n_attributes, channels, bias=False)
        self.fc1, self.fc2 = nn.Linear(2 * channels, 512), nn.Linear(512, channels)
        self.feature_fc = nn.Linear(channels, width)

    def forward(self, images, attributes):
        x = self.backbonenet(images)
        one_hot = F.one_hot(attributes, self.n_attributes).float()
        joint = torch.tanh(self.conv1(x)) * torch.tanh(self.mask_fc1(one_hot))[:, :, None, None]
        score = torch.tanh(self.conv2(joint))[:, 0]
        heat = torch.softmax(score.flatten(1), 1).view_as(score)
        x = (x * heat[:, None]).sum((2, 3))
        gate = self.fc2(torch.relu(self.fc1(torch.cat((x, torch.relu(self.mask_fc2(one_hot))), 1))))
        x = self.feature_fc(x * torch.sigmoid(gate))
        return x / x.norm(dim=1, keepdim=True), heat, None


class PlainASENetV2(nn.Module):
    def __init__(self, name="resnet18", n_attributes=N, width=None):
        super().__init__()
        self.backbonenet = Trunk(name)
        channels = self.backbonenet.width
        self.attr_embedding = nn.Embedding(n_attributes, 512)
        self.conv1, self.img_bn1 = nn.Conv2d(channels, 512, 1), nn.BatchNorm2d(512)
        self.attr_transform1, self.attr_transform2 = nn.Linear(512, 512), nn.Linear(512, 512)
        self.fc1, self.fc2 = nn.Linear(channels + 512, 512), nn.Linear(512, channels)
        if width:
            self.feature_fc = nn.Linear(channels, width)

    def forward(self, images, attributes):
        x, embedded = self.backbonenet(images), self.attr_embedding(attributes)
        attribute = torch.tanh(self.attr_transform1(embedded))[:, :, None, None]
        score = (torch.tanh(self.img_bn1(self.conv1(x))) * attribute).sum(1) / math.sqrt(512)
        heat = torch.softmax(score.flatten(1), 1).view_as(score)
        x = (x * heat[:, None]).sum((2, 3))
        attribute = torch.relu(self.attr_transform2(embedded))
        x = x * torch.sigmoid(self.fc2(torch.relu(self.fc1(torch.cat((x, attribute), 1)))))
        x = self.feature_fc(x) if hasattr(self, "feature_fc") else x
        return x / x.norm(dim=1, keepdim=True), heat, None


class PlainCSN(nn.Module):
    """The ASEN authors' variant; with `original`, the original's layout, its last layer inside the ResNet."""

    def __init__(self, name="resnet18", n_attributes=N, width=23, original=False, fixed=False):
        super().__init__()
        self.embeddingnet = Trunk(name)
        head = nn.Linear(self.embeddingnet.width, width)
        if original:
            del self.embeddingnet.fc, self.embeddingnet.layer4
            self.embeddingnet.fc_embed = head
        else:
            self.embed_fc = head
        self.masks = nn.Embedding(n_attributes, width)
        self.fixed = fixed

    def masked(self, images, attributes):
        head = self.embeddingnet.fc_embed if hasattr(self.embeddingnet, "fc_embed") else self.embed_fc
        mask = self.masks(attributes)
        return head(F.adaptive_avg_pool2d(self.embeddingnet(images), 1).flatten(1)) * torch.relu(mask)

    def forward(self, images, attributes):
        x = self.masked(images, attributes)
        return x / x.norm(dim=1, keepdim=True), None, None


@torch.no_grad()
def stir(model):
    """Set statistics that fit some images but for noise, and leave no number at its trivial start."""
    torch.manual_seed(7)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.2)
    model.train()(torch.randn(3, 3, 64, 64), torch.tensor([0, 1, 2]))
    for norm in norms:
        norm.running_mean += 0.1 * torch.randn_like(norm.running_mean)
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.5, 2.0)
    for name, parameter in model.named_parameters():
        if name in ("w", "w1", "w2"):
            parameter.uniform_(0.4, 0.9)
        if name == "attr_embedding.weight":
            parameter *= 5.0  # maps that are far from even
        if name == "masks.weight" and not model.fixed:
            parameter.normal_(0.9, 0.7)
    if getattr(model, "fixed", False):
        model.masks.weight.zero_()
        block = model.masks.weight.shape[1] // model.masks.weight.shape[0]
        for attribute in range(model.masks.weight.shape[0]):
            model.masks.weight[attribute, attribute * block : (attribute + 1) * block] = 1.0
    return model.eval()


PlainAGMAN.fixed = False


def state_of(model, prefix="embeddingnet."):
    return {prefix + key: tensor for key, tensor in model.state_dict().items()}


def shapes_of(model):
    """Return tensors of the model's shapes that take no space in a file: one number each, repeated."""
    return {key: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for key, tensor in state_of(model).items()}


def save(path, state, **more):
    torch.save({"epoch": 3, "state_dict": state, "prec": 0.5} | more, path)
    return path


def assert_same_numbers(plain, ours, size):
    images = torch.randn(6, 3, *size, generator=torch.Generator().manual_seed(3))
    attributes = torch.arange(6) % N
    embedding, heat, logits = plain(images, attributes)
    output = ours(images, attributes)
    torch.testing.assert_close(output.embedding, embedding, rtol=0, atol=1e-5)
    if heat is not None:
        w1 = getattr(plain, "w1", torch.ones(1))
        assert heat.std() > 1e-3 * heat.mean()
        torch.testing.assert_close(w1 * ours.attention(images, attributes), heat, rtol=0, atol=1e-5)
    if output.logits is not None:
        torch.testing.assert_close(output.logits, logits, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def plain():
    """Return a small shared AG-MAN. It must not be changed."""
    torch.manual_seed(1)
    return stir(PlainAGMAN())


@torch.no_grad()
def test_agman_at_full_size_with_both_losses(tmp_path):
    torch.manual_seed(1)
    plain = stir(PlainAGMAN("resnet50", n_attributes=8, width=512))
    model = agman.load_published(save(tmp_path / "agman.pth.tar", state_of(plain)))
    assert sum(parameter.numel() for parameter in model.parameters()) == 26_420_909
    assert model.config == {
        "name": "agman",
        "n_attributes": 8,
        "embedding_dim": 512,
        "backbone": "resnet50",
        "classify": True,
        "sa_kernel": 7,
    }
    images, attributes = torch.randn(6, 3, 112, 112), torch.tensor([6, 2])
    anchor, positive, negative = images.chunk(3)
    parts = [plain(part, attributes) for part in (anchor, negative, positive)]  # the published order
    embeddings, heats, logits = zip(*parts, strict=True)

    similarity_negative = (embeddings[0] * embeddings[1]).sum(1)
    similarity_positive = (embeddings[0] * embeddings[2]).sum(1)
    loss_triplet = nn.MarginRankingLoss(0.2)(similarity_negative, similarity_positive, -torch.ones(2))
    target = F.one_hot(attributes, 8).float()
    loss_class = sum(nn.BCEWithLogitsLoss()(part, target) for part in logits) / 3

    published_order = torch.cat((anchor, negative, positive))
    output = model(published_order, attributes.repeat(3))
    torch.testing.assert_close(output.embedding, torch.cat(embeddings), rtol=0, atol=1e-5)
    torch.testing.assert_close(output.logits, torch.cat(logits), rtol=1e-5, atol=1e-5)
    maps = model.attention(published_order, attributes.repeat(3))
    torch.testing.assert_close(plain.w1 * maps, torch.cat(heats), rtol=0, atol=1e-5)
    losses = agman.TripletObjective(model)(images, attributes)
    assert loss_triplet > 0.05
    torch.testing.assert_close(losses.terms["loss_triplet"], loss_triplet, rtol=0, atol=1e-5)
    torch.testing.assert_close(losses.terms["loss_class"], loss_class, rtol=0, atol=1e-5)
    assert losses.terms["triplet_accuracy"] == (similarity_positive > similarity_negative).double().mean()


@pytest.mark.parametrize("prefix", ["embeddingnet.", "module.embeddingnet.", "module.", ""])
@torch.no_grad()
def test_agman_under_every_wrapper(plain, tmp_path, prefix):
    model = agman.load_published(save(tmp_path / "agman.pth.tar", state_of(plain, prefix)))
    assert not model.training
    assert_same_numbers(plain, model, (33, 64))


@torch.no_grad()
def test_agman_with_the_papers_kernel(tmp_path):
    plain = stir(PlainAGMAN(kernel=1, width=11))
    model = agman.load_published(save(tmp_path / "agman.pth.tar", state_of(plain)))
    assert (model.config["sa_kernel"], model.embedding_dim) == (1, 11)
    assert_same_numbers(plain, model, (64, 33))


@torch.no_grad()
def test_agman_without_branch_1(plain, tmp_path):
    path = save(tmp_path / "agman.pth.tar", state_of(plain))
    model = agman.load_published(path, classify=False)
    assert not any("layer4" in key or "classifier" in key for key in model.state_dict())
    assert model(torch.zeros(1, 3, 32, 32), torch.tensor([0])).logits is None
    assert_same_numbers(plain, model, (33, 64))


@pytest.mark.parametrize(
    ("prefix", "kind", "options", "name", "config"),
    [
        # each layout of keys with and without a wrapper's prefix
        ("", PlainASENet, {}, "asenet", {"embedding_dim": 23}),
        ("embeddingnet.", PlainASENet, {}, "asenet", {"embedding_dim": 23}),
        ("", PlainASENetV2, {}, "asenet_v2", {"embedding_dim": 256, "project": False}),
        ("embeddingnet.", PlainASENetV2, {"width": 23}, "asenet_v2", {"embedding_dim": 23, "project": True}),
        ("", PlainASENetV2, {"width": 256}, "asenet_v2", {"embedding_dim": 256, "project": True}),
        ("embeddingnet.", PlainCSN, {}, "csn", {"embedding_dim": 23, "mask": "learned"}),
        ("", PlainCSN, {"fixed": True}, "csn", {"embedding_dim": 23, "mask": "fixed"}),
        ("", PlainCSN, {"original": True, "width": 64}, "csn", {"embedding_dim": 64, "mask": "learned"}),
        ("embeddingnet.", PlainCSN, {"original": True, "width": 64, "fixed": True}, "csn", {"mask": "fixed"}),
    ],
)
@torch.no_grad()
def test_other_systems(tmp_path, prefix, kind, options, name, config):
    plain = stir(kind(**options))
    model = agman.load_published(save(tmp_path / "other.pth.tar", state_of(plain, prefix)))
    expected = {"name": name, "n_attributes": N, "backbone": "resnet18"} | config
    assert {key: model.config[key] for key in expected} == expected
    assert_same_numbers(plain, model, (112, 112) if options.get("original") else (33, 64))
    assert not any("layer4" in key for key in model.state_dict())


@torch.no_grad()
def test_original_csn_compares_what_is_masked_by_euclidean_distance(tmp_path):
    plain = stir(PlainCSN(original=True, width=64))
    model = agman.load_published(save(tmp_path / "csn.pth.tar", state_of(plain)))
    images, attributes = torch.randn(4, 3, 112, 112), torch.tensor([0, 4, 2, 2])
    torch.testing.assert_close(model.masked(images, attributes)[0], plain.masked(images, attributes))


@pytest.mark.parametrize(("kind", "name"), [(PlainASENet, "asenet"), (PlainASENetV2, "asenet_v2"), (PlainCSN, "csn")])
def test_resnet50_is_told_by_its_layer3(tmp_path, kind, name):
    with torch.device("meta"):
        model = kind("resnet50")
    path = save(tmp_path / "other.pth.tar", shapes_of(model))
    model = agman.load_published(path)
    assert (model.config["name"], model.config["backbone"]) == (name, "resnet50")


@torch.no_grad()
def test_files_from_before_2018(plain, tmp_path):
    """They have no step counters, the format before zip files, and a mean average precision of numpy's type."""
    state = {key: tensor for key, tensor in state_of(plain).items() if "num_batches" not in key}
    content = {"epoch": 3, "state_dict": state, "prec": np.mean([0.25, 0.5]), "best": np.float32(0.5)}
    torch.save(content, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    assert_same_numbers(plain, agman.load_published(tmp_path / "old.pth.tar"), (33, 64))


@torch.no_grad()
def test_a_bare_state_dict_is_read(plain, tmp_path):
    torch.save(state_of(plain), tmp_path / "bare.pth")
    assert_same_numbers(plain, agman.load_published(str(tmp_path / "bare.pth")), (33, 64))


def without(*keys):
    return lambda state: {key: tensor for key, tensor in state.items() if key.removeprefix("embeddingnet.") not in keys}


def but(key, *shape):
    return lambda state: state | {f"embeddingnet.{key}": torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("fc1.bias"), r"fc1\.bias: expected shape \(23,\), found nothing"),
        (without("w1"), r"w1: expected shape \(\), found nothing"),
        (without("masks.weight"), r"masks\.weight is missing"),
        (without("sa.conv1.weight"), r"sa\.conv1\.weight is missing"),
        (without("conv1.weight"), r": conv1\.weight is missing"),
        (without("backbonenet.bn1.running_var"), r"backbonenet\.bn1\.running_var: expected shape \(64,\), found noth"),
        (without("backbonenet.layer4.1.bn2.weight"), r"layer4\.1\.bn2\.weight: expected shape \(512,\), found nothing"),
        (but("fc2.weight", 23, 7), r"fc2\.weight: expected shape \(23, 23\), found \(23, 7\)"),
        (but("w", 2), r"w: expected shape \(\), found \(2,\)"),
        (but("masks.weight", 7, 23), r"fc_embed\.weight: expected shape \(7, 512\), found \(5, 512\)"),
        (but("masks.weight", 5), r"masks\.weight: expected shape \(5, 23\), found \(5,\)"),
        (but("masks.weight"), r"masks\.weight: expected more than 0 dimensions, found shape \(\)"),
        (but("masks.weight", 0, 23), "n_attributes must be at least 1, not 0"),
        (but("sa.conv1.weight", 49), r"sa\.conv1\.weight: expected more than 3 dimensions, found shape \(49,\)"),
        (but("sa.conv1.weight", 1, 2, 4, 4), "sa_kernel must be odd"),
        (but("conv1.weight"), r": conv1\.weight: expected more than 0 dimensions, found shape \(\)"),
        (but("attr_embedding.weight", 3, 23), r"attr_embedding\.weight: expected shape \(5, 23\), found \(3, 23\)"),
        (but("extra.weight", 2, 3), r"extra\.weight: expected nothing, found shape \(2, 3\)"),
        (but("backbonenet.layer3.2.conv1.weight", 2, 3), r"layer3 has 3 blocks"),
    ],
)
def test_the_first_key_that_does_not_fit_is_named(plain, tmp_path, change, message):
    path = save(tmp_path / "agman.pth.tar", change(shapes_of(plain)))
    with pytest.raises(agman.CheckpointError, match=message) as caught:
        agman.load_published(path)
    assert str(path) in str(caught.value) and "agman checkpoint" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "key", "shape"),
    [
        (PlainASENet, "mask_fc1.weight", (512,)),
        (PlainCSN, "masks.weight", (5,)),
        (PlainASENet, "feature_fc.weight", ()),
    ],
)
def test_tensors_with_too_few_dimensions_are_named(tmp_path, kind, key, shape):
    with torch.device("meta"):
        model = kind()
    path = save(tmp_path / "other.pth.tar", but(key, *shape)(shapes_of(model)))
    with pytest.raises(agman.CheckpointError, match=key.replace(".", r"\.")):
        agman.load_published(path)


@pytest.mark.parametrize(
    "state", [lambda: resnet.resnet18().state_dict(), dict, lambda: {"embeddingnet.masks.weight": torch.zeros(2, 3)}]
)
def test_other_checkpoints_are_refused(tmp_path, state):
    path = save(tmp_path / "other.pth.tar", state())
    with pytest.raises(agman.CheckpointError, match="no published AG-MAN, ASENet or CSN checkpoint"):
        agman.load_published(path)


class Bomb:
    """A pickle that creates a file when read, as a harmful one could."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_run(plain, tmp_path, zipped):
    path, trace = tmp_path / "evil.pth.tar", tmp_path / "was_run"
    content = {"epoch": 3, "state_dict": state_of(plain), "prec": Bomb(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert not trace.exists()
    with pytest.raises(agman.CheckpointError, match="code is never unpickled"):
        agman.load_published(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the bomb is one
    assert trace.exists()


def test_whole_modules_are_refused(tmp_path):
    torch.save(nn.Linear(2, 3), tmp_path / "module.pth.tar")
    with pytest.raises(agman.CheckpointError, match="code is never unpickled"):
        agman.load_published(tmp_path / "module.pth.tar")


def test_damaged_files(plain, tmp_path):
    whole = save(tmp_path / "whole.pth.tar", state_of(plain))
    for name, content in (("cut", whole.read_bytes()[:-1000]), ("empty", b""), ("text", b"404: Not Found\n")):
        path = tmp_path / f"{name}.pth.tar"
        path.write_bytes(content)
        with pytest.raises(agman.CheckpointError, match=f"{name}.pth.tar: (not a readable|.*is damaged)"):
            agman.load_published(path)


def test_missing_files_and_other_endings(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth\.tar"):
        agman.load_published(tmp_path / "none.pth.tar")
    (tmp_path / "model.h5").touch()
    with pytest.raises(agman.CheckpointError, match=r"model\.h5: expected a file with one of the endings"):
        agman.load_published(tmp_path / "model.h5")
    torch.save({"state_dict": {"w": 3}}, tmp_path / "numbers.pth.tar")
    with pytest.raises(agman.CheckpointError, match="expected a plain state dict"):
        agman.load_published(tmp_path / "numbers.pth.tar")
