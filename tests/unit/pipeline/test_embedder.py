"""A model in use: picture files in, embeddings and attention out."""

from __future__ import annotations

import pytest
from support.galleries import jpeg, random_model

from pipeline.inference.embedder import Embedder, PictureError


def test_an_embedder_refuses_files_that_are_no_pictures() -> None:
    embedder = Embedder(*random_model(["collar", "skirt", "sleeve"]))
    for data in (b"", b"text", jpeg(0)[:200]):
        with pytest.raises(PictureError, match="not a picture"):
            embedder.read(data)
    assert embedder.attention(embedder.read(jpeg(1)), ["skirt", "collar"]).sum((1, 2)) == pytest.approx(1)
