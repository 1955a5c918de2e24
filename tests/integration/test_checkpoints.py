"""Checkpoints in a folder and in an object store: which are complete, which are kept, and kills and failures."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.s3_server import Bucket

from data_prep.errors import StorageError
from data_prep.storage import Storage
from pipeline.training.checkpoints import MARKER, Checkpoint, Checkpoints, Saver

FILES = {"model.bin": b"weights" * 11, "optimizer/moments.bin": b"moments" * 13, "empty": b""}
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Snap:
    """A snapshot of given files."""

    step: int
    score: float | None = None
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=lambda: FILES)
    begin: Callable[[], None] = lambda: None
    """Called in the middle of writing."""

    def write(self, folder: Path) -> None:
        assert not any(folder.iterdir())
        for name, data in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
            self.begin()


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest) -> Storage:
    if request.param == "local":
        return Storage(request.getfixturevalue("tmp_path") / "run" / "checkpoints")
    return Storage(request.getfixturevalue("bucket").uri("run/checkpoints"))


def steps(checkpoints: Checkpoints) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints.complete()]


def contents(checkpoints: Checkpoints, checkpoint: Checkpoint) -> dict[str, bytes]:
    with checkpoints.opened(checkpoint) as folder:
        return {name: (folder / name).read_bytes() for name in Storage(folder).files() if name != MARKER}


def torn(checkpoints: Checkpoints) -> list[str]:
    """Return the folders that are no complete checkpoints."""
    complete = {str(checkpoint.path) for checkpoint in checkpoints.complete()}
    return [name for name in checkpoints.root.folders() if str(checkpoints.root / name) not in complete]


def test_a_folder_that_does_not_exist_has_no_checkpoints(root: Storage) -> None:
    checkpoints = Checkpoints(root)
    assert (checkpoints.complete(), checkpoints.latest(), checkpoints.best()) == ([], None, None)
    checkpoints.prune()


def test_a_written_checkpoint_is_read_back(root: Storage) -> None:
    checkpoints = Checkpoints(root)
    metrics = {"loss": 0.25, "diverged": math.nan, "most": math.inf, "least": -math.inf, "single": np.float32(0.5)}
    added = checkpoints.add(Snap(49, score=0.75, epoch=3, metrics=metrics))
    found = checkpoints.latest()
    assert found
    for checkpoint in (added, found):
        assert (checkpoint.step, checkpoint.epoch, checkpoint.score) == (49, 3, 0.75)
        assert checkpoint.files == {name: len(data) for name, data in FILES.items()}
        assert checkpoint.metrics == pytest.approx(metrics, nan_ok=True)
        assert contents(checkpoints, checkpoint) == FILES
    text = (found.path / MARKER).read_bytes().decode()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    with checkpoints.opened(found) as folder:
        assert (folder == root.local / Path(str(found.path)).name) if root.local else folder.is_dir()
    assert folder.is_dir() == bool(root.local), "a copy is temporary"


def test_the_marker_is_uploaded_last(bucket: Bucket) -> None:
    checkpoint = Checkpoints(Storage(bucket.uri("run"))).add(Snap(1))
    key = str(checkpoint.path).removeprefix("s3://bucket/")
    assert bucket.puts == [f"{key}/{name}" for name in [*sorted(FILES), MARKER]]


def test_the_best_and_the_newest_are_kept(root: Storage) -> None:
    checkpoints = Checkpoints(root, keep_best=2)
    (root / "notes.txt").write_bytes(b"mine")
    (root / "step-1-mine" / "notes.txt").write_bytes(b"mine too")
    scores = {2: 0.1, 3: None, 5: 0.7, 7: 0.5, 11: None, 13: 0.6, 17: None}
    kept = {2: [2], 3: [2, 3], 5: [2, 5], 7: [5, 7], 11: [5, 7, 11], 13: [5, 13], 17: [5, 13, 17]}
    for step, score in scores.items():
        checkpoints.add(Snap(step, score))
        assert steps(checkpoints) == kept[step]
    best, latest = checkpoints.best(), checkpoints.latest()
    assert best and latest
    assert (best.step, latest.step) == (5, 17)
    assert torn(checkpoints) == ["step-1-mine"]
    assert root.files().keys() > {"notes.txt", "step-1-mine/notes.txt"}, "others' files stay"


def test_the_earlier_of_equal_scores_is_the_best(root: Storage) -> None:
    checkpoints = Checkpoints(root, keep_best=2)
    for step, score in ((2, 0.5), (3, 0.5), (5, math.nan), (7, 0.5), (11, None)):
        checkpoints.add(Snap(step, score))
    assert steps(checkpoints) == [2, 3, 11]
    best = checkpoints.best()
    assert best and best.step == 2


def test_nan_is_no_score_and_keep_best_may_be_zero(root: Storage) -> None:
    checkpoints = Checkpoints(root, keep_best=0)
    checkpoints.add(Snap(2, 0.5))
    checkpoints.add(Snap(3, math.nan))
    (only,) = checkpoints.complete()
    assert (only.step, only.score, checkpoints.best()) == (3, None, None)
    with pytest.raises(ValueError, match="keep_best"):
        Checkpoints(root, keep_best=-1)


def damage_of(how: str, checkpoint: Checkpoint) -> None:
    file, marker = checkpoint.path / "model.bin", checkpoint.path / MARKER
    text = marker.read_bytes()
    if how == "truncated":
        file.write_bytes(FILES["model.bin"][:-1])
    elif how == "longer":
        file.write_bytes(FILES["model.bin"] + b"\0")
    elif how == "missing":
        file.delete()
    elif how == "marker cut":
        marker.write_bytes(text[: len(text) // 2])
    elif how == "marker empty":
        marker.write_bytes(b"")
    elif how == "deletion stopped":  # marker first
        marker.delete()
    else:
        marker.write_bytes(text.replace(b'"schema_version": 1', b'"schema_version": 2'))


HOWS = ["truncated", "longer", "missing", "marker cut", "marker empty", "deletion stopped", "another schema"]


@pytest.mark.parametrize("how", HOWS)
def test_a_damaged_checkpoint_does_not_count_and_is_removed_by_the_next(root: Storage, how: str) -> None:
    checkpoints = Checkpoints(root)
    checkpoints.add(Snap(2, 0.5))
    damaged = checkpoints.add(Snap(3, 0.9))
    damage_of(how, damaged)
    assert steps(checkpoints) == [2]
    best, latest = checkpoints.best(), checkpoints.latest()
    assert best and latest and best.step == latest.step == 2
    if not how.startswith(("marker", "another")):
        with pytest.raises(StorageError, match=r"step-00000003-.*no longer"), checkpoints.opened(damaged):
            pass
    checkpoints.prune()
    assert len(torn(checkpoints)) == 1, "it is newer: it may be in the middle of being written"
    checkpoints.add(Snap(3, 0.9))
    assert (steps(checkpoints), torn(checkpoints)) == ([2, 3], [])


def test_the_newer_of_two_checkpoints_of_one_step_counts(root: Storage) -> None:
    checkpoints = Checkpoints(root)
    first = checkpoints.add(Snap(3, files={"a": b"first"}))
    other = root / "step-00000003-00000000"
    (other / "a").write_bytes(b"other")
    for later, winner in ((1, b"other"), (-1, b"first")):
        marker = json.loads((first.path / MARKER).read_bytes())
        (other / MARKER).write_bytes(json.dumps(marker | {"written": marker["written"] + later}).encode())
        (found,) = checkpoints.complete()
        assert contents(checkpoints, found) == {"a": winner}
    checkpoints.prune()
    assert (steps(checkpoints), torn(checkpoints)) == ([3], [])
    second = checkpoints.add(Snap(3, 0.5, files={"a": b"second"}))
    (found,) = checkpoints.complete()
    assert str(found.path) == str(second.path) and found.score == 0.5
    assert torn(checkpoints) == []


def test_a_checkpoint_older_than_the_newest_is_kept_when_it_is_added(root: Storage) -> None:
    checkpoints = Checkpoints(root)
    checkpoints.add(Snap(7))
    checkpoints.add(Snap(5))
    assert steps(checkpoints) == [5, 7]
    checkpoints.add(Snap(11))
    assert steps(checkpoints) == [11]


def test_listing_while_others_come_and_go(root: Storage) -> None:
    checkpoints = Checkpoints(root, keep_best=1)
    checkpoints.add(Snap(1))
    ended, last = threading.Event(), 39 if root.local else 12

    def train() -> None:
        for step in range(2, last + 1):
            checkpoints.add(Snap(step, score=step % 3))
        ended.set()

    training = threading.Thread(target=train)
    training.start()
    seen = []
    while not ended.is_set():
        latest = checkpoints.latest()
        assert latest
        try:
            assert root.local or contents(checkpoints, latest) == FILES
        except StorageError as error:
            assert "no longer there" in str(error)
        seen.append(latest.step)
    training.join()
    assert seen == sorted(seen)
    assert steps(checkpoints) == [2, last]


@pytest.mark.parametrize("object_of", ["optimizer/moments.bin", MARKER])
def test_a_torn_upload_is_no_checkpoint(bucket: Bucket, object_of: str) -> None:
    checkpoints = Checkpoints(Storage(bucket.uri("run")))
    checkpoints.add(Snap(2))
    bucket.failing, bucket.code = rf"step-00000003-.*/{object_of}", 403
    with pytest.raises(StorageError, match=r"s3://bucket/run/step-00000003-.*cannot be read or written"):
        checkpoints.add(Snap(3))
    assert (steps(checkpoints), len(torn(checkpoints))) == ([2], 1)
    checkpoints.add(Snap(5))
    assert (steps(checkpoints), torn(checkpoints)) == ([5], [])


@pytest.mark.slow  # pyarrow tries for some seconds
def test_an_upload_during_which_the_server_fails(bucket: Bucket) -> None:
    checkpoints = Checkpoints(Storage(bucket.uri("run")))
    bucket.failing = "moments"
    with pytest.raises(StorageError, match="broken"):
        checkpoints.add(Snap(3))
    assert steps(checkpoints) == []


def test_a_deletion_that_fails_leaves_no_checkpoint_and_does_not_fail_the_new_one(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(Storage(bucket.uri("run")))
    first = checkpoints.add(Snap(2))
    bucket.undeletable = r"model\.bin"
    assert checkpoints.add(Snap(3)).step == 3
    assert "cannot be removed now" in caplog.text
    assert MARKER not in first.path.files() and "model.bin" in first.path.files()
    assert (steps(checkpoints), len(torn(checkpoints))) == ([3], 1)
    with pytest.raises(StorageError, match="refused"):
        checkpoints.prune()
    bucket.undeletable = None
    checkpoints.prune()
    assert torn(checkpoints) == []
    key = str(first.path).removeprefix("s3://bucket/")
    assert next(each for each in bucket.deletes if key in each) == f"{key}/{MARKER}"


@dataclass(frozen=True)
class TooLarge(Snap):
    """Write to /dev/full, which has no space, like a full disk."""

    def write(self, folder: Path) -> None:
        (folder / "a").write_bytes(b"fits")
        (folder / "b").symlink_to("/dev/full")
        (folder / "b").write_bytes(b"does not")


def test_a_full_disk_leaves_the_older_ones_and_makes_room(root: Storage) -> None:
    checkpoints = Checkpoints(root)
    checkpoints.add(Snap(2, 0.5))
    checkpoints.add(Snap(3, 0.4))
    (root / "step-00000001-0badbeef" / "model.bin").write_bytes(b"of a writer that was killed")
    with pytest.raises(StorageError, match="no space left on device for a checkpoint") as full:
        checkpoints.add(TooLarge(5))
    assert str(full.value).startswith(str(root) if root.local else "/"), "it says which disk"
    assert steps(checkpoints) == [2, 3]
    assert len(torn(checkpoints)) == (0 if root.local else 1)
    assert contents(checkpoints, checkpoints.complete()[0]) == FILES


@dataclass(frozen=True)
class Tensors(Snap):
    def write(self, folder: Path) -> None:
        save_file({"weights": np.zeros(1_000_000)}, folder / "model.safetensors")


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small disk needs root")
def test_a_disk_that_is_full_for_safetensors(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not allow mounting, so no disk can be filled without harm to others")
    try:
        checkpoints = Checkpoints(Storage(disk / "run"))
        checkpoints.add(Snap(2))
        with pytest.raises(StorageError, match="no space left on device for a checkpoint"):
            checkpoints.add(Tensors(3))
        assert (steps(checkpoints), torn(checkpoints)) == ([2], [])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_snapshot_may_not_write_the_marker(root: Storage) -> None:
    with pytest.raises(ValueError, match=MARKER):
        Checkpoints(root).add(Snap(1, files={MARKER: b"{}"}))
    assert not root.files()


# Kills. Another process writes a checkpoint of step 1, then one of step 2, in the middle of which it prints and waits.
WRITER = """
import sys
from pathlib import Path
from data_prep.storage import Storage
from pipeline.training.checkpoints import Checkpoints

class Snap:
    epoch, metrics, score = 0, {}, None
    def __init__(self, step, stop): self.step, self.stop = step, stop
    def write(self, folder):
        self.at(0)
        with open(folder / "a", "wb") as file:
            file.write(bytes(5_000))
            file.flush()
            self.at(1)
            file.write(bytes(5_000))
        self.at(2)
        (folder / "b").mkdir()
        (folder / "b" / "c").write_bytes(bytes(7_000))
        self.at(3)
    def at(self, moment):
        if moment == self.stop:
            print(flush=True)
            sys.stdin.read()

checkpoints = Checkpoints(Storage(sys.argv[1]))
checkpoints.add(Snap(1, None))
checkpoints.add(Snap(2, int(sys.argv[2])))
"""
# Trains as fast as it can, and prints each step whose after_step has returned.
TRAINING = """
import sys
from pathlib import Path
from data_prep.storage import Storage
from pipeline.training.checkpoints import Checkpoints, Saver

class Snap:
    epoch, metrics = 0, {}
    def __init__(self, step): self.step, self.score = step, step % 5
    def write(self, folder):
        for name in range(5):
            (folder / f"{name}.bin").write_bytes(self.step.to_bytes(8, "little") * 1000)

checkpoints = Checkpoints(Storage(sys.argv[1]))
latest = checkpoints.latest()
start = latest.step if latest else 0
saver = Saver(checkpoints, every=int(sys.argv[2]), start=start)
step = start
while True:
    step += 1
    saver.after_step(step, lambda: Snap(step))
    print(step, flush=True)
"""


def started(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("moment", range(4))
def test_a_writer_killed_at_each_moment(root: Storage, moment: int) -> None:
    writer = started(WRITER, root._base, moment)
    assert writer.stdout and writer.stdout.readline() == "\n"
    writer.kill()
    writer.communicate()
    checkpoints = Checkpoints(root)
    assert steps(checkpoints) == [1]
    assert len(torn(checkpoints)) == bool(root.local), "an upload begins after it"
    checkpoints.add(Snap(2))
    assert (steps(checkpoints), torn(checkpoints)) == ([2], [])


@pytest.mark.parametrize("objects", range(5))
def test_a_writer_killed_while_it_uploads(bucket: Bucket, objects: int) -> None:
    root = Storage(bucket.uri("run"))
    training = started(TRAINING, bucket.uri("run"), 1)
    while len(bucket.puts) < 30 + objects:
        assert training.poll() is None
    training.kill()
    said = training.communicate()[0].split()
    checkpoints = Checkpoints(root)
    latest = checkpoints.latest()
    assert latest and latest.step >= int(said[-1])
    check_contents(checkpoints)
    checkpoints.add(Snap(latest.step + 1, files={"0.bin": (latest.step + 1).to_bytes(8, "little") * 1000}))
    assert torn(checkpoints) == []
    check_contents(checkpoints)


def check_contents(checkpoints: Checkpoints) -> None:
    for checkpoint in checkpoints.complete():
        wanted = checkpoint.step.to_bytes(8, "little") * 1000
        assert set(contents(checkpoints, checkpoint).values()) == {wanted}


@pytest.mark.parametrize("every", [1, 7])
def test_a_training_killed_again_and_again_loses_fewer_than_every_steps(tmp_path: Path, every: int) -> None:
    checkpoints = Checkpoints(Storage(tmp_path / "run"))
    reached = 0
    for lines in (1, 17, 40, 55):  # the step it has reached by then is not known
        training = started(TRAINING, tmp_path / "run", every)
        assert training.stdout
        for _ in range(lines):
            training.stdout.readline()
        training.kill()
        said = training.stdout.read().split() or [lines + reached]
        training.communicate()
        last = int(said[-1])
        latest = checkpoints.latest()
        reached = latest.step if latest else 0
        assert last - reached < every
        check_contents(checkpoints)
    checkpoints.add(Snap(reached + every))
    assert torn(checkpoints) == []


# Saving in the background.


@pytest.fixture
def saver_of() -> Iterator[Callable[..., Saver]]:
    made: list[Saver] = []

    def make(*arguments: object, **options: object) -> Saver:
        made.append(Saver(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for saver in made:
        saver.finish()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoints")]


def test_training_waits_at_the_bound_and_not_before(tmp_path: Path, saver_of: Callable[..., Saver]) -> None:
    checkpoints = Checkpoints(Storage(tmp_path))
    saver = saver_of(checkpoints, every=4, start=10)
    at_bound, passed = threading.Event(), threading.Event()
    too_early = []

    def slow() -> None:
        at_bound.wait()
        too_early.append(passed.wait(0.2))

    taken: list[int] = []

    def take(step: int, begin: Callable[[], None] = lambda: None) -> Snap:
        taken.append(step)
        return Snap(step, files={"a": b"1"}, begin=begin)

    for step in (11, 12):
        saver.after_step(step, partial(take, step))
    assert taken == []
    saver.after_step(13, lambda: take(13, slow))
    assert (taken, checkpoints.latest(), saver.durable) == ([13], None, 10)
    at_bound.set()
    saver.after_step(14, lambda: take(14))
    passed.set()
    assert too_early == [False]
    assert (taken, steps(checkpoints), saver.durable) == ([13], [13], 13)
    assert saver.waited > 0


def test_snapshots_are_taken_as_early_as_writing_takes_steps(tmp_path: Path, saver_of: Callable[..., Saver]) -> None:
    logged = threading.Event()
    saver = saver_of(Checkpoints(Storage(tmp_path)), every=20, done=lambda checkpoint: logged.set())
    written = threading.Event()
    taken: list[int] = []

    def wait() -> None:
        written.wait()

    def take(step: int) -> Snap:
        taken.append(step)
        return Snap(step, files={"a": b"1"}, begin=wait)

    saver.save(lambda: take(5))
    for step in (6, 7, 8):
        saver.after_step(step, partial(take, step))
    written.set()
    logged.wait()
    for step in range(9, 23):
        saver.after_step(step, partial(take, step))
    assert len(taken) == 2
    # It took 3 steps, or 4 where the thread was slow to notice that it had ended; bound at 25, and one step to spare.
    assert taken[1] in (25 - 4, 25 - 5)


def test_every_step_can_be_saved(root: Storage, saver_of: Callable[..., Saver]) -> None:
    checkpoints = Checkpoints(root)
    saver = saver_of(checkpoints, every=1)
    for step in range(1, 6):
        saver.after_step(step, partial(Snap, step))
        latest = checkpoints.latest()
        assert latest and latest.step == saver.durable == step
    with pytest.raises(ValueError, match="every"):
        Saver(checkpoints, every=0)


@pytest.mark.parametrize("every", [2, 3, 7])
def test_snapshots_may_share_their_buffers(root: Storage, every: int, saver_of: Callable[..., Saver]) -> None:
    buffer = bytearray(8_000)
    writing = threading.Lock()

    @dataclass(frozen=True)
    class Shared(Snap):
        def write(self, folder: Path) -> None:
            with writing:
                for name in range(5):
                    (folder / f"{name}.bin").write_bytes(buffer)

    def take(step: int, score: float | None = None) -> Snap:
        assert writing.acquire(blocking=False), "a snapshot is being written"
        buffer[:] = step.to_bytes(8, "little") * 1000
        writing.release()
        return Shared(step, score)

    checkpoints = Checkpoints(root)
    done: list[int] = []

    def log(checkpoint: Checkpoint) -> None:
        done.append(checkpoint.step)
        wanted = checkpoint.step.to_bytes(8, "little") * 1000
        assert contents(checkpoints, checkpoint) == {f"{name}.bin": wanted for name in range(5)}

    saver = saver_of(checkpoints, every=every, done=log)
    for step in range(1, 24):
        saver.after_step(step, partial(take, step))
        assert step - saver.durable < every
        if step % 11 == 0:
            saver.save(partial(take, step, score=step))
    saver.finish()
    check_contents(checkpoints)
    assert steps(checkpoints)[-1] == done[-1] and done == sorted(done)
    assert {11, 22} < set(done)


def test_done_is_called_in_order_when_a_checkpoint_is_complete(root: Storage, saver_of: Callable[..., Saver]) -> None:
    checkpoints = Checkpoints(root)
    told: list[tuple[int, float | None, str]] = []

    def done(checkpoint: Checkpoint) -> None:
        latest = checkpoints.latest()
        assert latest and str(latest.path) == str(checkpoint.path)
        told.append((checkpoint.step, checkpoint.score, threading.current_thread().name))

    saver = saver_of(checkpoints, every=10, done=done)
    for step in (2, 3, 5):
        saver.save(partial(Snap, step, step / 10))
    saver.finish()
    assert [each[:2] for each in told] == [(2, 0.2), (3, 0.3), (5, 0.5)]
    assert all(each[2] != threading.current_thread().name for each in told)


def test_an_error_of_done_is_raised_and_the_checkpoint_counts(tmp_path: Path, saver_of: Callable[..., Saver]) -> None:
    def done(checkpoint: Checkpoint) -> None:
        if checkpoint.step == 2:
            raise ZeroDivisionError

    checkpoints = Checkpoints(Storage(tmp_path))
    saver = saver_of(checkpoints, every=10, done=done)
    saver.save(lambda: Snap(2))
    with pytest.raises(ZeroDivisionError):
        saver.save(lambda: Snap(3))
    assert (steps(checkpoints), saver.durable) == ([2], 2)
    saver.save(lambda: Snap(3))
    saver.finish()
    assert steps(checkpoints) == [3]


@dataclass
class Breakable:
    """A root folder that can be made to refuse writing."""

    root: Storage
    bucket: Bucket | None

    def broken(self) -> None:
        if self.bucket:
            self.bucket.failing, self.bucket.code = ".", 403
        else:
            assert self.root.local
            self.root.local.parent.mkdir(parents=True, exist_ok=True)
            self.root.local.write_text("a file where the folder should be")

    def mended(self) -> None:
        if self.bucket:
            self.bucket.failing = None
        else:
            self.root.delete()


@pytest.fixture
def breakable(request: pytest.FixtureRequest, root: Storage) -> Breakable:
    return Breakable(root, None if root.local else request.getfixturevalue("bucket"))


def test_a_failed_write_is_tried_again(
    breakable: Breakable, saver_of: Callable[..., Saver], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(breakable.root)
    saver = saver_of(checkpoints, every=4)
    breakable.broken()
    for step in (1, 2, 3):
        saver.after_step(step, partial(Snap, step))
    assert saver._writing and saver._writing.exception(), "waits until it has failed"
    breakable.mended()
    saver.after_step(4, lambda: Snap(4))
    assert 4 - saver.durable < 4
    saver.save(lambda: Snap(4, score=0.5))
    saver.finish()
    latest = checkpoints.latest()
    assert latest and (latest.step, latest.score) == (4, 0.5)
    assert "could not be written" in caplog.text


@pytest.mark.parametrize("every", [1, 2, 5])
def test_the_error_is_raised_at_the_bound(breakable: Breakable, every: int) -> None:
    checkpoints = Checkpoints(breakable.root)
    saver = Saver(checkpoints, every=every, start=30)
    breakable.broken()
    reached: list[int] = []
    with pytest.raises((StorageError, OSError)):
        for step in range(31, 99):
            saver.after_step(step, partial(Snap, step))
            reached.append(step)
    assert reached == list(range(31, 30 + every))
    assert saver.durable == 30
    breakable.mended()
    saver.after_step(30 + every, lambda: Snap(30 + every))
    assert saver.durable == 30 + every
    saver.finish()


def test_an_epochs_end_that_failed_is_written_itself(breakable: Breakable, saver_of: Callable[..., Saver]) -> None:
    checkpoints = Checkpoints(breakable.root)
    done: list[tuple[int, float | None]] = []
    saver = saver_of(checkpoints, every=9, done=lambda checkpoint: done.append((checkpoint.step, checkpoint.score)))
    breakable.broken()
    saver.save(lambda: Snap(3, 0.3))
    saver.save(lambda: Snap(5, 0.5))  # 3 fails again, and is dropped
    with pytest.raises((StorageError, OSError)):
        for step in range(6, 10):
            saver.after_step(step, lambda: pytest.fail("one waits to be written"))
    assert (saver.durable, step) == (0, 9)
    breakable.mended()
    saver.after_step(10, lambda: pytest.fail("one waits to be written"))
    assert saver.durable == 5
    breakable.root.delete()
    breakable.broken()
    saver.save(lambda: Snap(11, 0.7))
    with pytest.raises((StorageError, OSError)):
        saver.finish()
    assert done == [(5, 0.5)]


def test_finish_tries_once_more(breakable: Breakable) -> None:
    checkpoints = Checkpoints(breakable.root)
    saver = Saver(checkpoints, every=9)
    breakable.broken()
    saver.save(lambda: Snap(3, 0.3))
    assert saver._writing and saver._writing.exception(), "waits until it has failed"
    breakable.mended()
    saver.finish()
    assert steps(checkpoints) == [3]
    saver.finish()


def test_a_snapshot_of_another_step_is_refused(tmp_path: Path, saver_of: Callable[..., Saver]) -> None:
    saver = saver_of(Checkpoints(Storage(tmp_path)), every=1)
    with pytest.raises(ValueError, match="after step 2 is one of step 1"):
        saver.after_step(2, lambda: Snap(1))


def test_checkpoints_need_neither_ray_nor_torch() -> None:
    program = (
        "import sys, pipeline.training.checkpoints; sys.exit(bool({'ray', 'mlflow', 'torch'} & sys.modules.keys()))"
    )
    with started(program) as process:
        assert process.wait() == 0
