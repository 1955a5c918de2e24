"""The service by backend and number of clients, and what each backend costs in MAP: `agman bench serve`.

With AGMAN_MODEL=MODEL AGMAN_DATA=OUT, a trained model and its dataset, the MAP of the test split's queries, embedded by
each backend, against candidates in fp32. Else speed alone, with random weights.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

import agman
from agman.embedder import Embedder
from benchmarks.common import with_turns, write_table
from data_prep.cluster import ray_session
from data_prep.dataset import Dataset, ImageStore
from pipeline.common.console import say
from pipeline.inference.onnx_embedder import OnnxEmbedder
from pipeline.registry.export import INT8, ONNX, export
from pipeline.registry.loading import load
from pipeline.retrieval.calibration import calibration_pictures
from pipeline.retrieval.embed import embed_images
from pipeline.serving.observe import LOG
from pipeline.serving.run import Options, served

NAMES = ["category", "kids", "sleeve_length", "leg_length"]
BACKBONE, SIDE = "tf_efficientnet_lite0", 224
PICTURES, TURNS = 64, 2
CLIENTS = {1: 48, 8: 160, 64: 256}
"""Clients that ask as soon as they are answered -> requests of all of them."""
WAYS = {
    "torch, one picture at a time": ("fp32", Options(port=0, max_batch=1)),
    "torch": ("fp32", Options(port=0)),
    "torch, bf16": ("bf16", Options(port=0)),
    "onnx": ("fp32", Options(port=0, backend="onnx")),
    "int8": ("fp32", Options(port=0, backend="int8")),
    "int8, 2 replicas": ("fp32", Options(port=0, backend="int8", replicas=2)),
}
"""Name -> precision of the gallery's model, and options of the service."""


def jpeg(seed: int) -> bytes:
    """Return a JPEG of twice SIDE pixels a side."""
    fields = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(fields).resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def make(folder: Path) -> dict[str, Path]:
    """Make galleries of PICTURES images, by the same exported model of random weights in each precision."""
    torch.manual_seed(0)
    network = agman.build("agman", n_attributes=len(NAMES), backbone=BACKBONE, embedding_dim=512)
    description = {"attributes": NAMES, "image_size": SIDE, "training": {}, "dataset_digest": None, "run_id": None}
    model = agman.save_model(folder / "model", network, description)
    (folder / "pictures").mkdir()
    for number in range(PICTURES):
        (folder / "pictures" / f"{number}.jpg").write_bytes(jpeg(number))
    export(str(model), folder / "exported", pictures=partial(calibration_pictures, folder / "pictures"))
    return {
        precision: embed_images(
            str(folder / "exported"), folder / "pictures", folder / precision, precision=precision
        ).folder
        for precision in ("fp32", "bf16")
    }


def load_on(address: str, pictures: Sequence[bytes], clients: int) -> tuple[float, list[float]]:
    """Send requests, `clients` at a time; return the requests per second and the seconds of each."""
    taken: list[float] = []

    async def ask(client: httpx.AsyncClient, waiting: asyncio.Queue[bytes]) -> None:
        while not waiting.empty():
            data = waiting.get_nowait()
            started = time.perf_counter()
            form = {"attributes": NAMES[:1], "top": "10"}
            answer = await client.post(f"{address}/search", files={"image": ("q.jpg", data)}, data=form)
            answer.raise_for_status()
            taken.append(time.perf_counter() - started)

    async def everybody() -> float:
        waiting: asyncio.Queue[bytes] = asyncio.Queue()
        for data in pictures:
            waiting.put_nowait(data)
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=clients)) as client:
            started = time.perf_counter()
            await asyncio.gather(*(ask(client, waiting) for _ in range(clients)))
            return time.perf_counter() - started

    return len(pictures) / asyncio.run(everybody()), taken


def speed(folder: Path) -> list[list[str]]:
    """Return the table's rows."""
    galleries = make(folder)
    pictures = [jpeg(1_000 + number) for number in range(max(CLIENTS.values()))]
    found: dict[tuple[str, int], tuple[list[float], list[float]]] = {
        (way, clients): ([], []) for clients in CLIENTS for way in WAYS
    }
    for turn in range(TURNS):
        for way, (precision, options) in WAYS.items():
            with served(galleries[precision], None, options) as address:
                LOG.setLevel(logging.WARNING)  # a line for each request would take its time
                load_on(address, pictures[:32], 8)  # warms up
                for clients, requests in CLIENTS.items():
                    rate, taken = load_on(address, pictures[:requests], clients)
                    rates, seconds = found[way, clients]
                    rates.append(rate)
                    seconds += taken
                    say(f"turn {turn + 1}, {way}, {clients} clients: {rate:.1f} images/s")
    rows = []
    for (way, clients), (rates, seconds) in found.items():
        base = np.median(found["torch", clients][0])
        p50, p99 = (1000 * np.percentile(seconds, share) for share in (50, 99))
        figures = [with_turns(rates, ".1f"), f"{np.median(rates) / base:.2f}", f"{p50:.0f}", f"{p99:.0f}"]
        rows.append([str(clients), way, *figures, f"{p99 / p50:.1f}"])
    return rows


def maps(model: str, data: str, folder: Path) -> str:
    """Return the MAP × 100 of the queries of the test split by backend, as a sentence."""
    network, description = load(model)
    embedder, dataset = Embedder(network, description, device="cpu"), Dataset(data)
    export(model, folder, pictures=partial(calibration_pictures, data))
    ways = {
        "torch": embedder,
        "torch in bf16": Embedder(network, description, device="cpu", precision="bf16"),
        "onnx": OnnxEmbedder(embedder, folder / ONNX, 2),
        "int8": OnnxEmbedder(embedder, folder / INT8, 2),
    }
    pairs = dataset.retrieval("test")
    ids, rows = np.unique(pairs["image_id"].to_numpy(), return_inverse=True)
    images = ImageStore(
        dataset, "test", embedder.side, threads=2, fit=embedder.fit, interpolation=network.pixels.interpolation
    )
    squares = images.read(ids).permute(0, 2, 3, 1).numpy()
    attributes, query = pairs["attribute"].to_numpy(), (pairs["role"] == "query").to_numpy()
    of_way = {way: one.embed(squares)[rows, attributes] for way, one in ways.items()}
    scores = []
    for way, embeddings in of_way.items():
        mixed = torch.from_numpy(np.where(query[:, None], embeddings, of_way["torch"]))
        results = agman.rank_candidates(
            mixed, attributes, pairs["value"].to_numpy(), query, dataset.info.attribute_names
        )
        scores.append(f"{way} {100 * agman.summarise(results)['map']:.2f}")
    chance = 100 * float(torch.cat([one.chance for one in results.values()]).mean())
    return (
        f" MAP × 100 of {int(query.sum()):,} queries of {dataset.info.name}'s test split by what embeds them, against "
        f"candidates in fp32: {', '.join(scores)}; chance {chance:.1f}."
    )


def main() -> None:
    """Measure every way; write the table."""
    model, data = os.environ.get("AGMAN_MODEL"), os.environ.get("AGMAN_DATA")
    with tempfile.TemporaryDirectory() as folder, ray_session():
        root = Path(folder)
        of_maps = maps(model, data, root / "trained") if model and data else ""
        rows = speed(root)
    header = ["clients", "backend", "images/s (turns)", "of torch", "p50, ms", "p99, ms", "p99 / p50"]
    notes = (
        f"{BACKBONE} at {SIDE} px with {len(NAMES)} attributes and random weights; JPEGs of twice that, searched under "
        "one attribute. Clients send a request as soon as the last one is answered, on the same CPUs as the service."
        f"{of_maps}"
    )
    write_table("serve", header, rows, notes)
