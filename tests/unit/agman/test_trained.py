"""`agman.load`: pictures in any usual form, attributes by name or number."""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

import agman
from agman.checkpoint import CheckpointError
from agman.embedder import PictureError
from agman.tagger import TAGGER, Namer, Tagger
from agman.trained import Picture
from data_prep.errors import InputError

NAMES, SIDE, WIDTH = ["collar", "skirt", "sleeve"], 32, 8
SIZE = (53, 71)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    network = agman.build("agman", n_attributes=3, backbone="tiny", embedding_dim=WIDTH)
    description = {"attributes": NAMES, "image_size": SIDE, "fit": "pad"}
    return agman.save_model(tmp_path_factory.mktemp("model") / "checkpoint", network, description)


@pytest.fixture(scope="module")
def model(folder: Path) -> agman.TrainedModel:
    return agman.load(folder, device="cpu")


def drawn(seed: int, channels: int = 3) -> np.ndarray:
    """Return colour fields, uint8 H×W×C, higher than wide."""
    fields = np.random.default_rng(seed).integers(0, 255, (4, 4, channels), np.uint8)
    return np.kron(fields, np.ones((18, 14, 1), np.uint8))[: SIZE[1], : SIZE[0]]


def file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_one_picture_in_every_form_has_the_same_embeddings(model: agman.TrainedModel, tmp_path: Path) -> None:
    array = drawn(0)
    picture = Image.fromarray(array)
    (tmp_path / "a.png").write_bytes(file(picture))
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms: list[Picture] = [
        str(tmp_path / "a.png"), tmp_path / "a.png", file(picture), picture, array, tensor, tensor / 255, array / 255
    ]  # fmt: skip
    every = model.embed(forms)
    assert every.shape == (len(forms), 3, WIDTH) and every.dtype == np.float32
    assert (every == every[0]).all()
    rounded = model.embed([(tensor / 255).bfloat16()])  # numpy has no such type
    assert (rounded * every[:1]).sum(-1).min() > 0.99
    expected = model.embedder.embed([model.embedder.read(file(picture))])
    assert np.array_equal(model.embed([picture]), expected) and np.array_equal(model.embed(picture), expected[0])


def test_grey_opacity_and_orientation_are_those_of_files(model: agman.TrainedModel) -> None:
    grey, clear = Image.fromarray(drawn(1)[..., 0]), Image.fromarray(drawn(2, 4))
    turned = Image.fromarray(drawn(3))
    turned.getexif()[0x0112] = 6
    for image, kind in ((grey, "PNG"), (clear, "PNG"), (turned, "PNG")):
        assert np.array_equal(model.embed(image), model.embed(file(image, kind, exif=image.getexif())))
    assert np.array_equal(model.embed(np.asarray(clear)), model.embed(clear))
    assert np.array_equal(model.embed(torch.from_numpy(np.array(grey))), model.embed(grey))
    assert not np.array_equal(model.embed(turned), model.embed(Image.fromarray(drawn(3))))


def test_a_long_list_is_embedded_in_batches(model: agman.TrainedModel) -> None:
    many = [drawn(seed) for seed in range(70)]
    np.testing.assert_allclose(model.embed(many)[69], model.embed(many[69]), atol=1e-6)
    assert model.embed([]).shape == (0, 3, WIDTH)


def test_attributes_by_name_and_by_number(model: agman.TrainedModel) -> None:
    a, b = drawn(0), drawn(1)
    assert model.attributes == ("collar", "skirt", "sleeve")
    assert model.similarity(a, a, "skirt") == pytest.approx(1, abs=1e-6)
    assert model.similarity(a, b, "skirt") == model.similarity(a, b, 1) == model.similarity(b, a, "skirt")
    assert model.similarity(a, b, "skirt") == pytest.approx(float((model.embed(a) @ model.embed(b).T)[1, 1]), abs=1e-5)
    with pytest.raises(InputError, match="unknown attribute 'skrit'; did you mean 'skirt'"):
        model.similarity(a, b, "skrit")
    for number in (3, -1):
        with pytest.raises(InputError, match=f"no attribute {number}: they are numbered 0 to 2"):
            model.attention(a, number)


def test_attention_is_the_networks_and_can_be_plotted(model: agman.TrainedModel) -> None:
    matplotlib.use("agg")
    found = model.attention(drawn(0), "sleeve")
    pixels = agman.normalise(torch.from_numpy(found.picture)[None].permute(0, 3, 1, 2), model.embedder.network.pixels)
    with torch.no_grad():
        (expected,) = model.embedder.network.attention(pixels, torch.tensor([2])).numpy()
    np.testing.assert_allclose(found.weights, expected, atol=1e-6)
    assert found.picture.shape == (SIDE, SIDE, 3) and found.attribute == "sleeve"
    axes = found.plot()
    picture, heat = axes.images
    assert axes.get_title() == "sleeve" and picture.get_extent() == heat.get_extent()
    assert np.array_equal(heat.get_array(), found.weights)


def test_values_are_named_by_the_prototypes_beside_the_weights(folder: Path, tmp_path: Path) -> None:
    model = agman.load(folder)
    with pytest.raises(InputError, match="the model has no prototypes"):
        model.tag(drawn(0))
    named = torch.from_numpy(np.stack([model.embed(drawn(seed))[1] for seed in (0, 1)]))
    unknown = torch.zeros(1, WIDTH)
    namers = {
        "skirt": Namer(("never seen", "short", "long"), (0, 1, 1), torch.cat([unknown, named]), temperature=0.05),
        "collar": Namer(("peter pan",), (1,), torch.from_numpy(model.embed(drawn(0))[:1])),
    }
    with_prototypes = agman.save_model(
        tmp_path / "model", model.embedder.network, {"attributes": NAMES, "image_size": SIDE, "fit": "pad"}
    )
    (with_prototypes / TAGGER).write_bytes(Tagger(namers, model.embedder.digest, "drawn", "1" * 64).to_bytes())
    tags = agman.load(with_prototypes).tag(drawn(1))
    assert (tags["skirt"].value, tags["collar"]) == ("long", ("peter pan", None))
    assert 0.5 < (tags["skirt"].probability or 0) < 1


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        ("nowhere.jpg", "nowhere.jpg: cannot be read (No such file or directory)"),
        (b"text", "not a picture that can be read"),
        (np.zeros((3, 40, 40), np.uint8), "an array must be H×W×C with 1, 3 or 4 channels C, not 3×40×40"),
        (torch.zeros(40, 40, 3), "a tensor must be C×H×W with 1, 3 or 4 channels C, not 40×40×3"),
        (
            torch.randn(3, 40, 40),
            "pixels must be uint8, or floats from 0 to 1 that are not normalised; these are float32",
        ),
        (np.full((40, 40), np.nan), "pixels must be uint8"),
        (np.zeros((0, 40), np.uint8), "not 0×40"),
        (Image.new("L", (1, 64_000_001)), "the picture is too large (1x64000001 pixels, at most 64 megapixels)"),
    ],
)
def test_what_is_no_picture_is_said_in_one_line(model: agman.TrainedModel, picture: Picture, said: str) -> None:
    with pytest.raises(PictureError, match=re.escape(said)):
        model.embed([picture])


def test_a_folder_without_what_pictures_need_is_refused(model: agman.TrainedModel, tmp_path: Path) -> None:
    agman.save_model(tmp_path / "bare", model.embedder.network)
    with pytest.raises(CheckpointError, match=r"bare: its model.json has no attributes and no image_size"):
        agman.load(tmp_path / "bare")
    with pytest.raises(CheckpointError, match="holds no model"):
        agman.load(tmp_path)
