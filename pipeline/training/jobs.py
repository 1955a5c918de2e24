"""Trainings, studies and comparisons in a storage folder, and the space that their checkpoints take."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from data_prep.errors import InputError
from data_prep.storage import Storage
from pipeline.common.files import read_json, write_json
from pipeline.common.lock import locked
from pipeline.training.checkpoints import MARKER

CHECKPOINTS, OUTCOME, DESCRIPTION = "checkpoints", "outcome.json", "training.json"
"""Names in a training's folder."""
SEARCH, COMPARISON = "search.json", "comparison.json"
"""Files that make a folder that of a study or of a comparison."""
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
SCORE, CHANCE = "score", "chance"
"""Keys for the best score and its chance in the file of a job whose checkpoints are removed."""


@dataclass(frozen=True)
class Job:
    """A training, a study or a comparison."""

    folder: Storage
    kind: str
    state: str
    """finished, stopped, failed, unfinished, or running; comparisons: kept or running."""
    score: float | None
    """Best validation score of its checkpoints."""
    chance: float | None
    """Validation MAP of a random ranking; None if the score is triplet accuracy."""
    size: int
    """Bytes of all files."""
    checkpoints: dict[str, int]
    """Bytes of each folder of checkpoints, by its path below the job's folder."""


def jobs_in(storage: Storage) -> Iterator[Job]:
    """Yield the jobs in a storage folder, by name. Raises StorageError or OSError."""
    for name in sorted(storage.folders()):
        folder = storage / name
        files = folder.files()
        for kind, file in (("training", DESCRIPTION), ("study", SEARCH), ("comparison", COMPARISON)):
            if file in files:
                yield _job(folder, kind, files)
                break


def clean(job: Job) -> int:
    """Remove the checkpoints of a finished job and return the bytes that this frees; 0 for any other job.

    Registered versions have copies of their own in MLflow. The score is kept in the job's file.
    """
    if job.state != FINISHED or not job.checkpoints:
        return 0
    with ExitStack() as stack:
        if job.folder.local:
            try:
                stack.enter_context(locked(job.folder.local, "--storage"))
            except InputError:  # begun again since it was listed
                return 0
        file = job.folder / (SEARCH if job.kind == "study" else OUTCOME)
        write_json(file, read_json(file) | {SCORE: job.score, CHANCE: job.chance})
        for folder in job.checkpoints:
            (job.folder / folder).delete()
    return sum(job.checkpoints.values())


def _job(folder: Storage, kind: str, files: dict[str, int]) -> Job:
    checkpoints: dict[str, int] = {}
    found = []
    for path, size in files.items():
        before, inside, rest = path.rpartition(f"{CHECKPOINTS}/")
        if inside and (not before or before.endswith("/")):
            checkpoints[before + CHECKPOINTS] = checkpoints.get(before + CHECKPOINTS, 0) + size
            if rest.endswith(f"/{MARKER}"):
                marker = read_json(folder / path)
                found.append((marker.get(SCORE), marker.get("metrics", {}).get("valid/chance")))
    state, content = _state(folder, kind)
    found.append((content.get(SCORE), content.get(CHANCE)))
    known = [each for each in found if each[0] is not None]
    score, chance = max(known, key=itemgetter(0), default=(None, None))
    return Job(folder, kind, state, score, chance, sum(files.values()), checkpoints)


def _state(folder: Storage, kind: str) -> tuple[str, dict[str, Any]]:
    """Return a job's state, and the content of the file that tells it."""
    content = read_json(folder / (SEARCH if kind == "study" else OUTCOME))
    if _is_running(folder):
        return "running", content
    if kind == "comparison":
        return "kept", content
    if content.get("finished") or "registered" in content:
        return FINISHED, content
    state = content.get("state", FINISHED)  # a training that has ended is registered by the same command
    return ("unfinished" if state == FINISHED else str(state)), content


def _is_running(folder: Storage) -> bool:
    """Return whether a process of this machine works in the folder."""
    lock = folder.local / "lock" if folder.local else None
    if lock is None or not lock.is_file():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
