"""Unchecked annotation files: line ends, sizes, links, pipes, devices."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import InputError
from data_prep.layouts import darn, deepfashion, fashionai, text_files, zappos50k
from data_prep.layouts.text_files import integers, read_lines
from data_prep.request import Request


@given(text=st.text("a\r\n", max_size=30))
def test_lines_end_as_the_reference_says(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A line ends with LF, with any CRs before it, or with a lone CR."""
    file = tmp_path_factory.mktemp("lines") / "file"
    file.write_bytes(text.encode())
    plain = re.sub(r"\r*\n|\r", "\n", text).removesuffix("\n").split("\n") if text else []
    assert read_lines(file, file.parent) == plain


def test_a_megabyte_of_line_ends_and_a_line_of_100_mb_are_read_in_linear_time(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/label.csv").write_bytes(b"\r" * 1_000_000 + b"x" * 100_000_000 + b"\n" + b"\r" * 1_000_000)
    annotation = fashionai.read_raw(tmp_path)
    (reject,) = annotation.rejects
    assert (reject.line, reject.reason) == (1_000_001, "bad_line")
    assert len(reject.detail) <= 200


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_lines(tmp_path / "file", tmp_path) == ["a", "b"]


@pytest.mark.parametrize("text", ["1_0", "１", "²", "1.0", "", "0x1", "1 2 " * 10_000, "9" * 5_000])
def test_other_text_is_not_read_as_integers(text: str) -> None:
    assert not integers(text)


ANNOTATION_FILES = {
    "Annotations/label.csv": fashionai.read,
    "Anno_coarse/list_attr_img.txt": deepfashion.read,
    "Anno_coarse/list_attr_cloth.txt": deepfashion.read,
    "Anno_fine/train_attr.txt": deepfashion.read,
    "meta-data.csv": zappos50k.read,
    "filenames.json": zappos50k.read,
    "label_train.txt": darn.read,
}


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "outside", "loop", "dangling"])
@pytest.mark.parametrize("name", ANNOTATION_FILES)
def test_a_path_that_is_no_regular_file_is_an_error_of_one_line(tmp_path: Path, name: str, kind: str) -> None:
    """Reading a pipe or a device may never end; a link could show a file of this machine."""
    root = tmp_path / "root"
    file = root / name
    file.parent.mkdir(parents=True)
    (root / "tripletlists").mkdir()
    if name.startswith("Anno_coarse"):
        (root / "Anno_coarse/list_attr_cloth.txt").write_text("1\nx\na 1\n")
        (root / "Anno_coarse/list_attr_img.txt").write_text("1\nx\na.jpg 1\n")
        file.unlink()
    if name.startswith("Anno_fine"):
        for part in ("train", "val", "test"):
            (root / f"Anno_fine/{part}.txt").write_text("")
    if name.startswith("label"):
        (root / "filenames_train.txt").write_text("a\n")
    (tmp_path / "secret").write_text("root:x:0\n")
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        target = {"device": "/dev/zero", "outside": tmp_path / "secret", "loop": file, "dangling": root / "nowhere"}
        file.symlink_to(target[kind])
    with pytest.raises(InputError) as error:
        ANNOTATION_FILES[name](Request(root))
    assert "\n" not in str(error.value)
    assert "root:x:0" not in str(error.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LARGEST_FILE", 10)
    (tmp_path / "filenames_train.txt").write_text("a\n" * 10)
    with pytest.raises(InputError, match=r"filenames_train\.txt: has more than 10 bytes"):
        darn.read(Request(tmp_path))


@pytest.mark.parametrize(
    ("encoding", "separator", "why"),
    [
        ("utf-16", ",", "is UTF-16 text; save it as UTF-8"),
        ("utf-16-be", ",", "is UTF-16 text; save it as UTF-8"),
        ("utf-8", ";", "its columns are separated by semicolons; save it with commas"),
        ("utf-8", "\t", "its columns are separated by tabs; save it with commas"),
    ],
)
def test_another_encoding_or_separator_is_named(tmp_path: Path, encoding: str, separator: str, why: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "Annotations").mkdir()
    label = separator.join(["Images/collar/a.jpg", "collar_design_labels", "ynnnn"])
    (tmp_path / "Annotations/label.csv").write_text(mark + label + "\n", encoding=encoding)
    with pytest.raises(InputError, match=f"label.csv: {why}"):
        fashionai.read(Request(tmp_path))
    header = separator.join(["CID", "Category", "Closure", "Gender", "HeelHeight"])
    (tmp_path / "meta-data.csv").write_text(mark + header + "\n", encoding=encoding)
    with pytest.raises(InputError, match=f"meta-data.csv: {why}"):
        zappos50k.read(Request(tmp_path))
