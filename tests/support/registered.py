"""Registered models with random weights, and processes that load them."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import agman
from agman.state import weights_digest
from data_prep.dataset import Dataset
from pipeline.registry.models import Registered, register
from pipeline.tracking.runs import start_run, tracking_uri
from support.datasets import SIZE
from support.galleries import add_prototypes

ROOT = Path(__file__).parents[2]
STEP = 7
"""Step of the registered checkpoints."""


def register_random(
    dataset: Dataset, folder: Path, seed: int, *, image_size: int = SIZE, doubt: str = "", named: bool = False
) -> Registered:
    """Register a tiny AG-MAN for the dataset as a version of agman-tiny; equal seeds give equal weights.

    With `named`, it has random prototypes of the first attribute's values.
    """
    torch.manual_seed(seed)
    names = dataset.info.attribute_names
    network = agman.build("agman", n_attributes=len(names), backbone="tiny", embedding_dim=16)
    run = start_run(dataset.info, f"training {seed}", {})
    run.log({"valid/map": 0.25, f"valid/map/{names[0]}": 0.125, "valid/chance": 0.0625}, step=STEP)
    facts = {"layout": "fashionai", "drawn": True, "values": [len(one.values) for one in dataset.info.attributes]}
    description = {
        "attributes": names,
        "image_size": image_size,
        "step": STEP,
        "run_id": run.run_id,
        "dataset": "tiny",
        "dataset_digest": dataset.info.digest,
        "data": facts,
        "training": {"margin": 0.2, "weights": None},
    }
    checkpoint = agman.save_model(folder / f"model-{seed}", network, description)
    if named:
        known = {names[0]: dataset.info.attributes[0].values}
        add_prototypes(checkpoint, known, 16, weights_digest(network.config, network.state_dict()))
    return register(checkpoint, "tiny", run, doubt=doubt)


def jpeg(seed: int) -> bytes:
    """Return a small JPEG file of random pixels."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (50, 40, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


LOADED = """
import sys
def watch(event, arguments):
    if event == "pickle.find_class":
        found.append(arguments)
found = []
sys.addaudithook(watch)
import base64, json, mlflow, pandas as pd
model = mlflow.pyfunc.load_model("models:/agman-tiny@champion")
answer = model.predict(pd.DataFrame({"image": [sys.argv[1]]}))
import agman
print(json.dumps({"embeddings": answer["embeddings"][0], "unpickled": found, "from": agman.__file__}))
"""


def load_in_a_fresh_process(python: str, folder: Path, image: bytes, **variables: str) -> dict[str, Any]:
    """Load agman-tiny's champion with another Python, embed an image, and return what LOADED prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": tracking_uri()} | variables
    picture = base64.b64encode(image).decode()
    done = subprocess.run(
        [python, "-c", LOADED, picture], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))
