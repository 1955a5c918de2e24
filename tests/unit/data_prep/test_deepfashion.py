"""DeepFashion's raw annotation: coarse, fine, with categories and boxes, and beside ASEN's split files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.datasets import SIZE, records, sample_here

from data_prep.annotation import Annotation, count_reasons
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError
from data_prep.layouts import deepfashion, deepfashion_matrix
from data_prep.layouts.deepfashion import TYPE_NAMES
from data_prep.prepare import prepare
from data_prep.request import Request

CLOTH = """5
attribute_name  attribute_type
animal print                  1
button-front bow                4
polka dot 2                   1
boxy                          3
hidden   pocket 5             4
"""
IMAGES = """4
image_name  attribute_labels
img/Dress_A/img_00000001.jpg            -1  1 -1  0 -1
img/Dress_A/img_00000002.jpg   1 -1  1 -1  1
img/Top/img_00000001.jpg      -1  0 -1 -1 -1
img/Top/img_00000002.jpg\t1  1  1  1  1
"""
PARTITION = """4
image_name  evaluation_status
img/Dress_A/img_00000001.jpg          train
img/Dress_A/img_00000002.jpg          test
img/Top/img_00000001.jpg              val
img/Top/img_00000002.jpg              val
"""


def write(root: Path, name: str, text: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def coarse(tmp_path: Path) -> Path:
    write(tmp_path, "Anno_coarse/list_attr_cloth.txt", CLOTH)
    write(tmp_path, "Anno_coarse/list_attr_img.txt", IMAGES)
    write(tmp_path, "Eval/list_eval_partition.txt", PARTITION)
    return tmp_path


def labels(annotation: Annotation) -> list[tuple[str, int, int, str]]:
    return [(row.path.split("/", 1)[1], row.attribute, row.value, row.split) for row in records(annotation.rows)]


def test_raw_coarse_annotation(coarse: Path) -> None:
    """Values are ranks within the type; names keep their blanks; several values of an attribute are several rows."""
    annotation = deepfashion.read(Request(coarse))
    assert [attribute.name for attribute in annotation.attributes] == list(TYPE_NAMES)
    assert annotation.attributes[0].values == ("animal print", "polka dot 2")
    assert annotation.attributes[3].values == ("button-front bow", "hidden   pocket 5")
    assert labels(annotation) == [
        ("Dress_A/img_00000001.jpg", 3, 0, "train"),
        ("Dress_A/img_00000002.jpg", 0, 0, "test"),
        ("Dress_A/img_00000002.jpg", 0, 1, "test"),
        ("Dress_A/img_00000002.jpg", 3, 1, "test"),
        ("Top/img_00000002.jpg", 0, 0, "valid"),
        ("Top/img_00000002.jpg", 3, 0, "valid"),
        ("Top/img_00000002.jpg", 0, 1, "valid"),
        ("Top/img_00000002.jpg", 2, 0, "valid"),
        ("Top/img_00000002.jpg", 3, 1, "valid"),
    ]
    (reject,) = annotation.rejects
    assert (reject.line, reject.reason) == (5, "no_value")
    # Every label of a validation or test image is a query or candidate.
    assert (annotation.rows["role"] != "").sum() == 8


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("img/x.jpg 1 -1 1 -1", "bad_line"),
        ("img/x.jpg 1 -1 1 -1 0 0", "bad_line"),
        ("img/x.jpg 1 -1 2 -1 0", "bad_line"),
        ("img/x.jpg 1 -1 11 -1 0", "bad_line"),
        ("img/x.jpg 1 -1 -0 -1 0", "bad_line"),
        ("img/x.jpg 1 -1 - 1 0", "bad_line"),
        ("img/x.jpg 1 -1 1- -1 0", "bad_line"),
        ("img/x.jpg 1 -1 --1 -1 0", "bad_line"),
        ("img/x.jpg 1 -1 -11 -1 0", "bad_line"),
        ("img/x.jpg 1 -1 a -1 0", "bad_line"),
        ("1 1 1 1 1", "bad_line"),
        ("\x01\x02\x00", "bad_line"),
        ("img/x.jpg " + "1 " * 400_000, "bad_line"),
        ("img/x.jpg -1 0 0 -1 -1", "no_value"),
        ("img/new.jpg 1 -1 -1 -1 -1", "no_partition"),
    ],
)
def test_a_bad_coarse_line_is_rejected_with_its_number(coarse: Path, line: str, reason: str) -> None:
    text = IMAGES.replace("4\n", "5\n", 1).replace("img/Top/img_00000001", f"{line}\nimg/Top/img_00000001", 1)
    write(coarse, "Anno_coarse/list_attr_img.txt", text)
    annotation = deepfashion.read(Request(coarse))
    assert len(annotation.rows) == 9
    assert [(r.line, r.reason) for r in sorted(annotation.rejects, key=lambda r: r.line)] == [
        (5, reason),
        (6, "no_value"),
    ]


def test_a_line_of_many_megabytes_is_one_reject(coarse: Path) -> None:
    """The line is cut and rejected, even if its beginning could be read."""
    good_beginning = "img/x.jpg 1 -1 1 -1 0" + " " * 9_000_000 + "junk"
    many_blanks = " " * 2_000 + "img/y.jpg 1 -1 -1 -1 0"
    text = IMAGES.replace("4\n", "6\n", 1) + good_beginning + "\n" + many_blanks + "\n"
    write(coarse, "Anno_coarse/list_attr_img.txt", text)
    annotation = deepfashion.read(Request(coarse))
    assert sorted((reject.line, reject.reason) for reject in annotation.rejects) == [
        (5, "no_value"),
        (7, "bad_line"),
        (8, "no_partition"),
    ]
    assert all(len(reject.detail) < 300 for reject in annotation.rejects)


def test_blank_lines_are_skipped(coarse: Path) -> None:
    expected = labels(deepfashion.read(Request(coarse)))
    write(coarse, "Anno_coarse/list_attr_img.txt", IMAGES + "\n \n")
    assert labels(deepfashion.read(Request(coarse))) == expected
    lines = IMAGES.split("\n")
    write(coarse, "Anno_coarse/list_attr_img.txt", "\n".join([*lines[:3], "", *lines[4:]]))
    assert "list_attr_img.txt: line 1 says 4 rows, and 3 can be read" in " ".join(
        deepfashion.read(Request(coarse)).notes
    )


def test_columns_may_be_separated_by_tabs(coarse: Path) -> None:
    expected = labels(deepfashion.read(Request(coarse)))
    for name, text in (("Anno_coarse/list_attr_cloth.txt", CLOTH), ("Eval/list_eval_partition.txt", PARTITION)):
        head, body = text.split("\n", 2)[:2], text.split("\n", 2)[2]
        write(coarse, name, "\n".join([*head, re.sub(r" +(\S+)$", r"\t\1\t", body, flags=re.MULTILINE)]))
    assert labels(deepfashion.read(Request(coarse))) == expected


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("Anno_coarse/list_attr_cloth.txt", "name 6"),
        ("Anno_coarse/list_attr_cloth.txt", "3"),
        ("Eval/list_eval_partition.txt", "img/a.jpg validation"),
        ("Eval/list_eval_partition.txt", "test"),
        ("Eval/list_eval_partition.txt", "img/Dress_A/img_00000001.jpg test"),
        ("Anno_coarse/list_bbox.txt", "img/a.jpg 1 2 3"),
        ("Anno_coarse/list_bbox.txt", "img/a.jpg 1 2 3 x"),
        ("Anno_coarse/list_bbox.txt", f"img/a.jpg 1 2 3 {'9' * 400}"),
        ("Anno_coarse/list_bbox.txt", "\0\1 \2"),
    ],
)
def test_a_bad_line_of_a_list_is_an_error(coarse: Path, file: str, line: str) -> None:
    write(coarse, "Anno_coarse/list_bbox.txt", "1\nx\nimg/b.jpg 1 2 3 4\n")
    text = (coarse / file).read_text()
    count = int(text.split("\n")[0])
    write(coarse, file, text.replace(f"{count}\n", f"{count + 1}\n", 1) + line + "\n")
    with pytest.raises(InputError, match=rf"{Path(file).name} line {count + 3}: ") as error:
        deepfashion.read(Request(coarse, crop_boxes=True))
    assert "\n" not in str(error.value)


def test_an_image_without_a_box_is_rejected_if_pictures_are_cropped(coarse: Path) -> None:
    write(coarse, "Anno_coarse/list_bbox.txt", "1\nx\nimg/Dress_A/img_00000002.jpg 1 2 3 4\n")
    annotation = deepfashion.read(Request(coarse, crop_boxes=True))
    annotation.check()
    assert set(annotation.rows["path"]) == {"img/Dress_A/img_00000002.jpg"}
    assert count_reasons(annotation.rejects) == {"bad_box": 6, "no_value": 1}


def test_split_files_are_not_compared_with_fine_annotation(tmp_path: Path) -> None:
    write_fine(tmp_path)
    write(tmp_path, "filenames_train.txt", "img/a.jpg\nimg/b.jpg\n")
    write(tmp_path, "label_train.txt", "0 0 3\n1 4 2\n")
    annotation = deepfashion.read(Request(tmp_path))
    assert labels(annotation) == [("a.jpg", 0, 3, "train"), ("b.jpg", 4, 2, "train")]
    assert annotation.rejects == []


LISTS = {
    "Anno_coarse/list_attr_cloth.txt": CLOTH,
    "Anno_coarse/list_attr_img.txt": IMAGES,
    "Eval/list_eval_partition.txt": PARTITION,
}


@pytest.mark.parametrize("file", LISTS)
@pytest.mark.parametrize(
    ("head", "note"),
    [
        ("{n} \t\nNAMES\n", None),
        ("\n{n}\n \nNAMES\n", None),
        ("{n}\n", None),
        ("\ufeff{n}\nNAMES\n", None),
        ("\ufeff", "line 1 does not give the number of rows: {n} rows read"),
        ("NAMES\n", "line 1 does not give the number of rows: {n} rows read"),
        ("  \nNAMES\n", "line 1 does not give the number of rows: {n} rows read"),
        ("", "line 1 does not give the number of rows: {n} rows read"),
        ("{n} rows\nNAMES\n", "line 1 does not give the number of rows: {n} rows read"),
        ("²\nNAMES\n", "line 1 does not give the number of rows: {n} rows read"),
        ("289222\nNAMES\n", "line 1 says 289,222 rows, and {n} can be read; is the file complete?"),
        ("3\n", "line 1 says 3 rows, and {n} can be read; is the file complete?"),
    ],
)
def test_a_list_is_read_whatever_its_first_lines_are(coarse: Path, file: str, head: str, note: str | None) -> None:
    """Copies of list_*.txt lack the number of rows or the columns' names, or have a wrong number."""
    expected = labels(deepfashion.read(Request(coarse)))
    count, names, rows = LISTS[file].split("\n", 2)
    write(coarse, file, head.format(n=count).replace("NAMES", names) + rows)
    annotation = deepfashion.read(Request(coarse))
    assert labels(annotation) == expected
    assert annotation.notes == ((f"{Path(file).name}: {note.format(n=count)}",) if note else ())


def test_rows_that_another_list_makes_unreadable_are_one_line(coarse: Path) -> None:
    """An interrupted download of list_attr_cloth.txt, and a partition with other paths."""
    write(coarse, "Anno_coarse/list_attr_cloth.txt", "\n".join(CLOTH.split("\n")[:4]))
    with pytest.raises(
        InputError,
        match=r"all annotation rows .4. are rejected for one reason, bad_line .*; expected a path and 2 values of "
        r"1, -1 or 0, .*; list_attr_cloth\.txt: line 1 says 5 rows, and 2 can be read",
    ):
        prepare("deepfashion", coarse, coarse / "out")
    write(coarse, "Anno_coarse/list_attr_cloth.txt", CLOTH)
    write(coarse, "Eval/list_eval_partition.txt", PARTITION.replace("img/", "Img/img/"))
    with pytest.raises(
        InputError, match=r"9 no_partition.* img/Dress_A/img_00000001.jpg: .*; expected every path of list_attr"
    ):
        prepare("deepfashion", coarse, coarse / "out")


def test_a_list_without_rows_is_an_error(coarse: Path) -> None:
    for file, text in (("list_attr_img.txt", "junk"), ("list_attr_img.txt", "5\nx\n"), ("list_attr_cloth.txt", "")):
        write(coarse, f"Anno_coarse/{file}", text)
        with pytest.raises(InputError, match=rf"{file}: has no rows; is it complete\?"):
            deepfashion.read(Request(coarse))


def test_annotation_is_found_in_folders_of_any_name(coarse: Path) -> None:
    """The fine lists, of the same names, are not taken for the coarse ones."""
    expected = labels(deepfashion.read(Request(coarse)))
    folder = coarse / "Category and Attribute Prediction Benchmark"
    for coarse_name, fine_name in (("Anno", "anno_fine"), ("AnnoCoarse", "Anno-Fine"), ("z", "ANNO_FINE")):
        shutil.rmtree(folder, ignore_errors=True)
        for file, text in LISTS.items():
            write(folder / coarse_name, Path(file).name, text)
            write(folder / fine_name, Path(file).name, "1 \nname type\ntight 6\n")
        shutil.rmtree(coarse / "Anno_coarse", ignore_errors=True)
        shutil.rmtree(coarse / "Eval", ignore_errors=True)
        assert labels(deepfashion.read(Request(coarse))) == expected
    shutil.rmtree(folder / "z")
    with pytest.raises(InputError, match=r"ANNO_FINE: train\.txt and train_attr\.txt are missing or .* Anno_coarse"):
        deepfashion.read(Request(coarse))
    shutil.move(folder / "ANNO_FINE", folder / "Anno")
    with pytest.raises(InputError, match=r"list_attr_cloth\.txt line 3: type 6 is Anno_fine's"):
        deepfashion.read(Request(coarse))


@pytest.mark.parametrize("block", [7, 64, 100, 10_000])
def test_blocks_may_cut_lines_anywhere(coarse: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    expected = labels(deepfashion.read(Request(coarse)))
    monkeypatch.setattr(deepfashion_matrix, "BLOCK", block)
    assert labels(deepfashion.read(Request(coarse))) == expected
    file = coarse / "Anno_coarse/list_attr_img.txt"
    file.write_text(file.read_text().rstrip("\n"))
    assert labels(deepfashion.read(Request(coarse))) == expected


def plain_marks(text: str, columns: int) -> list[tuple[int, str, tuple[int, ...] | None]]:
    """Return (line, path, marked columns) of each line, with None for a bad line: the slow reference."""
    result: list[tuple[int, str, tuple[int, ...] | None]] = []
    for number, line in enumerate(text.split("\n")[2:], start=3):
        tokens = line.split()
        if tokens:
            good = len(tokens) == columns + 1 and all(token in ("1", "0", "-1") for token in tokens[1:])
            marked = tuple(i for i, token in enumerate(tokens[1:]) if token == "1") if good else None
            result.append((number, tokens[0], marked))
    return result


values = st.lists(st.sampled_from(["1", "0", "-1", "1", "0", "-1", "2", "-", "--1", "1-", "10"]), max_size=5)
lines = st.tuples(st.sampled_from(["img/a.jpg", "1", "-1", "b"]), values, st.sampled_from([" ", "  ", "\t", " \r"]))


@given(rows=st.lists(lines, max_size=12), block=st.sampled_from([11, 40, 1_000_000]))
def test_marks_are_those_of_a_plain_reader(
    rows: list[tuple[str, list[str], str]], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    body = [blank.join([path, *marks]) for path, marks, blank in rows]
    file = tmp_path_factory.mktemp("marks") / "list_attr_img.txt"
    file.write_text("\n".join([str(len(body)), "columns", *body, ""]), newline="")
    before = deepfashion_matrix.BLOCK
    deepfashion_matrix.BLOCK = block
    try:
        head = deepfashion_matrix.read_head(file, file.parent)
        marks = deepfashion_matrix.read_marks(file, file.parent, head, 3)
    finally:
        deepfashion_matrix.BLOCK = before
    read = {
        int(line): (path, tuple(marks.column[marks.image == i].tolist()))
        for i, (path, line) in enumerate(zip(marks.paths, marks.lines, strict=True))
    }
    expected = plain_marks(file.read_bytes().decode(), 3)
    assert read == {number: (path, marked) for number, path, marked in expected if marked is not None}
    assert [reject.line for reject in marks.rejects] == [number for number, _, marked in expected if marked is None]


def test_categories_are_one_more_attribute(coarse: Path) -> None:
    write(
        coarse,
        "Anno_coarse/list_category_cloth.txt",
        "3\ncategory_name  category_type\nAnorak   1\nCape 3\nSkirt  2\n",
    )
    listed = ["img/Dress_A/img_00000001.jpg  3", "img/Dress_A/img_00000002.jpg  1", "img/Top/img_00000002.jpg  4"]
    twice = ["img/Top/img_00000001.jpg\t3", "img/Top/img_00000001.jpg 3", "img/Top/img_00000001.jpg 1"]
    text = "\n".join(["7", "image_name  category_label", *listed, *twice, "img/other.jpg 1", ""])
    write(coarse, "Anno_coarse/list_category_img.txt", text)
    annotation = deepfashion.read(Request(coarse, categories=True))
    assert annotation.attributes[5].values == ("Anorak", "Skirt")
    assert annotation.notes == ("categories without a picture, 1 of 3: Cape",)
    assert [row[:2] + row[2:4] for row in labels(annotation) if row[1] == 5] == [
        ("Dress_A/img_00000001.jpg", 5, 1, "train"),
        ("Dress_A/img_00000002.jpg", 5, 0, "test"),
        ("Top/img_00000001.jpg", 5, 1, "valid"),
    ]
    assert count_reasons(annotation.rejects) == {
        "no_value": 1,
        "value_out_of_range": 1,
        "no_label": 1,
        "labels_disagree": 1,
    }
    assert annotation.repeats == 1


FINE = {
    "train": (["img/a.jpg", "img/b.jpg"], [[0, 7, 25], [3]]),
    "val": (["img/c.jpg"], [[]]),
    "test": (["img/d.jpg"], [[6, 0, 10]]),
}


def write_fine(root: Path) -> Path:
    for part, (paths, marked) in FINE.items():
        write(root, f"Anno_fine/{part}.txt", "\n".join(paths) + "\n")
        rows = [" ".join("1" if i in ones else "0" for i in range(26)) for ones in marked]
        write(root, f"Anno_fine/{part}_attr.txt", "\n".join(rows))
        write(root, f"Anno_fine/{part}_bbox.txt", "\n".join("1 2 30 40" for _ in paths) + "\r\n")
    return root


def test_raw_fine_annotation(tmp_path: Path) -> None:
    annotation = deepfashion.read(Request(write_fine(tmp_path), crop_boxes=True))
    assert [len(attribute.values) for attribute in annotation.attributes] == [7, 3, 3, 4, 6, 3]
    assert [row[:4] for row in labels(annotation)] == [
        ("a.jpg", 0, 0, "train"),
        ("a.jpg", 1, 0, "train"),
        ("a.jpg", 5, 2, "train"),
        ("b.jpg", 0, 3, "train"),
        ("d.jpg", 0, 0, "test"),
        ("d.jpg", 0, 6, "test"),
        ("d.jpg", 2, 0, "test"),
    ]
    assert count_reasons(annotation.rejects) == {"no_value": 1}
    images = annotation.images()
    assert images.columns.tolist() == ["path", "split", "x0", "y0", "x1", "y1"]
    assert (images[["x0", "y0", "x1", "y1"]] == [1, 2, 30, 40]).all().all()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train_attr.txt", "0 1\n", r"train_attr\.txt: 1 line, but 2 images in train\.txt; is it complete\?"),
        ("train_attr.txt", "", r"train_attr\.txt: is empty, but 2 images in train\.txt"),
        ("train_attr.txt", None, r"train_attr\.txt: is missing, but 2 images in train\.txt.* there is no split train"),
        ("val.txt", None, r"val\.txt: is missing, but 1 image in val_attr\.txt.* no split valid: move them away"),
        ("test_bbox.txt", None, r"test_bbox\.txt: is missing, but 1 image; leave out --crop-boxes"),
        ("test_bbox.txt", "", r"test_bbox\.txt: is empty, but 1 image; leave out --crop-boxes"),
    ],
)
def test_half_a_part_of_fine_annotation_is_an_error(tmp_path: Path, file: str, text: str | None, message: str) -> None:
    write_fine(tmp_path)
    write(tmp_path, f"Anno_fine/{file}", text or "")
    if text is None:
        (tmp_path / "Anno_fine" / file).unlink()
    with pytest.raises(InputError, match=message) as error:
        deepfashion.read(Request(tmp_path, crop_boxes=True))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize(("lost", "left"), [("train", {"test"}), ("test", {"train"}), ("val", {"train", "test"})])
def test_a_part_that_fine_annotation_lacks_is_named(tmp_path: Path, lost: str, left: set[str], empty: bool) -> None:
    write_fine(tmp_path)
    for file in (f"{lost}.txt", f"{lost}_attr.txt", f"{lost}_bbox.txt"):
        (tmp_path / "Anno_fine" / file).unlink()
        if empty:
            write(tmp_path, f"Anno_fine/{file}", "\n")
    annotation = deepfashion.read(Request(tmp_path, crop_boxes=True))
    split = deepfashion.SPLIT_OF[lost]
    assert set(annotation.rows["split"]) == left
    assert annotation.notes == (f"Anno_fine: {lost}_attr.txt is missing or empty: there is no split {split}",)


def test_fine_annotation_may_have_a_folder_for_each_split(coarse: Path) -> None:
    expected = labels(deepfashion.read(Request(write_fine(coarse / "fine"), crop_boxes=True)))
    shutil.rmtree(coarse / "fine")
    write_fine(coarse)
    for file in list((coarse / "Anno_fine").iterdir()):
        part = coarse / "Anno_fine" / file.stem.partition("_")[0]
        part.mkdir(exist_ok=True)
        file.rename(part / file.name)
    assert labels(deepfashion.read(Request(coarse, annotation="fine", crop_boxes=True))) == expected
    assert len(deepfashion.read(Request(coarse)).attributes) == 5


def test_coarse_annotation_is_preferred(coarse: Path) -> None:
    write_fine(coarse)
    assert len(deepfashion.read(Request(coarse)).attributes) == 5
    assert len(deepfashion.read(Request(coarse, annotation="fine")).attributes) == 6


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("garments") / "deepfashion"
    sample_here("deepfashion", root, images=48, size=SIZE * 2, seed=2)
    return root


def test_drawn_garments_in_raw_and_split_files_agree(garments: Path, tmp_path: Path) -> None:
    prepare("deepfashion", garments, tmp_path / "both", triplets=30, epochs=1, image_size=SIZE)
    both = Dataset(tmp_path / "both")
    assert both.info.rejects == {}
    assert both.info.rows_in == 2 * len(both.labels) + sum(both.info.queries.values()) + sum(
        both.info.candidates.values()
    )
    raw_only = tmp_path / "raw"
    shutil.copytree(garments, raw_only)
    for file in raw_only.glob("*.txt"):
        file.unlink()
    prepare("deepfashion", raw_only, tmp_path / "coarse", triplets=30, epochs=1, image_size=SIZE)
    coarse_only = Dataset(tmp_path / "coarse")
    assert coarse_only.labels.equals(both.labels)
    assert coarse_only.info.images == both.info.images
    assert coarse_only.info.attributes == both.info.attributes
    ids = both.images["image_id"].to_numpy()[both.images["split"] == "train"]
    assert ImageStore(both, "train", SIZE).read(ids[:4]).shape == (4, 3, SIZE, SIZE)


def test_pictures_are_cropped_to_their_boxes(garments: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(garments, root)
    half = Image.new("RGB", (100, 80), "blue")
    half.paste("red", (50, 20, 100, 60))
    lines = (root / "Anno_coarse/list_bbox.txt").read_text().splitlines()
    for line in lines[2:]:
        half.save(root / line.split()[0], quality=95)
    names = [line.split()[0] for line in lines[2:]]
    boxes = [f"{name}  50 20 100 60" for name in names]
    boxes[0] = f"{names[0]}  70 70 60 60"  # no area
    write(root, "Anno_coarse/list_bbox.txt", "\n".join([*lines[:2], *boxes, ""]))
    prepare(
        "deepfashion", root, tmp_path / "out", triplets=30, epochs=1, image_size=SIZE, crop_boxes=True, max_rejects=0.2
    )
    dataset = Dataset(tmp_path / "out")
    assert set(dataset.info.rejects) == {"bad_box"}
    assert names[0] not in set(dataset.images["path"])
    train = dataset.images[dataset.images["split"] == "train"]["image_id"].to_numpy()
    red, green, blue = ImageStore(dataset, "train", SIZE).read(train[:5]).double().mean(dim=(0, 2, 3))
    assert red > 240
    assert max(green, blue) < 15
    assert dataset.images["width"].tolist() == [100] * len(dataset.images)  # of the source


def test_existing_split_files_are_drawn_as_they_are(garments: Path, tmp_path: Path) -> None:
    """Only split files: the meaning of global values is inferred, or an error says what is missing."""
    annotation = tmp_path / "annotation" / "DeepFashion"
    annotation.mkdir(parents=True)
    for file in garments.glob("*.txt"):
        shutil.copyfile(file, annotation / file.name)
    with pytest.raises(InputError, match="put Anno_coarse/list_attr_cloth"):
        sample_here("deepfashion", tmp_path / "drawn", size=SIZE, split_files=tmp_path / "annotation")
    for split in ("valid", "test"):
        (annotation / f"label_{split}.txt").unlink()
    drawn = sample_here("deepfashion", tmp_path / "drawn", size=SIZE, split_files=tmp_path / "annotation")
    assert drawn.images == 48
    prepare("deepfashion", tmp_path / "drawn", tmp_path / "out", triplets=30, epochs=1, image_size=SIZE)
    info = Dataset(tmp_path / "out").info
    assert info.rejects == {}
    assert info.attributes[0].values[:3] == ("0", "1", "2")


def test_options_without_their_files_are_an_error(garments: Path, coarse: Path) -> None:
    with pytest.raises(InputError, match=r"move ASEN's split files .* out of "):
        deepfashion.read(Request(garments, categories=True))
    with pytest.raises(InputError, match="no Anno_fine/train_attr"):
        deepfashion.read(Request(coarse, annotation="fine"))
    with pytest.raises(InputError, match=r"no list_bbox\.txt"):
        deepfashion.read(Request(coarse, crop_boxes=True))


def test_boxes_of_drawn_garments_lie_in_the_picture(garments: Path) -> None:
    lines = (garments / "Anno_coarse/list_bbox.txt").read_text().splitlines()[2:]
    boxes = np.array([line.split()[1:] for line in lines], int)
    assert len(boxes) == 48
    assert (boxes >= 0).all()
    assert (boxes <= SIZE * 2).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
