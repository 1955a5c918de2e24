"""`agman embed --into GALLERY`: brings a gallery up to its source, and embeds only what is new or has changed.

A picture is unchanged if its name, its file, and the file's size and modification time are those of its embedding
(`source.parquet`). The new state is written beside the old one, and the gallery changes in one step (`states.py`).
Until then, a killed update, a full disk or any other error leaves the old state as it was, and the same command
continues.

Shape suffixes: S pictures of the source, R rows of the new state.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from agman.embedder import Embedder
from agman.tagger import Tagger
from data_prep import atomic
from data_prep.errors import InputError
from data_prep.progress import Progress, silent
from pipeline.common.lock import locked
from pipeline.registry.loading import load_with_tagger, shown
from pipeline.retrieval import embed
from pipeline.retrieval.columns import Catalogue
from pipeline.retrieval.dataset_rows import shown_names
from pipeline.retrieval.gallery import Gallery, GalleryInfo, describe, write_rows
from pipeline.retrieval.image_sources import IMAGES, Source, find_source
from pipeline.retrieval.matrices import open_vectors
from pipeline.retrieval.picture_embedder import REJECTS
from pipeline.retrieval.search import embedder_of
from pipeline.retrieval.states import (
    COLUMNS_FILE,
    IMAGES_FILE,
    INDEX,
    REJECTS_FILE,
    SKIPPED_FILE,
    SOURCE_FILE,
    TAGGER_FILE,
    VECTORS,
    following,
    remove_unused,
)

PARTIAL = ".update.partial"
"""Folder below the gallery with what an unfinished update has embedded."""
NEW, NONE = -1, -2
"""Origins of a row that was embedded just now, and of a picture without a row; other origins are old rows."""


@dataclass(frozen=True)
class Updated:
    """A gallery that was brought up to its source: rows before + added − removed = rows now."""

    gallery: Gallery
    added: int
    replaced: int
    """Pictures of the same name that were embedded again."""
    removed: int
    """Rows whose picture is gone, or cannot be read any more."""
    unchanged: int
    missing: int
    """Rows whose picture is gone from the source, and which were kept."""
    described: int | None = None
    """Rows that the table of columns has; None if no table was given."""


@dataclass(frozen=True)
class _Plan:
    """Work of an update."""

    source: Source
    origin_s: np.ndarray
    """Old row of each unchanged picture of the source, NEW for one to embed, NONE for one that was refused before."""
    missing: np.ndarray
    """Old rows whose pictures are gone from the source."""

    @property
    def fresh(self) -> Source:
        """The pictures to embed."""
        new = self.origin_s == NEW
        return replace(self.source, pictures=self.source.pictures.filter(new), stamps=self.source.stamps.filter(new))


def update_gallery(
    folder: str | Path,
    model: str | None = None,
    images: str | Path | None = None,
    *,
    columns: Catalogue | None = None,
    remove_missing: bool = False,
    workers: int = 1,
    progress: Progress = silent,
) -> Updated:
    """Embed the pictures of a gallery's source that are new or have changed, and leave the others as they are.

    Rows are in the order of the source, as in a gallery that is embedded anew; those of missing pictures are the last.
    The index is built again if there is one. Without anything to do, nothing is written. Raises InputError for another
    model or source than the gallery's, for a table that does not fit the gallery, for a gallery that another process is
    writing, and if the disk is full.

    Args:
        folder: gallery.
        model: the gallery's model; by default it is found as a search finds it.
        images: the gallery's source; needed for Parquet files only.
        columns: table whose columns replace those of the gallery; without one, they stay with their pictures.
        remove_missing: remove the rows whose pictures are gone from the source.
        workers: number of processes.
        progress: callback for progress bars.
    """
    folder = Path(folder).resolve()
    if Gallery.open(folder).stored:  # opened before a lock is made in a folder that is no gallery
        raise InputError(f"{folder}: its vectors are in a vector store alone; `agman embed --out` makes them anew")
    with locked(folder, "--out GALLERY"):
        try:
            updated = _updated(Gallery.open(folder), model, images, columns, remove_missing, workers, progress)
        except OSError as error:
            if not atomic.is_full(error):
                raise
            raise InputError(
                f"{folder}: no space left on device, so the gallery is as it was; free some, and the same command "
                "continues"
            ) from error
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)
        remove_unused(folder, updated.gallery.info.state)  # `_updated` has let go of the state before
        return updated


def _updated(
    gallery: Gallery,
    model: str | None,
    images: str | Path | None,
    columns: Catalogue | None,
    remove_missing: bool,
    workers: int,
    progress: Progress,
) -> Updated:
    remove_unused(gallery.folder, gallery.info.state)
    loaded, tagger = _loaded(gallery, model) if model else (None, None)
    plan, staging, shards = _planned(gallery, _source(gallery, images)), gallery.folder / PARTIAL, 0
    fresh = plan.fresh
    if plan.source.kind == "dataset":  # prepared again, its image ids may be other pictures: none outlives its file
        remove_missing = True
        if gallery.columns is not None and columns is None and len(fresh.pictures):
            raise InputError(
                f"{gallery.folder}: its dataset has been prepared again, so its columns may be other pictures'; give "
                "--columns TABLE, too"
            )
    if len(fresh.pictures):
        loaded = loaded or _loaded_as_searched(gallery)
        shards = embed.embed_shards(staging, _name(fresh), fresh, loaded, workers, progress)
    return _written(gallery, plan, shards, staging, remove_missing, columns, tagger, progress)


def _source(gallery: Gallery, images: str | Path | None) -> Source:
    """Find the gallery's source. Raises InputError for another one."""
    info = gallery.info
    if images is None and info.source == "parquet":  # it may have been one file of a folder
        raise InputError(f"{gallery.folder}: a gallery of Parquet files; give them with --images, as when it was made")
    source = find_source(images if images is not None else info.root)
    if (source.kind, str(source.root), source.column) != (info.source, info.root, info.column):
        raise InputError(
            f"--images {source.root}: the gallery's pictures are those of {info.root}; put new ones there, or make "
            "another gallery with --out"
        )
    if repeated := _first_repeated(source.pictures["image"]):
        raise InputError(
            f"--images {source.root}: several pictures are called {repeated}, and an update knows them by their names; "
            "give each its own"
        )
    return source


def _first_repeated(names: pa.ChunkedArray) -> str | None:
    counted = pc.value_counts(names)
    return next(iter(counted.field("values").filter(pc.greater(counted.field("counts"), 1)).to_pylist()), None)


def _loaded(gallery: Gallery, model: str) -> tuple[embed.Model, Tagger | None]:
    """Load a model and its prototypes. Raises InputError unless it is the gallery's model."""
    network, description, tagger = load_with_tagger(embed.pinned(model))
    embedder, info = Embedder(network, description, device="cpu"), gallery.info
    if (embedder.digest, embedder.side) != (info.model_digest, info.image_size):
        raise InputError(
            f"{gallery.folder}: embedded by {info.model}, with other weights than {shown(model)}; give that model, or "
            "make another gallery with --out"
        )
    return (network, description, info.precision), tagger


def _loaded_as_searched(gallery: Gallery) -> embed.Model:
    embedder = embedder_of(gallery, device="cpu")
    description = {"attributes": embedder.attributes, "image_size": embedder.side, "fit": embedder.fit}
    return embedder.network, description, gallery.info.precision


def _planned(gallery: Gallery, source: Source) -> _Plan:
    old, key = gallery.table, _keys(source.pictures)
    file = gallery.files / SOURCE_FILE
    if file.exists():
        seen = pq.read_table(file)
        unchanged = pc.is_in(_stamped(source), _joined(_keys(seen), seen["stamp"]))
    else:  # a gallery of an earlier version, whose fingerprint has the modification times of a folder's files
        info = gallery.info
        same = info.fingerprint == embed.fingerprint(source, info.model_digest, info.image_size, info.precision)
        unchanged = pa.array(np.full(len(key), same and source.kind == "folder"))
    rows = pc.fill_null(pc.index_in(key, _keys(old)), NONE).to_numpy(zero_copy_only=False)
    origin = np.where(unchanged.to_numpy(zero_copy_only=False), rows, NEW)
    names = source.pictures["image"].combine_chunks()
    return _Plan(source, origin, np.flatnonzero(pc.invert(pc.is_in(old["image"], names)).to_numpy()))


def _keys(pictures: pa.Table) -> pa.Array:
    """Return a text for each picture: where it is, and its name."""
    return _joined(*(pc.fill_null(pictures[name].cast(pa.string()), "") for name in IMAGES.names))


def _stamped(source: Source) -> pa.Array:
    return _joined(_keys(source.pictures), source.stamps)


def _joined(*columns: pa.Array | pa.ChunkedArray) -> pa.Array:
    whole = [one.combine_chunks() if isinstance(one, pa.ChunkedArray) else one for one in columns]
    return pc.binary_join_element_wise(*whole, "\0")


def _name(source: Source) -> str:
    """Return a name of these pictures and their files' states, under which an interrupted embedding continues."""
    total = hashlib.sha256()
    for text in _stamped(source).to_pylist():
        total.update(text.encode(errors="surrogateescape") + b"\n")
    return total.hexdigest()


def _among(pictures: pa.Table, some: pa.Table) -> np.ndarray:
    """Return for each picture whether it is among `some`."""
    return pc.is_in(_keys(pictures), _keys(some)).to_numpy(zero_copy_only=False)


def _written(
    gallery: Gallery,
    plan: _Plan,
    shards: int,
    staging: Path,
    remove_missing: bool,
    catalogue: Catalogue | None,
    tagger: Tagger | None,
    progress: Progress,
) -> Updated:
    """Write the new state and let it count, unless nothing has changed. Raises OSError."""
    source, info = plan.source, gallery.info
    accepted, refused = embed.embedded(staging, shards)
    origin = np.where((plan.origin_s == NEW) & ~_among(source.pictures, accepted), NONE, plan.origin_s)
    kept = plan.missing[: 0 if remove_missing else None]
    images = pa.concat_tables([source.pictures.filter(origin != NONE), gallery.table.take(kept)])
    if not len(images):
        raise InputError(f"{gallery.folder}: no picture would be left; the gallery is as it was")
    origin_r = np.concatenate([origin[origin != NONE], kept])
    replaced = int(pc.sum(pc.is_in(accepted["image"], gallery.table["image"].combine_chunks())).as_py() or 0)
    unchanged = int((origin >= 0).sum())
    counts = {
        "added": len(accepted) - replaced,
        "replaced": replaced,
        "removed": len(gallery) - unchanged - replaced - len(kept),
        "unchanged": unchanged,
        "missing": len(kept),
    }
    refused = _refused(gallery, plan, refused)
    columns, described = _columns(gallery, source, images, catalogue)
    changed = counts["added"] or counts["replaced"] or counts["removed"] or columns != gallery.columns
    if not changed and not len(plan.fresh.pictures) and _same_seen(gallery, source, refused):
        embed.add_prototypes(gallery.files, tagger)
        return Updated(gallery, **counts, described=described)
    name, print_ = following(info.state), _fingerprint(gallery, source, kept)
    with atomic.folder(gallery.folder / name, durable=True) as state:
        seen = embed.write_seen(state, source, refused)
        info = info.model_copy(update=seen | {"images": len(images), "state": name, "fingerprint": print_})
        if columns is not None:
            pq.write_table(columns, state / COLUMNS_FILE)
        if np.array_equal(origin_r, np.arange(len(gallery))):
            _link(gallery.files, state, VECTORS, INDEX)
            pq.write_table(images, state / IMAGES_FILE)
        else:
            write_rows(state, info, images, _merged(gallery, origin_r, _embedded(staging, shards, info)))
            if (gallery.files / INDEX).exists():
                from pipeline.retrieval.faiss_index import build_index

                build_index(state, open_vectors(state, len(info.attributes)), progress)
        _link(gallery.files, state, TAGGER_FILE)
        embed.add_prototypes(state, tagger)
    _switch(gallery.folder, info)
    return Updated(Gallery.open(gallery.folder), **counts, described=described)


def _columns(
    gallery: Gallery, source: Source, images: pa.Table, catalogue: Catalogue | None
) -> tuple[pa.Table | None, int | None]:
    """Return the columns for these pictures: those of a table, and the number of pictures in it, or the gallery's."""
    names = images["image"].combine_chunks()
    if catalogue is not None:
        return catalogue.joined(pa.array(shown_names(source.kind, source.root, names.to_pylist()), pa.string()))
    if gallery.columns is None:
        return None, None
    return gallery.columns.take(pc.index_in(names, gallery.table["image"].combine_chunks())), None


def _link(old: Path, new: Path, *names: str) -> None:
    """Give files and folders of a state to another one: as links to the same files, which never change."""

    def link(file: str | Path, other: str | Path) -> None:
        try:
            os.link(file, other)
        except OSError:  # not every file system can
            shutil.copyfile(file, other)

    for name in names:
        if (old / name).is_dir():
            shutil.copytree(old / name, new / name, copy_function=link)
        elif (old / name).exists():
            link(old / name, new / name)


def _same_seen(gallery: Gallery, source: Source, refused: pa.Table) -> bool:
    """Return whether a state without a change of its rows need not be written."""
    file = gallery.files / REJECTS_FILE
    return (
        (gallery.files / SOURCE_FILE).exists()
        and embed.counts_of(source, refused) == {"rejects": gallery.info.rejects, "skipped": gallery.info.skipped}
        and pq.read_table(file)["image"].equals(refused["image"])
        and pq.read_table(gallery.files / SKIPPED_FILE)["file"].to_pylist() == [*source.skipped]
    )


def _refused(gallery: Gallery, plan: _Plan, refused: pa.Table) -> pa.Table:
    """Return the rejects of the new state, in the order of the source: those of before, and of this update."""
    pictures, file = plan.source.pictures, gallery.files / REJECTS_FILE
    before = pq.read_table(file) if file.exists() else REJECTS.empty_table()
    both = pa.concat_tables([before.filter(_among(before, pictures.filter(plan.origin_s == NONE))), refused])
    return both.take(pc.sort_indices(pc.index_in(_keys(both), _keys(pictures))))


def _fingerprint(gallery: Gallery, source: Source, kept: np.ndarray) -> str:
    info = gallery.info
    of_source = embed.fingerprint(source, info.model_digest, info.image_size, info.precision)
    names = gallery.table["image"].take(kept).to_pylist()
    return hashlib.sha256("\n".join([of_source, *names]).encode()).hexdigest() if names else of_source


def _embedded(staging: Path, shards: int, info: GalleryInfo) -> Iterator[np.ndarray]:
    """Yield the embeddings of each shard in `staging`, pictures×N×D."""
    vectors = open_vectors(staging, len(info.attributes)) if shards else []
    for run in embed.runs_of(staging, shards):
        yield np.stack([matrix[run.start : run.stop] for matrix in vectors], axis=1)


def _merged(gallery: Gallery, origin_r: np.ndarray, fresh: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the embeddings of the new state, some rows×N×D at a time: old ones, and the next fresh one for each NEW."""
    next_fresh = (row for block in fresh for row in block)
    for start in range(0, len(origin_r), embed.SHARD):
        origin = origin_r[start : start + embed.SHARD]
        block = np.empty((len(origin), len(gallery.info.attributes), gallery.info.width), np.float32)
        old = origin != NEW
        for number in range(block.shape[1]):
            block[old, number] = gallery.matrix(number)[origin[old]]
        for row in np.flatnonzero(~old):
            block[row] = next(next_fresh)
        yield block


def _switch(folder: Path, info: GalleryInfo) -> None:
    """Let the state that `info` names count; if the description cannot be written, remove it. Raises OSError."""
    try:
        describe(folder, info)
    except OSError:
        shutil.rmtree(folder / info.state, ignore_errors=True)
        raise
