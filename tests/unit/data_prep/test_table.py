"""Tables of pictures in all their forms, and folders of folders, as people have them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import csv as pacsv
from support.datasets import records

import agman
from agman.embedder import Embedder
from data_prep.annotation import count_reasons
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError, TooManyRejects
from data_prep.layouts import table
from data_prep.layouts.table_columns import column_readings, to_add
from data_prep.layouts.table_file import opened
from data_prep.prepare import prepare
from data_prep.request import Request, TableOptions
from data_prep.splits import SplitFractions
from data_prep.tables import Attribute
from pipeline.evaluation.evaluate import evaluate
from pipeline.reports.dataset.page import write_prep_report

COLOURS = ("red", "green", "blue")


def make_catalogue(root: Path, n: int = 60, rows: list[dict[str, object]] | None = None) -> pd.DataFrame:
    """Draw n pictures in `root`/pictures and return their table: file, colour, kids, shop."""
    (root / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(n):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 30, 3), np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / f"{number:03d}.png")
    numbers = np.arange(n)
    return pd.DataFrame(
        {
            "file": [f"pictures/{number:03d}.png" for number in numbers],
            "colour": [COLOURS[number % 3] for number in numbers],
            "kids": np.where(numbers % 2, "True", "False"),
            "shop": [f"shop {number // 5}" for number in numbers],
        }
    )


def options(file: Path, **given: object) -> TableOptions:
    return TableOptions(**({"table": file, "image": "file", "attributes": ("colour", "kids")} | given))  # type: ignore[arg-type]


def values_of(annotation: table.Annotation) -> set[tuple[str, str, str]]:
    """Return (path, attribute, value) of every label, by name."""
    return {
        (row.path, annotation.attributes[row.attribute].name, annotation.attributes[row.attribute].values[row.value])
        for row in annotation.rows.itertuples()
    }


def write_as(frame: pd.DataFrame, folder: Path, form: str) -> Path:
    file = folder / f"table.{form}"
    if form == "parquet":
        frame.to_parquet(file)
    elif form == "jsonl":
        frame.to_json(file, orient="records", lines=True)
    else:
        encoding, separator, end = {
            "csv": ("utf-8", ",", "\n"),
            "bom": ("utf-8-sig", ";", "\r\n"),
            "tsv": ("utf-8", "\t", "\n"),
            "utf16": ("utf-16", ";", "\r\n"),
            "latin": ("cp1252", ";", "\n"),
        }[form]
        file.write_text(frame.to_csv(index=False, sep=separator, lineterminator=end), encoding=encoding, newline="")
    return file


@pytest.mark.parametrize("form", ["csv", "bom", "tsv", "utf16", "latin", "jsonl", "parquet"])
def test_every_form_of_a_table_gives_the_same_labels(tmp_path: Path, form: str) -> None:
    frame = make_catalogue(tmp_path, 30)
    frame["colour"] = frame["colour"].replace("green", "vert à pois, «été»")
    annotation = table.read(Request(tmp_path, table=options(write_as(frame, tmp_path, form))))
    expected = {(row.file, "colour", row.colour) for row in frame.itertuples()}
    expected |= {(row.file, "kids", row.kids) for row in frame.itertuples()}
    assert values_of(annotation) == expected
    assert annotation.rejects == []
    assert annotation.rows["line"].min() == (1 if form in ("jsonl", "parquet") else 2)


def test_bad_lines_are_rejected_with_the_line_on_which_they_begin(tmp_path: Path) -> None:
    make_catalogue(tmp_path, 6)
    file = tmp_path / "t.csv"
    lines = [
        "file,colour,note",
        'pictures/000.png,red,"two',
        'lines"',
        "",
        "pictures/001.png,red",
        "pictures/002.png,blue,x",
    ]
    lines += ["pictures/003.png,blue,x", "pictures/009.png,red,x", ",red,x"]
    file.write_text("\n".join(lines))
    annotation = table.read(Request(tmp_path, table=options(file, attributes=("colour",), min_images=1)))
    assert [(r.line, r.reason) for r in annotation.rejects] == [
        (5, "bad_line"),
        (9, "missing_image"),
        (8, "missing_image"),
    ]
    assert sorted(annotation.rows["line"]) == [2, 6, 7]
    assert annotation.rows_in == 6


def test_missing_labels_rare_values_and_rows_without_labels_are_told_apart(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path, 12)
    frame.loc[0, "colour"] = " Not sure "
    frame.loc[1, ["colour", "kids"]] = ["", "n/a"]
    frame.loc[2, "colour"] = "mauve"
    file = write_as(frame, tmp_path, "csv")
    annotation = table.read(Request(tmp_path, table=options(file, missing=("not sure", "n/a"))))
    assert count_reasons(annotation.rejects) == {"without_label": 1, "too_rare": 1}
    assert [attribute.values for attribute in annotation.attributes] == [("blue", "green", "red"), ("False", "True")]
    assert not any(path == "pictures/001.png" for path, _, _ in values_of(annotation))
    assert any("'mauve' (1)" in note for note in annotation.notes)


def test_texts_that_look_alike_or_missing_are_proposed_and_not_assumed(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path, 30)
    frame.loc[:3, "colour"] = ["RED", "RED ", "-", "-"]
    file = write_as(frame, tmp_path, "csv")
    annotation = table.read(Request(tmp_path, table=options(file)))
    assert annotation.attributes[0].values == ("-", "RED", "blue", "green", "red")
    notes = " ".join(annotation.notes)
    assert "--missing '-'" in notes and "'RED' (2), 'red' (8) differ in case only: --fold-case" in notes
    folded = table.read(Request(tmp_path, table=options(file, fold_case=True, missing=("-",))))
    assert folded.attributes[0].values == ("blue", "green", "red")


def test_a_cell_can_hold_several_values(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path, 12)[["file"]].assign(tags=["a;b", "b ; c;", "a"] * 4)
    annotation = table.read(
        Request(tmp_path, table=options(write_as(frame, tmp_path, "csv"), attributes=("tags",), separator=";"))
    )
    lists = frame.assign(tags=[[part.strip() for part in text.split(";") if part] for text in frame["tags"]])
    for form in ("parquet", "jsonl"):
        of_lists = table.read(Request(tmp_path, table=options(write_as(lists, tmp_path, form), attributes=("tags",))))
        assert values_of(of_lists) == values_of(annotation)
    assert {v for p, _, v in values_of(annotation) if p == "pictures/001.png"} == {"b", "c"}


def test_attributes_are_derived_from_columns(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path, 30).assign(price=[n / 2 for n in range(30)])
    file = tmp_path / "derived.yaml"
    file.write_text(
        "tone: {from: colour, warm: [Red], cold: [green, blue]}\n"
        "level: {from: price, bins: {low: 5, middle: 10, high: }, forbids: []}\n"
        "shade: {from: colour, forbids: [jitter, crop]}\n"
    )
    annotation = table.read(
        Request(tmp_path, table=options(write_as(frame, tmp_path, "csv"), attributes=(), attributes_file=file))
    )
    assert [(a.name, a.values) for a in annotation.attributes] == [
        ("tone", ("warm", "cold")),
        ("level", ("low", "middle", "high")),
        ("shade", ("blue", "green", "red")),
    ]
    assert [a.forbidden for a in annotation.attributes] == [(), (), ("jitter", "crop")]
    (tmp_path / "pictures" / "000.png").unlink()
    asked = options(tmp_path / "table.csv", attributes=(), attributes_file=file)
    assert [a.forbidden for a in table.read(Request(tmp_path, table=asked)).attributes] == [(), (), ("jitter", "crop")]
    file.write_text("shade: {from: colour, forbids: [blur]}\n")
    with pytest.raises(InputError, match="shade: forbids: a list of random changes of pictures, of crop, jitter"):
        table.read(Request(tmp_path, table=options(tmp_path / "table.csv", attributes=(), attributes_file=file)))
    found = values_of(annotation)
    assert {("pictures/000.png", "tone", "warm"), ("pictures/010.png", "level", "middle")} <= found
    assert ("pictures/029.png", "level", "high") in found


def test_the_same_picture_under_two_labels_is_rejected_by_name(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path, 12)
    twice = pd.concat(
        [frame, frame.head(2).assign(colour="blue", file=["./pictures/000.png", str(tmp_path / "pictures/001.png")])]
    )
    annotation = table.read(Request(tmp_path, table=options(write_as(twice, tmp_path, "csv"))))
    assert [(r.reason, r.detail) for r in annotation.rejects] == [
        ("labels_disagree", "pictures/000.png: value blue of colour, but red of colour in table.csv line 2"),
        ("labels_disagree", "pictures/001.png: value blue of colour, but green of colour in table.csv line 3"),
    ]
    assert annotation.repeats == 2  # the second label, kids


def test_groups_are_not_divided_and_every_label_of_a_test_picture_is_used(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path, 300)
    annotation = table.read(Request(tmp_path, table=options(write_as(frame, tmp_path, "csv"), group="shop")))
    rows = annotation.rows.merge(frame, left_on="path", right_on="file")
    assert rows.groupby("shop")["split"].nunique().max() == 1
    shares = rows["split"].value_counts(normalize=True)
    assert abs(shares["test"] - 0.1) < 0.03 and abs(shares["valid"] - 0.1) < 0.03
    tested = rows[rows["split"] != "train"]
    assert (tested["role"] != "").all() and (rows.loc[rows["split"] == "train", "role"] == "").all()
    assert tested.groupby("path")["role"].nunique().max() == 1


def test_a_made_split_spreads_every_value_evenly(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path, 240)
    annotation = table.read(Request(tmp_path, table=options(write_as(frame, tmp_path, "csv"))))
    counts = annotation.rows.groupby(["attribute", "value", "split"], observed=True).size().unstack()
    assert (counts["test"] - counts.sum(axis=1) / 10).abs().max() <= 2
    again = table.read(Request(tmp_path, table=options(write_as(frame, tmp_path, "csv"))))
    assert again.rows.equals(annotation.rows)


def test_the_split_can_be_columns(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path, 60).assign(split=["Train", "val", "test"] * 20)
    frame.loc[0, "split"] = ""
    annotation = table.read(Request(tmp_path, table=options(write_as(frame, tmp_path, "csv"))))
    rows = annotation.rows.merge(frame, left_on="path", right_on="file")
    assert (rows["split_x"] == rows["split_y"].replace({"Train": "train", "val": "valid"})).all()
    assert count_reasons(annotation.rejects) == {"no_split": 2}
    assert annotation.split_origin == "column split"
    asked = rows[rows["role"] != ""].drop_duplicates("path").groupby(["split_x", "role"]).size().to_dict()
    assert asked == {(split, role): n for split in ("valid", "test") for role, n in (("query", 4), ("candidate", 16))}
    with pytest.raises(InputError, match="'tset' is neither train, valid nor test"):
        table.read(Request(tmp_path, table=options(write_as(frame.assign(split="tset"), tmp_path, "csv"))))


def test_a_picture_has_the_split_of_its_first_row_that_has_one(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path, 60).assign(split=["train", "val", "test"] * 20)
    frame = pd.concat([frame.iloc[:1].assign(split=""), frame], ignore_index=True)
    annotation = table.read(Request(tmp_path, table=options(write_as(frame, tmp_path, "csv"))))
    assert count_reasons(annotation.rejects) == {"no_split": 2} and annotation.repeats == 0
    splits = annotation.rows.drop_duplicates("path").set_index("path")["split"]
    assert splits.value_counts().to_dict() == {"train": 20, "valid": 20, "test": 20}
    assert splits["pictures/000.png"] == "train"


def test_a_file_of_open_metric_learning_is_read_as_it_is(tmp_path: Path) -> None:
    make_catalogue(tmp_path, 6)
    (tmp_path / "df.csv").write_text(
        "label,path,split,is_query,is_gallery,category\n"
        "0,pictures/000.png,train,,,rabbit\n"
        "0,pictures/001.png,train,,,rabbit\n"
        "1,pictures/002.png,train,,,cat\n"
        "1,pictures/003.png,train,,,cat\n"
        "7,pictures/004.png,validation,True,False,dog\n"
        "7,pictures/005.png,validation,False,True,dog\n"
    )
    annotation = table.read(
        Request(tmp_path, table=TableOptions(tmp_path / "df.csv", image="path", attributes=("label",)))
    )
    assert annotation.attributes[0].values == ("0", "1", "7")
    assert annotation.rows[["split", "role"]].astype(str).agg("/".join, axis=1).tolist() == [
        *["train/"] * 4,
        "valid/query",
        "valid/candidate",
    ]


def test_pictures_that_are_query_and_candidate_become_one_of_the_two(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path, 60).assign(is_query=[n % 2 == 0 for n in range(60)], is_gallery=True)
    annotation = table.read(Request(tmp_path, table=options(write_as(frame, tmp_path, "parquet"))))
    roles = annotation.rows.drop_duplicates("path").set_index("path")["role"]
    assert set(roles[frame["file"][1::2]]) == {"candidate"}
    assert 0 < (roles == "query").sum() < 20
    assert any("queries and candidates at once in the table: 30" in note for note in annotation.notes)


def test_the_shares_of_a_made_split_can_be_set(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path, 100)
    fractions = SplitFractions(valid=0, test=0.4, query=0.5)
    annotation = table.read(Request(tmp_path, table=options(write_as(frame, tmp_path, "csv")), fractions=fractions))
    images = annotation.rows.drop_duplicates("path")
    assert images["split"].astype(str).value_counts().to_dict() == {"train": 60, "test": 40}
    assert (images["role"] == "query").sum() == 20


def test_folders_of_folders_need_no_table(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path / "raw", 24)
    for row in frame.itertuples():
        target = tmp_path / "shop" / str(row.kids) / str(row.colour) / Path(str(row.file)).name
        target.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / str(row.file)).rename(target)
    (tmp_path / "shop" / "stray.png").touch()
    annotation = table.read(Request(tmp_path / "shop", table=TableOptions(levels="kids/colour")))
    assert [(a.name, a.values) for a in annotation.attributes] == [
        ("kids", ("False", "True")),
        ("colour", ("blue", "green", "red")),
    ]
    assert len(annotation.rows) == 48
    assert [(r.reason, r.detail) for r in annotation.rejects] == [
        ("other_depth", "stray.png: not 2 folders deep, as --levels says")
    ]
    (only,) = table.read(Request(tmp_path / "shop", table=TableOptions(levels="-/colour"))).attributes
    assert only.name == "colour"


@pytest.mark.parametrize(
    ("changed", "given", "message"),
    [
        ({}, {"attributes": ("color",)}, "has no column 'color'; did you mean 'colour'?"),
        ({}, {"image": "pictures/{nmbr}.png"}, "has no column 'nmbr'"),
        ({}, {"image": "{file:d}"}, "write the columns' names alone"),
        ({}, {"image": "colour"}, "has none of the pictures, such as red"),
        ({}, {"image": None}, "give --image COLUMN"),
        ({}, {"group": "shpo"}, "did you mean 'shop'?"),
        ({"kids": "True"}, {}, "'kids' has the one value 'True'"),
        ({"shop": "all"}, {"group": "shop"}, "no split without dividing groups: none would be in valid"),
        ({"colour": [f"c{n}" for n in range(60)]}, {}, "it is an id, not an attribute"),
        ({"colour": [n / 7 for n in range(60)]}, {}, "holds numbers (0.0, 0.1428"),
        ({"colour": [f"2026-01-{n % 28 + 1:02d}" for n in range(60)]}, {}, "holds dates (2026-01-01"),
        ({}, {"attributes": ("colour", "colour")}, "given twice"),
        ({}, {"missing": COLOURS, "attributes": ("colour",)}, "no label is left"),
        ({}, {"levels": "a/b"}, "--levels reads folders without a table"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, changed: dict[str, object], given: dict[str, object], message: str
) -> None:
    frame = make_catalogue(tmp_path).assign(**changed)
    with pytest.raises(InputError) as refused:
        table.read(Request(tmp_path, table=options(write_as(frame, tmp_path, "csv"), **given)))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b"file,colour,kids\n", "has no rows"),
        (b"file,colour,colour\n1,2,3\n", "has 2 columns of the name 'colour'"),
        (b'[{"file": "a"}]', "is a JSON array; give JSON Lines"),
        (b"PAR1 no more", "damaged Parquet file"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        table.read(Request(tmp_path, table=options(file)))


def test_a_quote_that_is_not_closed_loses_no_lines_in_silence(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path, 60)
    lines = frame[["file", "colour"]].to_csv(index=False).splitlines()
    file = tmp_path / "t.csv"
    lines[40] = '"' + lines[40]
    file.write_text("\n".join(lines) + "\n")
    given = options(file, attributes=("colour",))
    rejects = table.read(Request(tmp_path, table=given)).rejects
    assert [(r.line, r.reason) for r in rejects] == [(line, "bad_line") for line in range(41, 62)]
    lines[40] = lines[40].removeprefix('"').replace(",", ',"')
    file.write_text("\n".join([*lines, *lines[1:10] * 10]) + "\n")
    with pytest.raises(InputError, match=r"a quote is not closed in the row that begins on line 41: .* 111 lines"):
        table.read(Request(tmp_path, table=given))


ROWS = [f"pictures/{i:03d}.png,{('red', 'blue')[i % 2]},{i}" for i in range(12)]


@pytest.mark.parametrize(
    ("rows", "lost"),
    [
        # Two quotes that open cells: text follows the second one.
        ({3: 'pictures/003.png,"blue,3', 6: 'pictures/006.png,"red,6'}, range(3, 7)),
        # An opening and a closing one: a well-formed cell of several lines.
        ({3: 'pictures/003.png,"blue,3', 6: 'pictures/006.png,red",6'}, range(3, 7)),
        ({3: '"pictures/003.png,blue,3', 4: 'pictures/004.png",red,4'}, range(3, 5)),
        # Quotes inside of cells are text, and do not hide the pair.
        ({1: 'pictures/001.png,5" blue,1', 3: 'pictures/003.png,"blue,3', 6: 'pictures/006.png,red",6'}, range(3, 7)),
        # A cell in quotes between the two.
        ({3: 'pictures/003.png,"blue,3', 5: 'pictures/005.png,"blue",5', 6: 'pictures/006.png,"red",6'}, range(3, 6)),
        # Quotes that lose no line.
        ({3: 'pictures/003.png,"blue" or so,3', 6: 'pictures/006.png,5" red,6'}, ()),
        # Cells that have several lines, indeed.
        ({3: 'pictures/003.png,"blue\nor so",3', 6: 'pictures/006.png,red,"big old\nlong, red, and so on"'}, ()),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_rows_between_two_stray_quotes_are_rejected_each_with_its_line(
    tmp_path: Path, rows: dict[int, str], lost: Sequence[int], encoding: str
) -> None:
    make_catalogue(tmp_path, 12)
    lines = [rows.get(i, row) for i, row in enumerate(ROWS)]
    (tmp_path / "t.csv").write_text("\n".join(["file,colour,price", *lines, ""]), encoding=encoding)
    given = options(tmp_path / "t.csv", attributes=("colour",), min_images=1)
    annotation = table.read(Request(tmp_path, table=given))
    assert [(r.line, r.reason) for r in annotation.rejects] == [(i + 2, "bad_line") for i in lost]
    assert [row.path for row in records(annotation.rows)] == [
        f"pictures/{i:03d}.png" for i in range(12) if i not in lost
    ]
    after = annotation.rows.loc[annotation.rows["path"] == "pictures/007.png", "line"].item()
    assert after == 9 + sum(row.count("\n") for row in rows.values())


@example(words=['"', "\n", '"', "\r", "b,"], block=64)  # as many \\n as records, of two kinds
@given(
    words=st.lists(st.sampled_from(["a", "b,", ",", '"', '""', "\n", "\r\n", "x y", "\r"]), max_size=40),
    block=st.sampled_from([64, 10_000]),
)
def test_every_line_of_a_table_of_junk_is_a_row_or_a_reject(
    words: list[str], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every line is in a row's record or a reject, whatever the quotes are; rows are those of the csv module."""
    file = tmp_path_factory.mktemp("junk") / "t.csv"
    text = "c1,c2\n" + "".join(words)
    file.write_bytes(text.encode())
    try:
        with opened(file) as found:
            read = found.read(["c1", "c2"])
    except InputError as error:
        assert "has no rows" in str(error) or "cannot be read" in str(error)
        return
    starts, line = [], 1
    reader = csv.reader(io.StringIO(text, newline=""))
    for record in reader:
        starts.append((line, record))
        line = reader.line_num + 1
    expected = {number: record for number, record in starts[1:] if len(record) == 2 or not record}
    cells = [[column.texts[code].as_py() for code in column.codes] for column in read.columns.values()]
    rows = dict(zip(read.lines.tolist(), map(list, zip(*cells, strict=True)), strict=True))
    assert rows.items() <= {number: record or ["", ""] for number, record in expected.items()}.items()
    told = {reject.line for reject in read.rejects}
    for (number, _), (end, _) in zip(starts[1:], [*starts[2:], (line, [])], strict=True):
        assert number in rows or all(at in told or not text.splitlines()[at - 1].strip() for at in range(number, end))


def replace_file(file: Path, text: str | None) -> None:
    """Put another file in the place of one, with the same time and, where the text allows it, the same size."""
    times = file.stat().st_mtime_ns, file.stat().st_mtime_ns
    if text is None:
        file.unlink()
        return
    other = file.with_name("other")
    other.write_text(text)
    os.utime(other, ns=times)
    other.replace(file)


OTHERS = {
    "its columns in another order": "colour,file\nred,a.png\nblue,b.png\n",
    "an open quote": 'file,colour\na.png,"red\nb.png,blue\n' * 200,
    "gone": None,
    "another form": '{"file": "a.png"}\n',
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_table_that_changes_between_the_passes_over_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """The first pass detects its form, the second reads its cells, the third its lines."""
    file = tmp_path / "t.csv"
    text = "file,colour\na.png,red\nb.png,blue\n"
    message = r"^t\.csv: changed while it was read; run the command again when it is complete$"
    file.write_text(text)
    with opened(file) as found:
        replace_file(file, OTHERS[other])
        with pytest.raises(InputError, match=message):
            found.read(["file", "colour"])
    file.write_text(text)

    def open_csv(*arguments: Any) -> Any:
        batches = real(*arguments)  # has read a file as small as this one
        replace_file(file, OTHERS[other])
        return batches

    real = pacsv.open_csv
    monkeypatch.setattr(pacsv, "open_csv", open_csv)
    with opened(file) as found, pytest.raises(InputError, match=message):
        found.read(["file", "colour"])


def test_a_table_that_grows_while_it_is_read_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for form, module, name in (("parquet", pq, "ParquetFile"), ("jsonl", json, "loads")):
        file = write_as(make_catalogue(tmp_path, 12), tmp_path, form)
        real = getattr(module, name)

        def grow(*arguments: Any, file: Path = file, real: Any = real) -> Any:
            with file.open("ab") as end:
                end.write(b"\n")
            return real(*arguments)

        with opened(file) as found, monkeypatch.context() as patched:
            patched.setattr(module, name, grow)
            with pytest.raises(InputError, match=rf"^table\.{form}: changed while it was read"):
                found.read(["file"])
    lines = write_as(make_catalogue(tmp_path, 12), tmp_path, "jsonl")
    monkeypatch.setattr(json, "loads", lambda line: (lines.write_text("{}"), real(line))[1])
    with pytest.raises(InputError, match="changed while it was read"):
        prepare("table", tmp_path, tmp_path / "out", table=options(lines))
    assert not (tmp_path / "out").exists()


def test_without_attributes_every_column_is_explained(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path).assign(
        file=[f"{n:03d}" for n in range(60)],
        price=[n / 7 for n in range(60)],
        tags=["a;b", "b", "a;b;c", "c", "b;c", "a"] * 10,
        empty="",
        shop_id=[n % 30 for n in range(60)],
    )
    given = options(write_as(frame, tmp_path, "csv"), attributes=(), image=None)
    readings = {one.name: one for one in column_readings(tmp_path, given)}
    assert {name: one.kind for name, one in readings.items()} == {
        "file": "pictures",
        "colour": "values",
        "kids": "values",
        "shop": "values",
        "price": "numbers",
        "tags": "several values",
        "empty": "empty",
        "shop_id": "numbers",
    }
    assert readings["file"].option == "--image 'pictures/{file}.png'"
    assert readings["shop_id"].option == "--group shop_id"
    assert (readings["tags"].values, readings["tags"].examples, readings["tags"].separator) == (3, "b, a, c", ";")
    assert to_add(given, list(readings.values())) == (
        "--image 'pictures/{file}.png' --attribute colour --attribute kids --attribute shop --attribute tags "
        "--separator ';'"
    )


def test_the_proposals_use_the_options_that_are_given(tmp_path: Path) -> None:
    tags = ["a/b", "b", "A/b/c", "none", "b/c/none", ""] * 10
    frame = make_catalogue(tmp_path).assign(tags=tags, file=[f"{n:03d}" for n in range(60)])[["file", "tags"]]
    choices = {"separator": "/", "missing": ("None",), "fold_case": True, "image": "pictures/{file}.png"}
    given = options(write_as(frame, tmp_path, "csv"), attributes=(), **choices)
    tag = column_readings(tmp_path, given)[1]
    assert (tag.kind, tag.values, tag.examples, tag.notes) == ("several values", 3, "b, A, c", [])
    assert tag.coverage == pytest.approx(4 / 6)
    assert to_add(given, [tag]) == "--attribute tags"


def prepared(root: Path, frame: pd.DataFrame, out: Path, near: str | None = None, **given: object) -> Dataset:
    prepare(
        "table",
        root,
        out,
        table=options(write_as(frame, root, "csv")),
        near_duplicates=near,
        image_size=32,
        triplets=20,
        epochs=1,
        **given,
    )  # type: ignore[arg-type]
    return Dataset(out)


def test_a_catalogue_is_prepared_with_names_and_notes(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    frame = make_catalogue(root)
    dataset = prepared(root, frame.iloc[1:], tmp_path / "out")
    assert dataset.info.attributes[0].values == ("blue", "green", "red")
    assert dataset.info.images == {"train": 47, "valid": 6, "test": 6}
    assert any("pictures below the root without a row: 1, such as" in note for note in dataset.info.notes)
    unused = pd.read_parquet(tmp_path / "out" / "unused.parquet")
    assert unused[unused["picture"]]["path"].tolist() == ["pictures/000.png"]
    again = prepared(root, frame.iloc[1:], tmp_path / "again")
    assert again.info.digest == dataset.info.digest
    assert dataset.info.split_origin == "made, seed 0"
    assert dataset.info.queries_of == {"valid": [1, 1], "test": [1, 1]}
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["layout"] == "table"


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_training_evaluation_and_service_see_a_picture_alike(tmp_path: Path, fit: str) -> None:
    root = tmp_path / "photos"
    frame = make_catalogue(root)
    for number in range(60):  # a red upper and a blue lower half, higher than wide
        halves = np.full((80, 40, 3), (200, 0, 0), np.uint8)
        halves[40:] = (0, 0, 200)
        Image.fromarray(halves).save(root / "pictures" / f"{number:03d}.png")
    dataset = prepared(root, frame, tmp_path / fit, "keep", fit=fit)
    assert dataset.info.fit == fit
    packed = next(dataset.packed("test"))
    store = ImageStore(dataset, "test", 32)
    square = store.read(np.array(packed["image_id"][:1].to_numpy()))[0].permute(1, 2, 0).numpy()
    torch.manual_seed(0)
    description = {"attributes": ["colour", "kids"], "image_size": 32, "fit": fit}
    embedder = Embedder(agman.build("csn", n_attributes=2, backbone="tiny"), description, "cpu")
    assert np.array_equal(embedder.read(packed["jpeg"][0].as_py()), square)
    unlike = prepared(root, frame, tmp_path / "unlike", "keep", fit="pad" if fit == "crop" else "crop")
    scored = evaluate(embedder.network, description, unlike, threads=1)  # the model's way counts, not the dataset's
    first = scored.pairs.iloc[0]
    own = embedder.embed(store.read(np.array([first["image_id"]])).permute(0, 2, 3, 1).numpy())[0, first["attribute"]]
    assert np.allclose(scored.embeddings[0].numpy(), own, atol=1e-5)
    assert unlike.info.digest != dataset.info.digest
    of_red = [i for i in range(32) if square[i, 16, 0] > 120 and square[i, 16, 2] < 120]
    assert abs(len(of_red) - 16) <= 1
    beside = square[16, 2]
    assert (beside > 240).all() == (fit == "pad")


def make_near_duplicates(root: Path) -> pd.DataFrame:
    """Draw 60 pictures, of which the last five are the first five in a smaller size, and one is of one colour."""
    frame = make_catalogue(root)
    for number in range(60):
        coarse = np.random.default_rng(number % 55).integers(0, 255, (6, 6, 3), np.uint8)
        size = (120, 90) if number < 55 else (80, 60)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(root / "pictures" / f"{number:03d}.png")
    Image.new("RGB", (50, 50), "grey").save(root / "pictures" / "007.png")
    return frame


@pytest.mark.parametrize("choice", ["keep", "group", "drop"])
def test_near_duplicates_are_found_and_kept_grouped_or_dropped(tmp_path: Path, choice: str) -> None:
    frame = make_near_duplicates(tmp_path)
    given = options(write_as(frame, tmp_path, "csv"))
    fractions = SplitFractions(0.25, 0.25)
    annotation = table.read(Request(tmp_path, table=given, near_duplicates=choice, fractions=fractions))
    pairs = annotation.near_duplicates
    assert pairs is not None
    assert set(zip(pairs["path"], pairs["other_path"], strict=True)) == {
        (f"pictures/{number:03d}.png", f"pictures/{number + 55:03d}.png") for number in range(5)
    }
    assert all(Image.open(BytesIO(jpeg)).size[0] <= 132 for jpeg in pairs["jpeg"])
    divided = (pairs["split"] != pairs["other_split"]).any()
    dropped = {r.detail for r in annotation.rejects if r.reason == "near_duplicate"}
    assert divided == (choice != "group")
    assert dropped == {
        f"pictures/{number + 55:03d}.png: like pictures/{number:03d}.png" for number in range(5) if choice == "drop"
    }
    assert any("of one colour: 1, such as pictures/007.png" in note for note in annotation.notes)
    assert any("enlarged to 224 px: 60" in note for note in annotation.notes)


def test_the_page_names_near_duplicates_across_splits_and_with_different_labels(tmp_path: Path) -> None:
    frame = make_near_duplicates(tmp_path / "photos").assign(split=["train"] * 55 + ["test"] * 5)
    frame.loc[55:, "colour"] = frame.loc[:4, "colour"].to_numpy()
    frame.loc[55:, "kids"] = frame.loc[:4, "kids"].to_numpy()
    frame.loc[56, "colour"] = "blue"
    dataset = prepared(tmp_path / "photos", frame, tmp_path / "out", "keep")
    summary = write_prep_report(dataset)
    said = "5 pairs, 5 across splits, 1 with different labels; they make scores of test and valid too good"
    assert summary.contents.near_duplicates is not None and summary.contents.near_duplicates.startswith(said)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data-pair") == 5 and "colour: green / blue" in page and said in page


def test_dropping_keeps_the_picture_of_a_given_test_split(tmp_path: Path) -> None:
    frame = make_near_duplicates(tmp_path).assign(split=["train"] * 55 + ["test"] * 5)
    given = options(write_as(frame, tmp_path, "csv"))
    dropped = {r.detail for r in table.read(Request(tmp_path, table=given, near_duplicates="drop")).rejects}
    assert dropped == {f"pictures/{number:03d}.png: like pictures/{number + 55:03d}.png" for number in range(5)}


def test_groups_that_share_a_near_duplicate_are_not_divided(tmp_path: Path) -> None:
    frame = make_near_duplicates(tmp_path)
    annotation = table.read(Request(tmp_path, table=options(write_as(frame, tmp_path, "csv"), group="shop")))
    rows = annotation.rows.merge(frame, left_on="path", right_on="file")
    rows["shop"] = rows["shop"].replace("shop 11", "shop 0")
    assert rows.groupby("shop")["split"].nunique().max() == 1


def test_table_and_pictures_can_be_at_uris(tmp_path: Path) -> None:
    frame = make_catalogue(tmp_path)
    store = fsspec.filesystem("memory")
    for name in frame["file"]:
        store.pipe(f"/shop/{name}", (tmp_path / name).read_bytes())
    (tmp_path / "root").mkdir()
    frame["file"] = "memory://shop/" + frame["file"]
    frame.loc[1, "file"] = "memory://shop/lost.png"
    store.pipe("/shop/table.csv", frame.to_csv(index=False).encode())
    given = {"table": options(Path(), table="memory://shop/table.csv"), "image_size": 32, "triplets": 20, "epochs": 1}
    info = prepare("table", tmp_path / "root", tmp_path / "out", **given)  # type: ignore[arg-type]
    assert sum(info.images.values()) == 59
    assert info.rejects == {"missing_image": 2}
    with pytest.raises(InputError, match=r"memory://shop/nothing\.csv: no such file"):
        table.read(Request(tmp_path, table=options(Path(), table="memory://shop/nothing.csv")))


def test_missing_pictures_stop_the_job_beyond_the_limit(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    frame = make_catalogue(root)
    for number in range(2):
        (root / "pictures" / f"{number:03d}.png").unlink()
    assert prepared(root, frame, tmp_path / "a").info.rejects == {"missing_image": 4}
    for number in range(2, 9):
        (root / "pictures" / f"{number:03d}.png").unlink()
    with pytest.raises(TooManyRejects, match="18 of 120 labels rejected"):
        prepared(root, frame, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_names_imply_what_is_forbidden_unless_it_is_said() -> None:
    def forbidden(name: str, forbids: tuple | None = None) -> tuple[str, ...]:
        return Attribute(name=name, values=("a", "b"), forbids=forbids).forbidden

    assert forbidden("Sleeve_Length") == forbidden("skirt length") == ("crop",)
    assert forbidden("base colour") == forbidden("color") == ("jitter",)
    assert forbidden("pattern") == forbidden("color", ()) == ()
    assert forbidden("pattern", ("jitter",)) == ("jitter",)
