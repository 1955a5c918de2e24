"""The mark of attributes with few queries, on tables and pages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agman.bootstrap import Interval
from data_prep.storage import Storage
from pipeline.cli.models import show_decision
from pipeline.cli.retrieval import show_hits
from pipeline.cli.train import show_trained
from pipeline.cli.tune import show_comparison
from pipeline.compare.compare import Comparison, Scored
from pipeline.evaluation.few import FEW, MEANING, marked, meaning_for, query_count, validation_queries
from pipeline.registry.judgement import Verdict
from pipeline.registry.model_card import write_card
from pipeline.registry.promotion import Decision
from pipeline.reports.compare import comparison_table
from pipeline.reports.html import render
from pipeline.tracking.runs import Run
from pipeline.training.train import Trained

QUERIES = {"sleeve": FEW - 1, "colour": FEW}
INTERVAL = Interval(0.5, 0.4, 0.6)


def test_few_is_less_than_enough_and_more_than_none_or_unknown() -> None:
    assert [marked("a", number) for number in (None, 0, 1, FEW - 1, FEW)] == ["a", "a", "a (few)", "a (few)", "a"]
    assert (query_count(12), query_count(1_200)) == ("12 (few)", "1,200")
    assert meaning_for([FEW, FEW - 1]) == [MEANING] and meaning_for([None, 0, FEW]) == []
    assert validation_queries(["a", "b"], {"valid": [3, 5], "test": [7, 7]}) == {"a": 3, "b": 5}
    assert validation_queries(["a"], {}) == {}


def rows(text: str) -> list[str]:
    """Return the first cell of every row of the tables in a command's output."""
    return [line.strip("│┃").split("│")[0].split("┃")[0].strip() for line in text.splitlines() if line[:1] in "│┃"]


def test_a_training_marks_its_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"valid/map": 0.5, "valid/map/sleeve": 0.5, "valid/map/colour": 0.5}
    show_trained(Trained(Run("sqlite://", "1"), Storage(Path("x")), metrics, QUERIES, 1, 1.0, None))
    out, err = capsys.readouterr()
    assert rows(out) == ["metric", "valid/map", "valid/map/sleeve (few)", "valid/map/colour"] and MEANING in err


def test_a_decision_marks_its_attributes(capsys: pytest.CaptureFixture[str]) -> None:
    scores, chance = dict.fromkeys([*QUERIES, ""], INTERVAL), dict.fromkeys([*QUERIES, ""], 0.3)
    verdict = Verdict(True, "better", {})
    show_decision(Decision("a", "2", None, True, False, "better", "MAP", scores, chance, QUERIES, verdict))
    out, err = capsys.readouterr()
    assert rows(out) == ["attribute", "sleeve (few)", "colour", "all"] and MEANING in err


def comparison() -> Comparison:
    """Return a comparison of one system with one training."""
    metrics = {f"test/{name}": 0.5 for name in ("map", "map/sleeve", "map/colour", "triplet_accuracy")}
    scored = [Scored("agman", 0, metrics, {name: [0.5] for name in QUERIES}, [(1, 0.5)], 1.0)]
    chance = dict.fromkeys([*QUERIES, ""], 0.3)
    return Comparison("d", "", False, list(QUERIES), QUERIES, chance, 0.3, {}, scored, Path("x"), Run("", "1"))


def test_a_comparison_marks_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    header, _ = comparison_table(comparison())
    assert header[-2:] == ["sleeve (few)", "colour"]
    show_comparison(comparison(), Path("page.html"))
    assert MEANING in capsys.readouterr().err


def test_a_search_marks_its_attributes(capsys: pytest.CaptureFixture[str]) -> None:
    gallery: Any = SimpleNamespace(info=SimpleNamespace(queries=QUERIES))
    show_hits(gallery, [], {"sleeve": 2.0, "colour": 1.0}, absolute=False)
    out, err = capsys.readouterr()
    assert "most similar under 2 × sleeve (few) + colour" in out and MEANING in err
    gallery.info.queries = {}
    show_hits(gallery, [], {"sleeve": 1.0}, absolute=False)
    out, err = capsys.readouterr()
    assert "(few)" not in out and MEANING not in err


def test_the_services_page_marks_its_attributes() -> None:
    facts = {"model": "m", "pictures": 1, "attributes": list(QUERIES), "queries": QUERIES, "width": 2, "device": "cpu"}
    page = render("serve.html.j2", facts)
    assert ">sleeve (few)</label>" in page and ">colour</label>" in page and MEANING[1:] in page


def test_a_model_card_marks_its_attributes() -> None:
    data = {"queries_of": {"valid": list(QUERIES.values())}}
    description = {"attributes": list(QUERIES), "image_size": 64, "data": data}
    card = write_card("m", {"name": "agman", "backbone": "tiny", "embedding_dim": 8}, description, {}, {})
    assert "| sleeve (few) |" in card and "| colour |" in card and MEANING in card
