"""ASEN's split files with the irregularities of the published ones, and splits made in their proportions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.datasets import SIZE, records, write_files

import agman
from data_prep.annotation import Row, count_reasons, frame_of, normal_path
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.layouts import darn
from data_prep.layouts.asen_split import GlobalValue, assign_splits, ranked, read_split_files
from data_prep.prepare import prepare
from data_prep.request import Request
from data_prep.splits import SplitFractions, assign_roles
from data_prep.synthetic.writers import write_split_files
from data_prep.tables import Attribute
from pipeline.config.schema import load_config
from pipeline.evaluation.evaluate import evaluate
from pipeline.reports.dataset.page import write_prep_report
from pipeline.training.build import check

SCHEMA = tuple(Attribute(name=name, values=tuple(map(str, range(n)))) for name, n in (("texture", 3), ("part", 2)))
# Rows of list_attr_cloth.txt: texture, part, texture, texture, part.
GLOBAL = ranked([0, 1, 0, 0, 1])


def label(path: str, attribute: int, value: int, split: str = "", role: str = "") -> Row:
    return Row(path, attribute, value, split, role, "", 0)


def test_global_values_are_ranked_within_their_attribute() -> None:
    assert GLOBAL == [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1)]


IRREGULAR = {
    "filenames_valid": "a.jpg\nb.jpg\na.jpg\nc.jpg\n",  # one name is repeated
    "label_valid": "0\t1\t3\t2\t1\t\t\t\r\n1\t1\t0\t1\t2\t\t\r\n2\t1\t3\t2\t4\t\r\n3\t1\t0\t\t",  # no last line end
    "query_valid": "0 0 2\r\n",
    "candidate_valid": "1 0 1\n2 1 1\r3 0 0\n",  # a lone CR
}


@pytest.mark.parametrize("meaning", [GLOBAL, None])
def test_irregularities_of_deepfashions_files_are_read(tmp_path: Path, meaning: list[GlobalValue] | None) -> None:
    """Tabs, trailing tabs, CRLF, a lone CR, 1-based attributes, global values, a repeated name."""
    annotation = read_split_files(
        write_files(tmp_path, **IRREGULAR), SCHEMA, several_values=True, global_values=meaning
    )
    assert [row[:5] for row in records(annotation.rows)] == [
        ("a.jpg", 0, 2, "valid", "query"),
        ("a.jpg", 1, 0, "valid", ""),
        ("b.jpg", 0, 0, "valid", ""),
        ("b.jpg", 0, 1, "valid", "candidate"),
        ("a.jpg", 1, 1, "valid", "candidate"),
        ("c.jpg", 0, 0, "valid", "candidate"),
    ]
    assert annotation.rejects == []
    # a.jpg's texture a second time, and four queries and candidates whose labels stand in label_valid.
    assert (annotation.rows_in, annotation.repeats) == (11, 5)


@pytest.mark.parametrize(
    ("line", "reason", "instead"),
    [
        ("{0};0;1", "bad_line", "bad_line .* line 1: 0;0;1; expected whole numbers, IDX ATTRIBUTE VALUE"),
        (
            "{1}00 0 1",
            "index_out_of_range",
            "line 1: 100 of 30 file names; expected an IDX that is a line of filenames",
        ),
        (
            "{0} 9 1",
            "unknown_attribute",
            r"expected an attribute, .*: 0 clothes category \(20\), 1 clothes button \(13\)",
        ),
        ("{0} 1 13", "value_out_of_range", r"clothes button value 13 of 0.jpg; expected a value, .* button \(13\)"),
    ],
)
def test_a_label_file_of_another_form_is_told_what_was_expected(
    tmp_path: Path, line: str, reason: str, instead: str
) -> None:
    names = "".join(f"{i}.jpg\n" for i in range(30))
    labels = "".join(line.format(i, i + 1) + "\n" for i in range(30))
    write_files(tmp_path, filenames_train=names, label_train=labels)
    with pytest.raises(InputError, match=f"{reason}.*{instead}"):
        prepare("darn", tmp_path, tmp_path / "out")


def test_global_values_that_cannot_be_inferred_are_an_error(tmp_path: Path) -> None:
    files = IRREGULAR | {"label_valid": "0\t1\t3\t2\t1\n1\t1\t0\t1\t2\n2\t1\t3\n3\t1\t0\n"}
    with pytest.raises(InputError, match=r"only 4 of 5 occur; put Anno_coarse/list_attr_cloth\.txt"):
        read_split_files(write_files(tmp_path, **files), SCHEMA, several_values=True)
    assert read_split_files(tmp_path, SCHEMA, several_values=True, global_values=GLOBAL).rows_in == 10


def test_a_wrong_global_value_is_rejected_without_effect_on_others(tmp_path: Path) -> None:
    files = IRREGULAR | {"label_valid": IRREGULAR["label_valid"] + "\n1\t2\t0\t9\t1\t1\t77\n"}
    annotation = read_split_files(write_files(tmp_path, **files), SCHEMA, several_values=True)
    assert count_reasons(annotation.rejects) == {"value_out_of_range": 2, "unknown_attribute": 1}
    assert {reject.line for reject in annotation.rejects} == {5}
    assert len(annotation.rows) == 6


@pytest.mark.parametrize("number", ["99999999999999999999", "-99999999999999999999", "5", "-1"])
@pytest.mark.parametrize("file", ["label_valid", "query_valid", "candidate_valid"])
def test_huge_and_negative_numbers_are_rejected(tmp_path: Path, file: str, number: str) -> None:
    for line in (f"1 1 {number}", f"1 {number} 1", f"{number} 1 1"):
        files = IRREGULAR | {file: IRREGULAR[file].rstrip() + f"\n{line}\n"}
        annotation = read_split_files(write_files(tmp_path, **files), SCHEMA, several_values=True, global_values=GLOBAL)
        (reject,) = annotation.rejects
        assert reject.source == f"{file}.txt"
        assert reject.reason in ("value_out_of_range", "unknown_attribute", "index_out_of_range")
        assert len(annotation.rows) == 6


def test_a_file_name_of_megabytes_is_a_short_reject(tmp_path: Path) -> None:
    labels = "0 0 1\n" * 300 + "1 0 1\n"
    folder = write_files(tmp_path, filenames_train="x" * 5_000_000 + "\nb\n", label_train=labels)
    annotation = read_split_files(folder, SCHEMA)
    assert annotation.rows["path"].tolist() == ["b"]
    assert count_reasons(annotation.rejects) == {"bad_line": 300, "no_label": 1}
    assert sum(len(reject.detail) for reject in annotation.rejects) < 50_000


def test_split_files_in_a_subfolder_of_the_root_are_an_error(tmp_path: Path) -> None:
    write_files(tmp_path / "DARN", filenames_train="a\n", label_train="0 0 1\n")
    with pytest.raises(InputError, match=r"split files are in DARN/, and are not read there; give --root .*/DARN"):
        darn.read(Request(tmp_path))
    assert len(darn.read(Request(tmp_path, split_files=tmp_path)).rows) == 1


def test_a_query_with_a_label_that_its_image_lacks_is_rejected(tmp_path: Path) -> None:
    files = IRREGULAR | {"query_valid": "0 0 1\n"}
    annotation = read_split_files(write_files(tmp_path, **files), SCHEMA, several_values=True, global_values=GLOBAL)
    (reject,) = annotation.rejects
    assert (reject.source, reject.line, reject.reason) == ("query_valid.txt", 1, "labels_disagree")


def test_a_query_cannot_be_its_own_candidate(tmp_path: Path) -> None:
    folder = write_files(
        tmp_path, filenames_test="a\nb\n", query_test="0 0 1\n", candidate_test="1 0 1\n0 0 1\n0 1 0\n"
    )
    annotation = read_split_files(folder, SCHEMA)
    assert count_reasons(annotation.rejects) == {"in_both_roles": 1}
    assert [row[:5] for row in records(annotation.rows)] == [
        ("a", 0, 1, "test", "query"),
        ("b", 0, 1, "test", "candidate"),
        ("a", 1, 0, "test", "candidate"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "0 0 " + "9" * 5_000,  # more digits than int() takes
        "0 0 99999999999999999999",
        "0 -99999999999999999999 1",
        "99999999999999999999999 0 1",
        "-1 0 1",
        "0 0 1_0",
        "0 0 １",
        "0 0 1.0",
        "0",
        "\0\0\0",
        b"\xff\xfe\x00\x01 \x80",
        "x" * 300_000,
        "1 " * 200_000,
    ],
)
def test_junk_numbers_and_lines_become_one_reject_each(tmp_path: Path, line: str | bytes) -> None:
    line = line.encode() if isinstance(line, str) else line
    folder = write_files(tmp_path, filenames_train="a\nb\n", label_train=b"0 0 1\n" + line + b"\n1 1 1\n")
    annotation = read_split_files(folder, SCHEMA)
    assert [row[:3] for row in records(annotation.rows)] == [("a", 0, 1), ("b", 1, 1)]
    (reject,) = annotation.rejects
    assert (reject.source, reject.line) == ("label_train.txt", 2)
    assert len(reject.detail) < 400


names = (
    st.text("abcdef -_/.", min_size=1, max_size=12)
    .map(normal_path)
    .filter(lambda name: name.strip() == name and name.strip("."))
)
images = st.dictionaries(
    names,
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=3, unique_by=lambda pair: pair[0]),
    min_size=1,
    max_size=30,
)


@given(images=images, seed=st.integers(0, 99), line_end=st.sampled_from(["\n", "\r\n", "\r"]), last=st.booleans())
def test_any_split_files_read_back_as_they_were_written(
    images: dict[str, list[tuple[int, int]]],
    seed: int,
    line_end: str,
    last: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Files with any line ends, with or without one at the end."""
    rows = frame_of(label(path, *pair) for path, pairs in images.items() for pair in pairs)
    rows = assign_splits(rows, seed)
    folder = tmp_path_factory.mktemp("split")
    write_split_files(folder, rows, [GlobalValue(0, 0), GlobalValue(1, 0), GlobalValue(1, 1), GlobalValue(0, 1)])
    for file in folder.iterdir():
        text = file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", line_end.encode())
        file.write_bytes(text if last else text.removesuffix(line_end.encode()))
    read = read_split_files(
        folder,
        tuple(Attribute(name=name, values=("x", "y")) for name in "ab"),
        several_values=True,
        global_values=[GlobalValue(0, 0), GlobalValue(1, 0), GlobalValue(1, 1), GlobalValue(0, 1)],
    )
    assert read.rejects == []
    assert sorted(row[:5] for row in records(read.rows)) == sorted(row[:5] for row in records(rows))


@given(junk=st.lists(st.binary(max_size=40).filter(lambda line: not set(line) & {10, 13}), max_size=20))
def test_every_line_of_a_random_label_file_is_accounted_for(
    junk: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write_files(tmp_path_factory.mktemp("junk"), filenames_train="a\nb\nc", label_train=b"\n".join(junk))
    annotation = read_split_files(folder, SCHEMA)
    annotation.check()
    # Independent of the reader's own count: every line that is not blank, and every name without a label, counts.
    told = {("label_train.txt", row.line) for row in records(annotation.rows)}
    told |= {(reject.source, reject.line) for reject in annotation.rejects}
    filled = {n for n, line in enumerate(junk, start=1) if line.decode(errors="replace").strip()}
    repeated = annotation.repeats
    assert {line for source, line in told if source == "label_train.txt"} <= filled
    assert len(filled) - len({line for source, line in told if source == "label_train.txt"}) <= repeated
    named = {row.path for row in records(annotation.rows)}
    assert sum(source == "filenames_train.txt" for source, _ in told) <= 3 - len(named)


def test_every_label_of_a_picture_of_a_made_split_is_used(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = frame_of(
        label(f"{i}.jpg", a, int(v)) for i in range(500) for a in (0, 1) for v in rng.choice(2, 1 + i % 2, False)
    )
    split = assign_splits(rows, seed=3)
    assert (split.groupby("path")[["split", "role"]].nunique() == 1).all(axis=None)
    assert ((split["role"] == "") == (split["split"] == "train")).all()
    asked = split[split["role"] != ""].drop_duplicates("path")
    assert asked.groupby("split")["role"].value_counts().to_dict() == {
        ("test", "candidate"): 40,
        ("test", "query"): 10,
        ("valid", "candidate"): 40,
        ("valid", "query"): 10,
    }


def test_roles_are_made_within_a_given_partition() -> None:
    rows = frame_of(label(f"{i}.jpg", 0, i % 3, split=("train", "valid", "test")[i % 7 % 3]) for i in range(210))
    with_roles = assign_roles(rows, seed=1, fractions=SplitFractions())
    pd.testing.assert_frame_equal(with_roles.drop(columns="role"), rows.drop(columns="role"))
    counts = with_roles.groupby(["split", "role"]).size().to_dict()
    assert counts == {
        ("test", "candidate"): 48,
        ("test", "query"): 12,
        ("train", ""): 90,
        ("valid", "candidate"): 48,
        ("valid", "query"): 12,
    }


@pytest.mark.parametrize("split", ["valid", "test"])
def test_one_split_alone_is_prepared_and_scored_and_only_training_refuses_it(tmp_path: Path, split: str) -> None:
    """The published valid files, say, with a model that was trained elsewhere."""
    (tmp_path / "root/pic").mkdir(parents=True)
    for number in range(20):
        Image.new("RGB", (SIZE, SIZE), (12 * number, 99, 0)).save(tmp_path / f"root/pic/{number}.png")
    write_files(
        tmp_path / "root",
        **{
            f"filenames_{split}": "".join(f"pic/{number}.png\n" for number in range(20)),
            f"query_{split}": "".join(f"{number} 0 {number % 2}\n" for number in range(4)),
            f"candidate_{split}": "".join(f"{number} 0 {number % 2}\n" for number in range(4, 20)),
        },
    )
    prepare("darn", tmp_path / "root", tmp_path / "out", image_size=SIZE, triplets=10)
    dataset = Dataset(tmp_path / "out")
    assert dataset.info.images == {"train": 0, "valid": 0, "test": 0} | {split: 20}
    assert dataset.info.split_origin == "ASEN's"
    write_prep_report(dataset)
    description = {"attributes": dataset.info.attribute_names, "image_size": SIZE, "fit": "crop"}
    model = agman.build("csn", n_attributes=len(darn.SCHEMA), backbone="tiny")
    assert evaluate(model, description, dataset, split, threads=1).metrics[f"{split}/queries"] == 4
    with pytest.raises(InputError, match="the dataset has no training images"):
        check(load_config(None, []), dataset, workers=1)
