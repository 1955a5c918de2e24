"""A table of 2 million pictures, read as CSV, against plain pandas: `agman bench table`.

Twelve columns: an identifier, a path, a sender, five attributes (one with several values in a cell), a price, a date,
a title and a flag. Each reader runs in its own process, whose peak memory is measured.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.common import in_own_process, timed, write_table

ROWS = 2_000_000
BATCH = 100_000
SIZES = {"category": 40, "colour": 24, "pattern": 12, "material": 30}
"""Attributes of one value and their numbers of values."""
TAGS = 15
MISSING = 0.1
"""Share of empty cells of each attribute."""


def write_file(file: Path) -> None:
    """Write the table."""
    rng = np.random.default_rng(0)
    with file.open("w", encoding="utf-8") as out:
        out.write("id,path,sender,category,colour,pattern,material,tags,price,added,title,kids\n")
        for start in range(0, ROWS, BATCH):
            cells = [
                np.where(
                    rng.random(BATCH) < MISSING, "", np.char.add(f"{name} ", rng.integers(0, n, BATCH).astype(str))
                )
                for name, n in SIZES.items()
            ]
            tags = rng.integers(0, TAGS, (BATCH, 2))
            columns = zip(*cells, tags.tolist(), rng.integers(0, 50_000, BATCH).tolist(), strict=True)
            for number, (category, colour, pattern, material, (one, two), sender) in enumerate(columns, start=start):
                out.write(
                    f"{number},images/{number // 1000:05d}/{number:09d}.jpg,sender {sender},"
                    f"{category},{colour},{pattern},{material},tag {one};tag {two},"
                    f"{number % 9973 / 100},2026-01-{number % 28 + 1:02d},"
                    f'"A {category}, {colour}",{number % 7 == 0}\n'
                )


def ours(file: Path) -> int:
    """Read the adapter's way: labels with the lines they are from, rare values left out, a split by sender."""
    from data_prep.layouts.table import annotated
    from data_prep.request import Request, TableOptions

    options = TableOptions(
        table=file, image="path", attributes=(*SIZES, "tags"), separator=";", group="sender", min_images=2
    )
    return len(annotated(Request(file.parent, table=options)).rows)


def plain_pandas(file: Path) -> int:
    """Read all columns with read_csv, and make one row for each label with melt and explode; no split."""
    import pandas as pd

    table = pd.read_csv(file)
    table["tags"] = table["tags"].str.split(";")
    labels = table.melt(id_vars=["path", "sender"], value_vars=[*SIZES, "tags"]).dropna()
    return len(labels.explode("value").drop_duplicates())


READERS: dict[str, Callable[[Path], int]] = {reader.__name__: reader for reader in (ours, plain_pandas)}
TITLES = {
    "ours": "`data_prep.layouts.table`, with a split by sender",
    "plain_pandas": "pandas `read_csv`, `melt`, `explode`; no split",
}


def run(name: str, file: Path) -> None:
    """Run a reader in this process; print seconds, peak MiB and the number of labels."""
    seconds, labels = timed(lambda: READERS[name](file))
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, labels)


def main() -> None:
    """Run every reader; write the table of results."""
    rows, labels = [], set()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "catalogue.csv")
        write_file(file)
        size = file.stat().st_size
        for name in READERS:
            seconds, peak, found = in_own_process("table", name, str(file)).split()
            labels.add(found)
            rows.append([TITLES[name], f"{float(seconds):.1f}", f"{float(peak):.0f}", f"{int(found):,}"])
    if len(labels) > 1:
        raise SystemExit(f"the readers do not agree: {', '.join(sorted(labels))} labels")
    notes = (
        f"A CSV file of {ROWS:,} × 12 cells, {size / 1e6:,.0f} MB; five attributes are read. Peak memory is "
        "that of the process, with its results; the pictures' files are not looked for. Wanted: at most 60 s and 2 GiB."
    )
    write_table("table", ["reader", "s", "peak, MiB", "labels"], rows, notes)


if __name__ == "__main__":  # a reader in a process of its own
    run(sys.argv[1], Path(sys.argv[2]))
