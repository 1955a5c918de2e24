"""The checkpoints of one training: which ones stand, and saving new ones while training goes on."""

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
"""Written last: a folder without it is no checkpoint."""
FOLDER = re.compile(rf"(?:step-(\d{{8,}})-[0-9a-f]{{8}}|\.step-(\d{{8,}})-[0-9a-f.]+{re.escape(BEING_WRITTEN)})")
"""A checkpoint's folder, or a local one that is not whole yet. Nothing of another name is ever removed."""
FULL_IN_RUST = re.compile(r"\(os error (28|122)\)")
"""How safetensors, whose errors are no OSErrors, says that the disk or the quota is full."""


LISTINGS = 10
"""At most. A listing takes its time: of a new checkpoint and the one that it replaces it may show neither. So it is
repeated until two agree; where an upload goes on all the while, that may be never."""


class Snapshot(Protocol):
    """A training's state at one step, which stays as it is until it is written."""

    @property
    def step(self) -> int:
        """Steps done."""

    @property
    def epoch(self) -> int:
        """Epochs done."""

    @property
    def metrics(self) -> dict[str, float]:
        """What the marker carries, and `done` may log."""

    @property
    def score(self) -> float | None:
        """By which the best is found, higher is better; None: not one to rank, such as one from mid-epoch."""

    def write(self, folder: Path) -> None:
        """Write its files into an existing, empty, local folder. `checkpoint.json` is not for it to write."""


@dataclass(frozen=True)
class Checkpoint:
    """A snapshot that stands."""

    place: Storage
    """The checkpoint's folder."""
    step: int
    epoch: int
    metrics: dict[str, float]
    """NaN and infinities are kept."""
    score: float | None
    files: dict[str, int]
    """Name (relative, POSIX) -> bytes, without the marker."""


class Marker(BaseModel):
    """`checkpoint.json`. JSON has no NaN and no infinity: they are the strings "NaN", "Infinity", "-Infinity"."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    written: int
    """Nanoseconds since 1970: of two of the same step the newer counts."""
    step: int
    epoch: int
    metrics: dict[str, float]
    score: float | None
    files: dict[str, int]


class Checkpoints:
    """The checkpoints below a place, local or remote, which need not be there yet.

    Each is a folder `step-00000049-<token>`: a writer that is dying and its successor may both write the same step.
    It counts if its marker, written last, is there and all files have the sizes that the marker states. One process
    at a time is meant to write; where two do, neither ever takes the other's unfinished one for a checkpoint.
    """

    def __init__(self, place: Storage, keep_best: int = 2):
        if keep_best < 0:
            raise ValueError(f"keep_best: {keep_best} is less than 0")
        self.place = place
        self.keep_best = keep_best

    def whole(self) -> list[Checkpoint]:
        """Those that stand, by step. Of two of one step only the newer. Raises StorageError, OSError."""
        return list(self._whole().values())

    def latest(self) -> Checkpoint | None:
        """The one to go on from."""
        return next(reversed(self.whole()), None)

    def best(self) -> Checkpoint | None:
        """The one with the highest score, the earlier on ties; None where none is scored."""
        return next(iter(_ranked(self.whole())), None)

    def add(self, snapshot: Snapshot) -> Checkpoint:
        """Write a checkpoint, and remove those that are no longer wanted. Returns when it stands.

        Raises what the snapshot's `write` raises, StorageError (a full disk too) or OSError; the older checkpoints
        are then as they were. A local one is forced to the disk: it outlives a machine that loses its power.
        """
        name = f"step-{snapshot.step:08d}-{secrets.token_hex(4)}"
        checkpoint = _checkpoint(self.place / name, self._write(name, snapshot))
        if not _stands(checkpoint):
            raise StorageError(f"{checkpoint.place}: has lost files while it was written; does another training write?")
        try:
            # Kept even if it is not the newest: who trains again from an older one means to go on from there.
            self._prune(kept={name})
        except (StorageError, OSError) as error:  # the checkpoint stands all the same
            log.warning("%s: what is no longer wanted cannot be removed now (%s)", self.place, error)
        return checkpoint

    @contextmanager
    def opened(self, checkpoint: Checkpoint) -> Iterator[Path]:
        """A local folder with its files, to be read only: the folder itself, or a temporary copy of a remote one.

        Raises StorageError if it is no longer whole: it was removed since it was listed.
        """
        gone = StorageError(f"{checkpoint.place}: is no longer there, or not whole")
        if not _stands(checkpoint):
            raise gone
        if checkpoint.place.local:
            yield checkpoint.place.local
            return
        with tempfile.TemporaryDirectory(prefix="agman-checkpoint-") as folder:
            for name, size in checkpoint.files.items():
                copy = Path(folder, name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with _told_if_gone(checkpoint.place / name):
                        (checkpoint.place / name).download(copy)
                except FileNotFoundError as error:
                    raise gone from error
                if copy.stat().st_size != size:
                    raise gone
            yield Path(folder)

    def prune(self) -> None:
        """Remove all but the newest and the best `keep_best`; torn ones too, up to the newest one's step.

        A torn one of a later step stays: it may be in the middle of being written.
        """
        self._prune(kept=set())

    def _prune(self, kept: set[str]) -> None:
        whole = self._whole()
        if not whole:
            return
        newest = next(reversed(whole.values()))
        wanted = [newest, *_ranked(list(whole.values()))[: self.keep_best]]
        kept = kept | {name for name, checkpoint in whole.items() if checkpoint in wanted}
        for name in self.place.folders():
            found = FOLDER.fullmatch(name)
            if found and int(found[1] or found[2]) <= newest.step and name not in kept:
                _remove(self.place / name)

    def _whole(self) -> dict[str, Checkpoint]:
        """By their folders' names, in the order of the steps."""
        listed = self.place.files()
        for _ in range(LISTINGS):
            whole = self._whole_of(listed)
            again = self.place.files()
            if again == listed:
                break
            listed = again
        return whole

    def _whole_of(self, listed: dict[str, int]) -> dict[str, Checkpoint]:
        folders: dict[str, dict[str, int]] = {}
        for path, size in listed.items():
            name, _, file = path.partition("/")
            folders.setdefault(name, {})[file] = size
        found = []
        for name, files in folders.items():
            if name.startswith(".") or not FOLDER.fullmatch(name) or MARKER not in files:
                continue
            try:
                with _told_if_gone(self.place / name / MARKER):
                    marker = Marker.model_validate_json((self.place / name / MARKER).read_bytes())
            except (FileNotFoundError, ValidationError):  # just removed, or torn
                continue
            if _has_all(files, marker.files):
                found.append((marker.step, marker.written, name, marker))
        newer_last = {step: (name, marker) for step, _, name, marker in sorted(found, key=lambda each: each[:3])}
        return {name: _checkpoint(self.place / name, marker) for name, marker in newer_last.values()}

    def _write(self, name: str, snapshot: Snapshot) -> Marker:
        try:
            with (self.place / name).atomic_folder(last=MARKER) as staging:
                snapshot.write(staging)
                marker = _marker(snapshot, staging)
                (staging / MARKER).write_bytes(_json(marker))
        except Exception as error:
            if isinstance(error, StorageError) or not _is_full(error):
                raise
            if self.place.local:
                with suppress(StorageError, OSError):
                    self.prune()  # else the rest of a killed writer could fill the disk for ever
            full = self.place.local or tempfile.gettempdir()
            raise StorageError(f"{full}: no space left on device for a checkpoint; free some") from error
        return marker


def _nothing(checkpoint: Checkpoint) -> None:
    pass


class Saver:
    """Saves in one background thread, so that training goes on; fewer than `every` steps can ever be lost.

    Call `after_step` after each step, `save` where an epoch ends, after that step's `after_step`, and `finish` at
    the end. All three are for the training's thread. `take` is called in it, and only when nothing is being written
    and nothing waits to be written again: the snapshots may share one set of buffers.

    A write that fails is warned of and tried again at the next step that one is due at: an epoch's end itself, for
    its metrics and score, until the next epoch's end; else with a new snapshot. The error is raised where the bound
    leaves no more room: at least two writes in a row have failed, the last of them at this step.

    `done` is called in the background thread after each checkpoint that stands, in their order. What it raises is
    raised by the next call here.

    every: steps, at least 1, which saves each step before the next one begins.
    start: the step resumed from, whose checkpoint stands, or 0.
    """

    def __init__(
        self, checkpoints: Checkpoints, every: int, done: Callable[[Checkpoint], None] = _nothing, start: int = 0
    ):
        if every < 1:
            raise ValueError(f"every: {every} is less than 1")
        self.every = every
        self.waited = 0.0
        """Seconds that training stood still: taking snapshots, and waiting for writes."""
        self._checkpoints = checkpoints
        self._done = done
        self._durable = self._step = self._begun_at = start
        self._lead = 1
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        self._epoch_end: Snapshot | None = None
        """What is being written, if it is one."""
        self._again: Snapshot | None = None
        """An epoch's end whose write failed."""
        self._failures = 0
        self._error: BaseException | None = None
        """Of the last write, if it failed."""
        self._not_done: BaseException | None = None
        """What `done` raised."""

    @property
    def durable(self) -> int:
        """The newest step that a checkpoint of this training stands of."""
        return self._durable

    def after_step(self, step: int, take: Callable[[], Snapshot]) -> None:
        """Save if it is time; wait while `every` steps would be lost. `take` gives the state after this step."""

        def taken() -> Snapshot:
            snapshot = take()
            if snapshot.step != step:
                raise ValueError(f"the snapshot after step {step} is one of step {snapshot.step}")
            return snapshot

        self._step = step
        self._settle()
        # Some steps before it must stand, so that it does by then.
        if self._writing is None and step - self._durable >= max(1, self.every - self._lead):
            self._begin(taken)
        self._keep_bound(taken)

    def save(self, take: Callable[[], Snapshot]) -> None:
        """Save an epoch's end now, in the background, after what is being written."""
        self._settle(wait=True)
        if self._again:
            self._submit(self._again, epoch_end=True)
            self._settle(wait=True)
            if self._again:
                log.warning("step %s: this checkpoint is given up for a newer one", self._again.step)
                self._again = None
        snapshot = self._taken(take)
        self._step = max(self._step, snapshot.step)
        self._submit(snapshot, epoch_end=True)
        self._keep_bound(take)

    def finish(self) -> None:
        """Wait for what is being written, and stop the thread. Raises what failed, after a second try."""
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
        """Take notice of how the write ended, if it has; with `wait`, when it has."""
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


def _ranked(whole: list[Checkpoint]) -> list[Checkpoint]:
    """The scored ones, best first."""
    scored = [(-checkpoint.score, checkpoint.step, checkpoint) for checkpoint in whole if checkpoint.score is not None]
    return [checkpoint for *_, checkpoint in sorted(scored, key=lambda each: each[:2])]


def _checkpoint(place: Storage, marker: Marker) -> Checkpoint:
    return Checkpoint(place, marker.step, marker.epoch, marker.metrics, marker.score, marker.files)


def _marker(snapshot: Snapshot, folder: Path) -> Marker:
    """Of a snapshot whose files are written."""
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


def _stands(checkpoint: Checkpoint) -> bool:
    found = checkpoint.place.files()
    return MARKER in found and _has_all(found, checkpoint.files)


def _has_all(found: dict[str, int], stated: dict[str, int]) -> bool:
    return all(found.get(name) == size for name, size in stated.items())


@contextmanager
def _told_if_gone(file: Storage) -> Iterator[None]:
    """FileNotFoundError, whatever a file system says of a file that goes away between its opening and reading."""
    try:
        yield
    except StorageError as error:
        if file.exists():
            raise
        raise FileNotFoundError(str(file)) from error


def _remove(folder: Storage) -> None:
    """The marker first: a deletion that is stopped half-way leaves no checkpoint."""
    with suppress(FileNotFoundError):  # somebody else is at it
        (folder / MARKER).delete()
        folder.delete()


def _is_full(error: BaseException) -> bool:
    return is_full(error) if isinstance(error, OSError) else bool(FULL_IN_RUST.search(str(error)))
