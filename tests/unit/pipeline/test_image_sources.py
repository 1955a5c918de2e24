"""Sources of a gallery's pictures."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.galleries import jpeg

from data_prep.errors import InputError
from pipeline.retrieval import image_sources
from pipeline.retrieval.image_sources import find_source


def test_tables_without_pictures_do_not_hide_picture_files(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    alone = find_source(tmp_path)
    pq.write_table(pa.table({"path": ["a.jpg"], "attribute": ["sleeve"]}), tmp_path / "regions.parquet")
    assert (source := find_source(tmp_path)).kind == "folder" and source.fingerprint == alone.fingerprint
    pq.write_table(pa.table({"image": [jpeg(1)]}), tmp_path / "pictures.parquet")
    with pytest.raises(InputError, match=r"regions\.parquet: no column with pictures"):
        find_source(tmp_path)


def test_parquet_files_with_different_columns_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["x", "y"], "jpeg": [jpeg(1), jpeg(2)]}), tmp_path / "a.parquet")
    assert find_source(tmp_path).pictures["image"].to_pylist() == ["x", "y"]
    pq.write_table(pa.table({"id": ["z"], "image": [jpeg(3)]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: its pictures are in 'image', .*earlier files have 'jpeg'"):
        find_source(tmp_path)


def test_a_source_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="contains no picture"):
        find_source(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        find_source(tmp_path / "nowhere")


def test_files_that_are_not_taken_for_pictures_are_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_sources, "SUFFIXES", (".jpg", ".jpeg", ".png"))  # pillow-heif is not installed
    for name in ("a.jpg", "b.JPEG", "noending", "c.HEIC", "list.txt"):
        (tmp_path / name).write_bytes(jpeg(1))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "d.png").write_bytes(jpeg(1))
    (tmp_path / "linked").symlink_to(tmp_path / "below")
    source = find_source(tmp_path)
    assert source.pictures["image"].to_pylist() == ["a.jpg", "b.JPEG", "below/d.png"]
    assert source.skipped == {
        "linked": "a link to a folder, which is not followed",
        "c.HEIC": "HEIC needs pip install 'agman-pipeline[heic]'",
        "list.txt": ".txt is no picture's file ending",
        "noending": "no file ending",
    }
