"""Packing: every image is decoded and resized once, shuffled, and written to Parquet shards.

The plan is made first, from the image table and the seed alone: which images make which shard, in which order.
Every shard is one task of Ray Data, so its bytes do not depend on the number of workers; a small dataset is packed
by the same function in this process. The record of a shard (the images' source sizes, and the refused images) is
written after the shard. A stopped preparation continues with the shards that have no record.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import features

from data_prep.atomic import BEING_WRITTEN, is_full
from data_prep.encoding import JPEG_QUALITY, LONGEST_SIDE, Packed, Refused, pack_image
from data_prep.errors import StorageError
from data_prep.pictures import MAX_BYTES, MAX_PIXELS
from data_prep.progress import Progress, silent
from data_prep.shared import Shared
from data_prep.storage import Storage
from data_prep.tables import DESCRIPTION, PACKED, REPORT, TABLES

if TYPE_CHECKING:  # imported where it is used: whoever opens a dataset imports this module
    import pandas as pd

VERSION = 2
"""Version of the packed bytes; raise it with every change to them."""
ROW_GROUP = 1_000
SHARD = 2_000
IN_PROCESS = SHARD
"""Images that are packed in this process, because starting Ray would take longer."""
TRIES = 4
"""Tries of a shard whose worker dies. Ray Data itself would retry for ever if a picture crashes the decoder."""

STATE = "_partial"
"""Folder of an unfinished dataset: the records of packed shards, and the fingerprint of their input."""
MARKER = f"{STATE}/fingerprint"
BOX = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True)
class Packing:
    """Result of packing."""

    sizes: pd.DataFrame
    """Size of every packed image's source, upright, in pixels: image_id, width, height; ordered by image_id."""
    refused: pd.DataFrame
    """Refused images: image_id, reason (a key of annotation.REASONS), detail; ordered by image_id."""
    sha256: dict[str, str]
    """Name of a shard -> sha256 of its bytes."""


@dataclass(frozen=True)
class ShardRecord:
    """Content of a shard."""

    sizes: np.ndarray
    """N×3: image id, width and height of the source of each packed image."""
    refused: list[tuple[int, str, str]]
    """Image id, reason and detail of each refused image."""
    bytes: int
    sha256: str

    @classmethod
    def read(cls, file: Storage) -> ShardRecord:
        """Read a record."""
        fields = json.loads(file.read_bytes())
        return cls(**fields | {"sizes": np.array(fields["sizes"], np.int64).reshape(-1, 3)})

    def write(self, file: Storage) -> None:
        """Write the record as JSON."""
        file.write_bytes(json.dumps(vars(self) | {"sizes": self.sizes.tolist()}).encode())

    @property
    def images(self) -> int:
        """Number of images, packed or refused."""
        return len(self.sizes) + len(self.refused)


def _record_of(shard: str) -> str:
    return f"{STATE}/{shard.removesuffix('.parquet')}.json"


@dataclass(frozen=True)
class Shard:
    """A planned shard."""

    name: str
    rows: pd.DataFrame

    @property
    def record(self) -> str:
        """Name of the shard's record."""
        return _record_of(self.name)


def pack(
    images: pd.DataFrame,
    root: Path,
    storage: Storage,
    image_size: int,
    seed: int,
    progress: Progress = silent,
) -> Packing:
    """Pack `images` below `root` into `storage/packed/split=S/part-*.parquet`, their short side `image_size` pixels.

    `images` has image_id, path and split, and optionally a box x0, y0, x1, y1 to cut out (float pixels of the upright
    source picture; NaN for the complete picture). The order is shuffled within splits by `seed`. More than IN_PROCESS
    images are packed in the current Ray session, or in a new one. Finished shards of an earlier call with equal
    arguments are kept; everything else that an unfinished dataset left in `storage` is deleted. Raises InputError if
    a worker cannot see `root`, StorageError if one cannot write.
    """
    fingerprint = _fingerprint(images, root, image_size, seed)
    shards = list(_plan(images, seed))
    records = _take_up(storage, fingerprint, shards)
    done = sum(record.images for record in records.values())
    title = (
        f"images packed (continuing: {done:,} of {len(images):,} images already packed)" if done else "images packed"
    )
    advance = progress(title, len(images))
    advance(done)
    todo = [shard for shard in shards if shard.name not in records]
    for packed in _run(todo, root, storage, image_size, fingerprint):
        advance(packed)
    for shard in todo:
        records[shard.name] = ShardRecord.read(storage / shard.record)
    return _collect([records[shard.name] for shard in shards], [shard.name for shard in shards])


def begun(storage: Storage) -> bool:
    """Return whether a preparation has begun to write to `storage`, and has not ended."""
    return (storage / MARKER).exists()


def unfinished(storage: Storage) -> bool:
    """Return whether `storage` holds packed images of a preparation that was stopped."""
    return any(name.endswith(".json") for name in (storage / STATE).files())


def discard(storage: Storage, keep: Collection[str] = ()) -> None:
    """Delete the files of a finished or unfinished dataset, except `keep`, and no other files."""
    # The description first: without it the rest is not a dataset.
    for name in sorted(storage.files(), key=lambda name: name != DESCRIPTION):
        if is_made_here(name) and name not in keep:
            (storage / name).delete()


def is_made_here(name: str) -> bool:
    """Return whether preparing makes a file of this name in a dataset's folder."""
    ours = name in (DESCRIPTION, REPORT, *TABLES) or name.split("/")[0] in ("packed", "triplets", STATE)
    return ours or name.endswith(BEING_WRITTEN)


def _fingerprint(images: pd.DataFrame, root: Path, image_size: int, seed: int) -> str:
    """Return the hash of everything that decides the bytes of the shards."""
    total = hashlib.sha256()
    constants = (VERSION, ROW_GROUP, SHARD, JPEG_QUALITY, LONGEST_SIDE, MAX_PIXELS, MAX_BYTES)
    libraries = (PIL.__version__, features.version("jpg"), pa.__version__)
    total.update(repr((constants, libraries, str(root), image_size, seed)).encode())
    for name in ("image_id", "path", "split", *BOX):
        if name in images:
            total.update(name.encode())
            for start in range(0, len(images), 100_000):
                total.update(json.dumps(images[name].iloc[start : start + 100_000].tolist()).encode())
    return total.hexdigest()


def _plan(images: pd.DataFrame, seed: int) -> Iterator[Shard]:
    """Yield shards of even size of the images of every split, in shuffled order."""
    for split, of_split in images.groupby("split"):
        order = np.random.default_rng(seed).permutation(len(of_split))
        for number, rows in enumerate(np.array_split(order, -(-len(order) // SHARD))):
            yield Shard(f"packed/split={split}/part-{number:05d}.parquet", of_split.iloc[rows])


def _take_up(storage: Storage, fingerprint: str, shards: list[Shard]) -> dict[str, ShardRecord]:
    """Return the records of finished shards, and delete everything else of an earlier preparation."""
    marker = storage / MARKER
    files = storage.files()
    same = MARKER in files and marker.read_bytes().decode() == fingerprint
    records = {}
    for shard in shards if same else ():
        if shard.record in files and shard.name in files:
            record = ShardRecord.read(storage / shard.record)
            if record.bytes == files[shard.name]:
                records[shard.name] = record
    keep = {MARKER} if same else set()
    keep |= {shard.name for shard in shards if shard.name in records}
    keep |= {shard.record for shard in shards if shard.name in records}
    discard(storage, keep)
    marker.write_bytes(fingerprint.encode())
    return records


def _run(shards: list[Shard], root: Path, storage: Storage, image_size: int, fingerprint: str) -> Iterator[int]:
    """Pack the shards; yield the number of images of each finished one. Raises StorageError if one cannot be written.

    Up to IN_PROCESS images are packed in this process, more by Ray.
    """
    local = any("://" not in path for shard in shards for path in shard.rows["path"])
    shared = Shared(storage, MARKER, fingerprint, {"images": root} if local else {})
    job = partial(_pack_shard, root=root, shared=shared, image_size=image_size)
    if sum(len(shard.rows) for shard in shards) <= IN_PROCESS:
        results = _packed_here(shards, job)
    else:
        results = _packed_on_cluster(shards, job, shared)
    for row in results:
        if row["error"]:
            raise StorageError(row["error"])
        yield row["images"]


def _packed_here(shards: list[Shard], job: Callable[[pa.Table], pa.Table]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        yield from job(_block(shard)).to_pylist()


def _packed_on_cluster(
    shards: list[Shard], job: Callable[[pa.Table], pa.Table], shared: Shared
) -> Iterator[dict[str, Any]]:
    # Imported here, because neither the workers nor small datasets need Ray Data, and the import takes seconds.
    import ray.data

    from data_prep.cluster import ray_session

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with ray_session():
        shared.check_nodes()
        work = ray.data.from_arrow([_block(shard) for shard in shards])
        work.context.enable_progress_bars = False
        # batch_size=None: a batch is a block, that is, a shard.
        yield from work.map_batches(job, batch_size=None, batch_format="pyarrow", num_cpus=1).iter_rows()


def _block(shard: Shard) -> pa.Table:
    rows = shard.rows
    columns = {"image_id": rows["image_id"].to_numpy(np.int64), "path": pa.array(rows["path"].tolist(), pa.string())}
    columns |= {name: rows[name].to_numpy(np.float64) for name in BOX if name in rows}
    same = pa.DictionaryArray.from_arrays(np.zeros(len(rows), np.int32), [shard.name])
    return pa.table(columns | {"shard": same})


def _pack_shard(rows: pa.Table, root: Path, shared: Shared, image_size: int) -> pa.Table:
    """Write one shard and then its record. Returns one row: the number of images, and an error message or None."""
    name, error = rows["shard"][0].as_py(), None
    storage = shared.storage
    try:
        shared.check()  # this node may have joined the cluster later; every image would be missing
        if not count_try(storage / _record_of(name).replace(".json", ".tries")):
            raise StorageError(
                f"{storage / name}: {TRIES} workers died of it; is there memory for one image at a time?"
            )
        _write_shard(rows, root, storage / name, image_size).write(storage / _record_of(name))
    except StorageError as failed:
        error = str(failed)
    except OSError as failed:
        why = "no space left on device; free some" if is_full(failed) else f"cannot be written ({failed})"
        error = f"{storage / name}: {why}"
    return pa.table({"images": [len(rows)], "error": pa.array([error], pa.string())})


def count_try(counter: Storage) -> bool:
    """Count one more try. Returns whether it is one of the first TRIES."""
    tries = int(counter.read_bytes()) if counter.exists() else 0
    counter.write_bytes(str(tries + 1).encode())
    return tries < TRIES


def _write_shard(rows: pa.Table, root: Path, shard: Storage, image_size: int) -> ShardRecord:
    """Write a shard, with one row group of encoded pictures and one decoded picture in memory at a time."""
    sizes: list[tuple[int, int, int]] = []
    refused: list[tuple[int, str, str]] = []
    with shard.atomic_file() as file:
        # JPEG data compresses no further and has no duplicates; statistics of pictures are of no use.
        options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": ["image_id"]}
        with pq.ParquetWriter(file, PACKED, **options) as writer:
            for group in np.array_split(np.arange(len(rows)), -(-len(rows) // ROW_GROUP)):
                packed: list[tuple[int, Packed]] = []
                for row in rows.slice(group[0], len(group)).to_pylist():
                    box = tuple(row.get(side, np.nan) for side in BOX)
                    result = pack_image(root, row["path"], image_size, None if np.isnan(box).all() else box)
                    if isinstance(result, Refused):
                        refused.append((row["image_id"], *result))
                    else:
                        packed.append((row["image_id"], result))
                        sizes.append((row["image_id"], result.source_width, result.source_height))
                writer.write_table(_table(packed))
        with file.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        return ShardRecord(np.array(sizes, np.int64).reshape(-1, 3), refused, file.stat().st_size, digest)


def _table(packed: list[tuple[int, Packed]]) -> pa.Table:
    return pa.table(
        {
            "image_id": [image_id for image_id, _ in packed],
            "jpeg": [image.jpeg for _, image in packed],
            "width": [image.width for _, image in packed],
            "height": [image.height for _, image in packed],
        },
        schema=PACKED,
    )


def _collect(records: list[ShardRecord], names: list[str]) -> Packing:
    import pandas as pd

    sizes = np.concatenate([record.sizes for record in records])
    refused = [row for record in records for row in record.refused]
    return Packing(
        sizes=pd.DataFrame(sizes, columns=["image_id", "width", "height"]).sort_values("image_id", ignore_index=True),
        refused=pd.DataFrame(refused, columns=["image_id", "reason", "detail"])
        .astype({"image_id": np.int64})
        .sort_values("image_id", ignore_index=True),
        sha256={name: record.sha256 for name, record in zip(names, records, strict=True)},
    )
