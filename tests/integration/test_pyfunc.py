"""The registered model as a pyfunc: its input, its answers, its errors, and that loading it unpickles nothing."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from support.registered import ROOT, jpeg, load_in_a_fresh_process, register_random

from agman import TrainedModel
from agman.embedder import Embedder
from data_prep.dataset import Dataset
from pipeline.registry.loading import find_model, load, load_with_tagger


@pytest.fixture(scope="module")
def embedder(store: Path, dataset: Dataset) -> Embedder:
    """The embedder of a model that is registered as agman-tiny, its champion."""
    return Embedder(*load(register_random(dataset, store, seed=1, named=True).uri))


@pytest.fixture(scope="module")
def model(embedder: Embedder) -> Any:
    return mlflow.pyfunc.load_model("models:/agman-tiny@champion")


def test_it_takes_bytes_or_base64_and_one_attribute_several_or_all(model: Any, embedder: Embedder) -> None:
    names = embedder.attributes
    expected = [embedder.embed([embedder.read(jpeg(seed))])[0] for seed in range(2)]
    text = base64.encodebytes(jpeg(1)).decode()  # with line breaks
    rows = pd.DataFrame(
        {"image": [jpeg(0), text, jpeg(0), jpeg(1)], "attribute": [names[2], [names[1], names[0]], None, []]}
    )
    answer = model.predict(rows)
    assert answer["attributes"].tolist() == [[names[2]], [names[1], names[0]], names, names]
    wanted = [expected[0][[2]], expected[1][[1, 0]], expected[0], expected[1]]
    for found, of_row in zip(answer["embeddings"], wanted, strict=True):
        np.testing.assert_allclose(found, of_row, atol=1e-5)
    named = TrainedModel(embedder, load_with_tagger("models:/agman-tiny@champion")[2]).tag(jpeg(0))[names[0]]
    assert answer["values"][2] == [named.value, *[None] * (len(names) - 1)]
    assert answer["probabilities"][2] == [pytest.approx(named.probability), *[None] * (len(names) - 1)]
    assert (answer["values"][0], answer["probabilities"][0]) == ([None], [None])  # no prototypes of names[2]
    alone = model.predict(pd.DataFrame({"image": [jpeg(0)]}))
    np.testing.assert_allclose(alone["embeddings"][0], expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("image", "attribute", "said"),
    [
        (jpeg(0), "neck_desing", "row 0: unknown attribute 'neck_desing'; did you mean 'neck_design'?"),
        (jpeg(0), [3], "row 0: attribute must be a name or a list of names, not 3"),
        (b"text", "neck_design", "row 0: not a picture that can be read"),
        ("no base64!", "neck_design", "row 0: image is text, but not base64"),
        (7, "neck_design", "row 0: image must be a picture file's bytes or base64 of them, not 7"),
    ],
)
def test_bad_rows_are_refused_with_their_number(model: Any, image: Any, attribute: Any, said: str) -> None:
    python = model.unwrap_python_model()  # MLflow itself refuses a number for the image
    with pytest.raises(mlflow.exceptions.MlflowException) as refused:
        python.predict(None, pd.DataFrame({"image": [image], "attribute": [attribute]}))
    assert str(refused.value).startswith(said) or said in str(refused.value)


def test_loading_it_in_a_fresh_process_unpickles_nothing(embedder: Embedder, tmp_path: Path) -> None:
    answer = load_in_a_fresh_process(sys.executable, tmp_path, jpeg(5), PYTHONPATH=str(ROOT))
    np.testing.assert_allclose(answer["embeddings"], embedder.embed([embedder.read(jpeg(5))])[0], atol=1e-5)
    assert answer["unpickled"] == []
    files = {file.suffix for file in find_model("models:/agman-tiny@champion").parents[1].rglob("*.*")}
    assert not files & {".pkl", ".pickle", ".pt", ".pth", ".bin"} and ".safetensors" in files
