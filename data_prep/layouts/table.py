"""A table of pictures, in any common form, or a folder of folders: the layout of everyone's own catalogue.

A row of the table is a picture with its texts; a row of the annotation is one label. A picture may have a label under
one attribute only.
"""

from __future__ import annotations

import posixpath
import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.annotation import Annotation, Reject, settled
from data_prep.blocks import bincount, take
from data_prep.errors import InputError
from data_prep.layouts.folders import IMAGE, is_picture, level_names, read_folders
from data_prep.layouts.table_attributes import Labels, definitions, labels_of
from data_prep.layouts.table_file import Column, Records, check_columns, opened
from data_prep.layouts.text_files import files_below, is_file
from data_prep.near_duplicates import NearDuplicates, clusters, find_near_duplicates, kept_of
from data_prep.request import Request, TableOptions
from data_prep.splits import ROLES, make_roles, make_split
from data_prep.tables import SPLITS, Attribute

SPLIT_COLUMNS = SPLIT, IS_QUERY, IS_CANDIDATE = "split", "is_query", "is_gallery"
"""Columns that give the split, with the names of open-metric-learning's files."""
SPLIT_WORDS = {
    "train": 0, "training": 0,
    "valid": 1, "val": 1, "validation": 1, "dev": 1,
    "test": 2, "testing": 2,
}  # fmt: skip
YES, NO = ("true", "1", "1.0", "yes", "y", "t"), ("false", "0", "0.0", "no", "n", "f", "none", "nan", "")
BOTH = 3
"""Role of a picture that the table names as query and as candidate; 1 is a query, 2 a candidate."""
NAMED = 8
"""Number of values that a note names."""


def read(request: Request) -> Annotation:
    """Read the table, leave out pictures that are not there, and make a split. Raises InputError."""
    return annotated(request, files_below(request.root))


def annotated(request: Request, files: list[str] | None = None) -> Annotation:
    """Read the table; None for the files below the root trusts that every picture is there. Raises InputError."""
    options = request.table
    records, source, notes = _records(request, files or [])
    catalogue = labelled(records, source, options, request.root)
    del records  # as large as the labels
    pa.default_memory_pool().release_unused()
    if files is None:
        return _annotation(catalogue, request, notes, None)
    _leave_out_missing(catalogue, request.root, files)
    found = _near_duplicates(catalogue, request, notes)
    annotation = _annotation(catalogue, request, notes, _unused(catalogue, files))
    return replace(annotation, near_duplicates=found.in_splits(annotation.images()))


def _records(request: Request, files: list[str]) -> tuple[Records, str, list[str]]:
    """Return the columns that the options use, the table's name, and a note on how it is read."""
    options = request.table
    if options.levels:
        if options.table or options.image:
            raise InputError("--levels reads folders without a table; leave out --table and --image")
        records = read_folders(request.root, options.levels, files)
        check_columns(_used(options, tuple(records.columns)), tuple(records.columns), f"--levels {options.levels}")
        return records, request.root.name, []
    if not options.table:
        raise InputError("give --table FILE, or --levels NAME/NAME for a folder of folders")
    if not (options.attributes or options.attributes_file):
        raise InputError("give at least one --attribute NAME[=COLUMN], or --attributes-file")
    with opened(options.table) as table:
        if not options.image:
            raise InputError(
                f"{table.source}: give --image COLUMN or --image PATTERN; columns: {', '.join(table.columns)}"
            )
        return table.read(_used(options, table.columns)), table.source, [f"{table.source}: {table.read_as}"]


def _used(options: TableOptions, columns: tuple[str, ...]) -> list[str]:
    """Return the columns that are read, each once."""
    pictures = pattern_columns(options.image, columns) if options.image else [IMAGE]
    levels = [name for name in level_names(options.levels) if name != "-"] if options.levels else ()
    attributes = [one.column for one in definitions(options, levels)]
    given = [name for name in SPLIT_COLUMNS if name in columns and name not in attributes]
    return list(dict.fromkeys([*pictures, *attributes, *([options.group] if options.group else []), *given]))


def pattern_columns(image: str, columns: Sequence[str]) -> list[str]:
    """Return the columns that `--image` uses: the column of this name, else those in braces. Raises InputError."""
    if image in columns or "{" not in image:
        return [image]
    return [name for _, name in _pattern(image) if name]


def _pattern(image: str) -> list[tuple[str, str | None]]:
    """Return the parts of a pattern: a text, and the column that follows it."""
    try:
        parts = [(text, name, form, conversion) for text, name, form, conversion in string.Formatter().parse(image)]
    except ValueError as error:
        raise InputError(f"--image {image!r}: is no pattern such as images/{{id}}.jpg ({error})") from error
    if any(form or conversion for _, _, form, conversion in parts):
        raise InputError(f"--image {image!r}: write the columns' names alone, such as images/{{id}}.jpg")
    return [(text, name) for text, name, _, _ in parts]


class Catalogue:
    """Pictures and their labels as read, before pictures that are not there are left out."""

    def __init__(self, paths: pd.Index, image: np.ndarray, records: Records, source: str, labels: list[Labels]):
        self.paths = paths
        """Distinct paths of pictures."""
        self.image = image
        """Index of each record's path; -1 for a record without one."""
        self.lines = records.lines
        self.rejects = list(records.rejects)
        self.source = source
        self.labels = labels
        self.groups: np.ndarray | None = None
        """Each record's group, -1 if it has none; None if there is no column of groups."""
        self.group_names = pa.array([], pa.string())
        self.splits: np.ndarray | None = None
        """Each record's index in SPLITS; None if they have to be made."""
        self.roles: np.ndarray | None = None
        """Each record's role, 0 to BOTH; None if they have to be made."""
        self.split_origin = ""
        self.alike: np.ndarray | None = None
        """Cluster of near-duplicates of each path, if these are not to be divided."""

    def leave_out(self, records: np.ndarray, reason: str, details: Sequence[str]) -> None:
        """Turn the labels of these records into rejects, one for each label, or one for a record without labels."""
        if not len(records):
            return
        number = np.zeros(len(self.lines), np.int64)
        for one in self.labels:
            number += np.bincount(one.records, minlength=len(number))
        bad = np.zeros(len(number), bool)
        bad[records] = True
        for i, one in enumerate(self.labels):
            keep = ~bad[one.records]
            self.labels[i] = replace(one, records=one.records[keep], value=one.value[keep])
        for record, detail in zip(records.tolist(), details, strict=True):
            line = int(self.lines[record])
            split = "" if self.splits is None or self.splits[record] < 0 else SPLITS[self.splits[record]]
            self.rejects += [Reject(self.source, line, reason, detail, split)] * max(1, int(number[record]))

    def take_labels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return attribute, record and value of every label, attribute by attribute; remove them from the catalogue."""
        sizes = [len(one.records) for one in self.labels]
        record, value = np.empty(sum(sizes), np.int32), np.empty(sum(sizes), np.int32)
        start, nothing = 0, np.empty(0, np.int32)
        for number, one in enumerate(self.labels):
            own = slice(start, start := start + sizes[number])
            record[own], value[own] = one.records, one.value
            self.labels[number] = replace(one, records=nothing, value=nothing)
        return np.repeat(np.arange(len(sizes), dtype=np.int16), sizes), record, value


def labelled(records: Records, source: str, options: TableOptions, root: Path) -> Catalogue:
    """Return pictures and labels of the records, without looking at the pictures' files."""
    levels = [name for name in level_names(options.levels) if name != "-"] if options.levels else ()
    image = _paths(records, options.image or IMAGE, root)
    labels = [labels_of(one, records.columns[one.column], options) for one in definitions(options, levels)]
    catalogue = Catalogue(pd.Index(image.texts.to_pandas()), image.codes, records, source, labels)
    if options.group:
        column = records.columns[options.group]
        missing = {"", *(word.casefold() for word in options.missing)}
        named = [text.strip().casefold() not in missing for text in column.texts.to_pylist()]
        catalogue.groups = np.where(np.array([*named, False])[column.codes], column.codes, -1)
        catalogue.group_names = column.texts
    has_label = np.zeros(len(records), bool)
    for one in labels:
        has_label[one.records] = True
    without_path = np.flatnonzero((image.codes < 0) & has_label)  # a line without both is blank
    catalogue.leave_out(without_path, "missing_image", ["the row names no picture"] * len(without_path))
    unlabelled = np.flatnonzero(~has_label & (image.codes >= 0))
    names = catalogue.paths[image.codes[unlabelled]]
    catalogue.leave_out(unlabelled, "without_label", names.tolist())
    used = {one.column for one in definitions(options, levels)}
    given = {name: column for name, column in records.columns.items() if name in SPLIT_COLUMNS and name not in used}
    _read_splits(catalogue, given)
    return catalogue


def _read_splits(catalogue: Catalogue, given: dict[str, Column]) -> None:
    """Take splits and roles from the columns that give them. Raises InputError for other words."""
    if IS_QUERY in given or IS_CANDIDATE in given:
        roles = [_flags(catalogue.source, name, given[name]) if name in given else None for name in SPLIT_COLUMNS[1:]]
        query, candidate = (np.zeros(len(catalogue.lines), bool) if one is None else one for one in roles)
        catalogue.roles = query + 2 * candidate
    if SPLIT in given:
        words = [text.strip().casefold() for text in given[SPLIT].texts.to_pylist()]
        if odd := [word for word in words if word and word not in SPLIT_WORDS]:
            raise InputError(f"{catalogue.source}: column {SPLIT!r}: {odd[0]!r} is neither train, valid nor test")
        split = np.array([*(SPLIT_WORDS.get(word, -1) for word in words), -1], np.int8)[given[SPLIT].codes]
        has_label = np.zeros(len(split), bool)
        for one in catalogue.labels:
            has_label[one.records] = True
        without = np.flatnonzero((split < 0) & has_label)
        catalogue.leave_out(without, "no_split", catalogue.paths[catalogue.image[without]].tolist())
        catalogue.splits, catalogue.split_origin = split, f"column {SPLIT}"
    elif catalogue.roles is not None:
        catalogue.splits = np.where(catalogue.roles > 0, 2, 0).astype(np.int8)
        catalogue.split_origin = f"columns {IS_QUERY} and {IS_CANDIDATE}: queries and candidates are test, others train"


def _flags(source: str, name: str, column: Column) -> np.ndarray:
    words = [text.strip().casefold() for text in column.texts.to_pylist()]
    if odd := [word for word in words if word not in (*YES, *NO)]:
        raise InputError(f"{source}: column {name!r}: {odd[0]!r} is neither True nor False")
    return np.array([*(word in YES for word in words), False])[column.codes]


def _paths(records: Records, image: str, root: Path) -> Column:
    """Return the path of every record's picture: relative to `root` (or a URI), POSIX, normalised."""
    parts = [("", image)] if image in records.columns else _pattern(image)
    columns = {name: records.columns[name] for _, name in parts if name}
    alone = next(iter(columns.values())) if len(columns) == 1 else None
    cells = {name: _trimmed(column.texts) for name, column in columns.items()}
    if alone is None:
        cells = {name: _coded(columns[name].codes, texts) for name, texts in cells.items()}
    pieces = [piece for text, name in parts for piece in ([text, cells[name]] if name else [text])]
    paths = _normal(pc.binary_join_element_wise(*pieces, ""), root)
    # A pattern over one column is worked out once for each of its texts.
    return Column.of(paths if alone is None else _coded(alone.codes, paths))


def _coded(codes: np.ndarray, texts: pa.Array) -> pa.Array:
    """Return the text of each code; null for -1 and for null texts."""
    return pc.take(texts, pa.array(codes, mask=codes < 0))


def _trimmed(texts: pa.Array) -> pa.Array:
    """Return the texts without blanks at their ends; null for those without anything else."""
    texts = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _normal(paths: pa.Array, root: Path) -> pa.Array:
    paths = pc.replace_substring(paths, "\\", "/")
    odd = pc.fill_null(pc.match_substring_regex(paths, r"^/|(^|/)\.{0,2}(/|$)"), False)
    if not pc.any(odd).as_py():
        return paths
    return pa.array(
        [
            _relative(path, root) if is_odd else path
            for path, is_odd in zip(paths.to_pylist(), odd.to_pylist(), strict=True)
        ],
        pa.string(),
    )


def _relative(path: str, root: Path) -> str:
    if "://" in path:
        return path
    path = posixpath.normpath(path)
    for top in (root, root.resolve()):
        if path.startswith(f"{top.as_posix()}/"):
            return PurePosixPath(path).relative_to(top.as_posix()).as_posix()
    return path


def _leave_out_missing(catalogue: Catalogue, root: Path, files: list[str]) -> None:
    """Reject the labels of pictures that are not there. Raises InputError if none is."""
    known = set(files)
    there = np.fromiter(
        (path in known or "://" in path or is_file(root / path) for path in catalogue.paths), bool, len(catalogue.paths)
    )
    named = catalogue.image >= 0
    bad = np.flatnonzero(named & ~there[catalogue.image])
    if not len(catalogue.paths):
        first = f" (line {catalogue.rejects[0].line}: {catalogue.rejects[0].detail})" if catalogue.rejects else ""
        raise InputError(f"{catalogue.source}: no row names a picture{first}; is --image right?")
    if not there.any():
        raise InputError(
            f"{root}: has none of the pictures, such as {catalogue.paths[0]}{_pattern_hint(catalogue, files)}"
        )
    paths = catalogue.paths[catalogue.image[bad]]
    outside = [path.startswith(("/", "../")) for path in paths]
    for reason, chosen in (("missing_image", ~np.array(outside, bool)), ("path_outside_root", np.array(outside, bool))):
        catalogue.leave_out(bad[chosen], reason, paths[chosen].tolist())


def _near_duplicates(catalogue: Catalogue, request: Request, notes: list[str]) -> NearDuplicates:
    """Look for near-duplicates, and group or drop them as the option says."""
    used = np.zeros(len(catalogue.paths), bool)
    for one in catalogue.labels:
        used[catalogue.image[one.records]] = True
    numbers = np.flatnonzero(used)
    paths = catalogue.paths[numbers].tolist()
    found = find_near_duplicates(request.root, paths, request.image_size, request.progress)
    notes += found.notes
    refused = np.array([-1] * len(catalogue.paths))
    refused[catalogue.paths.get_indexer(pd.Index(list(found.refused)))] = np.arange(len(found.refused))
    for number, why in enumerate(found.refused.values()):
        records = np.flatnonzero((catalogue.image >= 0) & (refused[catalogue.image] == number))
        catalogue.leave_out(records, why.reason, [why.detail] * len(records))
    if len(found.pairs) and request.near_duplicates == "group" and catalogue.splits is None:
        # All others are clusters of their own.
        catalogue.alike = len(paths) + np.arange(len(catalogue.paths))
        catalogue.alike[numbers] = found.cluster
    if len(found.pairs) and request.near_duplicates == "drop":
        _drop(catalogue, numbers, found.cluster)
    return found


def _drop(catalogue: Catalogue, numbers: np.ndarray, cluster: np.ndarray) -> None:
    """Keep one picture of each cluster: of test before valid before train, then the first one of the table."""
    split = _of_images(catalogue, catalogue.splits, numbers)
    kept = numbers[kept_of(cluster, np.zeros(len(numbers)) if split is None else -split)]
    lost = np.full(len(catalogue.paths), -1)
    lost[numbers] = np.where(kept == numbers, -1, kept)
    records = np.flatnonzero((catalogue.image >= 0) & (lost[catalogue.image] >= 0))
    labelled_records = np.intersect1d(records, np.concatenate([one.records for one in catalogue.labels]))
    images = catalogue.image[labelled_records]
    pairs = zip(catalogue.paths[images], catalogue.paths[lost[images]], strict=True)
    catalogue.leave_out(labelled_records, "near_duplicate", [f"{path}: like {other}" for path, other in pairs])


def _pattern_hint(catalogue: Catalogue, files: list[str]) -> str:
    """Return where pictures of the named ones' stems are, as the end of a sentence."""
    stems = {PurePosixPath(path).stem: path for path in files if is_picture(path)}
    for path in catalogue.paths[:1000]:
        if found := stems.get(PurePosixPath(path).stem) or stems.get(PurePosixPath(path).name):
            return (
                f"; there is {found}: give --image a pattern over columns that leads there, such as images/{{id}}.jpg"
            )
    return "; paths are relative to --root"


def _unused(catalogue: Catalogue, files: list[str]) -> pd.DataFrame:
    """Return the files below the root that no row names: path, and whether it is a picture."""
    named = set(catalogue.paths)
    unused = [path for path in files if path not in named]
    return pd.DataFrame({"path": pd.Series(unused, dtype="str"), "picture": [is_picture(path) for path in unused]})


def _annotation(catalogue: Catalogue, request: Request, notes: list[str], unused: pd.DataFrame | None) -> Annotation:
    """Settle repeats and contradictions, leave out rare values, and make the split."""
    options, seed = request.table, request.seed
    rows, rejects, repeats = _settled(catalogue)
    rows_in = len(rows) + len(rejects) + repeats
    notes += [note for one in catalogue.labels for note in one.notes]
    rows, attributes, rare = _without_rare(rows, catalogue, options.min_images, notes)
    rejects += rare
    if not len(rows):
        raise InputError(f"{catalogue.source}: no label is left; is --missing right?")
    path = rows["path"].cat.codes.to_numpy()
    used = bincount(path, len(catalogue.paths)) > 0
    distinct = np.flatnonzero(used)
    image = take(np.cumsum(used, dtype=np.int32) - np.int32(1), path)
    first = np.cumsum([0, *(len(attribute.values) for attribute in attributes)]).astype(np.int32)
    label = take(first, rows["attribute"].to_numpy())
    label += rows["value"].to_numpy()
    split, origin = _split(catalogue, request, image, label, distinct)
    split = split.astype(np.int8)
    given = _of_images(catalogue, catalogue.roles, distinct)
    role = np.zeros(len(split), np.int8)
    for number in (1, 2):
        own = np.flatnonzero(split == number)
        place = np.zeros(len(split), np.int32)
        place[own] = np.arange(len(own))
        of_split = take(split, image) == number
        role[own] = np.where(
            make_roles(place[image[of_split]], label[of_split], request.fractions, [seed, number]), 1, 2
        )
        if given is not None:
            role[own] = np.where(given[own] == BOTH, role[own], given[own])
    if given is not None and (given == BOTH).any():
        notes.append(
            f"queries and candidates at once in the table: {int((given == BOTH).sum()):,}; here each picture is one of "
            f"the two, drawn by lot: {request.fractions.query:.0%} are queries"
        )
    rows = rows.assign(
        split=pd.Categorical.from_codes(take(split, image), pd.Index(SPLITS)),
        role=pd.Categorical.from_codes(take(role, image), pd.Index(["", *ROLES])),
    )
    without_row = 0 if unused is None else int(unused["picture"].sum())
    if unused is not None and without_row:
        notes.append(
            f"pictures below the root without a row: {without_row:,}, such as {unused.path[unused.picture].iloc[0]}"
        )
    made: Literal["split", "roles", ""] = "roles" if given is None or (given == BOTH).any() else ""
    if catalogue.splits is None:
        made = "split"
    return Annotation(
        attributes, rows, rejects, rows_in=rows_in, repeats=repeats, notes=tuple(notes), unused=unused,
        several_values=any(one.several for one in catalogue.labels), split_origin=origin,
        groups=_named_groups(catalogue, distinct), made=made,
    )  # fmt: skip


def _split(
    catalogue: Catalogue, request: Request, image: np.ndarray, label: np.ndarray, images: np.ndarray
) -> tuple[np.ndarray, str]:
    """Return the split of each of `images`, and its origin."""
    options, seed = request.table, request.seed
    given = _of_images(catalogue, catalogue.splits, images)
    if given is not None:
        if options.group:
            raise InputError(f"--group {options.group}: the table's columns give the split; leave one of both out")
        return given, catalogue.split_origin
    split = make_split(image, label, request.fractions, seed, _groups(catalogue, images))
    return split, f"made, seed {seed}" + (f", groups by {options.group} undivided" if options.group else "")


def _of_images(catalogue: Catalogue, of_record: np.ndarray | None, images: np.ndarray) -> np.ndarray | None:
    """Return what the first record of each of `images` that has something has, -1 if none has; None for None."""
    if of_record is None:
        return None
    value = np.full(len(catalogue.paths), -1, np.int64)
    known = (catalogue.image >= 0) & (of_record >= 0)
    value[catalogue.image[known][::-1]] = of_record[known][::-1]
    return value[images]


def _groups(catalogue: Catalogue, images: np.ndarray) -> np.ndarray | None:
    """Return the group of each of `images`, near-duplicates together; one without a group is a group of its own."""
    group = _of_images(catalogue, catalogue.groups, images)
    if group is not None:
        alone = group < 0
        group[alone] = group.max(initial=0) + 1 + np.arange(alone.sum())
    if catalogue.alike is None:
        return group
    alike = np.unique(catalogue.alike[images], return_inverse=True)[1]
    if group is None:
        return alike
    # Groups with near-duplicates of each other are one.
    pairs = np.stack([group, int(group.max()) + 1 + alike], axis=1)
    return clusters(int(pairs.max()) + 1, pairs)[group]


def _named_groups(catalogue: Catalogue, images: np.ndarray) -> pd.Series | None:
    """Return the name of the group of each of `images`, by path; None if there are no groups."""
    group = _of_images(catalogue, catalogue.groups, images)
    if group is None:
        return None
    return pd.Series(_coded(group, catalogue.group_names).to_pylist(), index=catalogue.paths[images])


def _settled(catalogue: Catalogue) -> tuple[pd.DataFrame, list[Reject], int]:
    """Return one row for each label, rejects, and the number of repeats."""
    attribute, records, value = catalogue.take_labels()
    image = take(catalogue.image, records)
    columns: dict[str, np.ndarray | pd.Categorical[str]] = {
        "path": pd.Categorical.from_codes(image, catalogue.paths),
        "attribute": attribute,
        "value": value,
        "split": _same("", len(records))
        if catalogue.splits is None
        else pd.Categorical.from_codes(take(catalogue.splits, records), pd.Index(SPLITS)),
        "role": _same("", len(records)),
        "source": _same(catalogue.source, len(records)),
        "line": take(catalogue.lines.astype(np.int32), records),
    }
    rows = pd.DataFrame(columns, copy=False)
    used = catalogue.image[catalogue.image >= 0]
    twice = np.bincount(used, minlength=len(catalogue.paths)) > 1
    repeated = take(twice, image)
    if not repeated.any():
        return rows, catalogue.rejects, 0
    parts, rejects, repeats = [rows[~repeated]], list(catalogue.rejects), 0
    several = np.array([one.several for one in catalogue.labels])[rows["attribute"]]
    names = tuple(Attribute(name=one.name, values=one.values, forbids=one.forbids) for one in catalogue.labels)
    for may_differ in (False, True):
        some = rows[repeated & (several == may_differ)]
        some = some.astype(dict.fromkeys(("path", "split", "role", "source"), "str"))
        part = settled(Annotation(names, some, rows_in=len(some), several_values=may_differ))
        rejects += part.rejects
        repeats += part.repeats
        parts.append(part.rows)
    categories = rows["path"].cat.categories
    for labels in parts:
        labels["path"] = pd.Categorical(labels["path"], categories=categories)
    together = pd.concat(parts).astype({"source": "category"})
    return together.sort_values(["attribute", "line"], kind="stable", ignore_index=True), rejects, repeats


def _same(text: str, rows: int) -> pd.Categorical[str]:
    return pd.Categorical.from_codes(np.zeros(rows, np.int8), pd.Index([text]))


def _without_rare(
    rows: pd.DataFrame, catalogue: Catalogue, least: int, notes: list[str]
) -> tuple[pd.DataFrame, tuple[Attribute, ...], list[Reject]]:
    """Leave out values with fewer than `least` images, and attributes without labels; number the rest anew."""
    value = rows["value"].to_numpy()
    bounds = np.searchsorted(rows["attribute"].to_numpy(), np.arange(len(catalogue.labels) + 1, dtype=np.int16))
    keep = np.ones(len(rows), bool)
    new_value, new_attribute = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.int16)
    attributes: list[Attribute] = []
    rejects: list[Reject] = []
    for one, own in zip(catalogue.labels, map(slice, bounds[:-1], bounds[1:]), strict=True):
        counts = np.bincount(value[own], minlength=len(one.values))
        if not counts.any():
            notes.append(f"attribute {one.name!r} is left out: no picture has a label under it")
            continue
        frequent = counts >= max(1, least)
        rare = np.flatnonzero((counts > 0) & ~frequent)
        if len(rare):
            names = ", ".join(f"{one.values[i]!r} ({counts[i]:,})" for i in rare[:NAMED])
            more = f" and {len(rare) - NAMED:,} more" if len(rare) > NAMED else ""
            notes.append(f"attribute {one.name!r}: values with fewer than {least} images are left out: {names}{more}")
        if frequent.sum() < 2:
            values = ", ".join(repr(one.values[i]) for i in np.flatnonzero(frequent))
            raise InputError(
                f"attribute {one.name!r} has {f'the one value {values}' if values else 'no value'} with {least} images "
                "or more: there is nothing to tell apart; leave it out, or lower --min-images"
            )
        keep[own] = frequent[value[own]]
        new_value[own] = (np.cumsum(frequent) - 1)[value[own]]
        new_attribute[own] = len(attributes)
        left_out = rows[["path", "value", "line"]].iloc[own][~keep[own]].itertuples(index=False)
        for path, of_value, line in left_out:
            detail = f"{path}: {one.name} {one.values[of_value]!r}"
            rejects.append(Reject(catalogue.source, line, "too_rare", detail))
        kept_values = tuple(np.array(one.values, object)[frequent])
        attributes.append(Attribute(name=one.name, values=kept_values, forbids=one.forbids))
    rows = rows.assign(attribute=new_attribute, value=new_value)
    return rows if keep.all() else rows[keep].reset_index(drop=True), tuple(attributes), rejects
