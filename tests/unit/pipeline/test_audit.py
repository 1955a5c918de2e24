"""`agman audit` on labels that are wrong on purpose, and its corrections back through `agman prep`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.audited import (
    COLOURS,
    TWIN,
    WRONG,
    draw_catalogue,
    drawn_colour,
    prepare_catalogue,
    seeing_model,
    write_corrections,
)
from support.commands import Agman
from support.pages import read_page, texts

import agman
from data_prep.dataset import Dataset
from data_prep.errors import InputError
from data_prep.request import TableOptions
from data_prep.tables import Attribute
from pipeline.evaluation import audit as auditing
from pipeline.evaluation.audit import ALONE, CONTRADICTED, FINDINGS, NEAR_DUPLICATE, Audit, audit
from pipeline.evaluation.out_of_sample import out_of_sample, undivided
from pipeline.reports.audit import PAGE, SHOWN, TABLE, write_audit


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_catalogue(tmp_path_factory.mktemp("audited") / "catalogue")


@pytest.fixture(scope="module")
def spoiled(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare_catalogue(catalogue, tmp_path_factory.mktemp("prepared") / "data")


@pytest.fixture(scope="module")
def found(spoiled: Dataset) -> Audit:
    return audit(*seeing_model(["colour"]), spoiled, threads=1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return agman.save_model(tmp_path / "model", *seeing_model(["colour"]))


def test_labels_that_are_wrong_on_purpose_come_first_with_the_right_value(found: Audit) -> None:
    rows = [row for row in found.findings.to_pylist() if row["kind"] == CONTRADICTED]
    assert {row["image"] for row in rows[: len(WRONG)]} == set(WRONG)
    for row in rows[: len(WRONG)]:
        assert row["label"] == WRONG[row["image"]]
        assert row["suggestion"] == drawn_colour(int(row["image"][:2]))
        assert 0.5 < row["score"] <= 1 and row["other"] is None and row["attribute"] == "colour"
        assert len(row["examples"]) == 3 and row["image"] not in row["examples"]
        assert all(drawn_colour(int(name[:2])) == row["suggestion"] for name in row["examples"])
    (one,) = found.attributes
    assert one.labels == 91 and one.unjudged == 0 and one.contradicted >= len(WRONG)
    assert len(WRONG) - 1 < one.wrong < 2 * len(WRONG) + 2


def test_near_duplicates_with_different_labels_are_named_once(found: Audit) -> None:
    twin, *_ = found.findings.to_pylist()
    assert (twin["kind"], twin["image"], twin["other"]) == (NEAR_DUPLICATE, TWIN[1], TWIN[0])
    assert (twin["label"], twin["suggestion"]) == ("green", drawn_colour(20))
    assert len(found.findings) == len({(row["image"], row["label"]) for row in found.findings.to_pylist()})


def test_a_label_is_judged_without_its_own_group() -> None:
    generator = np.random.default_rng(3)
    group, values = np.repeat(np.arange(40), 2), np.repeat(np.arange(40) % 3, 2)
    embeddings = generator.normal(size=(80, 7)) + 2 * np.eye(3, 7)[values]
    before, judged = out_of_sample(embeddings, values, 4, group)
    assert judged.all() and before[:, 3].eq(0).all()
    assert before.sum(1).numpy() == pytest.approx(np.ones(80))
    assert (before.argmax(1).numpy() == values).mean() > 0.8
    changed = values.copy()
    changed[10] = (changed[10] + 1) % 3
    after, _ = out_of_sample(embeddings, changed, 4, group)
    same = (before == after).all(1).numpy()
    assert same[10] and same[11], "its own label, or its group's, was used"
    assert 2 < same.sum() < 40, "the others have learned from it"


def test_groups_and_near_duplicates_are_not_divided_between_folds(spoiled: Dataset) -> None:
    number = spoiled.images.set_index("path")["image_id"]
    ids = spoiled.images["image_id"].to_numpy()
    alone = undivided(spoiled, ids)
    assert len(np.unique(alone)) == len(ids) - 1
    assert alone[number["20.png"] == ids] == alone[number["twin.jpg"] == ids]
    grouped = Dataset(spoiled.path)
    grouped.images = spoiled.images.assign(
        group=["shop" if name in ("20.png", "31.png") else None for name in number.index]
    )
    together = undivided(grouped, np.repeat(ids, 2))[::2]
    assert len(np.unique(together)) == len(ids) - 2
    assert len({int(together[number[name] == ids][0]) for name in ("20.png", "twin.jpg", "31.png")}) == 1


def test_pictures_like_no_other_and_examples_agree_with_plain_loops(
    spoiled: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "BLOCK", 40)
    generator = np.random.default_rng(1)
    embeddings = torch.nn.functional.normalize(torch.from_numpy(generator.normal(size=(91, 6))), dim=1)
    image, value, wanted = np.repeat(np.arange(46), 2)[:91], generator.integers(0, 3, 91), generator.integers(0, 3, 91)
    distance, examples = auditing._neighbours(embeddings, value, image, wanted)
    for row in range(91):
        others = [other for other in range(91) if image[other] != image[row]]
        others.sort(key=lambda other: -float(embeddings[row] @ embeddings[other]))
        nearest = [1 - float(embeddings[row] @ embeddings[other]) for other in others[:10]]
        assert distance[row] == pytest.approx(np.mean(nearest))
        assert examples[row].tolist() == [other for other in others if value[other] == wanted[row]][:3]
    found = audit(*seeing_model(["colour"]), spoiled, threads=1).findings.to_pylist()
    assert [row["suggestion"] for row in found if row["kind"] == ALONE] == [None]


def test_values_that_are_too_rare_to_be_learned_are_not_judged() -> None:
    values = np.array([0] * 10 + [1] * 10 + [2])
    embeddings = np.random.default_rng(0).normal(size=(21, 5))
    _, judged = out_of_sample(embeddings, values, 3, np.arange(21))
    assert judged.tolist() == [True] * 20 + [False]


def test_a_picture_with_two_values_contradicts_neither(catalogue: Path, tmp_path: Path) -> None:
    table = (catalogue / "table.csv").read_text().splitlines()
    table = [line.replace(",red,", ",red+warm,") for line in table]
    (tmp_path / "two.csv").write_text("\n".join(table) + "\n")
    options = TableOptions(table=tmp_path / "two.csv", image="file", attributes=("colour",), separator="+")
    found = audit(*seeing_model(["colour"]), prepare_catalogue(catalogue, tmp_path / "data", table=options), threads=1)
    rows = [row for row in found.findings.to_pylist() if row["kind"] == CONTRADICTED]
    assert {row["image"] for row in rows} >= set(WRONG)
    assert all({row["label"], row["suggestion"]} != {"red", "warm"} for row in rows)
    assert sum(row["label"] in ("red", "warm") for row in rows) >= 4  # both labels of the two wrong pictures


def test_corrections_of_the_findings_give_the_right_labels(
    found: Audit, spoiled: Dataset, catalogue: Path, tmp_path: Path
) -> None:
    wrong = [row for row in found.findings.to_pylist() if row["image"] in {*WRONG, TWIN[1]}]
    rows = [(row["image"], "colour", row["label"], "change", row["suggestion"]) for row in wrong]
    rows.append(("44.png", "colour", drawn_colour(44), "drop", ""))
    file = write_corrections(tmp_path / "corrections.csv", spoiled.info, *rows)
    right = prepare_catalogue(catalogue, tmp_path / "data", [file])
    labels = right.labels.merge(right.images[["image_id", "path"]], on="image_id")
    names = [right.info.attributes[0].values[value] for value in labels["value"]]
    given = dict(zip(labels["path"], names, strict=True))
    assert given.pop(TWIN[1]) == drawn_colour(20)
    assert given == {f"{number:02d}.png": drawn_colour(number) for number in range(90) if number != 44}


def test_labels_that_a_person_has_kept_or_given_are_not_asked_again(
    found: Audit, spoiled: Dataset, catalogue: Path, tmp_path: Path
) -> None:
    rows = found.findings.to_pylist()
    kept = [(row["image"], "colour", row["label"], "keep", "") for row in rows[:3]]
    odd = next(one for one in COLOURS if one not in (rows[3]["label"], rows[3]["suggestion"]))
    given = (rows[3]["image"], "colour", rows[3]["label"], "change", odd)  # which is wrong again
    file = write_corrections(tmp_path / "corrections.csv", spoiled.info, *kept, given)
    again = audit(*seeing_model(["colour"]), prepare_catalogue(catalogue, tmp_path / "data", [file]), threads=1)
    images = again.findings["image"].to_pylist()
    assert not {row["image"] for row in rows[:4]} & set(images) and set(images) & set(WRONG)
    twins = [row["image"] for row in again.findings.to_pylist() if row["kind"] == NEAR_DUPLICATE]
    assert twins == [TWIN[0]], "of the pair whose one label was kept, the other one is asked"


def test_the_command_writes_a_table_and_a_page(
    agman_here: Agman, spoiled: Dataset, found: Audit, model: Path, tmp_path: Path
) -> None:
    typed = ["audit", model, "--data", spoiled.path, "--out", tmp_path / "out", "--json"]
    done = agman_here(*typed)
    assert done.code == 0, done.err
    table = pq.read_table(tmp_path / "out" / TABLE)
    assert table.schema.equals(FINDINGS)
    assert table.drop_columns("score").equals(found.findings.drop_columns("score"))
    result = json.loads(done.out.splitlines()[-1])
    assert (result[CONTRADICTED], result[NEAR_DUPLICATE]) == (found.count(CONTRADICTED), 1)
    assert result["shown"] == len(table) and f"with {len(table)} of {len(table)} findings" in done.err
    first = (tmp_path / "out" / PAGE).read_bytes()
    page = read_page(tmp_path / "out" / PAGE)
    assert len(page.findall(".//article")) == len(table)
    assert texts(page, ".//tr[@data-attribute='colour']/td")[0] == "91"
    done = agman_here(*typed)
    assert done.code == 2 and "exists and is not empty" in done.err
    assert agman_here(*typed, "--overwrite").code == 0 and (tmp_path / "out" / PAGE).read_bytes() == first
    (tmp_path / "out" / "corrections.csv").write_text("mine")
    done = agman_here(*typed, "--overwrite")
    assert done.code == 2 and "has other files in it (corrections.csv)" in done.err
    assert (tmp_path / "out" / "corrections.csv").exists()


def test_the_page_says_how_many_findings_it_leaves_out(
    found: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHOWN, CONTRADICTED, 2)
    written = write_audit(found, "a model", tmp_path / "out")
    left = found.count(CONTRADICTED) - 2
    assert written.shown == len(found.findings) - left
    assert texts(read_page(written.page), ".//*[@id='left-out']")[0].startswith(f"{left} more finding")


def mistake(agman_here: Agman, *typed: object) -> str:
    done = agman_here(*typed)
    assert done.code == 2 and done.out == ""
    assert not Path("out").exists()
    line = done.err.splitlines()[-1]
    assert line.startswith("agman: ") and "Traceback" not in done.err
    return line


def test_attributes_without_labelled_pictures_are_refused_in_one_line(
    agman_here: Agman, spoiled: Dataset, model: Path, tmp_path: Path
) -> None:
    typed = ["audit", model, "--data", spoiled.path, "--out", "out", "--attribute"]
    assert "--attribute color: unknown; did you mean 'colour'?" in mistake(agman_here, *typed, "color")
    bare = tmp_path / "bare"
    shutil.copytree(str(spoiled.path), bare)
    two = (*spoiled.info.attributes, Attribute(name="cut", values=("short", "long")))
    info = spoiled.info.model_copy(update={"attributes": two})
    (bare / "dataset.json").write_text(info.model_dump_json())
    agman.save_model(tmp_path / "both", *seeing_model(["colour", "cut"]))
    typed = ["audit", tmp_path / "both", "--data", bare, "--out", "out"]
    line = mistake(agman_here, *typed, "--attribute", "cut")
    assert "--attribute cut:" in line and "labelled pictures of 0 of its values; two are needed" in line
    done = agman_here(*typed)
    assert done.code == 0 and "not audited, for lack of labelled pictures of two values: cut" in done.err


def test_a_model_that_diverged_is_refused(spoiled: Dataset) -> None:
    network, description = seeing_model(["colour"])
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="the model gives NaN or infinity"):
        audit(network, description, spoiled, threads=1)


def test_a_dataset_without_labels_is_refused(spoiled: Dataset, tmp_path: Path) -> None:
    shutil.copytree(str(spoiled.path), tmp_path / "bare")
    labels = pq.read_table(tmp_path / "bare" / "labels.parquet")
    pq.write_table(labels.slice(0, 0), tmp_path / "bare" / "labels.parquet")
    with pytest.raises(InputError, match="no attribute has labelled pictures of two values; there is nothing to audit"):
        audit(*seeing_model(["colour"]), Dataset(tmp_path / "bare"), threads=1)


def test_values_that_look_alike_are_named() -> None:
    confident = torch.tensor([1, 1, 0, 0, 0, 1, 1, 2, 2, 2])
    truth = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    (pair,) = auditing._mixed_up(Attribute(name="cut", values=("a", "b", "c")), confident, truth)
    assert pair.values == ("b", "a") and pair.labels == (3, 4) and pair.taken == (1, 2)
    assert pair.share == pytest.approx((1 / 3 + 2 / 4) / 2)
