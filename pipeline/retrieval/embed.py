"""`agman embed`: computes a gallery from a collection of pictures, on as many workers as the cluster has room for.

    gallery = embed_images("models:/agman-fashionai@champion", "photographs/", "gallery")

The pictures are divided into shards, in their order. A worker, which is a Ray actor, loads the model once, embeds one
shard after another and writes a Parquet file for each. A command that continues a killed one embeds the shards
that have no file, and the gallery appears under its name when all shards are complete. Every picture passes the
backbone once, for all attributes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray.util import ActorPool

from agman.embedder import BATCH, Embedder
from agman.memory import keep_freed_memory
from agman.tagger import TAGGER, Tagger
from data_prep.atomic import is_full, replace_folder, restore
from data_prep.cluster import ray_session
from data_prep.errors import InputError, StorageError
from data_prep.packing import TRIES, check_shared, count_try
from data_prep.progress import Progress, silent
from data_prep.storage import Storage
from pipeline.cluster.resources import ONE_HEAP, cpus_for, gpus_for
from pipeline.common.console import say
from pipeline.common.errors import JobFailed
from pipeline.common.lock import locked
from pipeline.evaluation.few import validation_queries
from pipeline.registry.loading import load_with_tagger, shown
from pipeline.retrieval.gallery import DESCRIPTION, EMBEDDINGS, Gallery, GalleryInfo, write_gallery
from pipeline.retrieval.image_sources import IMAGES, Source, find_source
from pipeline.retrieval.picture_embedder import REJECTS, PictureEmbedder

SHARD = 512
"""Pictures that are embedded and written together; a killed worker repeats at most as many."""
STATE = "_partial"
"""Folder below an unfinished gallery with its fingerprint, rejects and counts of attempts."""
FINGERPRINT, LOCK = f"{STATE}/plan", "lock"
SKIPPED = pa.schema([("file", pa.string()), ("detail", pa.string())])


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

    A call with equal arguments continues an interrupted one, and opens a complete gallery of the same pictures and
    model. Unreadable pictures are listed in `rejects.parquet`, pictures = rows + rejects, and files that are not taken
    for pictures in `skipped.parquet`. Raises InputError for invalid
    arguments, and, leaving nothing behind, if no picture can be embedded.

    Args:
        model: as `agman evaluate` takes it.
        images: as `pipeline.retrieval.image_sources.find_source` takes it.
        out: folder of the gallery.
        workers: number of processes.
        precision: fp32 or bf16.
        overwrite: replace a gallery of other pictures or of another model.
        progress: callback for the number of embedded pictures.
    """
    out = Path(out).resolve()
    model = _pinned(model)
    network, description, tagger = load_with_tagger(model)
    embedder = Embedder(network, description, device="cpu", precision=precision)
    if clash := {"image", "file", "row"} & set(embedder.attributes):
        raise InputError(f"{model}: an attribute named {min(clash)!r} cannot be a gallery's column")
    source = find_source(images)
    queries = validation_queries(embedder.attributes, description.get("data", {}).get("queries_of", {}))
    info = _info(model, embedder, source).model_copy(update={"queries": queries})
    restore(out)
    if (gallery := _existing(out, info, overwrite)) is not None:
        say(f"{out}: contains these embeddings already")
        try:
            _add_prototypes(out, tagger)
        except OSError as error:  # it can be searched by pictures all the same
            say(f"note: the model's prototypes cannot be added ({error})")
        return gallery
    staging = out.parent / f".{out.name}.partial"
    if not (complete := _is_complete(staging, info)):
        _refuse_foreign(staging)
    try:
        with locked(staging, "another --out"):
            if not complete:
                with ray_session():
                    _embed(staging, info, source, (network, description, precision), workers, progress)
            shutil.rmtree(staging / STATE, ignore_errors=True)
            _add_prototypes(staging, tagger)
            (staging / LOCK).unlink()
            replace_folder(staging, out)
    except OSError as error:
        if not is_full(error):
            raise
        raise InputError(f"{out}: no space left on device; free some, and the same command continues") from error
    return Gallery.open(out)


def _add_prototypes(folder: Path, tagger: Tagger | None) -> None:
    """Write the model's prototypes into its gallery, unless they are there."""
    file, content = folder / TAGGER, tagger.to_bytes() if tagger else b""
    if content and not (file.is_file() and file.read_bytes() == content):
        Storage(file).write_bytes(content)


def _pinned(model: str) -> str:
    """Return the address of a version, which means the same model for ever, for the address of an alias."""
    if not model.startswith("models:/"):
        return model
    from pipeline.registry.versions import pinned  # MLflow takes seconds to import

    return pinned(model)


def _checkpoint(model: str) -> str | None:
    """Return the local folder in which the registry keeps a version, or None."""
    if not model.startswith("models:/"):
        return None
    from pipeline.registry.versions import local_folder

    folder = local_folder(model)
    return str(folder) if folder else None


def _info(model: str, embedder: Embedder, source: Source) -> GalleryInfo:
    """Describe the gallery, without the counts, which are known at the end."""
    decisive = [source.fingerprint, source.kind, str(source.root), embedder.digest, embedder.side, embedder.precision]
    return GalleryInfo(
        model=str(Path(model).absolute()) if Path(model).exists() else shown(model),
        model_digest=embedder.digest,
        checkpoint=_checkpoint(model),
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


def _existing(out: Path, info: GalleryInfo, overwrite: bool) -> Gallery | None:
    """Return the gallery at `out` if it is the requested one, and None if `out` may be written.

    Raises InputError if `out` contains anything else.
    """
    if Path.cwd().is_relative_to(out):
        raise InputError(f"--out {out}: contains the working folder; give a folder of its own")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    if not out.exists() or not any(out.iterdir()):
        return None
    if not (out / DESCRIPTION).is_file():
        raise InputError(f"--out {out}: is not empty and contains no gallery; give another folder")
    if overwrite:
        return None
    gallery = Gallery.open(out)
    if gallery.info.fingerprint != info.fingerprint:
        same_model = gallery.info.model_digest == info.model_digest
        other = "of other pictures" if same_model else f"of {gallery.info.model}"
        raise InputError(f"--out {out}: contains a gallery {other}; give another folder or --overwrite")
    return gallery


def _refuse_foreign(staging: Path) -> None:
    """Raise InputError if another program has made the folder `staging`."""
    if not staging.exists() or (staging / FINGERPRINT).exists():
        return
    if {one.name for one in staging.iterdir()} - {LOCK, STATE}:
        raise InputError(f"{staging}: is in the way, and was not made by this command; move it, or give another --out")


def _is_complete(staging: Path, info: GalleryInfo) -> bool:
    """Return whether a killed command has completed this gallery, but has not given it its name."""
    try:
        return Gallery.open(staging).info.fingerprint == info.fingerprint
    except InputError:
        return False


def part_file(number: int) -> str:
    """Return the path of a shard's embeddings, relative to the gallery."""
    return f"{EMBEDDINGS}/part-{number:05d}.parquet"


def _rejects_file(number: int) -> str:
    return f"{STATE}/rejects-{number:05d}.parquet"


def _tries_file(number: int) -> str:
    return f"{STATE}/shard-{number:05d}.tries"


def _embed(
    staging: Path,
    info: GalleryInfo,
    source: Source,
    model: tuple[Any, dict[str, Any], str],
    workers: int,
    progress: Progress,
) -> None:
    """Embed the shards that have no file, and complete the gallery."""
    on_gpu, cpus = gpus_for(workers), cpus_for(workers)
    _clear_stale(staging, info)
    check_shared(source.root.local, Storage(staging), FINGERPRINT, info.fingerprint)
    shards = [source.pictures.slice(start, SHARD) for start in range(0, len(source.pictures), SHARD)]
    missing = [number for number in range(len(shards)) if not (staging / part_file(number)).exists()]
    done = len(source.pictures) - sum(len(shards[number]) for number in missing)
    title = f"pictures embedded (continuing: {done:,} were done)" if done else "pictures embedded"
    advance = progress(title, len(source.pictures))
    advance(done)
    if missing:
        worker = ray.remote(_RemoteWorker).options(
            num_cpus=cpus,
            num_gpus=float(on_gpu),
            runtime_env=ONE_HEAP,
            scheduling_strategy="SPREAD",
            max_restarts=-1,  # `count_try` limits the attempts
            max_task_retries=-1,
        )
        loaded = [ray.put(model)]  # in a list, so that a call does not copy it
        arguments = (Storage(staging), source.root, source.column, cpus)
        actors = [worker.remote(*arguments) for _ in range(min(workers, len(missing)))]
        try:
            results = ActorPool(actors).map_unordered(
                lambda actor, number: actor.embed.remote(number, shards[number], loaded), missing
            )
            for pictures, error in results:
                if error:
                    raise JobFailed(error)
                advance(pictures)
        finally:
            for actor in actors:
                ray.kill(actor)
    _finish(staging, info, len(shards), source.skipped)


def _clear_stale(staging: Path, info: GalleryInfo) -> None:
    """Remove the files of another embedding, and the counts of attempts of an earlier command."""
    file = staging / FINGERPRINT
    if not file.exists() or file.read_text() != info.fingerprint:
        for one in staging.iterdir():
            if one.name != LOCK:
                shutil.rmtree(one) if one.is_dir() else one.unlink()
        Storage(file).write_bytes(info.fingerprint.encode())
    for tries in (staging / STATE).glob("*.tries"):  # that command may have been stopped by anything
        tries.unlink()


class _Worker:
    """Process with the model."""

    def __init__(
        self,
        model: tuple[Any, dict[str, Any], str],
        staging: Storage,
        root: Storage,
        column: str | None,
        threads: int,
    ):
        network, description, precision = model
        torch.set_num_threads(threads)
        keep_freed_memory()
        self.embedder = Embedder(network, description, precision=precision)
        self.pictures = PictureEmbedder(self.embedder, root, column, threads)
        self.staging = staging

    def embed(self, number: int, shard: pa.Table) -> tuple[int, str | None]:
        """Embed a shard; return its number of pictures, and the error for which the command must end."""
        error = None
        try:
            if not count_try(self.staging / _tries_file(number)):
                raise StorageError(
                    f"pictures {shard['image'][0]} to {shard['image'][-1]}: {TRIES} workers died of them"
                )
            self._embed(number, shard)
        except StorageError as failed:
            error = str(failed)
        except OSError as failed:
            why = "no space left on device; free some" if is_full(failed) else str(failed)
            error = f"{self.staging}: {why}, and the same command continues"
        return len(shard), error

    def _embed(self, number: int, shard: pa.Table) -> None:
        """Write the rejects of a shard, then its embeddings, which mark the shard as complete."""
        embedded, details = [], []
        for start in range(0, len(shard), BATCH):
            vectors, of_batch = self.pictures.embed(shard.slice(start, BATCH))
            embedded.append(vectors)
            details += of_batch
        detail = pa.array(details, pa.string())
        rejects = shard.append_column("detail", detail).filter(detail.is_valid())
        with (self.staging / _rejects_file(number)).atomic_file() as file:
            pq.write_table(rejects.cast(REJECTS), file)
        table = _table(shard.filter(detail.is_null()), np.concatenate(embedded), self.embedder.attributes)
        with (self.staging / part_file(number)).atomic_file() as file:
            pq.write_table(table, file, compression="zstd", use_dictionary=False, write_statistics=["image"])


class _RemoteWorker:
    """Worker in a Ray actor. The model comes with the first call: Ray warns of actors with large arguments."""

    def __init__(self, *arguments: Any):
        self._arguments = arguments
        self._worker: _Worker | None = None

    def embed(self, number: int, shard: pa.Table, model: list[ray.ObjectRef]) -> tuple[int, str | None]:
        """Embed a shard as `_Worker.embed` does."""
        if self._worker is None:
            self._worker = _Worker(ray.get(model[0]), *self._arguments)
        return self._worker.embed(number, shard)


def _table(pictures: pa.Table, embeddings: np.ndarray, attributes: list[str]) -> pa.Table:
    """Return the pictures with a column of vectors for each attribute."""
    for number, name in enumerate(attributes):
        values = pa.array(np.ascontiguousarray(embeddings[:, number]).reshape(-1))
        pictures = pictures.append_column(name, pa.FixedSizeListArray.from_arrays(values, embeddings.shape[2]))
    return pictures


def _finish(staging: Path, info: GalleryInfo, shards: int, skipped: dict[str, str]) -> None:
    """Write the files that make the folder a gallery. Raises InputError, and removes it, if it has no row."""
    parts = [staging / part_file(number) for number in range(shards)]
    pictures = pa.concat_tables([pq.read_table(file, columns=IMAGES.names) for file in parts])
    refused = pa.concat_tables([pq.read_table(staging / _rejects_file(number)) for number in range(shards)])
    if not len(pictures):
        first = refused.slice(0, 1).to_pylist()[0]
        shutil.rmtree(staging, ignore_errors=True)
        raise InputError(f"no picture can be embedded, {len(refused):,} refused; {first['image']}: {first['detail']}")
    pq.write_table(refused, staging / "rejects.parquet")
    table = pa.table({"file": list(skipped), "detail": list(skipped.values())}, schema=SKIPPED)
    pq.write_table(table, staging / "skipped.parquet")
    reasons = Counter(detail.partition(" (")[0] for detail in refused["detail"].to_pylist())
    counts = {"rejects": dict(sorted(reasons.items())), "skipped": dict(sorted(Counter(skipped.values()).items()))}
    info = info.model_copy(update=counts | {"images": len(pictures)})
    write_gallery(staging, info, pictures, _blocks(parts, info.attributes))


def _blocks(parts: list[Path], attributes: tuple[str, ...]) -> Iterator[np.ndarray]:
    """Yield the embeddings of each file, pictures×N×D."""
    for file in parts:
        table = pq.read_table(file, columns=list(attributes))
        if len(table):
            flat = (column.combine_chunks().flatten().to_numpy() for column in table.columns)
            yield np.stack([vectors.reshape(len(table), -1) for vectors in flat], axis=1)
