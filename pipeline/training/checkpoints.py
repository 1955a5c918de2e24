"""The checkpoints of one training: finding the complete ones, and saving new ones while training continues."""

from __future__ import annotations

import logging
import math
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from data_prep.atomic import BEING_WRITTEN, is_full
from data_prep.errors import StorageError
from data_prep.storage import Storage

log = logging.getLogger(__name__)

MARKER = "checkpoint.json"
"""File that is written last: a folder without it is no checkpoint."""
FOLDER = re.compile(rf"(?:step-(\d{{8,}})-[0-9a-f]{{8}}|\.step-(\d{{8,}})-[0-9a-f.]+{re.escape(BEING_WRITTEN)})")
"""Name of a checkpoint's folder, or of a local one that is being written. Other folders are never removed."""
FULL_IN_RUST = re.compile(r"\(os error (28|122)\)")
"""Text by which safetensors, whose errors are no OSErrors, reports a full disk or quota."""


LISTINGS = 10
"""Largest number of listings of a folder. Checkpoints that change during a listing may be missing from it, the new one
and the one that it replaces. So a listing is repeated until two agree, which a long upload may prevent."""


class Snapshot(Protocol):
    """A training's state at one step, which does not change until it is written."""

    @property
    def step(self) -> int:
        """Number of steps done."""

    @property
    def epoch(self) -> int:
        """Number of complete epochs."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics for the marker, and for `done` to log."""

    @property
    def score(self) -> float | None:
        """Score that ranks checkpoints, higher is better; None for one that is not ranked, e.g. from mid-epoch."""

    def write(self, folder: Path) -> None:
        """Write its files, none of them `checkpoint.json`, into an existing, empty, local folder."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete snapshot in storage."""

    path: Storage
    """The checkpoint's folder."""
    step: int
    epoch: int
    metrics: dict[str, float]
    """NaN and infinities are kept."""
    score: float | None
    files: dict[str, int]
    """Sizes in bytes by name (relative, POSIX), without the marker."""


class Marker(BaseModel):
    """Content of `checkpoint.json`. JSON has no NaN and no infinity: they become "NaN", "Infinity", "-Infinity"."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    written: int
    """Nanoseconds since 1970: of two checkpoints of the same step, the newer one counts."""
    step: int
    epoch: int
    metrics: dict[str, float]
    score: float | None
    files: dict[str, int]


class Checkpoints:
    """The checkpoints below a root folder, local or remote, which need not exist yet.

    Each is a folder `step-00000049-<token>`: a dying writer and its successor may both write the same step. It is
    complete if its marker, written last, exists and all files have the sizes that the marker states. One process at a
    time is meant to write; if two do, neither ever takes the other's unfinished folder for a checkpoint.
    """

    def __init__(self, root: Storage, keep_best: int = 2):
        if keep_best < 0:
            raise ValueError(f"keep_best: {keep_best} is less than 0")
        self.root = root
        self.keep_best = keep_best

    def complete(self) -> list[Checkpoint]:
        """Return the complete checkpoints, ordered by step; for equal steps, the newer one.

        Raises StorageError or OSError.
        """
        return list(self._complete().values())

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint, from which training continues."""
        return next(reversed(self.complete()), None)

    def best(self) -> Checkpoint | None:
        """Return the checkpoint with the highest score, the earlier one on ties; None if no checkpoint has a score."""
        return next(iter(_ranked(self.complete())), None)

    def add(self, snapshot: Snapshot) -> Checkpoint:
        """Write a checkpoint, and remove those that are no longer needed; returns when it is complete.

        A local one is forced to the disk, so that it survives a loss of power. Raises what the snapshot's `write`
        raises, StorageError (also for a full disk) or OSError; the older checkpoints are then unchanged.
        """
        name = f"step-{snapshot.step:08d}-{secrets.token_hex(4)}"
        checkpoint = _checkpoint(self.root / name, self._write(name, snapshot))
        if not _is_complete(checkpoint):
            raise StorageError(f"{checkpoint.path}: has lost files while it was written; does another training write?")
        try:
            # Kept even if it is not the newest: a training that was begun from an older one continues there.
            self._prune(kept={name})
        except (StorageError, OSError) as error:  # the checkpoint is complete all the same
            log.warning("%s: old checkpoints cannot be removed now (%s)", self.root, error)
        return checkpoint

    @contextmanager
    def opened(self, checkpoint: Checkpoint) -> Iterator[Path]:
        """Yield a local folder with its files, to be read only: the folder itself, or a temporary copy of a remote one.

        Raises StorageError if it is no longer complete, because it was removed since it was listed.
        """
        gone = StorageError(f"{checkpoint.path}: is no longer there, or not complete")
        if not _is_complete(checkpoint):
            raise gone
        if checkpoint.path.local:
            yield checkpoint.path.local
            return
        with tempfile.TemporaryDirectory(prefix="agman-checkpoint-") as folder:
            for name, size in checkpoint.files.items():
                copy = Path(folder, name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with _reported_if_gone(checkpoint.path / name):
                        (checkpoint.path / name).download(copy)
                except FileNotFoundError as error:
                    raise gone from error
                if copy.stat().st_size != size:
                    raise gone
            yield Path(folder)

    def prune(self) -> None:
        """Remove all but the newest and the best `keep_best`, and incomplete ones up to the newest one's step.

        An incomplete one of a later step is kept: it may be in the middle of being written.
        """
        self._prune(kept=set())

    def _prune(self, kept: set[str]) -> None:
        complete = self._complete()
        if not complete:
            return
        newest = next(reversed(complete.values()))
        wanted = [newest, *_ranked(list(complete.values()))[: self.keep_best]]
        kept = kept | {name for name, checkpoint in complete.items() if checkpoint in wanted}
        for name in self.root.folders():
            found = FOLDER.fullmatch(name)
            if found and int(found[1] or found[2]) <= newest.step and name not in kept:
                _remove(self.root / name)

    def _complete(self) -> dict[str, Checkpoint]:
        """Return the complete checkpoints by their folders' names, in the order of the steps."""
        listed = self.root.files()
        for _ in range(LISTINGS):
            complete = self._complete_in(listed)
            again = self.root.files()
            if again == listed:
                break
            listed = again
        return complete

    def _complete_in(self, listed: dict[str, int]) -> dict[str, Checkpoint]:
        folders: dict[str, dict[str, int]] = {}
        for path, size in listed.items():
            name, _, file = path.partition("/")
            folders.setdefault(name, {})[file] = size
        found = []
        for name, files in folders.items():
            if name.startswith(".") or not FOLDER.fullmatch(name) or MARKER not in files:
                continue
            try:
                with _reported_if_gone(self.root / name / MARKER):
                    marker = Marker.model_validate_json((self.root / name / MARKER).read_bytes())
            except (FileNotFoundError, ValidationError):  # just removed, or torn
                continue
            if _has_all(files, marker.files):
                found.append((marker.step, marker.written, name, marker))
        newer_last = {step: (name, marker) for step, _, name, marker in sorted(found, key=lambda each: each[:3])}
        return {name: _checkpoint(self.root / name, marker) for name, marker in newer_last.values()}

    def _write(self, name: str, snapshot: Snapshot) -> Marker:
        try:
            with (self.root / name).atomic_folder(last=MARKER) as staging:
                snapshot.write(staging)
                marker = _marker(snapshot, staging)
                (staging / MARKER).write_bytes(_json(marker))
        except Exception as error:
            if isinstance(error, StorageError) or not _is_full(error):
                raise
            if self.root.local:
                with suppress(StorageError, OSError):
                    self.prune()  # else folders of killed writers could fill the disk for ever
            full = self.root.local or tempfile.gettempdir()
            raise StorageError(f"{full}: no space left on device for a checkpoint; free some") from error
        return marker


def _nothing(checkpoint: Checkpoint) -> None:
    pass


class Saver:
    """Saving in one background thread, so that training continues; a kill loses fewer than `every` steps.

    Call `after_step` after each step, `save` at an epoch's end, after that step's `after_step`, and `finish` at the
    end, all in the training's thread. `take` is called in that thread too, and only when nothing is being written and
    nothing waits to be written again: snapshots may share one set of buffers.

    A write that fails is reported and tried again at the next step at which one is due: an epoch's end itself, for
    its metrics and score, until the next epoch's end; otherwise with a new snapshot. The error is raised when no
    other try fits within `every` steps: at least two writes in a row have failed, the last of them at this step.

    `done` is called in the background thread after each complete checkpoint, in their order. The next call of a
    method raises what it raised.

    every: steps, at least 1; 1 saves each step before the next one begins.
    start: the step resumed from, whose checkpoint is complete, or 0.
    """

    def __init__(
        self, checkpoints: Checkpoints, every: int, done: Callable[[Checkpoint], None] = _nothing, start: int = 0
    ):
        if every < 1:
            raise ValueError(f"every: {every} is less than 1")
        self.every = every
        self.waited = 0.0
        """Seconds that training stood still to take snapshots and to wait for writes."""
        self._checkpoints = checkpoints
        self._done = done
        self._durable = self._step = self._begun_at = start
        self._lead = 1
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        self._epoch_end: Snapshot | None = None
        """Epoch's end that is being written, if any."""
        self._again: Snapshot | None = None
        """Epoch's end whose write failed."""
        self._failures = 0
        self._error: BaseException | None = None
        """Error of the last write, if it failed."""
        self._not_done: BaseException | None = None
        """Error that `done` raised."""

    @property
    def durable(self) -> int:
        """Newest step of which this training has a complete checkpoint."""
        return self._durable

    def after_step(self, step: int, take: Callable[[], Snapshot]) -> None:
        """Save if it is time, and wait while `every` steps could be lost. `take` returns the state after this step."""

        def taken() -> Snapshot:
            snapshot = take()
            if snapshot.step != step:
                raise ValueError(f"the snapshot after step {step} is one of step {snapshot.step}")
            return snapshot

        self._step = step
        self._settle()
        # Some steps before the bound, so that the checkpoint is complete by then.
        if self._writing is None and step - self._durable >= max(1, self.every - self._lead):
            self._begin(taken)
        self._keep_bound(taken)

    def save(self, take: Callable[[], Snapshot]) -> None:
        """Save an epoch's end in the background, as soon as the present write has ended."""
        self._settle(wait=True)
        if self._again:
            self._submit(self._again, epoch_end=True)
            self._settle(wait=True)
            if self._again:
                log.warning("step %s: this checkpoint is dropped for a newer one", self._again.step)
                self._again = None
        snapshot = self._taken(take)
        self._step = max(self._step, snapshot.step)
        self._submit(snapshot, epoch_end=True)
        self._keep_bound(take)

    def finish(self) -> None:
        """Wait for the present write, and stop the thread. Raises an error that a second try did not cure."""
        try:
            self._settle(wait=True)
            if self._again:
                self._submit(self._again, epoch_end=True)
                self._settle(wait=True)
            if self._error:
                raise self._error
        finally:
            self._again, self._error = None, None
            self._thread.shutdown()

    def _keep_bound(self, take: Callable[[], Snapshot]) -> None:
        while self._step - self._durable >= self.every:
            self._settle(wait=True)
            if self._step - self._durable < self.every:
                return
            if self._error and self._failures > 1 and self._begun_at == self._step:
                raise self._error
            self._begin(take)

    def _begin(self, take: Callable[[], Snapshot]) -> None:
        if self._again:
            self._submit(self._again, epoch_end=True)
        else:
            self._submit(self._taken(take), epoch_end=False)

    def _taken(self, take: Callable[[], Snapshot]) -> Snapshot:
        with self._standing_still():
            return take()

    def _submit(self, snapshot: Snapshot, epoch_end: bool) -> None:
        self._epoch_end = snapshot if epoch_end else None
        self._begun_at = self._step
        self._writing = self._thread.submit(self._write, snapshot, self._step)

    def _write(self, snapshot: Snapshot, begun_at: int) -> None:
        checkpoint = self._checkpoints.add(snapshot)
        self._durable = max(self._durable, checkpoint.step)
        try:
            self._done(checkpoint)
        except BaseException as error:
            self._not_done = error
        took = self._step - begun_at
        self._lead = max(1, min(took + 1, self.every // 2))

    def _settle(self, wait: bool = False) -> None:
        """Note how the write ended, if it has; with `wait`, wait for its end."""
        if self._writing is None or not (wait or self._writing.done()):
            return
        with self._standing_still():
            self._error = self._writing.exception()
        self._writing = None
        self._again = self._epoch_end if self._error else None
        if self._error:
            self._failures += 1
            log.warning("a checkpoint could not be written, and will be tried again (%s)", self._error)
            return
        self._failures = 0
        if self._not_done:
            error, self._not_done = self._not_done, None
            raise error

    @contextmanager
    def _standing_still(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - begun


def _ranked(complete: list[Checkpoint]) -> list[Checkpoint]:
    """Return the checkpoints with a score, best first."""
    scored = [
        (-checkpoint.score, checkpoint.step, checkpoint) for checkpoint in complete if checkpoint.score is not None
    ]
    return [checkpoint for *_, checkpoint in sorted(scored, key=lambda each: each[:2])]


def _checkpoint(path: Storage, marker: Marker) -> Checkpoint:
    return Checkpoint(path, marker.step, marker.epoch, marker.metrics, marker.score, marker.files)


def _marker(snapshot: Snapshot, folder: Path) -> Marker:
    """Return the marker of a snapshot whose files are written."""
    files = Storage(folder).files()
    if MARKER in files:
        raise ValueError(f"a snapshot writes {MARKER}, which is the marker's name")
    score = None if snapshot.score is None or math.isnan(snapshot.score) else float(snapshot.score)
    return Marker(
        written=time.time_ns(),
        step=snapshot.step,
        epoch=snapshot.epoch,
        metrics={name: float(value) for name, value in snapshot.metrics.items()},
        score=score,
        files=files,
    )


def _json(marker: Marker) -> bytes:
    return (marker.model_dump_json(indent=2) + "\n").encode()


def _is_complete(checkpoint: Checkpoint) -> bool:
    found = checkpoint.path.files()
    return MARKER in found and _has_all(found, checkpoint.files)


def _has_all(found: dict[str, int], stated: dict[str, int]) -> bool:
    return all(found.get(name) == size for name, size in stated.items())


@contextmanager
def _reported_if_gone(file: Storage) -> Iterator[None]:
    """Raise FileNotFoundError for a file that disappears while it is read, whatever the file system reports."""
    try:
        yield
    except StorageError as error:
        if file.exists():
            raise
        raise FileNotFoundError(str(file)) from error


def _remove(folder: Storage) -> None:
    """Delete the marker first: a deletion that is stopped half-way leaves no checkpoint."""
    with suppress(FileNotFoundError):  # another process deletes it too
        (folder / MARKER).delete()
        folder.delete()


def _is_full(error: BaseException | None) -> bool:
    """Return whether a full disk is the cause; torch raises an error of its own, whose context names it."""
    while error:
        if is_full(error) if isinstance(error, OSError) else FULL_IN_RUST.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
