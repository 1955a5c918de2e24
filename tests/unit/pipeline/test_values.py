"""Searches by the names of values, compared with the probabilities computed plainly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.galleries import NAMES, add_prototypes, make_gallery, unit

from data_prep.errors import InputError
from pipeline.retrieval import values
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.search import ranked, run_search

ROWS, WIDTH = 389, 13
KNOWN = {"collar": ("round", "square", "never seen"), "sleeve": ("short", "long", "none", "half")}


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    folder = make_gallery(tmp_path / "g", unit(ROWS, 3, WIDTH))
    add_prototypes(folder, KNOWN, WIDTH)
    return Gallery.open(folder)


def plain(gallery: Gallery, name: str) -> np.ndarray:
    """Return the probability of a value for every row, e.g. of sleeve=long."""
    attribute, _, value = name.partition("=")
    namer = gallery.tagger.namers[attribute]  # type: ignore[union-attr]
    seen = np.flatnonzero(namer.counts)
    rows = gallery.matrix(NAMES.index(attribute)).astype(float)
    powers = np.exp(rows @ namer.prototypes_vd.numpy()[seen].astype(float).T / 0.2)
    return (powers / powers.sum(1, keepdims=True))[:, list(seen).index(namer.values.index(value))]


def found(
    gallery: Gallery, *wanted: str, excluded: tuple[str, ...] = (), top: int = 9, approximate: bool = False
) -> list:
    return run_search(gallery, None, {}, values=wanted, excluded=excluded, top=top, approximate=approximate, model=None)


@pytest.mark.parametrize("chunk", [50, 16_384])
def test_probabilities_of_several_values_are_multiplied(
    gallery: Gallery, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "CHUNK", chunk)
    both = plain(gallery, "sleeve=long") * (1 - plain(gallery, "collar=square"))
    hits = found(gallery, "sleeve=long", excluded=("collar=square",))
    best = np.argsort(-both)[:9]
    assert [hit.row for hit in hits] == best.tolist()
    assert np.allclose([hit.score for hit in hits], both[best], atol=1e-6)
    assert [one.name for one in hits[0].values] == ["sleeve=long", "not collar=square"]
    assert hits[0].values[1].score == pytest.approx(1 - plain(gallery, "collar=square")[best[0]])
    assert hits[0].cosines == []


def test_a_picture_and_a_value_are_added(gallery: Gallery) -> None:
    query, terms = unit(3, WIDTH, seed=3), values.value_terms(gallery, ["sleeve=long"], [])
    cosines = gallery.matrix(1).astype(float) @ query[1].astype(float)
    expected = 2 * cosines + plain(gallery, "sleeve=long")
    best = np.argsort(-expected)[:10]
    hits = ranked(gallery, query, {"skirt": 2.0}, 9, False, without=int(best[0]), terms=terms)
    assert [hit.row for hit in hits] == best[1:].tolist()
    assert np.allclose([hit.score for hit in hits], expected[best[1:]], atol=1e-6)
    assert np.allclose([hit.cosines for hit in hits], cosines[best[1:], None], atol=1e-6)


def test_the_index_finds_the_candidates_of_wanted_values(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery.build_index()
    scored: list[int] = []

    def counted(*given: Any) -> np.ndarray:
        scored.append(len(given[-1]))
        return score_rows(*given)

    score_rows = values.score_rows
    monkeypatch.setattr(values, "score_rows", counted)
    exact, near = (found(gallery, "sleeve=long", top=20, approximate=one) for one in (False, True))
    assert len({hit.row for hit in exact} & {hit.row for hit in near}) >= 15
    assert scored[0] == ROWS and 20 <= scored[1] < ROWS
    with pytest.raises(InputError, match="an approximate search needs a picture or a value that is wanted"):
        found(gallery, excluded=("sleeve=long",), approximate=True)


@pytest.mark.parametrize(
    ("wanted", "excluded", "message"),
    [
        (["sleeve=lon"], [], "value sleeve=lon: unknown; give ATTRIBUTE=VALUE; did you mean 'long'"),
        (["sleeve"], [], "value sleeve: unknown; give ATTRIBUTE=VALUE; known: short, long, none, half"),
        (["sleev=long"], [], "unknown attribute 'sleev'; did you mean 'sleeve'"),
        (["collar=never seen"], [], "value collar=never seen: unknown; give ATTRIBUTE=VALUE; known: round, square"),
        (["skirt=short"], [], "value skirt=short: no labelled training picture under skirt"),
        (["sleeve=long"], ["sleeve=long"], "value sleeve=long: is given twice"),
        (["sleeve=long", "sleeve=short"], [], "value sleeve=short: sleeve=long is wanted too; search for one"),
        ([], [], "nothing to search for; give --query IMAGE with --attribute NAME, or --value"),
    ],
)
def test_a_mistake_is_one_clear_line(gallery: Gallery, wanted: list[str], excluded: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        found(gallery, *wanted, excluded=tuple(excluded))
    assert "\n" not in str(error.value)


def test_values_without_calibration_are_refused(gallery: Gallery) -> None:
    namers = gallery.tagger.namers  # type: ignore[union-attr]
    namers["sleeve"] = replace(namers["sleeve"], temperature=None)
    with pytest.raises(InputError, match="value sleeve=long: the validation split had no labels of sleeve"):
        found(gallery, "sleeve=long")


def test_a_gallery_without_prototypes_says_how_to_get_them(tmp_path: Path) -> None:
    gallery = Gallery.open(make_gallery(tmp_path / "old", unit(9, 3, 5)))
    with pytest.raises(InputError, match=r"old: has no prototypes, .* the same `agman embed` adds them"):
        found(gallery, "sleeve=long")
    with pytest.raises(InputError, match="--attribute needs --query IMAGE"):
        run_search(gallery, None, {"sleeve": 1.0}, top=1, approximate=False, model=None)
