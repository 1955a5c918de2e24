"""Prototypes and what they name: made from a dataset, against plain loops; and `agman tag` as a user runs it."""

from __future__ import annotations

import errno
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from support.commands import Agman
from support.datasets import SIZE, with_labels
from support.galleries import embed_folder, jpeg, random_model

import agman
from agman.state import weights_digest
from agman.tagger import TAGGER, Namer, Tagger, read_tagger
from agman.tagging import UNSEEN, threshold_for, thresholds
from data_prep.atomic import FULL
from data_prep.dataset import Dataset, ImageStore
from pipeline.evaluation import tagging
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.tagging import NamingScores, make_tagger, naming_metrics
from pipeline.registry.model_card import write_card
from pipeline.reports.evaluation import naming_table

PICTURES = 20


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> tuple[agman.RetrievalModel, dict[str, Any]]:
    network, description = random_model(dataset.info.attribute_names)
    return network.eval(), description


@pytest.fixture(scope="module")
def made(model: tuple, dataset: Dataset) -> tuple[Tagger, dict[str, NamingScores]]:
    return make_tagger(*model, dataset, threads=1)


@pytest.fixture
def folder(model: tuple, made: tuple, tmp_path: Path) -> Path:
    """A folder with a model and its prototypes, and one with pictures."""
    (agman.save_model(tmp_path / "model", *model) / TAGGER).write_bytes(made[0].to_bytes())
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for number in range(PICTURES):
        (tmp_path / "photos" / ("deep" if number % 2 else ".") / f"{number:02d}.jpg").write_bytes(jpeg(number))
    return tmp_path


def read_tags(file: Path) -> pd.DataFrame:
    return (pyarrow.csv.read_csv(file) if file.suffix == ".csv" else pq.read_table(file)).to_pandas()


def embedded(model: tuple, dataset: Dataset, split: str, attribute: int) -> tuple[list[set[int]], torch.Tensor]:
    """Embed the labelled pictures of a split under an attribute one by one, in the order of their ids."""
    network, labels = model[0], dataset.labels
    own = labels[(labels["split"] == split) & (labels["attribute"] == attribute)]
    ids, images = np.unique(own["image_id"]), ImageStore(dataset, split, SIZE)
    values = [set(own.loc[own["image_id"] == image, "value"]) for image in ids]
    with torch.no_grad():
        pixels = [agman.normalise(images.read(np.array([image])), network.pixels) for image in ids]
        return values, torch.cat([network(one, torch.tensor([attribute])).embedding for one in pixels])


def test_thresholds_are_those_of_every_precision() -> None:
    generator = np.random.default_rng(5)
    confidence = torch.from_numpy(generator.integers(0, 40, 300) / 40)
    correct = torch.from_numpy(generator.random(300)) < confidence
    steps = thresholds(confidence, correct)
    assert len(steps) > 3
    for precision in np.linspace(0.4, 1, 61).tolist():
        possible = [least for least in confidence.tolist() if correct[confidence >= least].double().mean() >= precision]
        found = next((one for one in steps if one.precision >= precision), None)
        assert (found.confidence if found else None) == min(possible, default=None)
        assert threshold_for(precision, confidence, correct).confidence == min(possible, default=math.inf)


def test_a_precision_needs_answers_that_show_it() -> None:
    correct = torch.ones(50).bool()
    correct[24] = False
    steps = thresholds(torch.linspace(0.9, 0.1, 50), correct)
    namer = Namer(("a",), (1,), torch.ones(1, 3), 1.0, 50, steps)
    (all_of_them, few) = steps
    assert (all_of_them.precision, few.precision, few.coverage) == (0.98, 1, 24 / 50)
    assert namer.threshold(0.97) == namer.threshold(0.98) == all_of_them
    assert namer.threshold(0.985) is None  # 24 right answers of 24 show at most 23/24
    assert namer.highest_precision == 0.98
    assert namer.threshold(namer.highest_precision)


def test_prototypes_and_scores_agree_with_plain_loops(
    model: tuple, made: tuple, dataset: Dataset, tmp_path: Path
) -> None:
    tagger, valid = made
    in_disorder = dataset.labels.sample(frac=1, random_state=1)  # whose order is not the queries'
    shuffled = with_labels(dataset, tmp_path / "data", in_disorder)
    evaluation = evaluate(*model, shuffled, tagger=tagger, threads=1)
    assert list(evaluation.naming) == list(tagger.namers) == dataset.info.attribute_names
    for number, (name, namer) in enumerate(tagger.namers.items()):
        values, vectors = embedded(model, dataset, "train", number)
        for value, prototype in enumerate(namer.prototypes_vd):
            own = [vector for vector, of_picture in zip(vectors, values, strict=True) if value in of_picture]
            assert namer.counts[value] == len(own)
            mean = torch.stack(own).mean(0) if own else torch.zeros_like(prototype)
            torch.testing.assert_close(prototype, torch.nn.functional.normalize(mean, dim=0), atol=1e-5, rtol=0)
        for split, scores in (("valid", valid[name]), ("test", evaluation.naming[name])):
            values, vectors = embedded(model, dataset, split, number)
            cosines = (vectors @ namer.prototypes_vd.T).masked_fill(torch.tensor(namer.counts) == 0, UNSEEN)
            named = cosines.argmax(1).tolist()
            right = [value in of_picture for value, of_picture in zip(named, values, strict=True)]
            often = max(sum(value in of_picture for of_picture in values) for value in range(len(namer.values)))
            assert scores.pictures == len(values)
            assert scores.accuracy == pytest.approx(np.mean(right))
            assert scores.chance == pytest.approx(often / len(values))
            searched = []
            for value in {value for of_picture in values for value in of_picture}:
                order = (cosines / (namer.temperature or 1)).softmax(1)[:, value].argsort(descending=True, stable=True)
                hits = [rank for rank, row in enumerate(order.tolist(), 1) if value in values[row]]
                searched.append(np.mean([count / rank for count, rank in enumerate(hits, 1)]))
            assert scores.value_map == pytest.approx(np.mean(searched), abs=1e-6)
            assert 0 < scores.value_chance < 1
        assert namer.pictures == valid[name].pictures
        for key in tagging.METRICS:
            found = getattr(evaluation.naming[name], key)
            assert math.isnan(found) or evaluation.metrics[f"test/tag_{key}/{name}"] == found
    known = [one.accuracy for one in evaluation.naming.values()]
    assert evaluation.metrics["test/tag_accuracy"] == pytest.approx(np.mean(known))
    title, header, rows = naming_table(evaluation)
    assert "always the most frequent value" in title and len(header) == len(rows[0])
    assert rows[0][1:3] == [f"{100 * known[0]:.1f}", f"{100 * evaluation.naming[rows[0][0].split()[0]].chance:.1f}"]
    plain = evaluate(*model, dataset, threads=1)
    assert not plain.naming
    assert plain.metrics == pytest.approx({key: evaluation.metrics[key] for key in plain.metrics}, abs=1e-4)


def test_no_more_pictures_than_needed_are_embedded_and_always_the_same(
    model: tuple, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tagging, "A_VALUE", 3)
    monkeypatch.setattr(tagging, "CALIBRATION", 4)
    few, again = (make_tagger(*model, dataset, threads=1)[0] for _ in range(2))
    assert few.to_bytes() == again.to_bytes()
    assert {count for namer in few.namers.values() for count in namer.counts} == {0, 3}
    assert {namer.pictures for namer in few.namers.values()} == {4}


def test_without_labels_there_is_no_prototype_and_no_probability(
    dataset: Dataset, folder: Path, agman_here: Agman, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tagging, "A_VALUE", 2)
    monkeypatch.setattr(tagging, "CALIBRATION", 4)
    shutil.copytree(dataset.path, folder / "data")
    labels = pq.read_table(folder / "data" / "labels.parquet").to_pandas()
    keep = ~((labels["attribute"] == 0) & (labels["split"] == "train"))
    keep &= ~((labels["attribute"] == 1) & (labels["split"] == "valid"))
    pq.write_table(pa.Table.from_pandas(labels[keep], preserve_index=False), folder / "data" / "labels.parquet")
    first, second, third = dataset.info.attribute_names[:3]
    typed = ["tag", "model", "--images", "photos", "--data", "data", "--out", "tags.parquet"]
    done = agman_here(*typed)
    assert done.code == 0, done.err
    assert f"values of {first} are not named" in done.err and f"probabilities of {second} are left out" in done.err
    tags = read_tags(folder / "tags.parquet").set_index("attribute")
    assert first not in tags.index and tags["value"].notna().all()
    unsure = tags.loc[second]
    assert unsure["probability"].isna().all() and unsure["runner_up_probability"].isna().all()
    assert tags.loc[third, "probability"].notna().all()
    for more, said in (
        (("--attribute", first), f"--attribute {first}: tiny has no labelled training pictures of it"),
        (("--attribute", second, "--precision", "0.5"), f"not shown on validation by {second} (no labels there)"),
    ):
        refused = agman_here(*typed, "--overwrite", *more)
        assert refused.code == 2 and said in refused.err.splitlines()[-1], refused.err


def test_the_table_names_the_nearest_prototype(folder: Path, made: tuple, model: tuple, agman_here: Agman) -> None:
    (folder / "photos" / "broken.jpg").write_bytes(jpeg(0)[:-100])
    (folder / "photos" / "read.me").write_text("nothing")
    done = agman_here("tag", "model", "--images", "photos", "--out", "new/tags.parquet", "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out.splitlines()[-1])
    assert (figures["pictures"], figures["rejects"], figures["skipped"]) == (PICTURES, 1, 1)
    assert pq.read_table(folder / "new" / "tags.parquet.rejects.parquet")["image"].to_pylist() == ["broken.jpg"]
    tags = read_tags(folder / "new" / "tags.parquet")
    (folder / "photos" / "broken.jpg").unlink()
    (folder / "photos" / "read.me").unlink()
    names = sorted(file.relative_to(folder / "photos").as_posix() for file in (folder / "photos").rglob("*.jpg"))
    attributes = list(made[0].namers)
    assert sorted(set(tags["image"])) == names
    assert tags["attribute"].tolist() == attributes * PICTURES  # picture by picture
    (folder / "flat").mkdir()
    for name in names:
        shutil.copy(folder / "photos" / name, folder / "flat")
    gallery = embed_folder(folder / "model", folder / "flat", folder / "gallery")
    by_name = tags.set_index(["image", "attribute"])
    for row, name in enumerate(sorted(names, key=lambda one: Path(one).name)):
        for number, (attribute, namer) in enumerate(made[0].namers.items()):
            vector = torch.from_numpy(gallery.embeddings(row)[number]).double()
            scores = {v: float(vector @ p) for v, p in zip(namer.values, namer.prototypes_vd.double(), strict=True)}
            seen = [value for value, count in zip(namer.values, namer.counts, strict=True) if count]
            best, second = sorted(seen, key=lambda value: -scores[value])[:2]
            assert namer.temperature
            total = sum(math.exp((scores[value] - scores[best]) / namer.temperature) for value in seen)
            found = by_name.loc[(name, attribute)]
            assert (found["value"], found["runner_up"]) == (best, second)
            assert found["probability"] == pytest.approx(1 / total, abs=1e-4)
            distance = (scores[second] - scores[best]) / namer.temperature
            assert found["runner_up_probability"] == pytest.approx(math.exp(distance) / total, abs=1e-4)
    done = agman_here("tag", "model", "--images", "gallery", "--out", "tags.csv", "--attribute", attributes[2])
    assert done.code == 0, done.err
    of_gallery = read_tags(folder / "tags.csv")
    assert set(of_gallery["attribute"]) == {attributes[2]}
    flat = by_name.xs(attributes[2], level="attribute").rename(lambda name: Path(name).name).sort_index()
    assert of_gallery["value"].tolist() == flat["value"].tolist()
    np.testing.assert_allclose(of_gallery["probability"], flat["probability"], atol=1e-4)


def test_no_value_is_given_below_the_threshold(folder: Path, made: tuple, agman_here: Agman) -> None:
    steps = [(n, one, step) for n, one in made[0].namers.items() for step in one.thresholds[1:]]
    name, _, step = next(found for found in steps if found[1].threshold(found[2].precision) == found[2])
    typed = ("tag", "model", "--images", "photos", "--attribute", name)
    assert agman_here(*typed, "--out", "all.parquet").code == 0
    done = agman_here(*typed, "--out", "sure.parquet", "--precision", f"{step.precision!r}", "--json")
    assert done.code == 0, done.err
    every, sure = (read_tags(folder / f"{file}.parquet") for file in ("all", "sure"))
    answered = every["probability"] >= step.confidence
    assert 0 < answered.sum() < len(answered)
    assert json.loads(done.out)[f"coverage/{name}"] == pytest.approx(answered.mean())
    assert (sure["value"].isna() == ~answered).all() and (sure["probability"].isna() == ~answered).all()
    pd.testing.assert_frame_equal(sure[answered], every[answered])
    assert sure.loc[~answered, "runner_up"].tolist() == every.loc[~answered, "value"].tolist()
    assert sure.loc[~answered, "runner_up_probability"].tolist() == every.loc[~answered, "probability"].tolist()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--out tags.txt", "--out tags.txt: its ending names the format; give a file that ends in .parquet or .csv"),
        ("--out mine.csv", "--out mine.csv: exists; give another file or --overwrite"),
        ("--out mine.csv --overwrite", "--out mine.csv: was not made by this command, so it is not overwritten"),
        ("--out mine.parquet --overwrite", "--out mine.parquet: was not made by this command"),
        ("--out photos", "File 'photos' is a directory"),
        ("--out x.csv --attribute neck_desing", "neck_desing: unknown; did you mean 'neck_design'?"),
        ("--out x.csv --attribute neck_design --attribute neck_design", "neck_design: is given twice"),
        ("--out x.csv --precision 95", "95.0 is not in the range 0<x<1"),
        ("--out x.csv --images nowhere", "/nowhere: does not exist"),
        ("--out x.csv --images empty", "/empty: contains no picture"),
        ("--out x.csv --images broken", "no picture can be tagged, 1 refused; a.jpg: the picture is truncated"),
        ("--out x.csv --images other", "/other-model, which has other weights than model"),
        ("--out x.csv --data nowhere", "nowhere: not a prepared dataset"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    folder: Path, agman_here: Agman, monkeypatch: pytest.MonkeyPatch, typed: str, said: str
) -> None:
    (folder / "mine.csv").write_text("image,value\n")
    (folder / "mine.parquet").write_bytes(b"no table")
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "a.jpg").write_bytes(jpeg(0)[:-100])
    if "other" in typed:
        network, description = random_model(agman.load_model(folder / "model")[1]["attributes"], seed=2)
        agman.save_model(folder / "other-model", network, description)
        embed_folder(folder / "other-model", folder / "photos" / "deep", folder / "other")
    before = sorted(folder.rglob("*"))
    typed = typed if "--images" in typed else f"--images photos {typed}"
    done = agman_here("tag", "model", *typed.split())
    assert done.code == 2, done.err
    lines = done.err.strip().splitlines()
    assert lines[-1].startswith("agman: ") and said in lines[-1] and "Traceback" not in done.err
    assert sorted(folder.rglob("*")) == before


def test_prototypes_that_are_missing_damaged_or_of_other_weights(folder: Path, made: tuple, agman_here: Agman) -> None:
    file, typed = folder / "model" / TAGGER, ("tag", "model", "--images", "photos", "--out", "x.csv")
    file.unlink()
    missing = agman_here(*typed)
    file.write_bytes(made[0].to_bytes()[:-9])
    damaged = agman_here(*typed)
    network, description = random_model(agman.load_model(folder / "model")[1]["attributes"], seed=2)
    shutil.rmtree(folder / "model")
    (agman.save_model(folder / "model", network, description) / TAGGER).write_bytes(made[0].to_bytes())
    other = agman_here(*typed)
    for done, said in (
        (missing, "model: has no prototypes; --data OUT makes them from the dataset of its training"),
        (damaged, f"model/{TAGGER}: damaged or of another version"),
        (other, f"model/{TAGGER}: its prototypes are of other weights than the model's; remove it"),
    ):
        assert done.code == 2 and said in done.err, done.err
        assert len(done.err.strip().splitlines()) == 1 and not (folder / "x.csv").exists()
    agman.load_model(folder / "model")  # which needs none


def test_the_file_of_prototypes_is_read_as_it_was_written(folder: Path, model: tuple, made: tuple) -> None:
    network, tagger = model[0], made[0]
    found = read_tagger(folder / "model", weights_digest(network.config, network.state_dict()))
    assert found and found.to_bytes() == tagger.to_bytes() and list(found.namers) == list(tagger.namers)
    vectors = torch.nn.functional.normalize(torch.randn(5, network.embedding_dim), dim=1)
    for mine, theirs in zip(tagger.namers.values(), found.namers.values(), strict=True):
        assert torch.equal(mine.probabilities(vectors), theirs.probabilities(vectors))
        assert (mine.values, mine.thresholds) == (theirs.values, theirs.thresholds)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    folder: Path, agman_here: Agman, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    typed = ("tag", "model", "--images", "photos", "--out", f"tags.{ending}", "--overwrite")
    assert agman_here(*typed).code == 0
    before = (folder / f"tags.{ending}").read_bytes()

    class Full:
        def __init__(self, *arguments: object) -> None: ...
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None: ...
        def write_table(self, table: pa.Table) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.retrieval.tag.pq.ParquetWriter", Full)
    monkeypatch.setattr("pipeline.retrieval.tag.pyarrow.csv.CSVWriter", Full)
    done = agman_here(*typed)
    assert done.code == 2
    assert done.err.strip().splitlines()[-1] == f"agman: tags.{ending}: {FULL}"
    assert (folder / f"tags.{ending}").read_bytes() == before
    assert not list(folder.glob(".tags*"))


def test_a_card_shows_what_prototypes_name_if_there_are_some(made: tuple, model: tuple) -> None:
    network, description = model
    valid = {f"valid/{name}": value for name, value in naming_metrics(made[1]).items()}
    card = write_card("agman-x", network.config, description, valid, {})
    one = made[1][description["attributes"][0]]
    assert f"| {description['attributes'][0]} | {100 * one.accuracy:.2f} | {100 * one.chance:.2f} |" in card
    assert f"| {100 * one.value_map:.2f} | {100 * one.value_chance:.2f} |" in card
    assert "## Naming values" not in write_card("agman-x", network.config, description, {}, {})
