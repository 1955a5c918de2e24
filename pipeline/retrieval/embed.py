"""`agman embed`: a collection of pictures becomes a gallery, on as many workers as the cluster has room for.

    gallery = embed_images("models:/agman-fashionai@champion", "photographs/", "gallery")

The pictures are cut into shards by their order alone; a shard is one Ray Data task of a worker that has loaded the
model once, and becomes one Parquet file. A killed embedding goes on with the shards that have none, and the gallery
appears under its name when all are there. Every picture passes the backbone once, for all attributes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import agman
from data_prep.atomic import is_full, replace_folder, restore
from data_prep.cluster import ray_session
from data_prep.errors import InputError, StorageError
from data_prep.packing import TRIES, check_shared, count_try
from data_prep.pictures import MAX_BYTES, read_file
from data_prep.progress import Progress, silent
from data_prep.storage import Storage
from pipeline.common.console import say
from pipeline.common.errors import JobFailed
from pipeline.common.lock import locked
from pipeline.inference.embedder import BATCH, Embedder, PictureError
from pipeline.registry import models as registry
from pipeline.retrieval.gallery import DESCRIPTION, EMBEDDINGS, Gallery, GalleryInfo, inside, write_gallery
from pipeline.retrieval.image_sources import IMAGES, Source, find_source, read_cells

SHARD = 512
"""Pictures that are embedded and written together: what a killed worker repeats at most."""
STATE = "_partial"
"""In the folder of an unfinished gallery: what it is of, and what each shard refused."""
PLAN, LOCK = f"{STATE}/plan", "lock"
REJECTS = pa.schema([("image", pa.string()), ("file", pa.string()), ("row", pa.int64()), ("detail", pa.string())])


def embed_images(
    model: str,
    images: str | Path,
    out: Path,
    *,
    workers: int = 1,
    precision: str = "fp32",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Gallery:
    """Embed the pictures at `images` under every attribute of `model`.

    See `pipeline.retrieval.image_sources.find_source` for what `images` may be.

    `model`: as `agman evaluate` takes it. Goes on with what an earlier call with equal arguments left; a gallery of
    the same pictures and model that is there already is opened as it is. `overwrite` replaces another one. Pictures
    that cannot be read are in `rejects.parquet`: pictures in = rows + rejects. Raises InputError for what a user can
    mend, also if no picture can be read; nothing is left then.
    """
    from pipeline.cluster.resources import ONE_HEAP, cpus_for, gpus_for

    out = Path(out).resolve()
    network, description = registry.load(model)
    embedder = Embedder(network, description, device="cpu", precision=precision)
    if clash := {"image", "file", "row"} & set(embedder.attributes):
        raise InputError(f"{model}: an attribute named {min(clash)!r} cannot be a gallery's column")
    source = find_source(images)
    info = _info(model, embedder, source)
    restore(out)
    if (there := _there(out, info, overwrite)) is not None:
        say(f"{out}: holds these embeddings already")
        return there
    aside = out.parent / f".{out.name}.partial"
    finished = _is_finished(aside, info)
    if (
        aside.exists()
        and not finished
        and not (aside / PLAN).exists()
        and {one.name for one in aside.iterdir()} - {LOCK, STATE}
    ):
        raise InputError(f"{aside}: is in the way, and was not made by this command; move it, or give another --out")
    try:
        with ExitStack() as stack:
            stack.enter_context(locked(aside, "another --out"))
            if not finished:
                stack.enter_context(ray_session())
                on_gpu, cpus = gpus_for(workers), cpus_for(workers)
                shards = _take_up(aside, info, source)
                check_shared(source.root.local, Storage(aside), PLAN, info.fingerprint)
                resources = {"num_cpus": cpus, "num_gpus": float(on_gpu), "runtime_env": ONE_HEAP}
                _run(shards, aside, source, (network, description, precision), workers, resources, progress)
                _finish(aside, info, len(shards))
            shutil.rmtree(aside / STATE, ignore_errors=True)
            (aside / LOCK).unlink()
            replace_folder(aside, out)
    except OSError as error:
        if not is_full(error):
            raise
        raise InputError(f"{out}: no space left on device; free some, and the same command goes on") from error
    return Gallery.open(out)


def _info(model: str, embedder: Embedder, source: Source) -> GalleryInfo:
    """Without the counts, which are known at the end."""
    decisive = [source.fingerprint, source.kind, str(source.root), embedder.digest, embedder.side, embedder.precision]
    return GalleryInfo(
        model=str(Path(model).absolute()) if Path(model).exists() else registry.shown(model),
        model_digest=embedder.digest,
        attributes=tuple(embedder.attributes),
        width=embedder.width,
        image_size=embedder.side,
        precision=embedder.precision,
        images=0,
        source=source.kind,
        root=str(source.root),
        column=source.column,
        fingerprint=hashlib.sha256(json.dumps(decisive).encode()).hexdigest(),
    )


def _is_finished(aside: Path, info: GalleryInfo) -> bool:
    """Whether a command that was killed had nothing left to do but to put the gallery in its place."""
    if not (aside / DESCRIPTION).is_file():
        return False
    try:
        return Gallery.open(aside).info.fingerprint == info.fingerprint
    except InputError:
        return False


def _there(out: Path, info: GalleryInfo, overwrite: bool) -> Gallery | None:
    """The gallery that is wanted, if it stands at `out`. Raises InputError if something else does."""
    if Path.cwd().is_relative_to(out):
        raise InputError(f"--out {out}: contains the working folder; give a folder of its own")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    if not out.exists() or not any(out.iterdir()):
        return None
    if not (out / DESCRIPTION).is_file():
        raise InputError(f"--out {out}: is not empty and holds no gallery; give another folder")
    if overwrite:
        return None
    there = Gallery.open(out)
    if there.info.fingerprint != info.fingerprint:
        what = "of other pictures" if there.info.model_digest == info.model_digest else f"of {there.info.model}"
        raise InputError(f"--out {out}: holds a gallery {what}; give another folder or --overwrite")
    return there


def _take_up(aside: Path, info: GalleryInfo, source: Source) -> list[pa.Table]:
    """The shards, in order. What an embedding of something else has left goes."""
    plan = aside / PLAN
    if not plan.exists() or plan.read_text() != info.fingerprint:
        for one in aside.iterdir():
            if one.name != LOCK:
                shutil.rmtree(one) if one.is_dir() else one.unlink()
        Storage(plan).write_bytes(info.fingerprint.encode())
    for tries in (aside / STATE).glob("*.tries"):  # of an earlier command, that may have been stopped by anything
        tries.unlink()
    return [source.pictures.slice(start, SHARD) for start in range(0, len(source.pictures), SHARD)]


def part(number: int) -> str:
    """Name of a shard's embeddings below the gallery."""
    return f"{EMBEDDINGS}/part-{number:05d}.parquet"


def _refused(number: int) -> str:
    return f"{STATE}/rejects-{number:05d}.parquet"


def _run(
    shards: list[pa.Table],
    aside: Path,
    source: Source,
    model: tuple[Any, dict[str, Any], str],
    workers: int,
    resources: dict[str, Any],
    progress: Progress,
) -> None:
    """Embed what has no file yet."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    todo = [number for number in range(len(shards)) if not (aside / part(number)).exists()]
    done = sum(len(shards[number]) for number in range(len(shards)) if number not in set(todo))
    title = f"pictures embedded (continuing: {done:,} were there)" if done else "pictures embedded"
    advance = progress(title, len(source.pictures))
    advance(done)
    if not todo:
        return
    numbered = [shards[number].append_column("shard", pa.repeat(number, len(shards[number]))) for number in todo]
    work = ray.data.from_arrow(numbered)
    work.context.enable_progress_bars = False
    results = work.map_batches(
        _Worker,
        fn_constructor_args=(ray.put(model), Storage(aside), source.root, source.column, int(resources["num_cpus"])),
        batch_size=None,  # a block, that is, a shard
        batch_format="pyarrow",
        concurrency=min(workers, len(todo)),
        **resources,
    )
    for row in results.iter_rows():
        if row["error"]:
            raise JobFailed(row["error"])
        advance(row["pictures"])


class _Worker:
    """One process's model; called with a shard's pictures."""

    def __init__(self, model: Any, aside: Storage, root: Storage, column: str | None, threads: int):
        import ray

        network, description, precision = ray.get(model)
        torch.set_num_threads(threads)
        agman.keep_freed_memory()
        self.embedder = Embedder(network, description, precision=precision)
        self.aside, self.root, self.column = aside, root, column
        self.pool = ThreadPoolExecutor(threads)

    def __call__(self, shard: pa.Table) -> pa.Table:
        number, error = int(shard["shard"][0].as_py()), None
        try:
            if not count_try(self.aside / f"{STATE}/shard-{number:05d}.tries"):
                raise StorageError(
                    f"pictures {shard['image'][0]} to {shard['image'][-1]}: {TRIES} workers died of them"
                )
            self._embed(shard.drop_columns("shard"), number)
        except StorageError as failed:
            error = str(failed)
        except OSError as failed:
            why = "no space left on device; free some" if is_full(failed) else str(failed)
            error = f"{self.aside}: {why}, and the same command goes on"
        return pa.table({"pictures": [len(shard)], "error": pa.array([error], pa.string())})

    def _embed(self, shard: pa.Table, number: int) -> None:
        """Write the shard's rejects, then its embeddings: a shard that has these is done."""
        embedded, good, details = [], [], []
        for start in range(0, len(shard), BATCH):
            squares = self._squares(shard.slice(start, BATCH))
            good += [isinstance(one, np.ndarray) for one in squares]
            details += [str(one) for one in squares if isinstance(one, PictureError)]
            embedded.append(self.embedder.embed([one for one in squares if isinstance(one, np.ndarray)]))
            if not np.isfinite(embedded[-1]).all():
                raise StorageError(
                    f"the model gives NaN or infinity for some of the pictures from {shard['image'][start]} on: its "
                    "training diverged, or its weights are damaged"
                )
        mask = pa.array(good)
        refused = shard.filter(pa.array([not one for one in good])).append_column(
            "detail", pa.array(details, pa.string())
        )
        with (self.aside / _refused(number)).atomic_file() as file:
            pq.write_table(refused.cast(REJECTS), file)
        table = _table(shard.filter(mask), np.concatenate(embedded), self.embedder.attributes)
        with (self.aside / part(number)).atomic_file() as file:
            pq.write_table(table, file, compression="zstd", use_dictionary=False, write_statistics=["image"])

    def _squares(self, pictures: pa.Table) -> list[np.ndarray | PictureError]:
        """Each picture as the model sees it, or why it cannot be."""
        if self.column is None:
            return list(self.pool.map(self._of_file, pictures["file"].to_pylist()))
        data: list[bytes | None] = []
        for file in dict.fromkeys(pictures["file"].to_pylist()):  # a shard may begin in one file and end in the next
            rows = [one["row"] for one in pictures.to_pylist() if one["file"] == file]
            try:
                data += read_cells(self.root, file, rows, self.column)
            except (OSError, ValueError, IndexError, pa.ArrowException) as error:
                raise StorageError(f"{self.root / file}: cannot be read ({error}); is it being written?") from error
        return list(self.pool.map(self._of_bytes, data))

    def _of_file(self, name: str) -> np.ndarray | PictureError:
        assert self.root.local
        try:
            return self._of_bytes(read_file(inside(self.root.local, name)))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            return PictureError(f"cannot be read ({why})")

    def _of_bytes(self, data: bytes | None) -> np.ndarray | PictureError:
        if not data:
            return PictureError("there is nothing in it")
        if len(data) > MAX_BYTES:
            return PictureError(f"the file is too large ({len(data):,} bytes)")
        try:
            return self.embedder.read(data)
        except PictureError as error:
            return error


def _table(pictures: pa.Table, embeddings: np.ndarray, attributes: list[str]) -> pa.Table:
    """What a shard's file holds: where each picture is, and a column of vectors for each attribute."""
    for number, name in enumerate(attributes):
        values = pa.array(np.ascontiguousarray(embeddings[:, number]).reshape(-1))
        pictures = pictures.append_column(name, pa.FixedSizeListArray.from_arrays(values, embeddings.shape[2]))
    return pictures


def _finish(aside: Path, info: GalleryInfo, shards: int) -> None:
    """Everything that makes the folder a gallery. Raises InputError if it would have no row."""
    parts = [aside / part(number) for number in range(shards)]
    pictures = pa.concat_tables([pq.read_table(file, columns=IMAGES.names) for file in parts])
    refused = pa.concat_tables([pq.read_table(aside / _refused(number)) for number in range(shards)])
    if not len(pictures):
        first = refused.slice(0, 1).to_pylist()[0]
        shutil.rmtree(aside, ignore_errors=True)
        raise InputError(f"none of the {len(refused):,} pictures can be read; {first['image']}: {first['detail']}")
    pq.write_table(refused, aside / "rejects.parquet")
    reasons = Counter(detail.partition(" (")[0] for detail in refused["detail"].to_pylist())
    info = info.model_copy(update={"images": len(pictures), "rejects": dict(sorted(reasons.items()))})
    write_gallery(aside, info, pictures, _blocks(parts, info.attributes))


def _blocks(parts: list[Path], attributes: tuple[str, ...]) -> Iterator[np.ndarray]:
    """Each file's embeddings, pictures×N×D."""
    for file in parts:
        table = pq.read_table(file, columns=list(attributes))
        if len(table):
            flat = (column.combine_chunks().flatten().to_numpy() for column in table.columns)
            yield np.stack([vectors.reshape(len(table), -1) for vectors in flat], axis=1)
