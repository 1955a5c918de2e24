"""Matrices that several workers write, and the gaps that refused pictures leave in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.galleries import unit

from pipeline.retrieval import matrices
from pipeline.retrieval.matrices import compact_vectors, create_vectors, open_vectors, write_vectors

RUNS = [range(0, 5), range(5, 7), range(10, 10), range(15, 18)]
"""Rows of four shards of up to five pictures, of which some were refused."""


@pytest.fixture
def written(tmp_path: Path) -> np.ndarray:
    """Write the rows of RUNS into three matrices, the last shard first, and return them."""
    vectors = unit(18, 3, 7)
    create_vectors(tmp_path, 3, 18, 7)
    for run in reversed(RUNS):
        write_vectors(tmp_path, run.start, vectors[run.start : run.stop])
    create_vectors(tmp_path, 3, 18, 7)  # a command that continues keeps what was written
    return vectors[[row for run in RUNS for row in run]]


def assert_rows(state: Path, expected: np.ndarray) -> None:
    assert np.array_equal(np.stack(open_vectors(state, 3), axis=1), expected)


def test_gaps_are_closed_and_the_order_stays(tmp_path: Path, written: np.ndarray) -> None:
    compact_vectors(tmp_path, 3, RUNS)
    assert_rows(tmp_path, written)


def test_matrices_without_gaps_are_not_written_again(tmp_path: Path) -> None:
    create_vectors(tmp_path, 3, 18, 7)
    before = [file.stat().st_ino for file in sorted((tmp_path / "vectors").iterdir())]
    compact_vectors(tmp_path, 3, [range(0, 10), range(10, 18)])
    assert [file.stat().st_ino for file in sorted((tmp_path / "vectors").iterdir())] == before


def test_closing_gaps_continues_after_an_interruption(
    tmp_path: Path, written: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic_file = matrices.atomic.file

    def interrupted(path: Path):  # type: ignore[no-untyped-def]
        if path.name == "attribute-01.npy":
            raise KeyboardInterrupt
        return atomic_file(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(matrices.atomic, "file", interrupted)
        compact_vectors(tmp_path, 3, RUNS)
    compact_vectors(tmp_path, 3, RUNS)
    assert_rows(tmp_path, written)
