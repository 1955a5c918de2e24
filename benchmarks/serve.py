"""The service with batching against one image at a time, and its latency under load: `agman bench serve`."""

from __future__ import annotations

import asyncio
import io
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

import agman
from benchmarks.common import with_turns, write_table
from data_prep.cluster import ray_session
from pipeline.common.console import say
from pipeline.retrieval.embed import embed_images
from pipeline.serving.run import Options, served

NAMES = ["collar_design", "skirt_length", "sleeve_length"]
CLIENTS, PICTURES, TURNS = 64, 64, 2
WORKS = (("resnet18", 64, 768), ("resnet50", 224, 192))
"""Backbone, image side of the model in pixels, requests a turn."""


def jpeg(seed: int, side: int) -> bytes:
    """Return a JPEG of twice `side` pixels a side."""
    fields = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(fields).resize((2 * side, 2 * side), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def make(folder: Path, backbone: str, side: int) -> Path:
    """Make a gallery of PICTURES images, by a model with random weights."""
    torch.manual_seed(0)
    network = agman.build("agman", n_attributes=len(NAMES), backbone=backbone, embedding_dim=128)
    description = {"attributes": NAMES, "image_size": side, "training": {}, "dataset_digest": None, "run_id": None}
    model = agman.save_model(folder / "model", network, description)
    (folder / "pictures").mkdir()
    for number in range(PICTURES):
        (folder / "pictures" / f"{number}.jpg").write_bytes(jpeg(number, side))
    return embed_images(str(model), folder / "pictures", folder / "gallery").folder


def load(address: str, pictures: list[bytes], clients: int) -> tuple[float, list[float]]:
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


def measure(folder: Path, backbone: str, side: int, requests: int) -> list[list[str]]:
    """Return the table's rows for one model."""
    gallery = make(folder, backbone, side)
    pictures = [jpeg(1_000 + number, side) for number in range(requests)]
    ways = {"one at a time": 1, "batches of up to 32": 32}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    alone: dict[str, float] = {}
    for turn in range(TURNS):
        for name, most in ways.items():
            with served(gallery, None, Options(port=0, max_batch=most)) as address:
                load(address, pictures[:32], 8)  # warms up
                alone[name] = float(np.median(load(address, pictures[:16], 1)[1]))
                rate, taken = load(address, pictures, CLIENTS)
            rates[name].append(rate)
            seconds[name] += taken
            say(f"{backbone}, turn {turn + 1}, {name}: {rate:.1f} images/s")
    base = float(np.median(rates["one at a time"]))
    rows = []
    for name, found in rates.items():
        rate = float(np.median(found))
        p50, p99 = (1000 * np.percentile(seconds[name], share) for share in (50, 99))
        title, turns = f"{backbone}, {side} px", with_turns(found, ".1f")
        latencies = [f"{milliseconds:.0f}" for milliseconds in (p50, p99, 1000 * alone[name])]
        rows.append([title, name, turns, f"{rate / base:.2f}", *latencies])
    return rows


def main() -> None:
    """Measure every model; write the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, ray_session():
        for backbone, side, requests in WORKS:
            root = Path(folder, backbone)
            root.mkdir()
            rows += measure(root, backbone, side, requests)
    header = ["model", "the model sees", "images/s (turns)", "of one at a time", "p50, ms", "p99, ms", "alone, ms"]
    notes = (
        f"{CLIENTS} clients send a request as soon as the last one is answered, on the same CPUs as the service. The "
        "JPEGs have twice the model's side and are searched under one attribute. Alone: the median of a single "
        "client. Random weights."
    )
    write_table("serve", header, rows, notes)
