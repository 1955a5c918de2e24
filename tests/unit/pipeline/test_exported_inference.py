"""The `inference.py` of an export gives the embeddings of `agman embed`, with onnxruntime, Pillow and numpy alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import agman
from agman.embedder import Embedder
from agman.pixels import Pixels
from data_prep.pictures import FITS
from pipeline.registry import export

NAMES, SIDE = ["collar", "skirt"], 48
PIXELS = {
    "crop": Pixels((0.5, 0.4, 0.3), (0.5, 0.25, 0.125), "bicubic"),
    "pad": Pixels((0.1, 0.2, 0.3), (0.3, 0.2, 0.1), "bilinear"),
    "stretch": Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "lanczos"),
}
RUN = """
import sys, inference, numpy
numpy.save("found", inference.embed(sys.argv[1:]))
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """JPEG, PNG and TIFF files of several sizes and modes; one each has EXIF, and sides of the model's own length."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)

    def drawn(width: int, height: int, channels: int = 3) -> Image.Image:
        fields = Image.fromarray(generator.integers(0, 255, (7, 5, channels), np.uint8))
        return fields.resize((width, height), Image.Resampling.BICUBIC)

    turned = drawn(90, 60)
    turned.getexif()[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=turned.getexif())
    drawn(210, 131).save(folder / "wide.jpg", quality=92)
    drawn(31, 40).save(folder / "small.jpg")
    drawn(SIDE, SIDE + 25).save(folder / "as_wide.png")
    drawn(100, 77).convert("L").save(folder / "grey.jpg")
    drawn(100, 77).convert("CMYK").save(folder / "inks.jpg")
    drawn(80, 99, 4).save(folder / "clear.png")
    drawn(80, 99).quantize(9).save(folder / "colours.png", transparency=3)
    Image.fromarray(generator.integers(0, 65_535, (70, 60), np.uint16)).save(folder / "deep.png")
    Image.fromarray(generator.integers(0, 65_535, (70, 60), np.uint16)).save(folder / "deep.tif")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("fit", FITS)
def test_its_embeddings_are_the_models(pictures: list[Path], tmp_path: Path, fit: str) -> None:
    torch.manual_seed(3)
    pixels = PIXELS[fit]
    network = agman.build("agman", n_attributes=2, backbone="tiny", embedding_dim=8, pixels=pixels._asdict()).eval()
    embedder = Embedder(network, {"attributes": NAMES, "image_size": SIDE, "fit": fit}, device="cpu")
    agman.export_onnx(network, tmp_path / "embed_all.onnx", SIDE, NAMES, fit)
    shutil.copyfile(Path(export.__file__).with_name("exported_inference.py"), tmp_path / "inference.py")
    subprocess.run([sys.executable, "-c", RUN, *pictures], cwd=tmp_path, check=True)
    expected = embedder.embed([embedder.read(file.read_bytes()) for file in pictures])
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-4)
    words = [sys.executable, "inference.py", *map(str, pictures[:2])]
    said = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split()
    cosines = np.einsum("nd,nd->n", expected[0], expected[1])
    assert said[::2] == NAMES and np.array(said[1::2], float) == pytest.approx(cosines, abs=2e-4)
