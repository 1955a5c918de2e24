"""Labels in blocks: whatever the size of a block, the same tables come out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.datasets import make_photographs, prepare_small

from data_prep import blocks, tables
from data_prep.annotation import Annotation, Row, frame_of
from data_prep.blocks import bincount, blocks_of, take
from data_prep.corrections import COLUMNS, labels_digest
from data_prep.dataset import Dataset
from data_prep.prepare import prepare
from data_prep.request import TableOptions
from data_prep.splits import _labels_by_group
from data_prep.storage import Storage
from data_prep.tables import LABELS, Attribute, DatasetInfo, read_labels, table_writer, write_table
from data_prep.triplets import TripletSampler, can_draw


@pytest.fixture(params=[1, 7, 64])
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", request.param)


@pytest.mark.parametrize("skewed", [False, True])
def test_every_position_is_in_one_block_beside_those_of_its_number(small_blocks: None, skewed: bool) -> None:
    rng = np.random.default_rng(0)
    numbers = (rng.geometric(0.1, 200) if skewed else rng.integers(0, 40, 200)).astype(np.int32)
    found = list(blocks_of(numbers))
    assert len(found) > 1
    assert max(map(len, found)) <= blocks.BLOCK + np.bincount(numbers).max()
    assert sorted(np.concatenate(found).tolist()) == list(range(200))
    assert all((np.diff(block) > 0).all() for block in found)
    of_block = [set(numbers[block].tolist()) for block in found if len(block)]
    assert all(max(one) < min(other) for one, other in pairwise(of_block))
    assert list(blocks_of(numbers[:0])) == []


def test_taking_and_counting_equal_numpys(small_blocks: None) -> None:
    rng = np.random.default_rng(0)
    values, index = rng.normal(size=30), rng.integers(0, 30, 200).astype(np.int32)
    assert np.array_equal(take(values, index), values[index])
    assert np.array_equal(bincount(index, 40), np.bincount(index, minlength=40))


def test_the_labels_of_groups_are_those_of_a_plain_count(small_blocks: None) -> None:
    rng = np.random.default_rng(0)
    group, label = rng.integers(0, 9, 150).astype(np.int32), rng.integers(0, 5, 150).astype(np.int32)
    starts, labels, counts = _labels_by_group(group, label, 5)
    for number in range(9):
        own = slice(starts[number], starts[number + 1])
        expected = np.bincount(label[group == number], minlength=5)
        assert labels[own].tolist() == np.flatnonzero(expected).tolist()
        assert counts[own].tolist() == expected[expected > 0].tolist()


def test_the_digest_of_labels_stays_what_it_is(small_blocks: None) -> None:
    """Files of corrections have it."""
    attributes = tuple(Attribute(name=name, values=("x", "y", "z")) for name in "ab")
    rows = frame_of(Row(f"{n * 7 % 5}.jpg", n % 2, n % 3, "", "", "t", n) for n in range(10))
    digest = labels_digest(Annotation(attributes, rows, rows_in=10))
    assert digest == "da43e1f3e918cd9e047303f12335612e1484321297b7b950963ac071fc5c18cf"


def catalogue(root: Path) -> pd.DataFrame:
    make_photographs(root)
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"file": paths, "shop": rng.integers(0, 30, len(paths))})
    for name in ("colour", "sleeve", "tags"):
        frame[name] = [f"value {number}" for number in rng.integers(0, 4, len(paths))]
    frame.loc[::3, "tags"] += ";value 9"
    frame.loc[50, "colour"] = "rare"
    twice = frame.iloc[:20].assign(sleeve="value 0")  # some repeat
    return pd.concat([frame, twice], ignore_index=True)


def prepared(root: Path, out: Path, group: str | None, corrections: Sequence[Path] = ()) -> DatasetInfo:
    options = TableOptions(
        table=root / "table.csv",
        image="file",
        attributes=("colour", "sleeve", "tags"),
        separator=";",
        group=group,
        min_images=2,
    )
    return prepare(
        "table",
        root,
        out,
        table=options,
        max_rejects=0.5,
        image_size=32,
        triplets=64,
        epochs=2,
        corrections=corrections,
    )


@pytest.mark.parametrize("group", [None, "shop"])
def test_a_catalogue_gives_the_same_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str | None) -> None:
    root = tmp_path / "raw"
    catalogue(root).to_csv(root / "table.csv", index=False)
    as_read = prepared(root, tmp_path / "as_read", group)
    rows = Dataset(tmp_path / "as_read").images["path"][:30]
    labels = Dataset(tmp_path / "as_read").labels.drop_duplicates("image_id")[:30]
    lines = [
        f"table,,{path},{as_read.attributes[a].name},{as_read.attributes[a].values[v]},keep,"
        for path, a, v in zip(rows, labels["attribute"], labels["value"], strict=True)
    ]
    decided = tmp_path / "corrections.csv"
    decided.write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")
    whole = prepared(root, tmp_path / "whole", group, [decided])
    assert whole.repeats and whole.rejects == {"too_rare": 1} and whole.corrections == {"keep": 30}
    for size in (5, 64):
        monkeypatch.setattr(blocks, "BLOCK", size)
        assert prepared(root, tmp_path / f"{size}", group, [decided]) == whole


def test_official_files_give_the_same_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_photographs(tmp_path / "raw")
    whole = prepare_small(root, tmp_path / "whole").info
    monkeypatch.setattr(blocks, "BLOCK", 7)
    assert prepare_small(root, tmp_path / "blocks").info == whole


def test_a_table_is_written_in_any_blocks_as_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP", 50)
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"image_id": np.arange(230), "attribute": rng.integers(0, 3, 230), "value": rng.integers(0, 9, 230)}
    ).assign(split="train", other=1)
    write_table(Storage(tmp_path) / "once", {name: rows[name] for name in LABELS.names}, LABELS, row_group_size=50)
    for size in (1, 49, 50, 120, 500):
        with table_writer(Storage(tmp_path) / "blocks", LABELS) as write:
            for start in range(0, len(rows), size):
                write(rows.iloc[start : start + size])
        assert (tmp_path / "blocks").read_bytes() == (tmp_path / "once").read_bytes()
    assert pq.ParquetFile(tmp_path / "blocks").num_row_groups == 5
    with table_writer(Storage(tmp_path) / "empty", LABELS):
        pass
    write_table(Storage(tmp_path) / "nothing", {name: [] for name in LABELS.names}, LABELS)
    assert (tmp_path / "empty").read_bytes() == (tmp_path / "nothing").read_bytes()


def test_labels_of_a_split_are_those_of_the_table(dataset: Dataset) -> None:
    labels = dataset.labels
    for split, of_split in labels.groupby("split"):
        with (dataset.storage / "labels.parquet").open() as file:
            read = read_labels(file, str(split))
        pd.testing.assert_frame_equal(read, of_split.drop(columns="split").reset_index(drop=True))


def test_what_can_be_drawn_is_what_the_sampler_draws() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for size in [*range(7)] * 20:
        labels = pd.DataFrame({name: rng.integers(0, 3, size) for name in ("image_id", "attribute", "value")})
        among = rng.random(size) < 0.8
        drawable = can_draw(*(labels[name].to_numpy() for name in labels), among=among)
        assert drawable == bool(len(TripletSampler(labels[among]).attributes)), labels
        seen.add(drawable)
    assert seen == {True, False}
