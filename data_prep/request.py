"""What a preparation is asked for, as far as it concerns the adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.progress import Progress, silent


@dataclass(frozen=True)
class Request:
    """Which annotation to read, and how. `annotation`, `categories` and `crop_boxes` are DeepFashion's alone."""

    root: Path
    """The dataset's folder."""
    split_files: Path | None = None
    """ASEN's split files, if they are not in the root."""
    seed: int = 0
    """Of the split, where none is given."""
    annotation: str | None = None
    """coarse or fine; None: whichever is there, coarse before fine."""
    categories: bool = False
    """Add the clothing category as one more attribute."""
    crop_boxes: bool = False
    """Crop every picture to its bounding box."""
    progress: Progress = silent
