"""The registered model's code (MLflow models-from-code): image and attribute in, embedding out.

MLflow runs this file when it loads the model; weights come from the safetensors file beside it.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel

import agman
from data_prep.pictures import open_picture, to_square, upright_rgb


class RetrievalModel(PythonModel):
    """Embeds images under attributes. Rows: `image` (base64 of a JPEG or PNG), `attribute` (its name)."""

    def load_context(self, context: Any) -> None:
        self.model, self.config = agman.load_model(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """One L2-normalised embedding for each row. Raises ValueError for a bad image or unknown attribute."""
        names = self.config["attributes"]
        unknown = sorted(set(model_input["attribute"]) - set(names))
        if unknown:
            raise ValueError(f"unknown attribute {unknown[0]!r}; known: {', '.join(names)}")
        attributes = torch.tensor([names.index(name) for name in model_input["attribute"]])
        images = torch.stack([self._read(data) for data in model_input["image"]])
        index = torch.arange(len(images))
        embeddings = agman.embed_batches(self.model, [(images, index, attributes)], device="cpu")
        return pd.DataFrame({"embedding": embeddings.double().numpy().tolist()})

    def _read(self, data: str) -> torch.Tensor:
        """uint8 3×S×S: short side resized to the training's size, centre-cropped."""
        side = self.config["image_size"]
        with open_picture(base64.b64decode(data, validate=True)) as image:
            return torch.from_numpy(to_square(upright_rgb(image), side)).permute(2, 0, 1)


mlflow.models.set_model(RetrievalModel())
