"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from support.s3_server import Bucket

from data_prep import atomic
from data_prep.errors import InputError, StorageError
from data_prep.storage import Storage


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("durable", [False, True])
def test_a_folder_replaces_an_older_one_only_if_it_is_complete(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "folder[1]"
    with pytest.raises(ZeroDivisionError), atomic.folder(path, durable=durable) as staging:
        (staging / "a").write_text("1")
        raise ZeroDivisionError
    assert tree(tmp_path) == []
    for text in ("1", "2"):
        with atomic.folder(path, durable=durable) as staging:
            assert staging.parent == path.parent
            (staging / "below").mkdir()
            (staging / "below" / "a").write_text(text)
        assert (path / "below" / "a").read_text() == text
    with pytest.raises(ZeroDivisionError), atomic.folder(path) as staging:
        raise ZeroDivisionError
    assert tree(path.parent) == ["folder[1]", "folder[1]/below", "folder[1]/below/a"]


def test_a_folder_that_cannot_be_renamed_leaves_the_older_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(FileNotFoundError), atomic.folder(tmp_path / "out") as staging:
        shutil.rmtree(staging)
    assert tree(tmp_path) == ["out", "out/old"]


def test_a_kill_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    (tmp_path / ".out.replaced-0123abcd").mkdir()
    (tmp_path / ".out.replaced-0123abcd" / "old").touch()
    with pytest.raises(ZeroDivisionError), atomic.folder(tmp_path / "out"):
        raise ZeroDivisionError
    assert tree(tmp_path) == ["out", "out/old"]


def test_an_output_folder_on_a_full_disk(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="no space left on device; free some or give another folder"),
        atomic.output_folder(tmp_path / "new" / "out", marker="m", overwrite=False),
    ):
        raise OSError(errno.ENOSPC, "full")
    assert tree(tmp_path) == []


def test_the_last_file_of_a_remote_folder_completes_it(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Storage(bucket.uri("folder"))
    write = Storage.write_bytes

    def failing(self: Storage, data: bytes) -> None:
        if str(self).partition("?")[0].endswith("/z"):
            raise StorageError("no answer")
        write(self, data)

    def fill() -> None:
        with remote.atomic_folder(last="marker") as staging:
            for name in ("marker", "a", "z"):
                (staging / name).write_text(name)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write_bytes", failing)
        with pytest.raises(StorageError):
            fill()
    assert list(remote.files()) == ["a"]
    fill()
    assert list(remote.files()) == ["a", "marker", "z"]


def test_a_full_disk_is_reported_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as full, atomic.file(tmp_path / "training.json") as staging:
        staging.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(tmp_path / "training.json")
    assert tree(tmp_path) == []


def test_only_a_file_is_replaced_by_a_file(tmp_path: Path) -> None:
    """A rename over a device would remove it from the system."""
    pipe, directory = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    directory.mkdir()
    for path in (pipe, directory):
        with pytest.raises(FileExistsError, match="exists and is no file; give another path"), atomic.file(path):
            pytest.fail("nothing is to be written")
    assert pipe.is_fifo() and tree(tmp_path) == ["folder", "pipe"]
