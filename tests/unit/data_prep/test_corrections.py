"""Corrections of labels: a file in, corrected tables out, and every row still accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.audited import write_corrections as write
from support.commands import Agman
from support.datasets import make_photographs, prepare_small

from data_prep.annotation import Annotation, Row, frame_of
from data_prep.corrections import labels_digest
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.prepare import prepare
from data_prep.request import TableOptions
from data_prep.tables import Attribute

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures: two colours each for every third one, kids for every second one."""
    root = tmp_path_factory.mktemp("catalogue")
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 30, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{number:02d}.png")
    rows = [f"{n:02d}.png,{COLOURS[n % 3]}{'+blue' if n % 3 == 0 else ''},{n % 2 == 0}" for n in range(60)]
    (root / "table.csv").write_text("\n".join(["file,colour,kids", *rows]) + "\n")
    return root


@pytest.fixture
def prepared(catalogue: Path, tmp_path: Path) -> Callable[..., Dataset]:
    def run(name: str, *corrections: Path, **options: object) -> Dataset:
        table = TableOptions(table=catalogue / "table.csv", attributes=("colour", "kids"), separator="+", image="file")
        fixed = {"name": "shop", "image_size": 32, "triplets": 20, "epochs": 1, "table": table}
        prepare("table", catalogue, tmp_path / name, corrections=corrections, **(fixed | options))  # type: ignore[arg-type]
        return Dataset(tmp_path / name)

    return run


def labels(dataset: Dataset) -> pd.DataFrame:
    """Return path, attribute, value, split, as names and sorted."""
    rows = dataset.labels.merge(dataset.images[["image_id", "path"]], on="image_id")
    attributes = dataset.info.attributes
    rows["value"] = [attributes[a].values[v] for a, v in zip(rows["attribute"], rows["value"], strict=True)]
    rows["attribute"] = [attributes[a].name for a in rows["attribute"]]
    columns = ["path", "attribute", "value", "split"]
    return rows[columns].sort_values(columns, ignore_index=True)


def test_labels_are_kept_changed_and_dropped_and_no_picture_changes_its_split(
    prepared: Callable[..., Dataset], tmp_path: Path
) -> None:
    before = prepared("before")
    file = write(
        tmp_path / "corrections.csv",
        before.info,
        ("00.png", "colour", "red", "change", "green"),
        ("03.png", "colour", "red", "change", "blue"),  # which it has already
        ("06.png", "colour", "blue", "drop", ""),
        ("06.png", "kids", "True", "keep", ""),
        ("07.png", "kids", "False", "change", "True"),
        ("08.png", "colour", "blue", "drop", ""),
    )
    after = prepared("after", file)
    wanted = labels(before).set_index(["path", "attribute", "value"])
    moved = wanted.rename({"red": "green"}, level=2).loc[[("00.png", "colour", "green")]]
    taken = wanted.rename({"False": "True"}, level=2).loc[[("07.png", "kids", "True")]]
    gone = [("00.png", "colour", "red"), ("03.png", "colour", "red"), ("06.png", "colour", "blue")]
    gone += [("07.png", "kids", "False"), ("08.png", "colour", "blue")]
    expected = pd.concat([wanted.drop(gone), moved, taken]).reset_index()
    pd.testing.assert_frame_equal(labels(after), expected.sort_values([*expected], ignore_index=True))
    assert after.info.corrections == {"keep": 1, "change": 3, "drop": 2}
    assert before.reviewed is None and after.reviewed is not None
    reviewed = after.reviewed.merge(after.images[["image_id", "path"]], on="image_id")
    names = [after.info.attributes[a].values[v] for a, v in zip(reviewed["attribute"], reviewed["value"], strict=True)]
    assert list(zip(reviewed["path"], names, strict=True)) == [
        ("00.png", "green"),
        ("03.png", "blue"),
        ("06.png", "True"),
        ("07.png", "True"),
    ]
    assert after.info.labels_digest == before.info.labels_digest and after.info.digest != before.info.digest
    assert after.info.rejects == {"dropped_by_correction": 2}
    assert after.info.rows_in == before.info.rows_in == len(after.labels) + after.info.repeats + 2
    rejects = after.rejects
    assert rejects["detail"].tolist() == [
        "06.png: colour 'blue', by corrections.csv line 4",
        "08.png: colour 'blue', by corrections.csv line 7",
    ]
    assert rejects["line"].tolist() == [8, 10] and rejects["source"].str.endswith("table.csv").all()
    roles = [one.retrieval("test")[["role", "image_id"]].drop_duplicates() for one in (before, after)]
    assert set(roles[1].itertuples(index=False)) <= set(roles[0].itertuples(index=False))


def test_a_second_file_corrects_what_the_first_one_has_made(prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    before = prepared("before")
    first = write(tmp_path / "1.csv", before.info, ("01.png", "colour", "green", "change", "red"))
    once = prepared("once", first)
    second = write(tmp_path / "2.csv", once.info, ("01.png", "colour", "red", "change", "green"))
    twice = prepared("twice", first, second)
    pd.testing.assert_frame_equal(twice.labels, before.labels)
    with pytest.raises(
        InputError, match=r"2\.csv: 1 of 1 correction without their label, the first in line 2: 01\.png"
    ):
        prepared("wrong order", second, first)
    assert not (tmp_path / "wrong order").exists()


def test_the_digest_of_the_labels_depends_on_labels_alone(prepared: Callable[..., Dataset]) -> None:
    infos = [prepared("one").info, prepared("other", seed=3, image_size=40).info]
    assert infos[0].labels_digest == infos[1].labels_digest != ""
    attributes = (Attribute(name="colour", values=("red", "blue")), Attribute(name="kids", values=("no", "yes")))
    given = [("b.png", 0, 1), ("a.png", 1, 0), ("a.png", 0, 0), ("c.png", 0, 0)]

    def digest(labels: list[tuple[str, int, int]], split: str = "") -> str:
        rows = frame_of(Row(*label, split, "", "t.csv", line) for line, label in enumerate(labels))
        return labels_digest(Annotation(attributes, rows, rows_in=len(rows)))

    assert digest(given) == digest(given[::-1], "train")
    others = [[*given[:3], one] for one in (("c.png", 0, 1), ("d.png", 0, 0), ("c.png", 1, 0))]
    assert len({digest(labels) for labels in (given, given[:3], *others)}) == 5


def test_a_research_layout_takes_corrections(tmp_path: Path) -> None:
    root = make_photographs(tmp_path / "photos")
    before = prepare_small(root, tmp_path / "before")
    path, attribute, value, _ = labels(before).iloc[0]
    other = next(one for one in labels(before)["value"] if one != value)
    file = write(tmp_path / "c.csv", before.info, (path, attribute, value, "change", other))
    after = labels(prepare_small(root, tmp_path / "after", corrections=[file]))
    assert (after["value"] != labels(before)["value"]).tolist() == [True] + [False] * 99
    assert after.loc[0, "value"] == other


GOOD = ("01.png", "colour", "green", "change", "red")
BAD: dict[str, tuple[tuple[tuple[str, ...], ...], str]] = {
    "picture": ((GOOD, ("99.png", *GOOD[1:])), "1 of 2 corrections without their label, the first in line 3: 99.png"),
    "attribute": ((("01.png", "color", *GOOD[2:]),), "01.png has no color 'green'"),
    "old value": ((("01.png", "colour", "blue", "drop", ""),), "01.png has no colour 'blue'"),
    "new value": (((*GOOD[:4], "rde"),), "line 2: colour has no value 'rde'; did you mean 'red'?"),
    "no new value": (((*GOOD[:4], ""),), "line 2: change needs another value in new_value, not ''"),
    "same value": (((*GOOD[:4], "green"),), "line 2: change needs another value in new_value, not 'green'"),
    "value of keep": (((*GOOD[:3], "keep", "red"),), "line 2: keep needs nothing in new_value, not 'red'"),
    "action": (((*GOOD[:3], "remove", ""),), "line 2: action 'remove' is none of keep, change, drop"),
    "cells": (((*GOOD, "more"),), "line 2: 8 cells instead of 7"),
    "twice": ((GOOD, (*GOOD[:3], "drop", "")), "line 3: line 2 is about the same label; keep one of them"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_correction_that_does_not_fit_stops_in_one_line_and_nothing_is_written(
    kind: str, prepared: Callable[..., Dataset], tmp_path: Path
) -> None:
    rows, message = BAD[kind]
    file = write(tmp_path / "c.csv", prepared("before").info, *rows)
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        prepared("after", file)
    assert str(refused.value).startswith(f"--corrections {file}") and "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "c.csv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"\xff\xfe\x00", "is not a CSV file in UTF-8"),
        (b"image,value\n", "its first line is not dataset,digest,image,attribute,value,action,new_value"),
        (b"", "its first line is not dataset"),
    ],
)
def test_a_file_that_is_none_is_refused(
    content: bytes | None, message: str, prepared: Callable[..., Dataset], tmp_path: Path
) -> None:
    file = tmp_path / "c.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)):
        prepared("after", file)
    assert not (tmp_path / "after").exists()


def test_a_file_of_another_dataset_is_refused(prepared: Callable[..., Dataset], tmp_path: Path) -> None:
    info = prepared("before").info
    other = write(tmp_path / "other.csv", info, GOOD, name="store")
    with pytest.raises(InputError, match="line 2: is for dataset 'store', and this one is 'shop'"):
        prepared("after", other)
    changed = write(tmp_path / "changed.csv", info.model_copy(update={"labels_digest": "0" * 64}), GOOD)
    with pytest.raises(
        InputError,
        match=f"is for other labels of this dataset .digest 000000000000, these have {info.labels_digest[:12]}",
    ):
        prepared("after", changed)
    unstated = write(tmp_path / "unstated.csv", info.model_copy(update={"labels_digest": ""}), GOOD)
    assert prepared("after", unstated).info.corrections == {"change": 1}


def test_a_file_in_the_folder_that_would_be_replaced_is_refused(
    prepared: Callable[..., Dataset], tmp_path: Path
) -> None:
    info = prepared("out").info
    file = write(tmp_path / "out" / "corrections.csv", info, GOOD)
    with pytest.raises(InputError, match="which is in use"):
        prepared("out", file, overwrite=True)
    assert file.exists()


def test_the_command_and_the_page_count_corrections(agman_here: Agman, catalogue: Path, tmp_path: Path) -> None:
    given = ["prep", "table", "--root", catalogue, "--table", catalogue / "table.csv", "--attribute", "colour"]
    given += ["--image", "file", "--separator", "+", "--image-size", 32, "--triplets", 20, "--epochs", 1]
    assert agman_here(*given, "--out", tmp_path / "before").code == 0
    rows = (("00.png", "colour", "red", "keep", ""), ("01.png", "colour", "green", "drop", ""))
    file = write(tmp_path / "c.csv", Dataset(tmp_path / "before").info, *rows)
    done = agman_here(*given, "--out", tmp_path / "after", "--corrections", file)
    assert done.code == 0, done.err
    assert "corrections applied: 1 kept, 1 dropped\n" in done.err
    page = (tmp_path / "after" / "report.html").read_text()
    assert "<dt>corrections applied</dt><dd>1 kept, 1 dropped</dd>" in re.sub(r"\s*\n\s*", "", page)
    assert "--corrections" in Dataset(tmp_path / "after").info.command
