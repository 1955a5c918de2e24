"""Embed pictures with onnxruntime, Pillow and numpy: `python inference.py a.jpg b.jpg` compares a.jpg with b.jpg."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(Path(__file__).with_name("embed_all.onnx"), providers=["CPUExecutionProvider"])
about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}


def prepare(file: str | Path) -> np.ndarray:
    """Return a picture as the model takes it, float32 3×S×S: upright, opaque, square, of the right size, normalised."""
    size, resampling = (about["image_size"],) * 2, Image.Resampling[about["interpolation"].upper()]
    image = ImageOps.exif_transpose(Image.open(file))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"{file}: has 32 bits a pixel; give 8 or 16")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    if about["fit"] == "pad":
        image = ImageOps.pad(image, size, resampling, color="white")
    elif about["fit"] == "stretch":
        image = image.resize(size, resampling)
    elif min(image.size) != size[0]:
        image = ImageOps.fit(image, size, resampling)
    else:  # the middle as it is
        left, top = ((long - size[0]) // 2 for long in image.size)
        image = image.crop((left, top, left + size[0], top + size[0]))
    pixels = (np.asarray(image, np.float32) / 255 - np.float32(about["mean"])) / np.float32(about["std"])
    return pixels.transpose(2, 0, 1)


def embed(files: list[str]) -> np.ndarray:
    """Return embeddings of unit length under every attribute of `about["attributes"]`, float32 B×N×D."""
    return session.run(["embeddings"], {"images": np.stack([prepare(file) for file in files])})[0]


if __name__ == "__main__":
    embeddings = embed(sys.argv[1:])
    for number, name in enumerate(about["attributes"]):
        print(name, *(embeddings[1:, number] @ embeddings[0, number]).round(4))
