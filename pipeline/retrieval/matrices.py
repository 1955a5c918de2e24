"""Matrices of a gallery: `.npy` files, float32 R×D, one for each attribute. Several processes may write their rows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_prep import atomic
from pipeline.retrieval.states import VECTORS


def vectors_file(number: int) -> str:
    """Return the path of the matrix of an attribute, relative to the gallery."""
    return f"{VECTORS}/attribute-{number:02d}.npy"


def open_vectors(state: Path, attributes: int) -> list[np.ndarray]:
    """Map the matrices of a state into memory, one for each attribute. Raises OSError or ValueError."""
    files = [state / vectors_file(number) for number in range(attributes)]
    return [np.load(file, mmap_mode="r").view(np.ndarray) for file in files]  # memmaps are slow to slice


def create_vectors(state: Path, attributes: int, rows: int, width: int) -> None:
    """Create the matrices of a state that are not there. They take no disk until rows are written. Raises OSError."""
    for number in range(attributes):
        if not (state / vectors_file(number)).exists():
            with atomic.file(state / vectors_file(number)) as staging, staging.open("wb") as file:
                _write_header(file, rows, width)
                file.truncate(file.tell() + 4 * rows * width)


def write_vectors(state: Path, start: int, block_rnd: np.ndarray) -> None:
    """Write consecutive rows under all attributes (rows×N×D), the first at `start`. Raises OSError."""
    # Not memory-mapped: on a full disk, a write to a mapped file kills the process. Not opened for reading either:
    # over NFS, the pages that two writers share would then be written as a whole.
    for number in range(block_rnd.shape[1]):
        path, rows = state / vectors_file(number), np.ascontiguousarray(block_rnd[:, number], "<f4")
        first = np.load(path, mmap_mode="r").offset
        with open(path, "wb", opener=lambda name, _: os.open(name, os.O_WRONLY)) as file:
            file.seek(first + start * rows[:1].nbytes)
            file.write(rows.data)


def compact_vectors(state: Path, attributes: int, runs: Iterable[range]) -> None:
    """Leave the rows of `runs` in the matrices, in this order. An interrupted call can be repeated. Raises OSError."""
    runs = list(runs)
    rows = sum(map(len, runs))
    for number in range(attributes):
        matrix = np.load(state / vectors_file(number), mmap_mode="r")  # not all at once: a mapped file keeps its disk
        if len(matrix) == rows:
            continue
        with atomic.file(state / vectors_file(number)) as staging, staging.open("wb") as file:
            _write_header(file, rows, matrix.shape[1])
            for run in runs:
                file.write(matrix[run.start : run.stop].data)


def _write_header(file: BinaryIO, rows: int, width: int) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
