"""`agman embed`: computes a gallery from a collection of pictures, on as many workers as the cluster has room for.

    gallery = embed_images("models:/agman-fashionai@champion", "photographs/", "gallery")

The pictures are divided into shards, in their order. A worker, which is a Ray actor, loads the model once, embeds one
shard after another and writes its rows into the gallery's matrices, then a file with the names of the rows. A command
that continues a killed one embeds the shards that have no such file, and the gallery appears under its name when all
shards are complete. Every picture passes the backbone once, for all attributes.

Pictures that cannot be read leave gaps in the matrices: a shard's rows begin at its first picture. They are closed at
the end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from agman.embedder import BATCH, Embedder
from agman.memory import keep_freed_memory
from agman.tagger import TAGGER, Tagger
from data_prep.atomic import is_full, replace_folder, restore
from data_prep.cluster import ray_session
from data_prep.errors import InputError, StorageError
from data_prep.packing import TRIES, count_try
from data_prep.progress import Progress, silent
from data_prep.shared import Shared
from data_prep.storage import Storage
from pipeline.cluster.pool import each_on_workers
from pipeline.cluster.resources import ONE_HEAP, cpus_for, gpus_for
from pipeline.common.console import say
from pipeline.common.lock import locked
from pipeline.evaluation.few import validation_queries
from pipeline.registry.loading import load_with_tagger, shown
from pipeline.retrieval.gallery import DESCRIPTION, Gallery, GalleryInfo, describe, write_names
from pipeline.retrieval.image_sources import IMAGES, Source, find_source
from pipeline.retrieval.matrices import compact_vectors, create_vectors, write_vectors
from pipeline.retrieval.picture_embedder import REJECTS, PictureEmbedder
from pipeline.retrieval.states import REJECTS_FILE, SKIPPED_FILE, SOURCE_FILE

SHARD = 512
"""Pictures that are embedded and written together; a killed worker repeats at most as many."""
STATE = "_partial"
"""Folder below an unfinished gallery with its fingerprint, and for each shard the names of its rows, its rejects and
the count of its attempts."""
FINGERPRINT, LOCK = f"{STATE}/plan", "lock"
SKIPPED = pa.schema([("file", pa.string()), ("detail", pa.string())])
Model = tuple[Any, dict[str, Any], str]
"""A network, its description, and the precision in which it computes."""


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
    for pictures in `skipped.parquet`. Raises InputError for invalid arguments, and, leaving nothing behind, if no
    picture can be embedded.

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
    model = pinned(model)
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
            add_prototypes(gallery.files, tagger)
        except OSError as error:  # it can be searched by pictures all the same
            say(f"note: the model's prototypes cannot be added ({error})")
        return gallery
    staging, replaces = out.parent / f".{out.name}.partial", (out / DESCRIPTION).exists()
    if not (complete := _is_complete(staging, info)):
        _refuse_foreign(staging)
    try:
        with locked(staging, "another --out"), locked(out, "another --out") if replaces else nullcontext():
            if not complete:
                shards = embed_shards(
                    staging, info.fingerprint, source, (network, description, precision), workers, progress
                )
                finish(staging, info, shards, source)
            shutil.rmtree(staging / STATE, ignore_errors=True)
            add_prototypes(staging, tagger)
            (staging / LOCK).unlink()
            replace_folder(staging, out)
    except OSError as error:
        if not is_full(error):
            raise
        raise InputError(f"{out}: no space left on device; free some, and the same command continues") from error
    return Gallery.open(out)


def add_prototypes(state: Path, tagger: Tagger | None) -> None:
    """Write the model's prototypes into a state of its gallery, unless they are there."""
    file, content = state / TAGGER, tagger.to_bytes() if tagger else b""
    if content and not (file.is_file() and file.read_bytes() == content):
        Storage(file).write_bytes(content)


def pinned(model: str) -> str:
    """Return the address of a version, which means the same model for ever, for the address of an alias."""
    if not model.startswith("models:/"):
        return model
    from pipeline.registry import versions  # MLflow takes seconds to import

    return versions.pinned(model)


def _checkpoint(model: str) -> str | None:
    """Return the local folder in which the registry keeps a version, or None."""
    if not model.startswith("models:/"):
        return None
    from pipeline.registry.versions import local_folder

    folder = local_folder(model)
    return str(folder) if folder else None


def _info(model: str, embedder: Embedder, source: Source) -> GalleryInfo:
    """Describe the gallery, without the counts, which are known at the end."""
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
        fingerprint=fingerprint(source, embedder.digest, embedder.side, embedder.precision),
    )


def fingerprint(source: Source, model_digest: str, side: int, precision: str) -> str:
    """Return the sha256 over everything that determines the embeddings of a source."""
    decisive = [source.fingerprint, source.kind, str(source.root), model_digest, side, precision]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


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
        if same_model and (gallery.info.source, gallery.info.root) == (info.source, info.root):
            raise InputError(
                f"--out {out}: contains a gallery of {info.root} as it was; `agman embed --into {out}` brings it up to "
                "date, --overwrite embeds all again"
            )
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


def names_file(number: int) -> str:
    """Return the path of the names of a shard's rows, relative to the gallery; its matrices have these rows."""
    return f"{STATE}/names-{number:05d}.parquet"


def _rejects_file(number: int) -> str:
    return f"{STATE}/rejects-{number:05d}.parquet"


def _tries_file(number: int) -> str:
    return f"{STATE}/shard-{number:05d}.tries"


def embed_shards(
    staging: Path, plan: str, source: Source, model: Model, workers: int, progress: Progress = silent
) -> int:
    """Embed the shards of a source that have no file in `staging`, and return the number of shards.

    Raises InputError if a node of the cluster does not see the pictures, StorageError for an error of a worker.

    Args:
        staging: folder for the files of the shards.
        plan: name of what is embedded; files of another plan are removed.
        source: pictures.
        model: model.
        workers: number of processes.
        progress: callback for the number of embedded pictures.
    """
    with ray_session():
        on_gpu, cpus = gpus_for(workers), cpus_for(workers)
        network, description, _ = model
        begin(staging, plan, len(source.pictures), len(description["attributes"]), network.embedding_dim)
        root = source.root.local
        shared = Shared(Storage(staging), FINGERPRINT, plan, {"images": root} if root else {})
        shared.check_nodes()
        shards = [source.pictures.slice(start, SHARD) for start in range(0, len(source.pictures), SHARD)]
        missing = [number for number in range(len(shards)) if not (staging / names_file(number)).exists()]
        done = len(source.pictures) - sum(len(shards[number]) for number in missing)
        title = f"pictures embedded (continuing: {done:,} were done)" if done else "pictures embedded"
        advance = progress(title, len(source.pictures))
        advance(done)
        if missing:
            worker = ray.remote(_RemoteWorker).options(
                num_cpus=cpus, num_gpus=float(on_gpu), runtime_env=ONE_HEAP, scheduling_strategy="SPREAD"
            )
            loaded = [ray.put(model)]  # in a list, so that a call does not copy it
            arguments = (shared, Storage(staging), source.root, source.column, cpus)
            results = each_on_workers(
                lambda: worker.remote(*arguments),
                workers,
                missing,
                # It limits the attempts.
                lambda actor, number: actor.embed.remote(number, number * SHARD, shards[number], loaded),
            )
            with closing(results):
                for pictures, error in results:
                    if error:
                        raise StorageError(error)
                    advance(pictures)
    return len(shards)


def begin(staging: Path, plan: str, pictures: int, attributes: int, width: int) -> None:
    """Create the folder and its matrices, or prepare them to be continued.

    The files of another embedding and the counts of attempts of an earlier command are removed.

    Args:
        staging: folder for the files of the shards.
        plan: name of what is embedded.
        pictures: number of pictures, with those that will be refused.
        attributes: number N of attributes.
        width: embedding width D.
    """
    staging.mkdir(exist_ok=True)
    file = staging / FINGERPRINT
    if not file.exists() or file.read_text() != plan:
        for one in staging.iterdir():
            if one.name != LOCK:
                shutil.rmtree(one) if one.is_dir() else one.unlink()
        Storage(file).write_bytes(plan.encode())
    for tries in (staging / STATE).glob("*.tries"):  # that command may have been stopped by anything
        tries.unlink()
    create_vectors(staging, attributes, pictures, width)


class _Worker:
    """Process with the model."""

    def __init__(
        self,
        model: Model,
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

    def embed(self, number: int, first: int, shard: pa.Table) -> tuple[int, str | None]:
        """Embed a shard; return its number of pictures, and the error for which the command must end.

        Args:
            number: number of the shard.
            first: its first row in the matrices.
            shard: its pictures.
        """
        error = None
        try:
            if not count_try(self.staging / _tries_file(number)):
                raise StorageError(
                    f"pictures {shard['image'][0]} to {shard['image'][-1]}: {TRIES} workers died of them"
                )
            self._embed(number, first, shard)
        except StorageError as failed:
            error = str(failed)
        except OSError as failed:
            why = "no space left on device; free some" if is_full(failed) else str(failed)
            error = f"{self.staging}: {why}, and the same command continues"
        return len(shard), error

    def _embed(self, number: int, first: int, shard: pa.Table) -> None:
        embedded, details = [], []
        for start in range(0, len(shard), BATCH):
            vectors, of_batch = self.pictures.embed(shard.slice(start, BATCH))
            embedded.append(vectors)
            details += of_batch
        write_shard(self.staging, number, first, shard, np.concatenate(embedded), details)


def write_shard(
    staging: Storage, number: int, first: int, shard: pa.Table, embedded: np.ndarray, details: Sequence[str | None]
) -> None:
    """Write the rejects and the rows of a shard, then their names, which mark the shard as complete. Raises OSError.

    Args:
        staging: folder that was begun.
        number: number of the shard.
        first: its first row in the matrices.
        shard: its pictures.
        embedded: embeddings of the pictures that were not refused, rows×N×D.
        details: reason for which each picture was refused; None for one that was not.
    """
    assert staging.local, "a gallery is a local folder"
    detail = pa.array(details, pa.string())
    with (staging / _rejects_file(number)).atomic_file() as file:
        pq.write_table(shard.append_column("detail", detail).filter(detail.is_valid()).cast(REJECTS), file)
    write_vectors(staging.local, first, embedded)
    with (staging / names_file(number)).atomic_file() as file:
        pq.write_table(shard.filter(detail.is_null()), file)


class _RemoteWorker:
    """Worker in a Ray actor. The model comes with the first call: Ray warns of actors with large arguments."""

    def __init__(self, shared: Shared, *arguments: Any):
        self._shared, self._arguments = shared, arguments
        self._worker: _Worker | None = None

    def embed(self, number: int, first: int, shard: pa.Table, model: list[ray.ObjectRef]) -> tuple[int, str | None]:
        """Embed a shard as `_Worker.embed` does."""
        try:
            self._shared.check()  # this node may have joined the cluster later; every picture would be missing
        except StorageError as error:
            return len(shard), str(error)
        if self._worker is None:
            self._worker = _Worker(ray.get(model[0]), *self._arguments)
        return self._worker.embed(number, first, shard)


def embedded(staging: Path, shards: int) -> tuple[pa.Table, pa.Table]:
    """Return the pictures of complete shards that were embedded (columns of IMAGES), and those refused (REJECTS)."""
    parts = [pq.read_table(staging / names_file(number)) for number in range(shards)]
    refused = [pq.read_table(staging / _rejects_file(number)) for number in range(shards)]
    return pa.concat_tables([IMAGES.empty_table(), *parts]), pa.concat_tables([REJECTS.empty_table(), *refused])


def write_seen(state: Path, source: Source, refused: pa.Table) -> dict[str, dict[str, int]]:
    """Write what a source contains, what was refused and what was skipped; return the counts for the description."""
    pq.write_table(source.pictures.append_column("stamp", source.stamps), state / SOURCE_FILE)
    pq.write_table(refused, state / REJECTS_FILE)
    skipped = source.skipped
    table = pa.table({"file": list(skipped), "detail": list(skipped.values())}, schema=SKIPPED)
    pq.write_table(table, state / SKIPPED_FILE)
    return counts_of(source, refused)


def counts_of(source: Source, refused: pa.Table) -> dict[str, dict[str, int]]:
    """Return the numbers of rejects and skipped files for each reason, for the description."""
    reasons = Counter(detail.partition(" (")[0] for detail in refused["detail"].to_pylist())
    skipped = Counter(source.skipped.values())
    return {"rejects": dict(sorted(reasons.items())), "skipped": dict(sorted(skipped.items()))}


def finish(staging: Path, info: GalleryInfo, shards: int, source: Source) -> None:
    """Write the files that make the folder a gallery. Raises InputError, and removes it, if it has no row."""
    pictures, refused = embedded(staging, shards)
    if not len(pictures):
        first = refused.slice(0, 1).to_pylist()[0]
        shutil.rmtree(staging, ignore_errors=True)
        raise InputError(f"no picture can be embedded, {len(refused):,} refused; {first['image']}: {first['detail']}")
    counts = write_seen(staging, source, refused)
    info = info.model_copy(update=counts | {"images": len(pictures)})
    compact_vectors(staging, len(info.attributes), runs_of(staging, shards))
    write_names(staging, info, pictures)
    describe(staging, info)


def runs_of(staging: Path, shards: int) -> list[range]:
    """Return the rows of each complete shard in the matrices of `staging`."""
    counts = [pq.read_metadata(staging / names_file(number)).num_rows for number in range(shards)]
    return [range(number * SHARD, number * SHARD + count) for number, count in enumerate(counts)]
