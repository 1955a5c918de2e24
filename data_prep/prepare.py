"""The preparation job: annotation -> checked images -> the Parquet tables of one dataset."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import tables
from data_prep.annotation import (
    CHOSEN,
    REASONS,
    TRIPLET_COLUMNS,
    Annotation,
    Reject,
    count_reasons,
    path_codes,
    rejected,
)
from data_prep.corrections import correct, labels_digest, read_corrections
from data_prep.encoding import Refused
from data_prep.errors import InputError, TooManyRejects
from data_prep.layouts import darn, deepfashion, fashionai, table, zappos50k
from data_prep.layouts.text_files import files_read, links_of
from data_prep.layouts.unread import unread
from data_prep.layouts.whereabouts import located
from data_prep.near_duplicates import find_near_duplicates, kept_of
from data_prep.packing import pack
from data_prep.progress import Progress, silent
from data_prep.request import Request, TableOptions
from data_prep.splits import SplitFractions, assign_splits
from data_prep.staging import atomic_dataset
from data_prep.tables import DESCRIPTION, DRAWN_REGIONS_FILE, SPLITS, DatasetInfo, digest_of
from data_prep.triplets import can_draw
from data_prep.words import counted
from data_prep.write import NO_TRIPLETS, check_written, write_annotation, write_triplets


class Reader(Protocol):
    """The adapter of a layout: reads the official files into rows; all have a split, or none has one."""

    def __call__(self, request: Request) -> Annotation:
        """Read the annotation. Raises InputError."""
        ...


LAYOUTS: dict[str, Reader] = {
    "fashionai": fashionai.read,
    "deepfashion": deepfashion.read,
    "zappos50k": zappos50k.read,
    "darn": darn.read,
    "table": table.read,
}


def prepare(
    layout: str,
    root: Path,
    out: str | Path,
    *,
    split_files: Path | None = None,
    annotation: str | None = None,
    categories: bool = False,
    crop_boxes: bool = False,
    table: TableOptions | None = None,
    name: str | None = None,
    triplets: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    image_size: int = 224,
    fit: Literal["crop", "pad", "stretch"] = "crop",
    fractions: SplitFractions | None = None,
    near_duplicates: Literal["keep", "group", "drop"] | None = None,
    max_rejects: float = 0.1,
    corrections: Sequence[Path] = (),
    command: str = "",
    overwrite: bool = False,
    progress: Progress = silent,
) -> DatasetInfo:
    """Turn the official files of `layout` below `root` into the tables of data_prep.tables at `out`.

    `split_files`, `annotation`, `categories`, `crop_boxes` and `table` are explained in Request. `out` is a folder or
    a URI. `image_size` is the short side of the packed images in pixels, and `fit` says how models see images that are
    not square. `fractions` are the sizes of a made split, and `near_duplicates` says what becomes of nearly equal
    pictures in it, by default group (see Request). `triplets` are drawn for each of `epochs` training epochs; if the
    dataset brings triplets, those are divided over the epochs, by default all in one epoch. `corrections` are files
    of corrected labels, applied in their order (see data_prep.corrections). Equal input and seed give equal tables. A
    second call continues a stopped preparation with the images packed so far. `command` is kept in the description.
    Returns the description. Raises InputError for errors that a user can correct, and if more than the
    fraction `max_rejects` of the rows is rejected.
    """
    name = name or layout
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise InputError(f"name {name!r}: use letters, digits, '-' and '_' (it names a registered model)")
    if (layout == "table") != (table is not None):
        raise InputError(f"--table, --levels and the options that go with them are for table, not for {layout}")
    for folder in (root, split_files):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
    root = root.resolve()
    correction_files = [read_corrections(file, name) for file in corrections]
    request = Request(
        root,
        split_files=split_files,
        seed=seed,
        fractions=fractions or SplitFractions(),
        near_duplicates=near_duplicates or "group",
        annotation=annotation,
        categories=categories,
        crop_boxes=crop_boxes,
        image_size=image_size,
        progress=progress,
        table=table or TableOptions(),
    )
    _check_options(layout, request)
    with atomic_dataset(out, overwrite=overwrite, inputs=(root, split_files, *corrections)) as staging:
        read = _read(layout, request)
        _check_rejects(read, root, max_rejects)
        _check_unused_options(read, request.fractions, near_duplicates)
        regions = _read_regions(root, read)
        read = _with_split(read, request)
        digest = labels_digest(read)
        read, corrected = correct(read, correction_files, digest)
        _check_rejects(read, root, max_rejects)
        _check_anchors(read.rows)  # before packing, which takes long: everything that can already fail
        images = read.images()
        images.insert(0, "image_id", np.arange(len(images)))
        images["group"] = None if read.groups is None else images["path"].map(read.groups)
        packing = pack(images, root, staging, image_size, seed, progress)
        path_of = images.set_index("image_id")["path"]
        refused = packing.refused.itertuples(index=False)
        read = _without(read, {path_of[image_id]: Refused(*why) for image_id, *why in refused})
        _check_rejects(read, root, max_rejects)
        images = images.merge(packing.sizes, on="image_id")
        write_annotation(staging, read, images, regions)
        described, given = _described(read), read.triplets
        del read  # drawing triplets needs as much memory again
        per_epoch, written_epochs = write_triplets(staging, given, images, triplets, epochs, seed)
        info = DatasetInfo(
            schema_version=tables.SCHEMA_VERSION,
            name=name,
            layout=layout,
            image_size=image_size,
            fit=fit,
            seed=seed,
            images=_per_split(images),
            triplets=per_epoch,
            triplet_epochs=written_epochs,
            labels_digest=digest,
            corrections=corrected,
            command=command,
            digest=digest_of(staging, packing.sha256, fit),
            versions={"python": platform.python_version()}
            | {package: version(package) for package in ("numpy", "pandas", "pyarrow", "pillow")},
            **described,
        )
        check_written(staging, info)
        (staging / DESCRIPTION).write_bytes(info.model_dump_json(indent=1).encode() + b"\n")
    return info


def _described(read: Annotation) -> dict[str, Any]:
    """Return the description's fields that the annotation gives, so that it can go before triplets are drawn."""
    return {
        "attributes": read.attributes,
        "queries": _per_split(read.rows[read.rows["role"] == "query"]),
        "candidates": _per_split(read.rows[read.rows["role"] == "candidate"]),
        "rows_in": read.rows_in,
        "repeats": read.repeats,
        "given_triplets": 0 if read.triplets is None else len(read.triplets),
        "rejects": count_reasons(read.rejects),
        "lost": _lost(read),
        "split_origin": read.split_origin,
        "queries_of": _queries_of(read),
        "notes": read.notes,
    }


def _check_options(layout: str, request: Request) -> None:
    """Raise InputError for an option that is another layout's."""
    if layout != "deepfashion" and (request.annotation or request.categories or request.crop_boxes):
        raise InputError(f"--annotation, --categories and --crop-boxes are for deepfashion, not for {layout}")
    if layout == "table" and request.split_files:
        raise InputError("--split-files is not for table, whose splits are made or in a column")


def _read(layout: str, request: Request) -> Annotation:
    """Read the layout's files; note those that were not read, and the links in the root."""
    with files_read() as files:
        read = LAYOUTS[layout](request)
    if layout != "table":
        read = located(replace(read, notes=(*read.notes, *unread(request, files))), request.root)
    if links := [f"{link.name}/" for link in links_of(request.root)]:
        read = replace(read, notes=(*read.notes, f"links in the root, followed: {', '.join(links)}"))
    read.check()
    return read


def _check_unused_options(read: Annotation, fractions: SplitFractions, near_duplicates: str | None) -> None:
    """Raise InputError for options of a made split, if the annotation gives the split."""
    default = SplitFractions()
    unused = {
        "--valid-share": read.made != "split" and fractions.valid != default.valid,
        "--test-share": read.made != "split" and fractions.test != default.test,
        "--query-share": read.made == "" and fractions.query != default.query,
        "--near-duplicates group": read.made != "split" and near_duplicates == "group",
        "--near-duplicates drop": read.made != "split" and near_duplicates == "drop" and read.near_duplicates is None,
    }
    for option, is_unused in unused.items():
        if is_unused:
            raise InputError(f"{option} is for a made split, and this one is given ({read.split_origin}); leave it out")


def _with_split(read: Annotation, request: Request) -> Annotation:
    """Look for near-duplicates, and make the split if the annotation gives none; tables have done both."""
    if read.near_duplicates is not None:
        return read
    images = read.images().drop_duplicates("path")
    paths = images["path"].tolist()
    found = find_near_duplicates(request.root, paths, request.image_size, request.progress)
    read = _without(read, found.refused)
    rows, rejects, origin = read.rows, read.rejects, read.split_origin
    if read.made == "split":
        if request.near_duplicates == "drop":
            kept = images["path"].iloc[kept_of(found.cluster, np.zeros(len(paths)))].set_axis(paths)
            lost = rows["path"] != rows["path"].map(kept)
            dropped = rows[lost].assign(like=rows["path"].map(kept))
            rejects = rejects + rejected(dropped, "near_duplicate", "{path}: like {like}")
            rows = rows[~lost].reset_index(drop=True)
        alike = pd.Series(found.cluster, paths) if request.near_duplicates == "group" and len(found.pairs) else None
        rows = assign_splits(rows, request.seed, request.fractions, alike)
        origin = f"made, seed {request.seed}"
    done = replace(
        read,
        rows=rows,
        rejects=rejects,
        split_origin=origin,
        notes=(*read.notes, *found.notes),
    )
    return replace(done, near_duplicates=found.in_splits(done.images()))


class _Part(NamedTuple):
    """Labels (or triplets) of one split and role, or of several."""

    name: str
    """The split and what its labels are, such as `valid: queries`."""
    left: int
    lost: list[Reject]
    """Rejects that mean damage, one for each label."""

    @property
    def total(self) -> int:
        """Number of distinct labels that the annotation has."""
        return self.left + len(self.lost)


def _parts(annotation: Annotation) -> list[_Part]:
    """Return the whole annotation, and the splits and roles of which labels are lost."""
    given = annotation.triplets
    what = "labels" if given is None else "triplets"
    rows = annotation.rows if given is None else given.assign(role="")
    lost = [reject for reject in annotation.rejects if reject.reason not in CHOSEN and not reject.again]
    parts = [_Part(what, len(rows), lost)]
    names = {"": what, "query": "queries", "candidate": "candidates"}
    for split in SPLITS:
        of_split = [reject for reject in lost if reject.split == split]
        for role, name in names.items() if of_split else ():
            own = (rows["split"] == split) & ((rows["role"] == role) | (role == ""))
            of_role = [reject for reject in of_split if role in ("", reject.role)]
            if of_role:
                parts.append(_Part(f"{split}: {name}", int(own.sum()), of_role))
    return parts


def _lost(annotation: Annotation) -> dict[str, dict[str, int]]:
    """Return split -> labels, queries and candidates -> number of lost ones; only those that lost some."""
    lost: dict[str, dict[str, int]] = {}
    for part in _parts(annotation)[1:]:
        split, what = part.name.split(": ")
        lost.setdefault(split, {})[what] = len(part.lost)
    return lost


def _check_rejects(annotation: Annotation, root: Path, max_rejects: float) -> None:
    """Raise InputError if no label is left, TooManyRejects if more than a fraction of a split or role is damaged.

    A split or role that had labels must not be empty.
    """
    if not annotation.rows_in:
        raise InputError(f"{root}: the annotation is empty")
    whole, *parts = _parts(annotation)
    if not whole.left:
        rejects = whole.lost or annotation.rejects
        counts = count_reasons(rejects)
        if len(counts) > 1:
            raise InputError(
                f"{root}: {len(rejects):,} of {counted(annotation.rows_in, 'annotation row')} rejected "
                f"{_reasons(annotation, rejects)}; nothing is left: is this the right layout, and are the pictures "
                "below the root?"
            )
        reason = next(iter(counts))
        raise InputError(
            f"{root}: all annotation rows ({len(rejects):,}) are rejected for one reason, {reason} "
            f"({REASONS[reason]}), the first in {_first(annotation, rejects)}"
        )
    for part in (whole, *parts):
        if part.lost and (not part.left or len(part.lost) > max_rejects * part.total):
            *split, what = part.name.split(": ")
            allow = f", or allow more than --max-rejects {max_rejects:g}" if part.left else "; none is left"
            raise TooManyRejects(
                f"{': '.join([str(root), *split])}: {len(part.lost):,} of {part.total:,} {what} rejected "
                f"{_reasons(annotation, part.lost)}; mend them{allow}"
            )


def _reasons(annotation: Annotation, rejects: list[Reject]) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in count_reasons(rejects).items())
    reason = next(iter(count_reasons(rejects)))
    return f"({counts}), the first {reason} in {_first(annotation, rejects)}"


def _first(annotation: Annotation, rejects: list[Reject]) -> str:
    """Describe the first reject of the most frequent reason, and what was expected instead."""
    reason = next(iter(count_reasons(rejects)))
    first = next(reject for reject in rejects if reject.reason == reason)
    expected = annotation.expected.get((first.source, reason)) or annotation.expected.get(("", reason))
    return f"{first.source} line {first.line}: {first.detail}" + (f"; {expected}" if expected else "")


def _per_split(rows: pd.DataFrame) -> dict[str, int]:
    counts = rows["split"].value_counts()
    return {split: int(counts.get(split, 0)) for split in SPLITS}


def _queries_of(annotation: Annotation) -> dict[str, list[int]]:
    queries = annotation.rows[annotation.rows["role"] == "query"]
    return {
        split: np.bincount(
            queries.loc[queries["split"] == split, "attribute"], minlength=len(annotation.attributes)
        ).tolist()
        for split in SPLITS[1:]
    }


def _without(annotation: Annotation, refused: dict[str, Refused]) -> Annotation:
    """Turn rows and triplets of images that cannot be read into rejects with the image's reason."""
    if not refused:
        return annotation
    why = pd.DataFrame(refused.values(), index=list(refused), columns=list(Refused._fields))
    rejects = list(annotation.rejects)

    def reject(rows: pd.DataFrame, paths: list[str]) -> None:
        reasons = why.loc[paths]
        columns = (rows["source"], rows["line"], reasons["reason"], reasons["detail"])
        places = (rows["split"], rows["role"]) if "role" in rows else (rows["split"],)
        rejects.extend(Reject(*values) for values in zip(*columns, *places, strict=True))

    lost = annotation.rows["path"].isin(why.index)
    reject(annotation.rows[lost], annotation.rows.loc[lost, "path"].tolist())
    rows, triplets = annotation.rows[~lost].reset_index(drop=True), annotation.triplets
    if triplets is not None:
        paths = triplets[list(TRIPLET_COLUMNS[:3])]
        hit = paths.isin(why.index).to_numpy()
        bad = np.flatnonzero(hit.any(axis=1))
        reject(triplets.iloc[bad], paths.to_numpy()[bad, hit.argmax(axis=1)[bad]].tolist())
        triplets = triplets.iloc[np.flatnonzero(~hit.any(axis=1))].reset_index(drop=True)
    return replace(annotation, rows=rows, rejects=rejects, triplets=triplets)


def _read_regions(root: Path, annotation: Annotation) -> pd.DataFrame | None:
    """Return the regions of drawn images; None for photographs. Raises InputError if their file is damaged."""
    file = root / DRAWN_REGIONS_FILE
    if not file.is_file():
        return None
    index = {attribute.name: i for i, attribute in enumerate(annotation.attributes)}
    try:
        regions = pq.read_table(file, columns=["path", "attribute", "x0", "y0", "x1", "y1"]).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: is damaged; draw the dataset again, or delete this file") from error
    return regions[regions["attribute"].isin(list(index))].assign(attribute=lambda rows: rows["attribute"].map(index))


def _check_anchors(rows: pd.DataFrame) -> None:
    """Raise InputError if the training labels cannot give a triplet."""
    train = (rows["split"] == "train").to_numpy()
    if train.any() and not can_draw(
        path_codes(rows)[0], rows["attribute"].to_numpy(), rows["value"].to_numpy(), among=train
    ):
        raise InputError(NO_TRIPLETS)
