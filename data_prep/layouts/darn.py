"""DARN from ASEN's split files: pictures below `pic/`, nine attributes of one value each.

The names of the values are not published with the split, so that numbers take their place.
"""

from __future__ import annotations

from data_prep.annotation import Annotation
from data_prep.errors import InputError
from data_prep.layouts.asen_split import find_split_files, read_split_files
from data_prep.request import Request
from data_prep.tables import Attribute

NAME = "DARN"
SIZES = {
    "clothes category": 20,
    "clothes button": 13,
    "clothes color": 55,
    "clothes length": 7,
    "clothes pattern": 28,
    "clothes shape": 11,
    "collar shape": 26,
    "sleeve length": 8,
    "sleeve shape": 17,
}
SCHEMA = tuple(Attribute(name=name, values=tuple(map(str, range(size)))) for name, size in SIZES.items())


def read(request: Request) -> Annotation:
    """Read the split files, which are given or in the root. Raises InputError if there are none."""
    splits = find_split_files(request, NAME)
    if not splits:
        raise InputError(
            f"{request.root}: not DARN's layout (no filenames_*.txt in it; give --split-files if they are elsewhere)"
        )
    return read_split_files(splits, SCHEMA)
