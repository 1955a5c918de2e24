"""Options of a preparation that adapters read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.progress import Progress, silent


@dataclass(frozen=True)
class Request:
    """Annotation to read. `annotation`, `categories` and `crop_boxes` are for DeepFashion only."""

    root: Path
    """Folder of the dataset."""
    split_files: Path | None = None
    """Folder of ASEN's split files, if they are not in the root."""
    seed: int = 0
    """Seed of the split, if none is given."""
    annotation: str | None = None
    """coarse or fine; if None, the one that exists, coarse before fine."""
    categories: bool = False
    """Whether the clothing category is one more attribute."""
    crop_boxes: bool = False
    """Whether every picture is cropped to its bounding box."""
    progress: Progress = silent
