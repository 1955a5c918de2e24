"""`pipeline.Gallery`: a gallery that is searched by a picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.galleries import NAMES, embed_folder, jpeg, random_model

import agman
import pipeline
from data_prep.errors import InputError
from pipeline.retrieval.picture_search import Asked
from pipeline.retrieval.search import run_search

PICTURES = 11


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Gallery:
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "pictures").mkdir()
    for seed in range(PICTURES):
        (folder / "pictures" / f"{seed:02d}.jpg").write_bytes(jpeg(seed))
    model = agman.save_model(folder / "model", *random_model(NAMES))
    return pipeline.Gallery.open(embed_folder(model, folder / "pictures", folder / "gallery").folder)


def test_a_pictures_file_finds_what_the_command_finds(gallery: pipeline.Gallery) -> None:
    asked = {"sleeve": 1.0, "collar": 0.5}
    query = Path(gallery.path(3))
    expected = run_search(gallery, query, asked, top=4, approximate=False, model=None)
    assert gallery.search(str(query), asked, top=4) == expected
    assert gallery.search(query, {2: 1.0, 0: 0.5}, top=4) == expected
    assert 3 not in [hit.row for hit in expected]
    assert len(gallery.search(query, asked, top=99)) == PICTURES - 1


def test_a_picture_in_memory_finds_itself_first(gallery: pipeline.Gallery) -> None:
    data = gallery.picture(5)
    assert data
    with Image.open(gallery.path(5)) as picture:
        tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        for query in (data, picture, tensor):
            best, *_ = gallery.search(query, np.int64(1), top=2)  # "skirt"
            assert (best.row, best.image) == (5, "05.jpg") and best.score == pytest.approx(1, abs=1e-6)


def test_embeddings_find_what_they_found(gallery: pipeline.Gallery) -> None:
    queries = gallery.block(0, 2)
    scores, rows = gallery.search(queries, ["skirt"], 3)
    expected = super(pipeline.Gallery, gallery).search(queries, ["skirt"], 3)
    assert np.array_equal(scores, expected[0]) and np.array_equal(rows, expected[1])


@pytest.mark.parametrize(
    ("query", "attributes", "said"),
    [
        ("nowhere.jpg", "skirt", "nowhere.jpg: cannot be read"),
        (b"", "skrit", "did you mean 'skirt'"),
        (b"", 3, "no attribute 3: they are numbered 0 to 2"),
        (b"", ["skirt", 1], "attribute 'skirt' is given twice"),
        (b"", {"skirt": -1.0}, "attribute skirt=-1: a weight must be a positive number"),
        (b"", [], "no attribute given"),
        (b"text", "skirt", "not a picture"),
    ],
)
def test_what_cannot_be_searched_is_said_in_one_line(
    gallery: pipeline.Gallery, query: str | bytes, attributes: Asked, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        gallery.search(query, attributes)


def test_a_model_that_changed_is_refused(gallery: pipeline.Gallery, tmp_path: Path) -> None:
    agman.save_model(tmp_path / "model", *random_model(NAMES, seed=2))
    other = pipeline.Gallery.open(gallery.folder)
    other.info = other.info.model_copy(update={"model": str(tmp_path / "model")})
    with pytest.raises(InputError, match="with other weights"):
        other.search(gallery.path(0), "skirt")


def test_importing_the_package_is_cheap() -> None:
    heavy = "assert not {'torch', 'pyarrow', 'numpy'} & {*sys.modules}"
    code = f"import sys, pipeline; {heavy}; pipeline.load; pipeline.Gallery"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'galery'"):
        pipeline.galery  # noqa: B018
