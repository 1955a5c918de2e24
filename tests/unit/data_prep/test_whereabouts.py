"""Pictures that are not where the annotation says, in every layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.annotation import Annotation, Row, frame_of
from data_prep.layouts.whereabouts import located
from data_prep.tables import Attribute

SCHEMA = (Attribute(name="texture", values=("floral", "plain")),)
NAMES = ("Dress_A/img_1.jpg", "Dress_A/img_2.jpg", "Dress_B/img_1.jpg", "Top/img_1.jpg")


def annotation_of(*paths: str) -> Annotation:
    rows = frame_of(Row(path, 0, i % 2, "train", "", "list.txt", i + 3) for i, path in enumerate(paths))
    return Annotation(SCHEMA, rows, rows_in=len(rows))


def write_pictures(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def paths_of(annotation: Annotation) -> list[str]:
    return annotation.rows["path"].tolist()


def test_pictures_in_their_places_are_left_there_without_a_note(tmp_path: Path) -> None:
    write_pictures(tmp_path, *(f"img/{name}" for name in NAMES), *(f"Img/img/{name}" for name in NAMES))
    annotation = annotation_of(*(f"img/{name}" for name in NAMES))
    assert located(annotation, tmp_path) is annotation


@pytest.mark.parametrize(
    ("said", "there", "move"),
    [
        ("img/", "img/img/", "img/ in img/img/"),
        ("img/", "Img/img/", "img/ in Img/img/"),
        ("img/", "IMG/", "img/ in IMG/"),
        ("img/", "", "img/ in the root"),
        ("img/img/", "img/", "img/img/ in img/"),
        ("", "img/", "the root in img/"),
        ("img/", "Category and Attribute Prediction Benchmark/Img/img/", "img/ in Category and Attribute Prediction "
         "Benchmark/Img/img/"),
        ("train1/Images/", "data/train1/", "train1/Images/ in data/train1/"),
    ],
)  # fmt: skip
def test_pictures_are_found_in_other_folders(tmp_path: Path, said: str, there: str, move: str) -> None:
    write_pictures(tmp_path, *(there + name for name in NAMES))
    found = located(annotation_of(*(said + name for name in NAMES)), tmp_path)
    assert paths_of(found) == [there + name for name in NAMES]
    assert found.notes == (f"found elsewhere: 4 pictures, those of {move} (4)",)


def test_boxes_and_triplets_go_with_their_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path, *(f"Img/img/{name}" for name in NAMES))
    annotation = annotation_of(*(f"img/{name}" for name in NAMES))
    annotation.boxes = annotation.rows[["path"]].assign(x0=0.0, y0=1.0, x1=2.0, y1=3.0)
    assert located(annotation, tmp_path).images()["x1"].tolist() == [2.0] * 4


def test_folders_in_another_case_and_pictures_in_another_format_are_found(tmp_path: Path) -> None:
    write_pictures(tmp_path, "Images/dress_a/IMG_1.JPG", "Images/dress_b/img_1.webp", "Images/dress_b/notes.txt")
    annotation = located(annotation_of("images/Dress_A/img_1.jpg", "images/Dress_B/img_1.jpg"), tmp_path)
    assert paths_of(annotation) == ["Images/dress_a/IMG_1.JPG", "Images/dress_b/img_1.webp"]
    assert "images/Dress_B/ (*.jpg) in Images/dress_b/ (*.webp) (1)" in annotation.notes[0]


def test_the_folder_that_agrees_best_is_taken_and_an_equal_name_alone_is_not_enough(tmp_path: Path) -> None:
    write_pictures(tmp_path, "train2/Images/x_labels/a.jpg", "train1/x_labels/a.jpg", "other/b.jpg", ".cache/img/b.jpg")
    annotation = located(annotation_of("data/train1/Images/x_labels/a.jpg", "img/b.jpg"), tmp_path)
    assert paths_of(annotation) == ["train2/Images/x_labels/a.jpg", "img/b.jpg"]
    nowhere = (
        "nowhere below the root: 1 of 2 pictures; img/b.jpg was looked for at its path, and by its name and folder "
        "among the 3 pictures there; a picture of this name is other/b.jpg"
    )
    assert annotation.notes[1] == annotation.expected["", "missing_image"] == nowhere


def test_a_few_missing_pictures_are_not_worth_a_note(tmp_path: Path) -> None:
    names = [f"img/x/{i}.jpg" for i in range(40)]
    write_pictures(tmp_path, *names[3:])
    assert located(annotation_of(*names), tmp_path).notes == ()
    (tmp_path / names[3]).unlink()
    assert "nowhere below the root: 4 of 40 pictures" in located(annotation_of(*names), tmp_path).notes[0]
    (tmp_path / "empty").mkdir()
    nothing = located(annotation_of(*names), tmp_path / "empty").notes[0]
    assert nothing.endswith("img/x/0.jpg was looked for at its path, and there is no other picture")


def test_pictures_in_a_link_of_the_root_are_found(tmp_path: Path) -> None:
    write_pictures(tmp_path / "disk", *(f"img/{name}" for name in NAMES))
    root = tmp_path / "root"
    root.mkdir()
    (root / "pictures").symlink_to(tmp_path / "disk")
    (root / "loop").symlink_to(tmp_path)
    found = located(annotation_of(*(f"img/{name}" for name in NAMES)), root)
    assert paths_of(found) == [f"pictures/img/{name}" for name in NAMES]


def test_two_paths_that_lead_to_one_picture_are_one_image(tmp_path: Path) -> None:
    write_pictures(tmp_path, "img/Top/1.jpg")
    found = located(annotation_of("img/Top/1.jpg", "Img/img/Top/1.jpg"), tmp_path)
    assert paths_of(found) == ["img/Top/1.jpg"]
    assert [reject.reason for reject in found.rejects] == ["labels_disagree"]
    found.check()
