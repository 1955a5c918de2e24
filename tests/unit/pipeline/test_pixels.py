"""The network's own mean, deviation and interpolation, wherever a model takes pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.datasets import make_photographs, prepare_small

import agman
from agman.embedder import Embedder
from agman.export import save_program
from agman.pixels import IMAGENET, Pixels
from data_prep import dataset as packed
from data_prep.dataset import Dataset, ImageStore
from data_prep.pictures import INTERPOLATIONS
from pipeline.config.schema import TrainConfig
from pipeline.evaluation.evaluate import evaluate
from pipeline.inference.latency import milliseconds_an_image
from pipeline.registry.model_card import write_card
from pipeline.reports.model.attention import attention_maps
from pipeline.training.trainer import Training, WorkerContext

SIDE, PACKED = 32, 40  # so that packed pictures are resized
LITE = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
NAMES = [str(number) for number in range(8)]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Photographs of one attribute."""
    folder = tmp_path_factory.mktemp("pixels")
    return prepare_small(make_photographs(folder / "photographs"), folder / "data", image_size=PACKED)


@pytest.fixture
def network() -> agman.RetrievalModel:
    torch.manual_seed(3)
    return agman.build("asenet_v2", n_attributes=8, backbone="tiny", pixels=json.loads(json.dumps(LITE._asdict())))


class Seen:
    """What a network was given."""

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []
        self.interpolations: list[str] = []

    def by(self, network: agman.RetrievalModel) -> None:
        network.backbone.register_forward_pre_hook(lambda _, images: self.images.append(images[0].detach().clone()))

    def check(self) -> None:
        """Bytes minus 0.5 over 0.5, with black at -1; ImageNet's constants give black at -2.1."""
        assert self.images
        for images in self.images:
            bytes_ = (images * 0.5 + 0.5) * 255
            torch.testing.assert_close(bytes_, bytes_.round(), rtol=0, atol=1e-3)
            assert bytes_.min() >= -1e-3 and bytes_.max() <= 255 + 1e-3


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    spy, to_square = Seen(), packed.to_square

    def recorded(image: Any, side: int, fit: str = "crop", interpolation: str = "lanczos") -> np.ndarray:
        spy.interpolations.append(interpolation)
        return to_square(image, side, fit, interpolation)

    monkeypatch.setattr(packed, "to_square", recorded)
    yield spy
    assert set(spy.interpolations) <= {"bicubic"}


def test_training_and_validation(dataset: Dataset, seen: Seen) -> None:
    config = TrainConfig(backbone="tf_efficientnet_lite0", image_size=SIDE, epochs=1, max_triplets=4, batch_size=4)
    training = Training(config, dataset, WorkerContext())
    seen.by(training.model)
    training.run()
    assert len(seen.images) > 1 and seen.interpolations  # one step, and validation
    seen.check()
    build = training.snapshot().build
    assert Pixels.of(build["pixels"]) == training.model.pixels == LITE


def test_evaluation_with_its_attention(dataset: Dataset, network: agman.RetrievalModel, seen: Seen) -> None:
    seen.by(network)
    scored = evaluate(network, {"image_size": SIDE, "training": {}}, dataset, threads=1)
    images = ImageStore(dataset, "test", SIDE, interpolation=network.pixels.interpolation)
    attention_maps(network.eval(), images, scored.pairs.head(3))
    assert len(seen.images) > 1 and seen.interpolations
    seen.check()


def test_the_service_and_the_pyfunc_model(network: agman.RetrievalModel, seen: Seen) -> None:
    """Both are an `Embedder`."""
    seen.by(network)
    embedder = Embedder(network, {"attributes": NAMES, "image_size": SIDE}, device="cpu")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (3 * SIDE, 3 * SIDE, 3), np.uint8))
    file = io.BytesIO()
    picture.save(file, "PNG")
    square = embedder.read(file.getvalue())
    assert np.array_equal(square, np.array(picture.resize((SIDE, SIDE), INTERPOLATIONS["bicubic"])))
    embedder.embed([square])
    embedder.attention(square, ["3"])
    assert len(seen.images) == 2
    seen.check()


def test_the_measured_latency(network: agman.RetrievalModel, seen: Seen) -> None:
    seen.by(network)
    milliseconds_an_image(network, SIDE, "fp32")
    seen.check()


def test_a_saved_model_keeps_them_and_one_without_has_imagenets(network: agman.RetrievalModel, tmp_path: Path) -> None:
    folder = agman.save_model(tmp_path / "model", network)
    loaded, _ = agman.load_model(folder)
    assert loaded.pixels == LITE and loaded.config == network.config
    description = json.loads((folder / "model.json").read_text())
    del description["build"]["pixels"]
    (folder / "model.json").write_text(json.dumps(description))
    loaded, _ = agman.load_model(folder)
    assert loaded.pixels == IMAGENET and "pixels" not in loaded.config


def test_exports_name_them(network: agman.RetrievalModel, tmp_path: Path) -> None:
    save_program(network, tmp_path / "model.pt2", SIDE)
    extra = {"agman.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    about = json.loads(extra["agman.json"])
    assert (about["mean"], about["std"], about["interpolation"]) == ([0.5] * 3, [0.5] * 3, "bicubic")


def test_the_card_names_them(network: agman.RetrievalModel) -> None:
    description = {"attributes": ["collar"], "image_size": 32}
    card = write_card("agman-x", network.config, description, {}, {})
    assert "resized by bicubic, minus the mean 0.5, 0.5, 0.5, over the deviation 0.5, 0.5, 0.5" in card
    plain = write_card("agman-x", {"name": "csn", "backbone": "tiny", "embedding_dim": 3}, description, {}, {})
    assert "resized by lanczos, minus the mean 0.485, 0.456, 0.406" in plain


def test_imagenets_constants_stand_in_one_place() -> None:
    """Only the descriptions of models, which may lack them, mean ImageNet's; all others ask the model."""
    sources = [
        file for room in ("agman", "benchmarks", "data_prep", "pipeline") for file in (ROOT / room).rglob("*.py")
    ]
    numbers = [file.name for file in sources if "0.485, 0.456" in file.read_text()]
    names = {file.name for file in sources if "IMAGENET" in file.read_text().replace("IMAGENET1K", "")}
    assert numbers == ["pixels.py"]
    assert names == {"pixels.py", "backbone.py", "base.py", "model_card.py"}
