"""Where a benchmark writes its table: a dated Markdown file that names the hardware and the versions."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch


def write_table(name: str, header: list[str], rows: list[list[str]], notes: str) -> Path:
    """Write `benchmarks/results/NAME-DATE.md` in the working folder and print it."""
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    lines = [
        f"# {name}, {day}",
        "",
        f"{_hardware()}; Python {platform.python_version()}, "
        + ", ".join(f"{package} {version(package)}" for package in ("torch", "numpy", "pillow", "pyarrow")),
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        notes,
        "",
    ]
    file = Path("benchmarks/results") / f"{name}-{day}.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    return file


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = {line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")}
    return f"{', '.join(sorted(models)) or platform.processor()}, {os.cpu_count()} cores, no GPU"


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.is_file() else []
