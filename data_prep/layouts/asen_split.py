"""The split files of ASEN (Ma et al. 2020), on which every method of the paper's tables reports.

    filenames_{train,valid,test}.txt     one path a line, relative to the dataset's folder
    label_train.txt                      idx attribute value [attribute value ...]
    {query,candidate}_{valid,test}.txt   idx attribute value

idx is the 0-based line of the split's file names; attribute and value are 0-based. DeepFashion has one more kind, with
all labels of the images of which queries and candidates have one:

    label_{valid,test}.txt               idx attribute value [attribute value ...], attribute 1-based, value *global*

A global value is the row of list_attr_cloth.txt; the local one is its rank among the rows of its attribute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from data_prep.annotation import (
    SHOWN,
    Annotation,
    Reject,
    Row,
    bad_line,
    contained,
    count_rows,
    frame_of,
    rejected,
    settled,
)
from data_prep.errors import InputError
from data_prep.layouts.text_files import LONGEST_PATH, find_files, integers, is_file, numbered_lines, read_lines
from data_prep.request import Request
from data_prep.splits import ROLES
from data_prep.tables import ASEN_SPLIT, SPLITS, Attribute
from data_prep.words import counted

QUERY_EVERY = 5
"""One image of five is a query, the others are candidates."""


NAMES_FILES = tuple(f"filenames_{split}.txt" for split in SPLITS)
FEW = 20
"""Names of pictures that are looked for to find out where they start."""


class GlobalValue(NamedTuple):
    """Meaning of a row of list_attr_cloth.txt: an attribute, and one of its values."""

    attribute: int
    value: int


def has_split_files(folder: Path) -> bool:
    """Return whether the folder itself holds the file names of a split."""
    return any(is_file(folder / name) for name in NAMES_FILES)


def find_split_files(request: Request, dataset: str) -> Path | None:
    """Return the folder of the split files: --split-files, its subfolder named after the dataset, or the root.

    Raises InputError if --split-files has none, or if some are further down below the root: made for this dataset or
    another one, they are not ignored.
    """
    root = request.root
    if request.split_files:
        return named_split_files(request.split_files, dataset)
    if has_split_files(root):
        return root
    found = {file.parent for file in find_files(root, ".txt") if file.name in NAMES_FILES}
    if not found:
        return None
    folder = min(found, key=lambda folder: (folder.name != dataset, folder))
    where = f"{root}: split files are in {folder.relative_to(root).as_posix()}/, and are not read there"
    names = (name for file in NAMES_FILES if is_file(folder / file) for name in read_lines(folder / file, root)[:FEW])
    paths = [name.strip() for name in names if name.strip()]
    for option, top in (("--split-files", root), ("--root", folder)):
        if any(is_file(top / path) for path in paths):
            raise InputError(f"{where}; give {option} {folder}")
    option = "--root" if folder.name == dataset else "--split-files"
    raise InputError(f"{where}; give {option} {folder}, or move them out of the root to do without")


def named_split_files(folder: Path, dataset: str) -> Path:
    """Return `folder` or its subfolder named after the dataset. Raises InputError if neither has split files."""
    for candidate in (folder, folder / dataset):
        if has_split_files(candidate):
            return candidate
    raise InputError(f"{folder}: no filenames_train.txt, filenames_valid.txt or filenames_test.txt")


def read_split_files(
    folder: Path,
    attributes: tuple[Attribute, ...],
    *,
    several_values: bool = False,
    global_values: list[GlobalValue] | None = None,
) -> Annotation:
    """Read the splits that `folder` holds.

    `global_values` is the meaning of the values in label_{valid,test}.txt; if None, it is inferred from those files.
    Raises InputError if a file is missing, or if the meaning cannot be inferred.
    """
    splits = [_read_split(folder, split) for split in SPLITS if (folder / f"filenames_{split}.txt").is_file()]
    rejects = [reject for split in splits for reject in split.rejects]
    rows_in = sum(split.rows_in for split in splits)
    everything = [split.labels for split in splits if len(split.labels)]
    labels = pd.concat(everything, ignore_index=True) if everything else frame_of([]).assign(listed=False)
    if labels["listed"].any():
        labels = _local(labels, global_values or _inferred(labels[labels["listed"]], attributes, folder))
    labels, refused = _in_range(labels, attributes)
    labels, unlike = _roles_among_labels(labels)
    return settled(
        Annotation(
            attributes,
            rows=labels.drop(columns="listed"),
            rejects=rejects + refused + unlike,
            rows_in=rows_in,
            several_values=several_values,
            split_origin=ASEN_SPLIT,
            expected=_expected(folder, attributes),
        )
    )


def _expected(folder: Path, attributes: tuple[Attribute, ...]) -> dict[tuple[str, str], str]:
    """Return what the lines of the label files should hold."""
    sizes = ", ".join(f"{number} {one.name} ({len(one.values)})" for number, one in enumerate(attributes))
    words = {
        "bad_line": "expected whole numbers, IDX ATTRIBUTE VALUE",
        "index_out_of_range": "expected an IDX that is a line of filenames_*.txt, counted from 0",
        "unknown_attribute": f"expected an attribute, from 0 and with its number of values: {sizes}",
        "value_out_of_range": f"expected a value, counted from 0, of the attributes {sizes}",
    }
    return {(file.name, reason): word for file in folder.glob("*_*.txt") for reason, word in words.items()}


class _SplitRows(NamedTuple):
    """Content of one split's files, with attributes and values not yet checked."""

    labels: pd.DataFrame
    """Columns of Row, and `listed`: whether the row is from label_{valid,test}.txt."""
    rejects: list[Reject]
    rows_in: int


def _read_split(folder: Path, split: str) -> _SplitRows:
    names_file = folder / f"filenames_{split}.txt"
    names = read_lines(names_file, folder)
    while names and not names[-1].strip():
        names.pop()
    rows: list[Row] = []
    listed: list[bool] = []
    rejects: list[Reject] = []
    labelled: set[int] = set()
    filled: Counter[str] = Counter()
    for file, role in _label_files(folder, split):
        all_labels = split != "train" and not role
        for number, line in numbered_lines(file, folder):
            filled[file.name] += 1
            read = _read_line(line, names, file.name, number)
            if isinstance(read, Reject):
                rejects.append(read._replace(split=split, role=role))
                continue
            index, pairs = read
            labelled.add(index)
            rows += [Row(names[index], a - all_labels, v, split, role, file.name, number) for a, v in pairs]
            listed += [all_labels] * len(pairs)
    unlabelled = [
        Reject(names_file.name, i + 1, "no_label", name[:SHOWN], split)
        for i, name in enumerate(names)
        if i not in labelled
    ]
    # Not yet in the types of the columns, because the numbers are unchecked.
    labels = pd.DataFrame(rows, columns=list(Row._fields)).assign(listed=np.array(listed, bool))
    return _SplitRows(labels, rejects + unlabelled, count_rows(labels, rejects, filled) + len(unlabelled))


def _label_files(folder: Path, split: str) -> Iterator[tuple[Path, str]]:
    """Yield (file, role), the labels first, so that a query's row comes after its image's labels."""
    everything = folder / f"label_{split}.txt"
    if split == "train":
        yield _present(everything), ""
        return
    if everything.is_file():
        yield everything, ""
    for role in ROLES:
        yield _present(folder / f"{role}_{split}.txt"), role


def _present(file: Path) -> Path:
    if not file.is_file():
        split = file.stem.rpartition("_")[2]
        raise InputError(f"{file.parent}: filenames_{split}.txt is there but {file.name} is missing")
    return file


def _read_line(line: str, names: list[str], source: str, number: int) -> tuple[int, list[tuple[int, int]]] | Reject:
    numbers = integers(line)
    if numbers is None or len(numbers) < 3 or len(numbers) % 2 == 0:
        return bad_line(source, number, line)
    index = numbers[0]
    if not 0 <= index < len(names):
        return Reject(source, number, "index_out_of_range", f"{str(index)[:40]} of {counted(len(names), 'file name')}")
    if len(names[index]) > LONGEST_PATH:
        return Reject(source, number, "bad_line", f"its file name has {len(names[index]):,} characters")
    return index, list(zip(numbers[1::2], numbers[2::2], strict=True))


def _inferred(listed: pd.DataFrame, attributes: tuple[Attribute, ...], folder: Path) -> list[GlobalValue]:
    """Infer the meaning of every global value from the attribute it occurs with.

    Raises InputError unless every value occurs.
    """
    sizes = [len(attribute.values) for attribute in attributes]
    known = listed[listed["attribute"].between(0, len(sizes) - 1) & listed["value"].between(0, sum(sizes) - 1)]
    counts = pd.crosstab(known["value"].astype(int), known["attribute"].astype(int))
    attribute_of = counts.idxmax(axis=1)  # the most frequent one, so that a wrong line has no effect
    if attribute_of.value_counts().reindex(range(len(sizes)), fill_value=0).tolist() != sizes:
        raise InputError(
            f"{folder}: the values of label_valid.txt and label_test.txt are rows of list_attr_cloth.txt, and only "
            f"{len(attribute_of)} of {sum(sizes)} occur; put Anno_coarse/list_attr_cloth.txt into the dataset's folder"
        )
    return ranked(attribute_of.sort_index().tolist())


def ranked(attribute_of_row: list[int]) -> list[GlobalValue]:
    """Return (attribute, rank among that attribute's rows) of each row, given its attribute."""
    seen: dict[int, int] = {}
    result = []
    for attribute in attribute_of_row:
        result.append(GlobalValue(attribute, seen.get(attribute, 0)))
        seen[attribute] = seen.get(attribute, 0) + 1
    return result


def _local(labels: pd.DataFrame, meaning: list[GlobalValue]) -> pd.DataFrame:
    """Replace global values by local ones; -1 if the row's attribute has no such value."""
    rank_of = {(pair.attribute, row): pair.value for row, pair in enumerate(meaning)}
    listed = labels["listed"].to_numpy()
    pairs = zip(labels["attribute"][listed], labels["value"][listed], strict=True)
    values = labels["value"].to_numpy(object, copy=True)
    values[listed] = [rank_of.get(pair, -1) for pair in pairs]
    return labels.assign(value=values)


def _in_range(labels: pd.DataFrame, attributes: tuple[Attribute, ...]) -> tuple[pd.DataFrame, list[Reject]]:
    """Reject rows with an attribute or value that the dataset does not have."""
    known = labels["attribute"].between(0, len(attributes) - 1).to_numpy(bool)
    sizes = np.array([len(attribute.values) for attribute in attributes])
    size = np.zeros(len(labels), int)
    size[known] = sizes[labels["attribute"][known].to_numpy(int)]
    values = labels["value"]
    fits = known & ((values >= 0) & (values < size)).to_numpy(bool)
    names = dict(enumerate(attribute.name for attribute in attributes))
    misfits = labels.assign(name=labels["attribute"].map(names))
    for column in ("attribute", "value"):
        misfits[column] = misfits[column].astype(str).str[:40]  # because the number may have thousands of digits
    rejects = rejected(misfits[~known], "unknown_attribute", "attribute {attribute} of {path}")
    rejects += rejected(misfits[known & ~fits], "value_out_of_range", "{name} value {value} of {path}")
    checked = labels[fits].reset_index(drop=True)
    return checked.astype({"attribute": "int16", "value": "int32", "line": "int64"}), rejects


def _roles_among_labels(labels: pd.DataFrame) -> tuple[pd.DataFrame, list[Reject]]:
    """Reject queries and candidates with a label that their split's list of all labels does not have."""
    label = ["path", "attribute", "value", "split"]
    listed = labels[labels["listed"]]
    asked = (labels["role"] != "") & labels["split"].isin(listed["split"].unique())
    unlike = (asked & ~contained(labels, listed, label)).to_numpy(bool)
    rejects = rejected(labels[unlike], "labels_disagree", "{path}: not in label_{split}.txt")
    return labels[~unlike].reset_index(drop=True), rejects


def assign_splits(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Make a reproducible split in ASEN's proportions: train : valid : test = 8 : 1 : 1, query : candidate = 1 : 4.

    The images of each value are assigned in turn, in an order shuffled by `seed`, so that every value appears in the
    three splits as evenly as its number of images allows. All labels of an image are in the same split, and all are
    queries or all are candidates. Drawn datasets alone are divided so: `data_prep.splits` would give them other tables
    than those that the README's results were measured on.
    """
    image, position = _ordered(rows, seed)
    split = np.select([position % 10 == 8, position % 10 == 9], ["valid", "test"], "train")
    role = np.where(split == "train", "", np.where(position // 10 % QUERY_EVERY == 0, *ROLES))
    return rows.assign(split=split[image], role=role[image]).astype({"split": "str", "role": "str"})


def _ordered(rows: pd.DataFrame, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Order images by one of their labels, drawn by lot, and shuffled within equal ones.

    Returns every row's image, and every image's position in the order.
    """
    rng = np.random.default_rng(seed)
    image, paths = pd.factorize(rows["path"])
    order = rng.permutation(len(paths))
    by_image = np.argsort(image, kind="stable")
    labels = np.bincount(image, minlength=len(paths))
    lot = rng.integers(0, np.maximum(labels, 1))
    drawn = by_image[np.cumsum(labels) - labels + lot]
    attribute, value = rows["attribute"].to_numpy()[drawn][order], rows["value"].to_numpy()[drawn][order]
    position = np.empty(len(paths), np.int64)
    position[order[np.lexsort((value, attribute))]] = np.arange(len(paths))
    return image, position
