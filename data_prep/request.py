"""Options of a preparation that adapters read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from data_prep.progress import Progress, silent
from data_prep.splits import SplitFractions


@dataclass(frozen=True)
class TableOptions:
    """How a table of pictures is read; docs/data.md explains the options of the same names."""

    table: str | Path | None = None
    """Local file or URI; None: the folders of the pictures are the table."""
    levels: str | None = None
    """Names of the folders' levels, separated by `/`; `-` is a level without meaning."""
    image: str | None = None
    """Column of paths, or a pattern over columns such as `images/{id}.jpg`."""
    attributes: tuple[str, ...] = ()
    """NAME=COLUMN, or NAME if both are the same."""
    attributes_file: Path | None = None
    """YAML file of attributes that are derived from columns."""
    missing: tuple[str, ...] = ()
    """Texts that mean "no label", in any case."""
    separator: str | None = None
    """Separator of several values in one cell."""
    min_images: int = 2
    """Values with fewer images are left out."""
    fold_case: bool = False
    """Whether texts that differ in case only are one value."""
    group: str | None = None
    """Column of what may not be divided between splits."""


@dataclass(frozen=True)
class Request:
    """Annotation to read. `annotation`, `categories` and `crop_boxes` are for DeepFashion only, `table` for tables."""

    root: Path
    """Folder of the dataset."""
    split_files: Path | None = None
    """Folder of ASEN's split files, if they are not in the root."""
    seed: int = 0
    """Seed of the split, if none is given."""
    fractions: SplitFractions = field(default_factory=SplitFractions)
    """Sizes of a made split."""
    near_duplicates: str = "group"
    """keep: only name them; group: never divide them between made splits; drop: keep one of each."""
    annotation: str | None = None
    """coarse or fine; if None, the one that exists, coarse before fine."""
    categories: bool = False
    """Whether the clothing category is one more attribute."""
    crop_boxes: bool = False
    """Whether every picture is cropped to its bounding box."""
    image_size: int = 224
    """Short side of the packed pictures, in pixels."""
    progress: Progress = silent
    table: TableOptions = TableOptions()
