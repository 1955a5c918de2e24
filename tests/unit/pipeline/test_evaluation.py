"""Evaluation: its metrics against plain loops, its tables, and what it refuses."""

from __future__ import annotations

import json
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.datasets import SIZE

import agman
from agman.bootstrap import intervals
from data_prep.dataset import Dataset, ImageStore
from data_prep.errors import InputError
from pipeline.common import console
from pipeline.common.errors import JobFailed
from pipeline.evaluation import published_results
from pipeline.evaluation.evaluate import Evaluation, evaluate
from pipeline.reports.evaluation import show_evaluation

MARGIN = 0.35


@pytest.fixture(scope="module")
def network() -> agman.RetrievalModel:
    """An untrained model; tests do not change it."""
    torch.manual_seed(3)
    return agman.build("asenet_v2", n_attributes=8, backbone="tiny").eval()


@pytest.fixture(scope="module")
def scored(network: agman.RetrievalModel, dataset: Dataset) -> Evaluation:
    return evaluate(network, {"image_size": SIZE, "training": {"margin": MARGIN}}, dataset, threads=1)


def test_triplet_metrics_equal_those_of_one_pair_at_a_time(
    network: agman.RetrievalModel, dataset: Dataset, scored: Evaluation
) -> None:
    triplets, images = dataset.triplets("test"), ImageStore(dataset, "test", SIZE)

    def embed(image: int, attribute: int) -> list[float]:
        pixels = agman.normalise(images.read(np.array([image])), network.pixels)
        with torch.no_grad():
            return network(pixels, torch.tensor([attribute])).embedding[0].double().tolist()

    correct: dict[int, list[bool]] = {}
    loss: dict[int, list[float]] = {}
    for anchor, positive, negative, attribute in zip(
        *(getattr(triplets, name).tolist() for name in ("anchor", "positive", "negative", "attribute")), strict=True
    ):
        a, p, n = (embed(image, attribute) for image in (anchor, positive, negative))
        similar, different = (sum(x * y for x, y in zip(a, other, strict=True)) for other in (p, n))
        correct.setdefault(attribute, []).append(similar > different)
        loss.setdefault(attribute, []).append(max(0.0, MARGIN - similar + different))

    metrics, names = scored.metrics, dataset.info.attribute_names
    assert len(correct) > 1 and metrics["test/triplets"] == len(triplets)
    for attribute, right in correct.items():
        name = names[attribute]
        assert metrics[f"test/triplet_accuracy/{name}"] == pytest.approx(np.mean(right))
        assert metrics[f"test/triplet_loss/{name}"] == pytest.approx(np.mean(loss[attribute]), abs=1e-5)
    assert metrics["test/triplet_accuracy"] == pytest.approx(np.mean(list(chain(*correct.values()))))
    assert metrics["test/triplet_loss"] == pytest.approx(np.mean(list(chain(*loss.values()))), abs=1e-5)
    assert metrics["test/triplet_margin"] == scored.margin == MARGIN


def test_intervals_come_from_resampled_queries(scored: Evaluation) -> None:
    expected = intervals({name: result.average_precision for name, result in scored.results.items()})
    assert scored.intervals == expected and list(expected) == [*scored.results, ""]
    for name, interval in expected.items():
        end = f"/{name}" if name else ""
        found = [scored.metrics[f"test/map{bound}{end}"] for bound in ("_low", "", "_high")]
        assert found == pytest.approx([interval.low, interval.mean, interval.high])
        assert found == sorted(found)
    assert expected[""].low < expected[""].high


def test_bf16_changes_the_metrics_little(network: agman.RetrievalModel, dataset: Dataset, scored: Evaluation) -> None:
    rough = evaluate(network, {"image_size": SIZE}, dataset, precision="bf16", threads=1)
    assert not torch.equal(rough.embeddings, scored.embeddings)
    assert rough.metrics["test/map"] == pytest.approx(scored.metrics["test/map"], abs=0.05)
    assert (rough.margin, rough.margin_known, rough.precision) == (0.2, False, "bf16")


def test_nan_is_reported_in_one_line_that_names_the_image(network: agman.RetrievalModel, dataset: Dataset) -> None:
    broken = agman.build(**network.config)
    broken.load_state_dict(network.state_dict())
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(JobFailed, match=r"gives NaN or infinity for [\d,]+ of [\d,]+ pairs, first for .+\.jpg under"):
        evaluate(broken, {"image_size": SIZE}, dataset)


def test_a_split_with_nothing_to_score_is_refused(
    network: agman.RetrievalModel, dataset: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(dataset.path, tmp_path / "data")
    (file,) = (tmp_path / "data" / "triplets" / "split=test").rglob("*.parquet")
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    description = tmp_path / "data" / "dataset.json"
    info = json.loads(description.read_text())
    info["queries"]["test"] = 0
    description.write_text(json.dumps(info))
    there = "; it has images in another: --split valid"
    with pytest.raises(InputError, match=f"neither queries nor triplets in split 'test'{there}"):
        evaluate(network, {"image_size": SIZE}, Dataset(tmp_path / "data"))
    info["images"]["test"] = 0
    description.write_text(json.dumps(info))
    with pytest.raises(InputError, match=f"no images in split 'test'{there}"):
        evaluate(network, {"image_size": SIZE}, Dataset(tmp_path / "data"))
    info["images"]["valid"] = 0
    description.write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"no images in split 'test'$"):
        evaluate(network, {"image_size": SIZE}, Dataset(tmp_path / "data"))


def shown(scored: Evaluation, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    show_evaluation(scored)
    return capsys.readouterr().out.splitlines()


def cells(lines: list[str], name: str) -> list[list[str]]:
    """Return the other cells of all table rows whose first cell is `name`."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    return [row[1:] for row in rows if row[0] == name]


def test_the_table_has_a_column_for_each_attribute_and_the_interval_below(
    scored: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(scored, capsys)
    every = list(scored.intervals.values())
    assert cells(lines, "this model") == [[f"{100 * one.mean:.2f}" for one in every]]
    assert cells(lines, "95 %: from") == [[f"{100 * one.low:.2f}" for one in every]]
    assert cells(lines, "95 %: to") == [[f"{100 * one.high:.2f}" for one in every]]
    named = [f"/{name}" for name in scored.intervals if name]
    assert cells(lines, "chance") == [[f"{100 * scored.metrics[f'test/chance{end}']:.2f}" for end in (*named, "")]]
    ends = [*(f"/{name}" for name in scored.triplets), ""]
    assert cells(lines, "loss") == [[f"{scored.metrics[f'test/triplet_loss{end}']:.4f}" for end in ends]]
    assert f"Triplets on test (guessing: 50 %; margin {MARGIN})" in lines
    for name, count in scored.queries.items():  # the details with a column of queries, and those without
        assert cells(lines, name)[0][-2] == f"{count} (few)" and len(cells(lines, f"{name} (few)")) == 2


def test_a_score_that_shows_nothing_is_noted(scored: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    show_evaluation(scored)
    few = f"{scored.metrics['test/queries']:.0f}, at least 50 are needed"
    assert capsys.readouterr().err.startswith(f"note: too few queries to tell a difference from noise: {few}; MAP ")
    found = scored.evidence
    assert found and found.score == pytest.approx(scored.metrics["test/map"])
    assert (found.low, found.high) == tuple(scored.metrics[f"test/above_chance_{end}"] for end in ("low", "high"))


def test_a_narrow_terminal_cuts_the_table_in_two(
    scored: Evaluation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = cells(shown(scored, capsys), "this model")
    monkeypatch.setattr(console._console(console._STDOUT), "_width", 80)
    lines = shown(scored, capsys)
    tables = [line for line in lines if line.startswith(("│", "┏", "└"))]
    assert max(map(len, tables)) <= 80 and not any("…" in line for line in tables)
    narrow = cells(lines, "this model")
    assert len(narrow) > 1 and list(chain(*narrow)) == wide[0]


def as_if(scored: Evaluation, benchmark: published_results.Benchmark, difference: str | None) -> Evaluation:
    return Evaluation(**(vars(scored) | {"benchmark": benchmark, "difference": difference}))


def test_published_results_stand_beside_results_on_the_same_split_only(
    scored: Evaluation, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    fashionai = published_results.FASHIONAI
    assert (scored.benchmark, scored.difference) == (fashionai, "of photographs, and these pictures are drawn")
    apart = shown(scored, capsys)
    title = "Published on FashionAI, of photographs, and these pictures are drawn: not to be compared with the above"
    assert apart.index(title) < next(place for place, line in enumerate(apart) if line.startswith("│ CSN"))

    beside = shown(as_if(scored, fashionai, None), capsys)
    assert "MAP on test, times 100; below it as published" in beside
    assert not any("not to be compared" in line for line in beside)
    for lines in (apart, beside):
        assert cells(lines, "ISLN") == [
            ["65.32", "55.69", "52.62", "66.44", "71.47", "66.68", "61.11", "61.17", "61.46"]
        ]
        assert cells(lines, "RPF") == [[""] * 8 + ["70.11"]]
        assert any(line.startswith("published: Xiao & Yamasaki") for line in lines)


def test_accuracy_stands_beside_the_third_table_of_the_paper(
    scored: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = Evaluation(**(vars(scored) | {"results": {}, "intervals": {}, "attention": None}))
    lines = shown(as_if(alone, published_results.ZAPPOS50K, None), capsys)
    loss, accuracy = scored.metrics["test/triplet_loss"], scored.metrics["test/triplet_accuracy"]
    assert cells(lines, "this model") == [[f"{loss:.4f}", f"{100 * accuracy:.2f}"]]
    assert cells(lines, "AG-MLAN") == [["0.0390", "93.32"]]
    assert cells(lines, "AG-MAN") == [["", "93.32"]]
    other = shown(as_if(alone, published_results.ZAPPOS50K, "of CSN's triplet lists"), capsys)
    assert not cells(other, "this model") and cells(other, "CSN") == [["0.0393", "93.14"]]


def test_the_published_tables_are_complete() -> None:
    for benchmark in published_results.BENCHMARKS:
        for result in benchmark.results:
            assert 0 < result.overall < 100
            if result.of_attributes:  # a mean lies among what it is of
                assert len(result.of_attributes) == len(benchmark.attributes)
                assert min(result.of_attributes) < result.overall < max(result.of_attributes)
            if result.source.startswith(published_results.AG_MLAN):
                assert result.of_attributes if benchmark.queries else result.loss


def test_the_official_split_is_recognised(dataset: Dataset) -> None:
    fashionai, zappos = published_results.FASHIONAI, published_results.ZAPPOS50K
    sizes = {"queries": {"train": 0, "valid": 3_600, "test": 3_600}, "candidates": dict.fromkeys(("test",), 14_400)}
    official = dataset.info.model_copy(update=sizes)
    assert published_results.benchmark_of(official) is fashionai
    assert fashionai.difference_to(official, "test", drawn=False) is None
    assert fashionai.difference_to(official, "valid", drawn=False) == "of the test split"
    assert fashionai.difference_to(official, "test", drawn=True) == "of photographs, and these pictures are drawn"
    other = fashionai.difference_to(dataset.info, "test", drawn=False)
    assert other is not None and other.startswith(
        "of the official split, 3,600 queries and 14,400 candidates, and this"
    )
    lost = {"queries": {"test": 3_500}, "candidates": {"test": 14_100}}
    some_lost = official.model_copy(update=lost | {"lost": {"test": {"queries": 100, "candidates": 300}}})
    assert fashionai.difference_to(some_lost, "test", drawn=False) is None
    assert fashionai.difference_to(official.model_copy(update=lost), "test", drawn=False) is not None
    made = official.model_copy(update={"split_origin": "made, seed 0"})
    assert fashionai.difference_to(made, "test", drawn=False) == "of ASEN's split, and this one is made, seed 0"
    old = official.model_copy(update={"split_origin": ""})
    assert fashionai.difference_to(old, "test", drawn=False) is None
    assert zappos.difference_to(dataset.info, "test", drawn=False) == "of CSN's triplet lists"
    assert zappos.difference_to(dataset.info.model_copy(update={"given_triplets": 9}), "test", drawn=False) is None
    assert published_results.benchmark_of(dataset.info.model_copy(update={"layout": "darn"})) is None
