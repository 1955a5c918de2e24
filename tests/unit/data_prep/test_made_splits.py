"""Made splits of the layouts with official files, and near-duplicates in every layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.datasets import NECKS, make_photographs, prepare_small

from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.near_duplicates import DISTANCE, TINY_COPY, Look, find_near_duplicates, near_pairs
from data_prep.prepare import prepare
from data_prep.request import TableOptions
from data_prep.splits import SplitFractions

FOLDER = "train1/Images/neck_design_labels"


def with_copies(root: Path) -> Path:
    """Write 100 photographs of which the last ten are the first ten, smaller."""
    make_photographs(root)
    for number in range(10):
        with Image.open(root / FOLDER / f"{number:03d}.jpg") as image:
            smooth = image.resize((8, 8)).resize((120, 100), Image.Resampling.BICUBIC)
        smooth.save(root / FOLDER / f"{number:03d}.jpg")
        smooth.resize((60, 50)).save(root / FOLDER / f"{number + 90:03d}.jpg")
    return root


def copies_in_two_splits(dataset: Dataset) -> int:
    split = dataset.images.set_index("path")["split"]
    return sum(split[f"{FOLDER}/{i:03d}.jpg"] != split[f"{FOLDER}/{i + 90:03d}.jpg"] for i in range(10))


def test_fractions_of_a_made_split_can_be_set_in_every_layout(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw")
    info = prepare_small(root, tmp_path / "out", fractions=SplitFractions(0.2, 0.3, 0.5)).info
    assert info.images == {"train": 50, "valid": 20, "test": 30}
    assert info.queries == {"train": 0, "valid": 10, "test": 15}
    assert info.split_origin == "made, seed 0"


def test_near_duplicates_are_not_divided_by_a_made_split(tmp_path: Path) -> None:
    root = with_copies(tmp_path / "raw")
    grouped = prepare_small(root, tmp_path / "group")
    assert grouped.near_duplicates is not None and len(grouped.near_duplicates) == 10
    assert copies_in_two_splits(grouped) == 0
    kept = prepare_small(root, tmp_path / "keep", near_duplicates="keep")
    assert copies_in_two_splits(kept) > 0
    dropped = prepare_small(root, tmp_path / "drop", near_duplicates="drop")
    assert dropped.info.rejects == {"near_duplicate": 10}
    assert dropped.rejects["detail"].iloc[0] == f"{FOLDER}/090.jpg: like {FOLDER}/000.jpg"
    assert len(dropped.images) == 90


def test_near_duplicates_across_a_given_split_are_named_and_stay(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    names = [f"{FOLDER}/{number:03d}.jpg" for number in range(100)]
    with_copies(root)
    shutil.rmtree(root / "train1" / "Annotations")
    labels = [f"{number} 7 {NECKS[number % 5].index('y')}" for number in range(100)]
    (root / "filenames_train.txt").write_text("\n".join(names[:90]))
    (root / "label_train.txt").write_text("\n".join(labels[:90]))
    (root / "filenames_test.txt").write_text("\n".join(names[90:]))
    (root / "query_test.txt").write_text("\n".join(f"{i} 7 {i % 5}" for i in range(5)))
    (root / "candidate_test.txt").write_text("\n".join(f"{i} 7 {i % 5}" for i in range(5, 10)))
    dataset = prepare_small(root, tmp_path / "out")
    assert dataset.near_duplicates is not None
    assert set(dataset.near_duplicates[["split", "other_split"]].itertuples(index=False, name=None)) == {
        ("train", "test")
    }
    assert copies_in_two_splits(dataset) == 10
    for options in ({"near_duplicates": "drop"}, {"fractions": SplitFractions(test=0.2)}):
        with pytest.raises(InputError, match=r"is for a made split, and this one is given \(ASEN's\); leave it out"):
            prepare_small(root, tmp_path / "other", **options)


def test_one_garment_in_two_colours_is_no_near_duplicate(tmp_path: Path) -> None:
    """Their hashes are equal, because they are those of grey pictures."""
    y, x = np.mgrid[:64, :64]
    shape = ((x - 32) ** 2 + (y - 40) ** 2 < 400)[..., None]
    for name, colour in {"red": (200, 30, 30), "teal": (10, 110, 110)}.items():
        Image.fromarray(np.where(shape, colour, 255).astype(np.uint8)).save(tmp_path / f"{name}.png")
    Image.open(tmp_path / "red.png").resize((48, 48)).save(tmp_path / "small.png")
    found = find_near_duplicates(tmp_path, ["red.png", "small.png", "teal.png"], 32)
    assert found.pairs[["path", "other_path"]].to_numpy().tolist() == [["red.png", "small.png"]]
    assert len(np.unique(found.cluster)) == 2


def test_the_groups_of_a_catalogue_are_in_the_table_of_images(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "raw")
    names = [f"{number:03d}" for number in range(100)]
    shops = [("", " ")[number % 2] if number > 89 else f"shop {number // 5}" for number in range(100)]
    colours = [("red", "blue")[number % 2] for number in range(100)]
    pd.DataFrame({"id": names, "shop": shops, "colour": colours}).to_csv(tmp_path / "t.csv", index=False)
    table = TableOptions(tmp_path / "t.csv", image=FOLDER + "/{id}.jpg", attributes=("colour",), group="shop")
    out = tmp_path / "out"
    prepare("table", root, out, table=table, image_size=32, triplets=20, epochs=1)
    images = Dataset(out).images
    assert images["group"].iloc[:90].tolist() == shops[:90] and images["group"].iloc[90:].isna().all()
    assert images["split"].iloc[90:].nunique() > 1, "pictures without a group are not one group"
    assert images.groupby("group")["split"].nunique().max() == 1


def test_a_dataset_of_an_earlier_version_without_groups_opens(dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.path, tmp_path / "old")
    file = tmp_path / "old" / "images.parquet"
    pq.write_table(pq.read_table(file).drop_columns("group"), file)
    old = Dataset(tmp_path / "old")
    assert old.images["group"].isna().all() and len(old.images) == len(dataset.images)


@pytest.mark.parametrize("count", [0, 1, 700])
def test_near_pairs_are_those_of_a_comparison_of_all(count: int) -> None:
    """Hashes in families whose members differ in 0 to 6 bits, so that some pairs are just near enough."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (40, 8), dtype=np.uint8)[rng.integers(0, 40, count)]
    for bits in (rng.random((count, 64)) < 0.03, rng.random((count, 64)) < 0.01):
        hashes ^= np.packbits(bits, axis=1)
    hashed = rng.random(count) < 0.9
    copies, short = np.zeros((count, TINY_COPY, TINY_COPY, 3), np.uint8), np.ones(count, np.int64)
    copies[::5] = 200  # these are not like the others, whatever their hashes are
    found = near_pairs(Look(hashes, hashed, np.zeros(count, bool), copies, short))
    bits = np.unpackbits(hashes, axis=1).astype(np.int64)
    distance = (bits[:, None] != bits[None]).sum(2)
    alike = copies[:, 0, 0, 0][:, None] == copies[:, 0, 0, 0][None]
    near = (distance <= DISTANCE) & alike & hashed[:, None] & hashed[None] & np.tri(count, k=-1, dtype=bool).T
    expected = sorted((distance[one, other], one, other) for one, other in np.argwhere(near).tolist())
    assert [(gap, one, other) for one, other, gap in found.tolist()] == expected
    assert count < 2 or {gap for gap, *_ in expected} == {*range(DISTANCE + 1)}
