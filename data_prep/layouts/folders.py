"""Pictures below a folder: which there are, and a folder of folders read as a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.annotation import Reject
from data_prep.errors import InputError
from data_prep.layouts.table_file import Column, Records
from data_prep.pictures import HEIC, SUFFIXES
from data_prep.words import counted

IMAGE = "image"
"""Name of the column of paths in a table made of folders."""


def is_picture(path: str) -> bool:
    """Return whether the name is that of a picture in a format that is read."""
    return path.lower().endswith((*SUFFIXES, *HEIC))


def level_names(levels: str) -> list[str]:
    """Return the columns that `--levels` names. Raises InputError."""
    names = [name.strip() for name in levels.split("/")]
    named = [name for name in names if name != "-"]
    if "" in names or not named or len(set(named)) < len(named) or IMAGE in named:
        raise InputError(f"--levels {levels}: give the folders' levels distinct names, such as category/colour")
    return names


def read_folders(root: Path, levels: str, files: list[str]) -> Records:
    """Read a folder of folders as a table: the path of every picture, and the names of its folders."""
    names = level_names(levels)
    pictures = [path for path in files if is_picture(path)]
    if not pictures:
        raise InputError(f"{root}: no pictures below it ({', '.join(SUFFIXES)})")
    split = [path.split("/") for path in pictures]
    fits = [len(parts) == len(names) + 1 for parts in split]
    rejects = [
        Reject(root.name, number, "other_depth", f"{path}: not {counted(len(names), 'folder')} deep, as --levels says")
        for number, (path, parts, fit) in enumerate(zip(pictures, split, fits, strict=True), start=1)
        if not fit
    ]
    kept = [parts for parts, fit in zip(split, fits, strict=True) if fit]
    columns = {
        name: Column.of(pa.array([parts[depth] for parts in kept], pa.string()))
        for depth, name in enumerate(names)
        if name != "-"
    }
    columns[IMAGE] = Column.of(pa.array(["/".join(parts) for parts in kept], pa.string()))
    return Records(columns, np.flatnonzero(fits) + 1, rejects)
