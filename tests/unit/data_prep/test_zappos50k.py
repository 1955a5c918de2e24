"""UT-Zap50K: CSN's triplet lists, labels from meta-data.csv, and drawn shoes in both."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.datasets import SIZE, records, sample_here

from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError
from data_prep.layouts import zappos50k
from data_prep.layouts.whereabouts import located
from data_prep.prepare import prepare
from data_prep.request import Request
from pipeline.config.schema import load_config
from pipeline.training.build import check

HEADER = "CID,Category,SubCategory,HeelHeight,Insole,Closure,Gender,Material,ToeStyle\n"


def write_lists(root: Path, names: list[str], **lists: str) -> Path:
    (root / "tripletlists").mkdir(parents=True, exist_ok=True)
    (root / "filenames.json").write_text("\n".join(names))
    for name, text in lists.items():
        condition, _, part = name.partition("_")
        (root / "tripletlists" / f"{condition}_tripletlist_{part}.txt").write_text(text)
    return root


def write_pictures(root: Path, *paths: str) -> None:
    for path in paths:
        file = root / "ut-zap50k-images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_the_second_image_of_a_line_is_the_negative(tmp_path: Path) -> None:
    root = write_lists(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], class_train="0 1 2\n", heel_test="")
    annotation = zappos50k.read(Request(root))
    assert [attribute.name for attribute in annotation.attributes] == ["class", "closure", "gender", "heel"]
    assert annotation.triplets is not None
    (triplet,) = annotation.triplets.to_dict("records")
    assert (triplet["anchor"], triplet["positive"], triplet["negative"]) == ("a.jpg", "c.jpg", "b.jpg")
    assert (triplet["attribute"], triplet["split"]) == (0, "train")


def test_bad_triplets_are_rejected_and_counted(tmp_path: Path) -> None:
    root = write_lists(
        tmp_path,
        list("abcdefgh"),
        class_train="0 1 2\r\n0 1\n0 1 8\n-1 1 2\nx y z\n1 1 2\n\n0 1 2",
        gender_val="3 4 5\n3 4 0\n",
        heel_test="6 7 5\n99999999999999999999999 1 2\n",
    )
    annotation = zappos50k.read(Request(root))
    assert annotation.triplets is not None
    assert annotation.triplets["split"].tolist() == ["train", "train", "valid", "valid", "test"]
    assert [(r.source.split("_")[0], r.line, r.reason) for r in annotation.rejects] == [
        ("class", 2, "bad_line"),
        ("class", 3, "index_out_of_range"),
        ("class", 4, "index_out_of_range"),
        ("class", 5, "bad_line"),
        ("class", 6, "same_image_twice"),
        ("heel", 2, "index_out_of_range"),
    ]
    assert annotation.rows_in == 11
    assert annotation.notes == (
        "CSN's lists share pictures with an earlier split: 1 of 2 valid triplets and 1 of 1 test triplet",
    )


def test_pictures_are_found_with_or_without_the_full_stop_of_a_brand(tmp_path: Path) -> None:
    listed = ["Shoes/Oxfords/A. Testoni/1.2.jpg", "Shoes/Oxfords/Co./3.4.jpg", "Boots/Ankle/L.A.M.B./5.jpg"]
    write_pictures(tmp_path, listed[0], "Shoes/Oxfords/Co/3.4.jpg", listed[2])
    root = write_lists(tmp_path, listed, class_train="0 1 2\n")
    annotation = located(zappos50k.read(Request(root)), root)
    assert annotation.images()["path"].tolist() == [
        "ut-zap50k-images/Boots/Ankle/L.A.M.B./5.jpg",
        "ut-zap50k-images/Shoes/Oxfords/A. Testoni/1.2.jpg",
        "ut-zap50k-images/Shoes/Oxfords/Co/3.4.jpg",
    ]
    old, new = (f"ut-zap50k-images/Shoes/Oxfords/{brand}/" for brand in ("Co.", "Co"))
    assert annotation.notes == (f"found elsewhere: 1 picture, those of {old} in {new} (1)",)


def test_one_brand_without_its_full_stop_among_many_is_found(tmp_path: Path) -> None:
    listed = [f"Shoes/A/B/{i}.jpg" for i in range(150)] + ["Shoes/A/Brand./999.jpg"]
    write_pictures(tmp_path, *listed[:-1], "Shoes/A/Brand/999.jpg")
    root = write_lists(tmp_path, listed, class_train="0 1 150\n")
    assert "ut-zap50k-images/Shoes/A/Brand/999.jpg" in set(
        located(zappos50k.read(Request(root)), root).images()["path"]
    )


def test_a_file_that_is_listed_twice_is_one_image(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpg", "c.jpg", "a.jpg", "e.jpg", "f.jpg", "x" * 300, "y" * 100_000]
    root = write_lists(tmp_path, names, class_train="0 1 2\n0 3 1\n6 1 2\n7 1 2\n", class_test="3 4 5\n")
    annotation = zappos50k.read(Request(root))
    assert annotation.triplets is not None
    assert annotation.triplets["anchor"].tolist() == ["a.jpg", "x" * 300, "a.jpg"]
    assert [reject.reason for reject in annotation.rejects] == ["same_image_twice", "bad_line"]


def test_lines_that_contradict_each_other_are_rejected(tmp_path: Path) -> None:
    write_pictures(tmp_path, "Shoes/X/A/1.1.jpg", "Shoes/X/A/2.2.jpg", "Boots/X/A/2.2.jpg")
    text = HEADER + "1-1,Shoes,,,,,Men,,\n1.1,Shoes,,,,,Women,,\n2-2,Boots,,,,,,,\n"
    (tmp_path / "meta-data.csv").write_text(text)
    annotation = zappos50k.read_table(tmp_path / "meta-data.csv", tmp_path)
    named = [
        (row.attribute, annotation.attributes[row.attribute].values[row.value]) for row in records(annotation.rows)
    ]
    assert named == [(0, "Shoes"), (2, "Men")]
    assert [(r.line, r.reason) for r in annotation.rejects] == [(3, "labels_disagree"), (4, "several_images")]
    assert (annotation.rows_in, annotation.repeats) == (5, 1)


def test_labels_from_the_table(tmp_path: Path) -> None:
    """CIDs in either spelling, several values in a cell, empty cells, commas in quotes."""
    write_pictures(tmp_path, "Shoes/X/Co./100.1.jpg", "Boots/Y/B/200.2.jpg", "Boots/Y/B/300.3.jpg")
    text = (
        HEADER + "100-1,Shoes,X,1in - 1 3/4in,,Lace up;Zipper,Men,Leather,Round\r\n"
        '200.2,Boots,"Y, high",,,Zipper,Women;Girls,,\r\n'
        "300-3,,,,,,,,\n"
        "999-9,Shoes,X,,,Buckle,Men,,\n"
        "400-4,Shoes\n"
    )
    (tmp_path / "ut-zap50k-data").mkdir()
    (tmp_path / "ut-zap50k-data/meta-data.csv").write_text(text, newline="")
    annotation = zappos50k.read_table(tmp_path / "ut-zap50k-data/meta-data.csv", tmp_path)
    assert [attribute.values for attribute in annotation.attributes] == [
        ("Boots", "Shoes"),
        ("Lace up", "Zipper"),
        ("Girls", "Men", "Women"),
        ("1in - 1 3/4in",),
    ]
    assert [(Path(row.path).stem, row.attribute, row.value) for row in records(annotation.rows)] == [
        ("100.1", 0, 1),
        ("100.1", 1, 0),
        ("100.1", 1, 1),
        ("100.1", 2, 1),
        ("100.1", 3, 0),
        ("200.2", 0, 0),
        ("200.2", 1, 1),
        ("200.2", 2, 2),
        ("200.2", 2, 0),
    ]
    assert [(r.line, r.reason) for r in annotation.rejects] == [
        (4, "no_value"),
        *[(5, "missing_image")] * 3,
        (6, "bad_line"),
    ]


def test_the_values_of_the_real_table(tmp_path: Path) -> None:
    """Values have blanks; a cell may have a pair; CIDs are written with a dash, names of files with a full stop."""
    write_pictures(tmp_path, *(f"Shoes/X/A/{cid}.jpg" for cid in ("100627.72", "7.1", "7.2")), "Shoes/X/A/100627.7.PNG")
    rows = (
        "100627-72,Shoes,X,,,Ankle Wrap,Men;Women,,",
        "100627-7,Boots,X,1in - 1 3/4in,,Monk Strap;Buckle,Boys;Girls,,",
        "7-1,Shoes,X,,,Sling Back,Men,,",
        "7-2,Shoes,X,,,Bungee,,,",
    )
    (tmp_path / "meta-data.csv").write_text(HEADER + "\n".join(rows))
    annotation = zappos50k.read_table(tmp_path / "meta-data.csv", tmp_path)
    assert annotation.rejects == []
    assert [attribute.values for attribute in annotation.attributes] == [
        ("Boots", "Shoes"),
        ("Ankle Wrap", "Buckle", "Bungee", "Monk Strap", "Sling Back"),
        ("Boys", "Girls", "Men", "Women"),
        ("1in - 1 3/4in",),
    ]
    gender = [Path(row.path).name for row in records(annotation.rows) if row.attribute == 2]
    assert gender == ["100627.72.jpg"] * 2 + ["100627.7.PNG"] * 2 + ["7.1.jpg"]


def test_lists_without_file_names_are_an_error_even_if_there_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "tripletlists").mkdir()
    (tmp_path / "meta-data.csv").write_text(HEADER)
    with pytest.raises(InputError, match=r"tripletlists/ is there but filenames\.json is missing"):
        zappos50k.read(Request(tmp_path))
    (tmp_path / "filenames.json").write_text('["a.jpg", "b.jpg"]')
    with pytest.raises(InputError, match="is JSON; CSN's file of this name is plain text"):
        zappos50k.read(Request(tmp_path))


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meta-data.csv").write_text("CID,Category,Gender\n")
    with pytest.raises(InputError, match=r"meta-data\.csv: line 1 lacks the columns Closure, HeelHeight"):
        zappos50k.read(Request(tmp_path))


@given(
    numbers=st.lists(st.tuples(*[st.integers(-1, 6)] * 3), max_size=30),
    cut=st.tuples(st.integers(0, 30), st.integers(0, 30)),
)
def test_any_lists_read_back_triplet_by_triplet(
    numbers: list[tuple[int, int, int]], cut: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Compare with a plain reader of the same lists."""
    names = [f"{i}.jpg" for i in range(6)]
    first, second = sorted(min(place, len(numbers)) for place in cut)
    parts = {"train": numbers[:first], "val": numbers[first:second], "test": numbers[second:]}
    lists = {f"closure_{part}": "".join(f"{a} {f} {c}\n" for a, f, c in rows) for part, rows in parts.items()}
    root = write_lists(tmp_path_factory.mktemp("lists"), names, **lists)
    annotation = zappos50k.read(Request(root))
    good = {
        part: [row for row in rows if all(0 <= i < 6 for i in row) and len(set(row)) == 3]
        for part, rows in parts.items()
    }
    expected = [(f"{a}.jpg", f"{c}.jpg", f"{f}.jpg") for rows in good.values() for a, f, c in rows]
    assert annotation.triplets is not None
    read = annotation.triplets[["anchor", "positive", "negative"]].itertuples(index=False, name=None)
    assert list(read) == expected
    assert len(expected) + len(annotation.rejects) == len(numbers)


@pytest.fixture(scope="module")
def shoes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shoes") / "zappos50k"
    sample_here("zappos50k", root, images=100, size=SIZE, seed=2)
    return root


def test_all_triplets_of_drawn_lists_are_used(shoes: Path, tmp_path: Path) -> None:
    prepare("zappos50k", shoes, tmp_path / "out", image_size=SIZE)
    dataset = Dataset(tmp_path / "out")
    assert dataset.info.rejects == {}
    assert dataset.info.triplet_epochs == 1
    assert dataset.info.queries == {"train": 0, "valid": 0, "test": 0}
    name_of = dataset.images.set_index("image_id")["path"]
    names = [f"ut-zap50k-images/{name}" for name in (shoes / "filenames.json").read_text().split("\n")]
    for split, part in (("train", "train"), ("valid", "val"), ("test", "test")):
        drawn = dataset.triplets(split)
        columns = (name_of[drawn.anchor], name_of[drawn.negative], name_of[drawn.positive], drawn.attribute)
        expected = [
            (*(names[int(i)] for i in line.split()), attribute)
            for attribute, condition in enumerate(("class", "closure", "gender", "heel"))
            for line in (shoes / f"tripletlists/{condition}_tripletlist_{part}.txt").read_text().splitlines()
        ]
        assert sorted(zip(*columns, strict=True)) == sorted(expected)
        assert drawn.attribute.tolist() != sorted(drawn.attribute)  # shuffled


def test_a_picture_in_triplets_of_two_splits_is_an_image_of_both(shoes: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(shoes, root)
    anchor, far, close = (root / "tripletlists/heel_tripletlist_train.txt").read_text().split("\n", 1)[0].split()
    with (root / "tripletlists/heel_tripletlist_test.txt").open("a") as out:
        out.write(f"{anchor} {far} {close}\n")
    prepare("zappos50k", root, tmp_path / "out", image_size=SIZE)
    dataset = Dataset(tmp_path / "out")
    assert dataset.info.rejects == {}
    assert dataset.info.notes[0].startswith("CSN's lists share pictures with an earlier split: 1 of ")
    path_of = dataset.images.set_index("image_id")["path"]
    names = (root / "filenames.json").read_text().split("\n")
    shared = [f"ut-zap50k-images/{names[int(i)]}" for i in (anchor, close, far)]
    for split in ("train", "test"):
        drawn = dataset.triplets(split)
        images = np.stack((drawn.anchor, drawn.positive, drawn.negative))
        assert ImageStore(dataset, split, SIZE).read(np.unique(images)).shape[1:] == (3, SIZE, SIZE)
        assert shared in [[path_of[i] for i in triplet] for triplet in images.T]
    assert dataset.images["path"].duplicated().sum() == 3
    (root / shared[0]).write_bytes(b"")
    prepare("zappos50k", root, tmp_path / "out", image_size=SIZE, overwrite=True)
    assert set(Dataset(tmp_path / "out").info.rejects) == {"unreadable_image"}


def test_more_triplets_than_the_lists_have_repeat_them(shoes: Path, tmp_path: Path) -> None:
    prepare("zappos50k", shoes, tmp_path / "all", image_size=SIZE)
    everything = Dataset(tmp_path / "all").triplets("train")
    count = len(everything) * 2 // 3
    prepare("zappos50k", shoes, tmp_path / "out", image_size=SIZE, triplets=count, epochs=2)
    dataset = Dataset(tmp_path / "out")
    assert (dataset.info.triplets, dataset.info.triplet_epochs) == (count, 2)
    dealt = np.concatenate([dataset.triplets("train", epoch).anchor for epoch in (0, 1)])
    assert dealt.tolist() == np.tile(everything.anchor, 2)[: 2 * count].tolist()


def test_without_lists_triplets_come_from_the_labels(shoes: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(shoes, root)
    shutil.rmtree(root / "tripletlists")
    prepare("zappos50k", root, tmp_path / "out", image_size=SIZE, triplets=500, epochs=1)
    dataset = Dataset(tmp_path / "out")
    assert dataset.info.rejects == {}
    assert dataset.info.rows_in == len(dataset.labels) == 400
    assert dataset.info.images == {"train": 80, "valid": 10, "test": 10}
    assert dataset.info.queries["test"] == 8
    drawn = dataset.triplets("train")
    values = dataset.values_of()(np.stack((drawn.anchor, drawn.positive, drawn.negative)), drawn.attribute)
    assert values.shape == (3, 500, 1)
    anchor, positive, negative = values[..., 0]
    assert (anchor == positive).all() and (anchor != negative).all()
    regions = dataset.regions
    assert regions is not None
    assert set(regions["attribute"]) == {0, 1, 2, 3}


@pytest.mark.parametrize("setting", ["proxy_weight=1", "batches=balanced"])
def test_lists_of_triplets_cannot_train_losses_that_need_values(prepared_lists: Dataset, setting: str) -> None:
    with pytest.raises(InputError) as error:
        check(load_config(None, [setting]), prepared_lists, workers=1)
    assert str(error.value) == f"{setting}: {prepared_lists.path} has triplets but no values to learn"


@pytest.fixture(scope="module")
def prepared_lists(shoes: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("lists") / "data"
    prepare("zappos50k", shoes, out, image_size=SIZE, triplets=20, epochs=1)
    return Dataset(out)


def test_triplets_of_a_damaged_picture_are_rejected(shoes: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(shoes, root)
    names = (root / "filenames.json").read_text().splitlines()
    lines = (root / "tripletlists/heel_tripletlist_test.txt").read_text().splitlines()
    lost = int(lines[0].split()[1])
    (root / "ut-zap50k-images" / names[lost]).write_bytes(b"")
    hit = sum(
        str(lost) in line.split()
        for file in (root / "tripletlists").glob("*_test.txt")
        for line in file.read_text().splitlines()
    )
    prepare("zappos50k", root, tmp_path / "out", image_size=SIZE, max_rejects=0.5)
    dataset = Dataset(tmp_path / "out")
    assert dataset.info.rejects == {"unreadable_image": hit}
    assert dataset.info.lost == {"test": {"triplets": hit}}
    rejects = pq.read_table(tmp_path / "out/rejects.parquet").to_pylist()
    assert {reject["source"].rsplit("_", 1)[1] for reject in rejects} == {"test.txt"}
    assert sum(reject["source"].startswith("heel") and reject["line"] == 1 for reject in rejects) == 1


def test_existing_lists_are_drawn(shoes: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    shutil.copytree(shoes / "tripletlists", lists / "tripletlists")
    shutil.copyfile(shoes / "filenames.json", lists / "filenames.json")
    drawn = sample_here("zappos50k", tmp_path / "drawn", size=SIZE, split_files=lists)
    assert drawn.images == 100
    prepare("zappos50k", tmp_path / "drawn", tmp_path / "out", image_size=SIZE)
    assert Dataset(tmp_path / "out").info.rejects == {}
