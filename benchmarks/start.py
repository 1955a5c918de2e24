"""Seconds until a mistake is refused, at once and with all of the job imported first: `agman bench start`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import timed, with_turns, write_table

TURNS = 3
REFUSALS = {
    "--help": "pipeline.training.train",
    "train --data nowhere": "pipeline.training.train",
    "train --data nowhere mragin=1": "pipeline.training.train",
    "train --data nowhere model=wrong": "pipeline.training.train",
    "tune --data nowhere": "pipeline.tuning.tune",
    "compare --data nowhere": "pipeline.compare.compare",
    "evaluate models:/a@b --data nowhere": "pipeline.reports.evaluation, pipeline.registry.models",
    "report models:/a@b --data nowhere": "pipeline.reports.model.page",
    "export nowhere --out new": "pipeline.registry.export",
    "embed nowhere --images x --out new": "pipeline.retrieval.embed",
    "prep fashionai --root nowhere --out new": "data_prep.prepare, pipeline.reports.dataset.page",
    "index nowhere": "pipeline.retrieval.gallery",
    "search nowhere --query x --attribute a": "pipeline.retrieval.search, agman.embedder",
    "serve nowhere": "pipeline.serving.run",
}
"""Command line -> modules that its job needs."""


def seconds(words: str, first: str, folder: Path) -> float:
    """Return the wall-clock seconds of a refused command, with the modules `first` imported before. It must refuse."""
    script = f"{f'import {first}; ' if first else ''}from pipeline.cli import main; main()"
    command = [sys.executable, "-c", script, *words.split()]
    taken, done = timed(lambda: subprocess.run(command, cwd=folder, capture_output=True))
    assert done.returncode == (0 if words == "--help" else 2), done.stderr.decode()
    return taken


def main() -> None:
    """Measure in turns; write the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for words, modules in REFUSALS.items():
            turns = [[seconds(words, first, Path(folder)) for first in ("", modules)] for _ in range(TURNS)]
            rows.append([f"`agman {words}`", *(with_turns(list(column), ".2f") for column in zip(*turns, strict=True))])
    header = ["refused", "s (turns)", "s with all of its job imported first (turns)"]
    write_table("start", header, rows, "Wanted: at most 1 s. Every turn is a process of its own; file caches are warm.")
