"""Links in the dataset's folder: those that the user put at its top are followed, others are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.datasets import make_photographs, prepare_small

from data_prep.errors import InputError
from data_prep.layouts.folders import read_folders
from data_prep.layouts.text_files import files_below
from data_prep.pictures import is_within


def test_a_link_at_the_top_to_pictures_and_annotation_is_followed_and_named(tmp_path: Path) -> None:
    make_photographs(tmp_path / "disk")
    root = tmp_path / "root"
    root.mkdir()
    (root / "train1").symlink_to(tmp_path / "disk" / "train1")
    info = prepare_small(root, tmp_path / "out").info
    assert sum(info.images.values()) == 100 and info.rejects == {}
    assert "links in the root, followed: train1/" in info.notes
    (root / "train1").unlink()
    (root / "train1").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not FashionAI's layout"):
        prepare_small(root, tmp_path / "other")


def test_links_below_the_top_and_links_to_pictures_stay_refused(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw")
    pictures = root / "train1" / "Images" / "neck_design_labels"
    (tmp_path / "outside").mkdir()
    for number in (0, 1):
        (pictures / f"{number:03d}.jpg").rename(tmp_path / "outside" / f"{number:03d}.jpg")
        (pictures / f"{number:03d}.jpg").symlink_to(tmp_path / "outside" / f"{number:03d}.jpg")
    assert prepare_small(root, tmp_path / "out").info.rejects == {"path_outside_root": 2}


def test_what_is_within_a_folder(tmp_path: Path) -> None:
    root, disk = tmp_path / "root", tmp_path / "disk"
    for folder in (root / "own", disk / "pictures", tmp_path / "private"):
        folder.mkdir(parents=True)
    for file in (root / "own/a.jpg", disk / "pictures/b.jpg", tmp_path / "private/c.jpg"):
        file.write_bytes(b"")
    (root / "link").symlink_to(disk)
    (root / "file.jpg").symlink_to(tmp_path / "private/c.jpg")
    (root / "own" / "deep").symlink_to(disk)
    (disk / "pictures" / "out").symlink_to(tmp_path / "private")
    within = ("own/a.jpg", "link/pictures/b.jpg")
    outside = (
        "file.jpg",
        "own/deep/pictures/b.jpg",
        "link/pictures/out/c.jpg",
        "link/../private/c.jpg",
        "../private/c.jpg",
    )
    assert [path for path in (*within, *outside) if is_within(root, root / path)] == list(within)
    assert files_below(root) == ["file.jpg", "link/pictures/b.jpg", "own/a.jpg"]
    assert list(read_folders(root, "-/kind", files_below(root)).columns["kind"].texts.to_pylist()) == ["pictures"]


def test_a_link_to_a_folder_above_the_root_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.jpg").write_bytes(b"")
    (tmp_path / "root" / "up").symlink_to(tmp_path)
    assert files_below(tmp_path / "root") == ["a.jpg"]
