"""DeepFashion's list_attr_img.txt at full size, against plain readers: `agman bench annotation`.

289,222 lines of a path and 1,000 values are written in the file's format. Each reader runs in its own process, whose
peak memory is measured.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.common import in_own_process, timed, write_table

ROWS, COLUMNS = 289_222, 1_000
MARKS = 3.3
"""Mean number of values marked 1 per image."""
TYPE_SIZES = (156, 218, 180, 216, 230)


def write_files(root: Path) -> None:
    """Write list_attr_cloth.txt, list_attr_img.txt and list_eval_partition.txt below `root`."""
    (root / "Anno_coarse").mkdir()
    (root / "Eval").mkdir()
    rng = np.random.default_rng(0)
    types = rng.permutation(np.repeat(np.arange(1, 6), TYPE_SIZES))
    cloth = [f"value number {i:<30} {kind}" for i, kind in enumerate(types)]
    names = [f"img/Category_{i % 5_000}/img_{i:08d}.jpg" for i in range(ROWS)]
    parts = [f"{name:70} {('train', 'train', 'train', 'val', 'test')[i % 5]}" for i, name in enumerate(names)]
    for file, columns, lines in (
        ("Anno_coarse/list_attr_cloth.txt", "attribute_name  attribute_type", cloth),
        ("Eval/list_eval_partition.txt", "image_name  evaluation_status", parts),
    ):
        (root / file).write_text("\n".join([str(len(lines)), columns, *lines, ""]))
    with (root / "Anno_coarse/list_attr_img.txt").open("wb") as out:
        out.write(f"{ROWS}\nimage_name  attribute_labels\n".encode())
        for start in range(0, ROWS, 4_000):
            chunk = names[start : start + 4_000]
            text = np.tile(np.frombuffer(b"-1 ", np.uint8), (len(chunk), COLUMNS, 1)).reshape(len(chunk), COLUMNS, 3)
            text[rng.random(text.shape[:2]) < MARKS / COLUMNS] = np.frombuffer(b" 1 ", np.uint8)
            out.writelines(
                f"{name:70} ".encode() + row.tobytes() + b"\n" for name, row in zip(chunk, text, strict=True)
            )


def ours(root: Path) -> list[tuple[str, int]]:
    """Return the marks alone, as the plain readers do."""
    from data_prep.layouts.deepfashion_matrix import read_head, read_marks

    file = root / "Anno_coarse/list_attr_img.txt"
    marks = read_marks(file, root, read_head(file, root), COLUMNS)
    return [(marks.paths[i], int(c)) for i, c in zip(marks.image, marks.column, strict=True)]


def adapter(root: Path) -> list[tuple[str, int]]:
    """Run the complete adapter: schema, marks, partition, repeats, queries and candidates."""
    from data_prep.layouts.deepfashion import read
    from data_prep.request import Request

    annotation = read(Request(root))
    return list(zip(annotation.rows["path"], annotation.rows["value"], strict=True))


def plain_python(root: Path) -> list[tuple[str, int]]:
    """Read line by line, as the published repositories do."""
    marks = []
    with (root / "Anno_coarse/list_attr_img.txt").open() as lines:
        next(lines), next(lines)
        for line in lines:
            path, *values = line.split()
            marks += [(path, column) for column, value in enumerate(values) if value == "1"]
    return marks


def plain_pandas(root: Path) -> list[tuple[str, int]]:
    """Read with read_csv in chunks; the complete file needs more memory than most machines have."""
    import pandas as pd

    marks = []
    types = dict.fromkeys(range(1, COLUMNS + 1), "int8")
    file = root / "Anno_coarse/list_attr_img.txt"
    for part in pd.read_csv(file, sep=r"\s+", header=None, skiprows=2, dtype=types, chunksize=20_000):
        rows, columns = np.nonzero(part.iloc[:, 1:].to_numpy() == 1)
        marks += list(zip(part[0].to_numpy()[rows].tolist(), columns.tolist(), strict=True))
    return marks


READERS: dict[str, Callable[[Path], list[tuple[str, int]]]] = {
    reader.__name__: reader for reader in (ours, adapter, plain_python, plain_pandas)
}
TITLES = {
    "ours": "`deepfashion_matrix.read_marks`",
    "adapter": "`deepfashion.read`, the complete adapter",
    "plain_python": "plain Python, line by line",
    "plain_pandas": "pandas `read_csv`, 20,000 lines at a time",
}


def run(name: str, root: Path) -> None:
    """Run a reader in this process; print seconds, peak MiB, the number of marks and their hash."""
    seconds, marks = timed(lambda: READERS[name](root))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    digest = hashlib.sha256("".join(f"{path} {column}\n" for path, column in marks).encode()).hexdigest()
    print(seconds, peak, len(marks), digest)


def main() -> None:
    """Run every reader; write the table."""
    rows, digests = [], {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_files(root)
        size = (root / "Anno_coarse/list_attr_img.txt").stat().st_size
        for name in READERS:
            printed = in_own_process("annotation", name, str(root)).split()
            digests[name] = printed[3]
            rows.append([TITLES[name], f"{float(printed[0]):.1f}", f"{float(printed[1]):.0f}", f"{int(printed[2]):,}"])
    if len({digests[name] for name in ("ours", "plain_python", "plain_pandas")}) > 1:
        raise SystemExit("the readers do not agree")
    notes = (
        f"list_attr_img.txt in its own format: {ROWS:,} × {COLUMNS:,} values, {size / 1e6:,.0f} MB. The "
        "readers found the same marks. Peak memory is that of the process, with its results. "
        "Wanted: at most 60 s and 2 GiB."
    )
    write_table("annotation", ["reader", "s", "peak, MiB", "marks or labels"], rows, notes)


if __name__ == "__main__":  # a reader in a process of its own
    run(sys.argv[1], Path(sys.argv[2]))
