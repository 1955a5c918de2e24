"""FashionAI's annotation files, written by hand, and their rows as the adapter reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.datasets import records, write_files

from data_prep.annotation import Annotation, count_reasons
from data_prep.errors import InputError
from data_prep.layouts import fashionai
from data_prep.layouts.asen_split import assign_splits, read_split_files
from data_prep.layouts.fashionai import SCHEMA
from data_prep.prepare import prepare
from data_prep.request import Request
from data_prep.synthetic.writers import write_split_files

COLLAR, LAPEL = 4, 5


def write_label_csv(root: Path, text: str | bytes, folder: str = "train1") -> None:
    file = root / folder / "Annotations" / "label.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)


def rows_of(annotation: Annotation) -> list[tuple[str, int, int]]:
    return [row[:3] for row in records(annotation.rows)]


def test_the_value_of_a_raw_row_is_the_index_of_its_y(tmp_path: Path) -> None:
    write_label_csv(
        tmp_path,
        "Images/skirt_length_labels/a.jpg,skirt_length_labels,nnynnn\n"
        "Images/neck_design_labels/b.jpg,neck_design_labels,ynnmn\n",
    )
    write_label_csv(tmp_path, "Images/coat_length_labels/c.jpg,coat_length_labels,nnnnnnny", "train2")
    assert rows_of(fashionai.read_raw(tmp_path)) == [
        ("train1/Images/skirt_length_labels/a.jpg", 0, 2),
        ("train1/Images/neck_design_labels/b.jpg", 7, 0),
        ("train2/Images/coat_length_labels/c.jpg", 2, 7),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Images/a.jpg,collar_design_labels", "bad_line"),
        ("Images/a.jpg,collar_design_labels,nnyxn", "bad_line"),
        (",collar_design_labels,nnynn", "bad_line"),
        ("\x00\xff\x01 junk", "bad_line"),
        ("Images/a.jpg,hat_design_labels,nnynn", "unknown_attribute"),
        ("Images/a.jpg,collar_design_labels,nnynnn", "value_out_of_range"),
        ("Images/a.jpg,collar_design_labels,nnnnm", "no_value"),
        ("Images/a.jpg,collar_design_labels,nynny", "several_values"),
        ("Images/good.jpg,collar_design_labels,nynnn", "labels_disagree"),
    ],
)
def test_a_bad_raw_line_is_rejected_with_its_number_and_reason(tmp_path: Path, line: str, reason: str) -> None:
    good = "Images/good.jpg,collar_design_labels,ynnnn"
    write_label_csv(tmp_path, f"{good}\n{line}\nImages/last.jpg,collar_design_labels,nnnny\n")
    annotation = fashionai.read_raw(tmp_path)
    assert rows_of(annotation) == [
        ("train1/Images/good.jpg", COLLAR, 0),
        ("train1/Images/last.jpg", COLLAR, 4),
    ]
    (reject,) = annotation.rejects
    assert (reject.source, reject.line, reject.reason) == ("train1/Annotations/label.csv", 2, reason)
    assert len(reject.detail) < 400


ROWS = (
    ("Images/skirt_length_labels/a.jpg", "skirt_length_labels", "nnynnn"),
    ("Images/neck_design_labels/b.jpg", "neck_design_labels", "ynnmn"),
)


@pytest.mark.parametrize(
    ("names", "row"),
    [
        ("", "{0},{1},{2},0.93"),
        ("", "{0},{1},{2},"),
        ("", '"{0}","{1}","{2}"'),
        ("", "{0}, {1}, {2} "),
        ("image,attribute,label", "{0},{1},{2}"),
        ("image_id,attr_key,attr_value", '"{0}",{1},"{2}"'),
        (",image,attribute,label,split", "7,{0},{1},{2},train"),
        (",0,1,2", "7,{0},{1},{2}"),
    ],
)
def test_a_label_csv_that_was_written_again_is_read(tmp_path: Path, names: str, row: str) -> None:
    """With the names of the columns, with quotes, with more columns before or after."""
    lines = [names] if names else []
    write_label_csv(tmp_path, "\n".join(["", *lines, *(row.format(*cells) for cells in ROWS), ""]))
    annotation = fashionai.read_raw(tmp_path)
    assert rows_of(annotation) == [(f"train1/{ROWS[0][0]}", 0, 2), (f"train1/{ROWS[1][0]}", 7, 0)]
    assert (annotation.rows_in, annotation.rejects) == (2, [])


@pytest.mark.parametrize("folder", ["train1/annotations", "train1/ANNOTATIONS", "train1"])
def test_a_label_csv_is_found_in_a_folder_of_another_name(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "Label.csv").write_text("Images/a.jpg,collar_design_labels,ynnnn\n" * 2)
    assert rows_of(fashionai.read_raw(tmp_path)) == [("train1/Images/a.jpg", COLLAR, 0)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "Images/{}.jpg;collar_design_labels",
            "bad_line .* line 1: Images/0.jpg;.*; expected PATH,ATTRIBUTE,MARKS ",
        ),
        (
            "Images/{}.jpg,collar,nnynn",
            "unknown_attribute .* line 1: collar of Images/0.jpg; expected one of skirt",
        ),
        ("Images/{}.jpg,collar_design_labels,nnnnm", "no_value .*: Images/0.jpg: nnnnm; expected one y"),
    ],
)
def test_rows_that_are_all_rejected_for_one_reason_are_one_line(tmp_path: Path, row: str, message: str) -> None:
    write_label_csv(tmp_path, "".join(row.format(i) + "\n" for i in range(30)))
    with pytest.raises(InputError, match=f"all annotation rows .30. are rejected for one reason, {message}") as error:
        prepare("fashionai", tmp_path, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_repeated_row_is_counted_as_a_repeat(tmp_path: Path) -> None:
    write_label_csv(tmp_path, "Images/a.jpg,collar_design_labels,ynnnn\n\n" * 2)
    annotation = fashionai.read_raw(tmp_path)
    assert (annotation.rows_in, len(annotation.rows), annotation.repeats, annotation.rejects) == (2, 1, 1, [])


def test_split_files_with_every_kind_of_line_end(tmp_path: Path) -> None:
    folder = write_files(
        tmp_path,
        filenames_train="a.jpg\r\nb.jpg\rc.jpg\r\r\n",  # CRLF, a lone CR, a doubled one
        label_train="0 4 2\r\n1 5 0\r\n2 4 1 5 3",  # two attributes in a line; no last newline
        filenames_valid="q.jpg\nc1.jpg",
        query_valid="0 4 1\n",
        candidate_valid="1 4 1\n",
    )
    annotation = read_split_files(folder, SCHEMA)
    assert not annotation.rejects
    assert [row[:5] for row in records(annotation.rows)] == [
        ("a.jpg", 4, 2, "train", ""),
        ("b.jpg", 5, 0, "train", ""),
        ("c.jpg", 4, 1, "train", ""),
        ("c.jpg", 5, 3, "train", ""),
        ("q.jpg", 4, 1, "valid", "query"),
        ("c1.jpg", 4, 1, "valid", "candidate"),
    ]


def test_bad_split_lines_are_rejected_and_counted(tmp_path: Path) -> None:
    labels = "0 4 2\n1 4\n9 4 0\n-1 4 0\n1 8 0\n1 4 5\nx y z\n2 4 0\n"
    folder = write_files(tmp_path, filenames_train="a\nb\nc\nnever\n", label_train=labels)
    annotation = read_split_files(folder, SCHEMA)
    assert annotation.rows["path"].tolist() == ["a", "c"]
    assert count_reasons(annotation.rejects) == {
        "bad_line": 2,
        "index_out_of_range": 2,
        "unknown_attribute": 1,
        "value_out_of_range": 1,
        "no_label": 1,
    }
    assert annotation.rows_in == 9  # eight lines and the name that no line mentions


def test_an_image_in_two_splits_stays_in_its_first(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        filenames_train="a.jpg\nb.jpg\n",
        label_train="0 4 2\n1 4 1\n",
        filenames_test="a.jpg\n",
        query_test="0 5 0\n",
        candidate_test="",
    )
    annotation = read_split_files(tmp_path, SCHEMA)
    assert [(row.path, row.split) for row in records(annotation.rows)] == [("a.jpg", "train"), ("b.jpg", "train")]
    assert count_reasons(annotation.rejects) == {"in_two_splits": 1}


def test_a_split_without_its_labels_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, filenames_valid="a\n", query_valid="0 0 0\n")
    with pytest.raises(InputError, match=r"candidate_valid\.txt is missing"):
        read_split_files(tmp_path, SCHEMA)


def test_raw_and_split_are_checked_against_each_other(tmp_path: Path) -> None:
    write_label_csv(
        tmp_path,
        "Images/same.jpg,collar_design_labels,nynnn\n"
        "Images/other.jpg,collar_design_labels,nynnn\n"
        "Images/extra.jpg,lapel_design_labels,nnynn\n",
    )
    write_files(
        tmp_path,
        filenames_train="train1/Images/same.jpg\ntrain1/Images/other.jpg\n",
        label_train="0 4 1\n1 4 3\n",
    )
    annotation = fashionai.read(Request(tmp_path))
    assert rows_of(annotation) == [("train1/Images/same.jpg", COLLAR, 1)]
    assert count_reasons(annotation.rejects) == {"labels_disagree": 2, "not_in_split": 1}
    assert (annotation.rows_in, annotation.repeats) == (5, 1)


def test_releases_with_different_folder_names_have_the_same_pictures(tmp_path: Path) -> None:
    """The split says fashionAI_attributes_train1/, the folder on this disk is valid/."""
    write_label_csv(tmp_path, "Images/collar_design_labels/a.jpg,collar_design_labels,nynnn\n", "valid")
    picture = tmp_path / "valid/Images/collar_design_labels/a.jpg"
    picture.parent.mkdir(parents=True)
    picture.touch()
    write_files(
        tmp_path,
        filenames_train="fashionAI_attributes_train1/Images/collar_design_labels/a.jpg\n",
        label_train="0 4 1\n",
    )
    annotation = fashionai.read(Request(tmp_path))
    assert rows_of(annotation) == [("valid/Images/collar_design_labels/a.jpg", COLLAR, 1)]
    assert (annotation.repeats, annotation.rejects) == (1, [])
    (tmp_path / "fashionAI_attributes_train1").mkdir()
    annotation = fashionai.read(Request(tmp_path))
    assert rows_of(annotation) == [("fashionAI_attributes_train1/Images/collar_design_labels/a.jpg", COLLAR, 1)]
    assert (annotation.repeats, annotation.rejects) == (1, [])


def test_written_split_files_read_back_equal(tmp_path: Path, drawn: Path) -> None:
    rows = read_split_files(drawn, SCHEMA).rows
    write_split_files(tmp_path, rows)
    again = read_split_files(tmp_path, SCHEMA)
    assert not again.rejects
    assert sorted(r[:5] for r in records(again.rows)) == sorted(r[:5] for r in records(rows))


def test_the_made_split_has_asens_proportions_and_is_reproducible(tmp_path: Path) -> None:
    lines = (f"Images/{i}.jpg,lapel_design_labels,{'n' * (i % 5)}y{'n' * (4 - i % 5)}" for i in range(1000))
    write_label_csv(tmp_path, "\n".join(lines))
    raw = fashionai.read_raw(tmp_path).rows
    split = assign_splits(raw, seed=7)
    assert split["split"].value_counts().to_dict() == {"train": 800, "valid": 100, "test": 100}
    for part in ("valid", "test"):
        assert (split[split["split"] == part]["role"] == "query").sum() == 20
        # Each of the five values has queries and candidates.
        assert split[split["split"] == part].groupby("role")["value"].nunique().to_dict() == {
            "query": 5,
            "candidate": 5,
        }
    assert sorted(split["path"]) == sorted(raw["path"])
    assert split.equals(assign_splits(raw, seed=7))
    assert not split.equals(assign_splits(raw, seed=8))


def test_a_wrong_layout_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not FashionAI's layout") as error:
        fashionai.read(Request(tmp_path))
    assert "\n" not in str(error.value)
