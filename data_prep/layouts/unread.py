"""Annotation files below the root that a layout did not read, with the reason: nothing is ignored in silence."""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path

from data_prep.layouts.text_files import files_below
from data_prep.request import Request

ENDINGS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".mat", ".xlsx")
"""Ends of the names of files that may be annotation."""
NAMED = 4
"""Number of files that a note names."""
OF_SPLIT = re.compile(r"(label|query|candidate)_(train|valid|test)\.txt")
NO_USE = "of no use to this layout"


def unread(request: Request, read: Set[Path]) -> list[str]:
    """Return a note for every reason for which annotation files below the root are not among those that were `read`.

    `read` are resolved paths.
    """
    files = [request.root / path for path in files_below(request.root) if path.lower().endswith(ENDINGS)]
    reasons: dict[str, list[str]] = {}
    for file in files:
        if file.resolve() not in read:
            name = file.relative_to(request.root).as_posix()
            reasons.setdefault(_reason(file, request, {one.name.lower() for one in read}), []).append(name)
    return [
        f"not read: {', '.join(names[:NAMED])}{f' and {len(names) - NAMED:,} more' if len(names) > NAMED else ''} "
        f"({reason})"
        for reason, names in reasons.items()
    ]


def _reason(file: Path, request: Request, read: Set[str]) -> str:
    name, folder = file.name.lower(), file.parent.name.lower()
    if part := OF_SPLIT.fullmatch(name):
        names = f"filenames_{part[2]}.txt"
        if not (file.parent / names).exists():
            return f"{names} is not beside it"
    if request.split_files and (part or name.startswith("filenames_") or name.endswith("_tripletlist")):
        return "the split is that of --split-files"
    if "fine" in folder and "list_attr_img.txt" in read:
        return "the coarse annotation is read; --annotation fine reads this one"
    if name.startswith("list_attr_") and "list_attr_img.txt" not in read:
        return "the fine annotation is read; --annotation coarse reads this one"
    if name.startswith("list_category_"):
        return "--categories reads it"
    if "bbox" in name:
        return "--crop-boxes reads it"
    if name == "list_eval_partition.txt":
        return "the split is given elsewhere"
    if name == "meta-data.csv":
        return "the triplet lists are read instead"
    return NO_USE
