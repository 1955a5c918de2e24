"""A model in use: picture files in, embeddings and attention out."""

from __future__ import annotations

import numpy as np
import pytest
from support.galleries import jpeg, random_model

from agman.embedder import Embedder, PictureError


def test_an_embedder_refuses_files_that_are_no_pictures() -> None:
    embedder = Embedder(*random_model(["collar", "skirt", "sleeve"]))
    for data in (b"", b"text", jpeg(0)[:20]):
        with pytest.raises(PictureError, match="not a picture that can be read"):
            embedder.read(data)
    with pytest.raises(PictureError, match=r"the picture is truncated \(.*\)"):
        embedder.read(jpeg(0)[:-100])
    assert embedder.attention(embedder.read(jpeg(1)), ["skirt", "collar"]).sum((1, 2)) == pytest.approx(1)


def test_no_product_of_embeddings_exceeds_1() -> None:
    embedder = Embedder(*random_model(["collar", "skirt", "sleeve"]))
    vectors = embedder.embed([embedder.read(jpeg(seed)) for seed in range(20)]).astype(float)
    lengths = np.linalg.norm(vectors, axis=2)
    assert (lengths <= 1).all() and lengths == pytest.approx(1, abs=1e-6)
