"""Parts that benchmarks share: drawn datasets, timing, processes of their own, and the dated table of results."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from data_prep.dataset import Dataset
from data_prep.prepare import prepare
from data_prep.synthetic.samples import sample
from pipeline.common.console import progress_bar

SMALL = {
    "backbone": "resnet18",
    "embedding_dim": 64,
    "batch_size": 32,
    "epochs": 7,
    "lr": 1e-3,
    "proxy_weight": 1.0,
    "precision": "bf16",
}
"""Settings of a small network on triplets of 64-pixel pictures, from random weights."""

SIZES = os.environ.get("AGMAN_IMAGES", "100000,1000000,10000000")
"""Numbers of images of the benchmarks that grow."""
ATTRIBUTES, VALUES = 20, 12
"""Attributes of the tables of labels, and values of each."""
GIB = 2**30

Result = TypeVar("Result")


def drawn_dataset(
    folder: Path, *, images: int, size: int, triplets: int, epochs: int = 1, packed_size: int | None = None
) -> Dataset:
    """Draw `images` garments of `size` px in FashionAI's layout and prepare them, with seed 0.

    They are drawn in `folder`/raw and prepared in `folder`/prepared, where images have `packed_size` or `size` px.
    """
    sample("fashionai", folder / "raw", images=images, size=size, progress=progress_bar)
    prepare(
        "fashionai",
        folder / "raw",
        folder / "prepared",
        image_size=packed_size or size,
        triplets=triplets,
        epochs=epochs,
        progress=progress_bar,
    )
    return Dataset(folder / "prepared")


def timed(job: Callable[[], Result]) -> tuple[float, Result]:
    """Run `job` once; return its wall-clock seconds and its result."""
    started = time.perf_counter()
    result = job()
    return time.perf_counter() - started, result


def repeat(job: Callable[[], object], times: int, warm_up: int = 0) -> list[float]:
    """Run `job` `warm_up` + `times` times; return the seconds of the last `times` runs."""
    return [timed(job)[0] for _ in range(warm_up + times)][warm_up:]


def medians(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the median of each column."""
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def with_turns(values: Sequence[float], form: str) -> str:
    """Return the median and, in brackets, the value of every turn."""
    return f"{statistics.median(values):{form}} ({', '.join(f'{value:{form}}' for value in values)})"


def in_own_process(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run `python -m benchmarks.MODULE ARGUMENTS`; return its standard output."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def descendants(process: int) -> Iterator[int]:
    """Yield the ids of the living processes below `process`."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has just ended
        if state != "Z":
            children.setdefault(int(parent), []).append(int(status.parent.name))
    waiting = [process]
    while waiting:
        below = children.get(waiting.pop(), [])
        yield from below
        waiting += below


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def write_table(name: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: str) -> Path:
    """Write `benchmarks/results/NAME-DATE.md` below the working folder, and print it."""
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "numpy", "pillow", "pyarrow"))
    machine = f"{_hardware()}; Python {platform.python_version()}, {versions}"
    text = "\n\n".join([f"# {name}, {day}", machine, table(header, rows), notes]) + "\n"
    file = Path("benchmarks/results") / f"{name}-{day}.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    print(text)
    return file


def _hardware() -> str:
    import torch  # not by a benchmark's own processes, whose memory is measured

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = {line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")}
    return f"{', '.join(sorted(models)) or platform.processor()}, {os.cpu_count()} cores, no GPU"


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.is_file() else []
