"""Labels that are lost: counted once, in each split and role, and never ignored in silence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.datasets import NECKS, make_photographs, prepare_small

from data_prep.errors import InputError
from data_prep.tables import SPLITS
from pipeline.reports.dataset.contents import contents

FOLDER = "train1/Images/neck_design_labels"
N = 100
SIZES = {"train": 60, "valid": 20, "test": 20}


def split_files(root: Path, queries: int = 10) -> Path:
    """Write photographs with raw labels, and split files: 60 for training, 20 for validation and 20 for test."""
    make_photographs(root, N)
    start = 0
    for split, size in SIZES.items():
        numbers = range(start, start + size)
        start += size
        (root / f"filenames_{split}.txt").write_text("".join(f"{FOLDER}/{n:03d}.jpg\n" for n in numbers))
        lines = [f"{i} 7 {NECKS[n % 5].index('y')}\n" for i, n in enumerate(numbers)]
        if split == "train":
            (root / "label_train.txt").write_text("".join(lines))
        else:
            (root / f"query_{split}.txt").write_text("".join(lines[:queries]))
            (root / f"candidate_{split}.txt").write_text("".join(lines[queries:]))
    return root


def lose(root: Path, *numbers: int) -> None:
    for number in numbers:
        (root / FOLDER / f"{number:03d}.jpg").unlink()


def test_a_label_of_raw_and_split_files_is_counted_once(tmp_path: Path) -> None:
    """19 of 100 pictures are 19 %, though 200 rows were read."""
    root = split_files(tmp_path / "raw")
    lose(root, *range(0, 50, 5), *range(60, 78, 2))
    with pytest.raises(InputError, match=r"raw: 19 of 100 labels rejected \(19 missing_image\)"):
        prepare_small(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_label_on_which_two_files_disagree_is_counted_once(tmp_path: Path) -> None:
    root = split_files(tmp_path / "raw")
    file = root / "train1" / "Annotations" / "label.csv"
    lines = file.read_text().splitlines()
    wrong = [f"{line.rsplit(',', 1)[0]},{NECKS[(number + 1) % 5]}" for number, line in enumerate(lines[:11])]
    file.write_text("\n".join(wrong + lines[11:]))
    with pytest.raises(InputError, match=r"raw: 11 of 100 labels rejected \(11 labels_disagree\)"):
        prepare_small(root, tmp_path / "out")
    file.write_text("\n".join(wrong[:6] + lines[6:]))
    info = prepare_small(root, tmp_path / "out").info
    assert info.rejects == {"labels_disagree": 12}
    assert info.lost == {"train": {"labels": 6}}


def test_the_limit_holds_for_every_split(tmp_path: Path) -> None:
    root = split_files(tmp_path / "raw")
    lose(root, 60, 61, 62)
    with pytest.raises(InputError, match=r"raw: valid: 3 of 20 labels rejected"):
        prepare_small(root, tmp_path / "out")


def test_the_limit_holds_for_every_role(tmp_path: Path) -> None:
    root = split_files(tmp_path / "raw", queries=6)
    lose(root, 60, 61)
    with pytest.raises(InputError, match=r"raw: valid: 2 of 6 queries rejected .*allow more than --max-rejects 0\.1"):
        prepare_small(root, tmp_path / "out")
    dataset = prepare_small(root, tmp_path / "out", max_rejects=0.4)
    assert dataset.info.lost == {"valid": {"labels": 2, "queries": 2}}
    assert contents(dataset).lost == ["valid: 2 of 20 labels lost", "valid: 2 of 6 queries lost"]


def test_a_split_that_ends_empty_stops_the_job_whatever_the_limit(tmp_path: Path) -> None:
    root = split_files(tmp_path / "raw")
    lose(root, *range(80, 100))
    with pytest.raises(InputError, match=r"raw: test: 20 of 20 labels rejected .*; mend them; none is left"):
        prepare_small(root, tmp_path / "out", max_rejects=1)


def test_a_role_that_ends_empty_stops_the_job(tmp_path: Path) -> None:
    root = split_files(tmp_path / "raw", queries=2)
    (root / "query_test.txt").write_text("junk\n99 7 1\n")
    with pytest.raises(InputError, match=r"raw: test: 2 of 2 queries rejected \(1 bad_line, 1 index_out_of_range\)"):
        prepare_small(root, tmp_path / "out", max_rejects=1)


@pytest.mark.parametrize(("start", "option"), [("root", "--split-files"), ("ASEN", "--root")])
def test_split_files_further_down_are_refused_with_their_folder(tmp_path: Path, start: str, option: str) -> None:
    root = split_files(tmp_path / "raw")
    folder = root / "ASEN" / "somewhere"
    folder.mkdir(parents=True)
    for file in root.glob("*.txt"):
        file.rename(folder / file.name)
    if start == "ASEN":
        (root / "train1").rename(folder / "train1")
    with pytest.raises(InputError, match=rf"split files are in ASEN/somewhere/, .*; give {option} .*ASEN/somewhere$"):
        prepare_small(root, tmp_path / "out")
    if start == "root":
        info = prepare_small(root, tmp_path / "out", split_files=folder).info
        assert info.split_origin == "ASEN's"


def test_nothing_lost_says_nothing(tmp_path: Path) -> None:
    dataset = prepare_small(split_files(tmp_path / "raw"), tmp_path / "out")
    assert dataset.info.lost == {} and contents(dataset).lost == []
    assert set(dataset.info.images) == set(SPLITS)


def test_annotation_files_that_are_not_read_are_named_with_the_reason(tmp_path: Path) -> None:
    root = split_files(tmp_path / "raw")
    (root / "filenames_train.txt").unlink()
    (root / "readme.txt").write_text("hello")
    notes = prepare_small(root, tmp_path / "out").info.notes
    assert "not read: label_train.txt (filenames_train.txt is not beside it)" in notes
    assert "not read: readme.txt (of no use to this layout)" in notes
    assert sum("not read" in note for note in notes) == 2


def test_a_folder_that_was_unpacked_twice_is_read_once(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw", N)
    shutil.copytree(root / "train1", root / "copy" / "train1")
    info = prepare_small(root, tmp_path / "out").info
    assert sum(info.images.values()) == N == info.repeats
    assert any(
        note.startswith("pictures in several folders, each read once: 100, such as copy/train1/") for note in info.notes
    )


def test_a_path_that_is_written_in_two_ways_is_one_picture(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw", N)
    file = root / "train1" / "Annotations" / "label.csv"
    again = file.read_text().replace("Images/neck", "./Images//x/../neck")
    file.write_text(file.read_text() + again)
    info = prepare_small(root, tmp_path / "out").info
    assert sum(info.images.values()) == N == info.repeats
    assert info.rejects == {}


def test_the_first_missing_picture_is_named_with_where_its_name_was_found(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw", N)
    file = root / "train1" / "Annotations" / "label.csv"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    (root / "elsewhere").mkdir()
    (root / FOLDER / "099.jpg").rename(root / "elsewhere" / "099.jpg")
    lose(root, *range(99))
    message = rf"\(100\) .*label\.csv line 1: {FOLDER}/099\.jpg; .*a picture of this name is elsewhere/099\.jpg"
    with pytest.raises(InputError, match=message):
        prepare_small(root, tmp_path / "out")
