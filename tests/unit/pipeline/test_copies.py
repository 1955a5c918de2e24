"""Pairs and groups, compared with a plain reference; the table, the page and the command of `agman copies`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.commands import Agman
from support.galleries import add_prototypes, jpeg, make_gallery, unit
from support.pages import read_page, text, texts, with_class

from data_prep.errors import InputError
from pipeline.reports.copies import write_copies
from pipeline.retrieval import alike, copies
from pipeline.retrieval.alike import alike_pairs, grouped, next_limit
from pipeline.retrieval.copies import find_copies, limits
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.states import COLUMNS_FILE

ROWS, WIDTH = 389, 3
"""In three dimensions many random directions are alike."""


def plain(embeddings: np.ndarray, least: float) -> dict[tuple[int, int], np.ndarray]:
    """Return the cosines of every pair that reaches `least` under all attributes, all computed at once in float64."""
    rows = embeddings.astype(float)
    cosines = (rows[:, None] * rows).sum(axis=-1).clip(-1, 1).round(6)
    found = np.argwhere(np.triu(cosines.min(axis=-1) >= least, 1)).tolist()
    return {(i, j): cosines[i, j] for i, j in found}


def columns(embeddings: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(embeddings[:, a]) for a in range(embeddings.shape[1])]


@pytest.mark.parametrize("block", [31, 2_048])
def test_all_pairs_that_reach_the_similarity_are_found(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alike, "BLOCK", block)
    monkeypatch.setattr(alike, "EXACT_BLOCK", 7)
    embeddings = unit(ROWS, 2, WIDTH)
    embeddings[300:310] = embeddings[:10]
    found, expected = alike_pairs(columns(embeddings), 0.9, 100_000), plain(embeddings, 0.9)
    assert len(expected) > 100 and found.least == 0.9
    assert {tuple(pair): cosines for pair, cosines in zip(found.rows.tolist(), found.cosines, strict=True)}.keys() == (
        expected.keys()
    )
    for pair, cosines in zip(found.rows.tolist(), found.cosines, strict=True):
        assert np.array_equal(cosines, expected[tuple(pair)])
    assert (np.diff(found.similarity) <= 0).all()
    assert {(i, 300 + i) for i in range(10)} <= {tuple(pair) for pair in found.rows[:12].tolist()}


def test_float32_sums_that_are_too_low_hide_no_pair() -> None:
    """At the similarity of a pair whose float32 cosine is below its float64 one, the pair still counts."""
    embeddings = unit(ROWS, 2, 67) + unit(1, 2, 67, seed=1) * 2
    embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
    pairs = plain(embeddings, 0.82)
    rough = np.stack([one @ one.T for one in columns(embeddings)]).min(axis=0)
    least = max((c.min() for pair, c in pairs.items() if rough[pair] < c.min()), default=None)
    assert least, "no pair has too low a float32 cosine"
    assert {*map(tuple, alike_pairs(columns(embeddings), least, 100_000).rows.tolist())} == {*plain(embeddings, least)}


def test_too_many_pairs_raise_the_limit_to_where_they_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alike, "BLOCK", 50)
    monkeypatch.setattr(alike, "EXACT_BLOCK", 7)
    embeddings = unit(ROWS, 2, WIDTH)
    found = alike_pairs(columns(embeddings), 0.0, 100)
    assert len(found.rows) == len(plain(embeddings, found.least)) <= 100
    assert len(plain(embeddings, found.least - 0.0002)) > 100
    equal = alike_pairs([np.repeat(unit(1, WIDTH), 50, axis=0)], 0.0, 100)
    assert (len(equal.rows), equal.least) == (0, 1.0001)


def test_the_next_limit_has_four_digits_and_no_error_of_a_product() -> None:
    digits = [round(n / 10_000, 4) for n in range(10_000)]
    assert [next_limit(one) for one in digits] == digits
    assert [next_limit(one, above=True) for one in digits] == [*digits[1:], 1.0]
    assert (next_limit(0.123401), next_limit(0.123499, above=True)) == (0.1235, 0.1235)


def test_only_pairs_of_different_numbers_count() -> None:
    embeddings, numbers = unit(ROWS, 2, WIDTH), np.arange(ROWS) % 3
    found = alike_pairs(columns(embeddings), 0.9, 100_000, [numbers])
    assert {tuple(pair) for pair in found.rows.tolist()} == {
        (i, j) for i, j in plain(embeddings, 0.9) if i % 3 != j % 3
    }


def test_a_group_is_a_picture_and_its_partners_and_a_chain_is_no_group() -> None:
    star, chain = [(5, 1), (5, 2), (5, 3), (1, 2)], [(10, 11), (11, 12), (12, 13), (13, 14)]
    group, centres = grouped(np.sort(np.array([*star, *chain]), axis=1))
    assert centres == [5, 11, 13]
    assert group.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    group, centres = grouped(np.array([(7, 8), (0, 1), (0, 2)]))  # ordered by the first pair, not by size
    assert (group.tolist(), centres) == ([0, 1, 1], [7, 0])
    assert grouped(np.empty((0, 2), np.int64))[1] == []


@pytest.mark.parametrize("seed", range(5))
def test_every_pair_is_in_the_group_of_a_picture_that_agrees_with_both(seed: int) -> None:
    pairs = [*plain(unit(60, 2, WIDTH, seed=seed), 0.6)]
    group, centres = grouped(np.array(pairs))
    partners = {frozenset(pair) for pair in pairs}
    for pair, number in zip(pairs, group.tolist(), strict=True):
        assert all(row == centres[number] or frozenset((row, centres[number])) in partners for row in pair)


# Six pictures: 0 and 1 agree in all but the skirt; 2 is 0 encoded again; 3, 4 and 5 agree with nothing.
PICTURES = (1, 2, 1, 3, 4, 5)


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    embeddings = unit(6, 3, 8, seed=3)
    embeddings[1] = embeddings[0] + 0.01
    embeddings[1, 1] *= -1
    embeddings[2] = embeddings[0] + 0.001
    embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
    folder = make_gallery(tmp_path / "g", embeddings)
    for row, seed in enumerate(PICTURES):
        Image.open(io.BytesIO(jpeg(seed))).save(folder / f"{row:03d}.png", "JPEG", quality=60 if row == 2 else 90)
    return Gallery.open(folder)


def test_copies_and_the_same_photographs_are_apart(gallery: Gallery, tmp_path: Path) -> None:
    found = find_copies(gallery, 0.98, ["collar", "sleeve"])
    assert [(one.rows[0], {*one.rows[1:]}, one.same_photograph) for one in found.groups] == [
        (1, {0, 2}, False),
        (0, {2}, True),
    ]
    page = write_copies(found, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "copies.parquet").to_pylist()
    assert [(one["group"], one["same_photograph"]) for one in table] == [(1, False), (1, False), (2, True)]
    assert {one["image_of_comparison"] for one in table[:2]} == {"001.png"}
    assert {one["image"] for one in table[:2]} == {"000.png", "002.png"}
    for one in table:
        i, j = (int(one[name][:3]) for name in ("image", "image_of_comparison"))
        cosines = [float(gallery.matrix(a)[i].astype(float) @ gallery.matrix(a)[j].astype(float)) for a in (0, 2)]
        assert [one["cosine/collar"], one["cosine/sleeve"]] == pytest.approx(cosines)
        assert one["similarity"] == pytest.approx(min(cosines))
    read = read_page(page)
    cards = with_class(read, "group")
    assert [len(card.findall(".//img")) for card in cards] == [3, 2]
    assert "001.png" in text(cards[0].find(".//li[@class='first']"))
    assert texts(read, ".//dd")[:4] == ["6", "2", "1", "1"]


def test_attributes_must_all_agree(gallery: Gallery) -> None:
    assert [one.rows for one in find_copies(gallery, 0.98).groups] == [[0, 2]]


def test_a_pair_that_must_differ_has_values_that_the_model_names_differently(gallery: Gallery, tmp_path: Path) -> None:
    add_prototypes(gallery.folder, {"skirt": ("red", "blue"), "collar": ("round", "square")}, 8)
    gallery = Gallery.open(gallery.folder)
    named = copies.named_values(gallery, "skirt", range(6))
    prototypes = gallery.tagger.namers["skirt"].prototypes_vd.numpy()  # type: ignore[union-attr]
    assert named.tolist() == (gallery.matrix(1) @ prototypes.T).argmax(axis=1).tolist()
    assert named[0] == named[2] != named[1]
    found = find_copies(gallery, 0.98, differs=["skirt"])
    assert found.attributes == ("collar", "sleeve")
    assert sorted(found.pairs.rows.tolist()) == [[0, 1], [1, 2]]
    card = text(with_class(read_page(write_copies(found, tmp_path / "out")), "group")[0])
    collar = found.values("collar", [0])[0]
    assert f"collar {collar}" in card and ("skirt red / blue" in card or "skirt blue / red" in card)


def test_pictures_of_one_shop_are_no_pair_if_the_shop_must_differ(gallery: Gallery, tmp_path: Path) -> None:
    shops = pa.table({"shop": ["A", "B", "A", None, None, "B"], "price": [1, 2, 3, 4, 5, 6]})
    pq.write_table(shops, gallery.files / COLUMNS_FILE)
    found = find_copies(Gallery.open(gallery.folder), 0.98, ["collar", "sleeve"], differs=["shop"])
    assert sorted(found.pairs.rows.tolist()) == [[0, 1], [1, 2]]
    card = text(with_class(read_page(write_copies(found, tmp_path / "out")), "group")[0])
    assert "shop B / A" in card and "price" not in card
    assert not len(find_copies(Gallery.open(gallery.folder), 0.9999, ["collar", "sleeve"], differs=["shop"]).groups)


def test_empty_cells_are_one_value(tmp_path: Path) -> None:
    folder = make_gallery(tmp_path / "g", np.repeat(unit(1, 1, 5), 3, axis=0))
    pq.write_table(pa.table({"shop": ["A", None, None]}), folder / COLUMNS_FILE)
    found = find_copies(Gallery.open(folder), 0.98, differs=["shop"])
    assert found.pairs.rows.tolist() == [[0, 1], [0, 2]]


def test_a_picture_that_is_gone_is_counted_and_shown_as_gone(gallery: Gallery, tmp_path: Path) -> None:
    (gallery.folder / "002.png").unlink()
    found = find_copies(gallery, 0.98, ["collar", "sleeve"])
    assert found.unreadable == {2}
    page = read_page(write_copies(found, tmp_path / "out"))
    assert texts(page, ".//*[@class='gone']") == ["cannot be read"]
    table = pq.read_table(tmp_path / "out" / "copies.parquet").to_pylist()
    known = {frozenset((one["image"], one["image_of_comparison"])): one["same_photograph"] for one in table}
    assert known[frozenset(("000.png", "001.png"))] is False
    assert known[frozenset(("000.png", "002.png"))] is None


def test_limits_count_what_each_similarity_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = unit(60, 2, WIDTH)
    gallery = Gallery.open(make_gallery(tmp_path / "g", embeddings))
    monkeypatch.setattr(copies, "MOST", 200)
    found = limits(gallery)
    assert len(found) >= 2 and found[0].pairs <= 10 < found[1].pairs <= 100 < found[2].pairs <= 200
    for one in found:
        pairs = plain(embeddings, one.min_similarity)
        assert one.pairs == len(pairs)
        assert one.pictures == len({row for pair in pairs for row in pair})
        assert (one.groups, one.largest) == _counted([*pairs])
    with pytest.raises(InputError, match=r"--min-similarity 0\.2: gives more than 200 pairs; raise it: from 0\.\d+ on"):
        find_copies(gallery, 0.2)


def _counted(pairs: list[tuple[int, int]]) -> tuple[int, int]:
    group, centres = grouped(np.array(sorted(pairs)))
    return len(centres), max(
        len({r for p, g in zip(sorted(pairs), group, strict=True) if g == n for r in p}) for n in set(group)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_similarity": 0.0}, "--min-similarity 0: must be above 0 and at most 1"),
        ({"min_similarity": float("nan")}, "--min-similarity nan: must be"),
        ({"attributes": ["colar"]}, "unknown attribute 'colar'; did you mean 'collar'"),
        ({"attributes": ["skirt", "skirt"]}, "'skirt' is given twice"),
        ({"differs": ["skrt"]}, "--differs skrt: neither an attribute nor a column; did you mean 'skirt'"),
        ({"differs": ["skirt"], "attributes": ["skirt"]}, "--differs skirt: is given with --attribute too"),
        ({"differs": ["skirt"]}, "has no prototypes"),
    ],
)
def test_a_mistake_is_one_clear_line(gallery: Gallery, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        find_copies(gallery, **{"min_similarity": 0.98} | arguments)
    assert "\n" not in str(error.value)


def test_one_picture_has_no_copies(tmp_path: Path) -> None:
    gallery = Gallery.open(make_gallery(tmp_path / "one", unit(1, 1, 5)))
    with pytest.raises(InputError, match="holds one picture"):
        limits(gallery)


def test_the_command_shows_limits_then_writes_and_overwrites_its_own(gallery: Gallery, agman_here: Agman) -> None:
    design = ["--attribute", "collar", "--attribute", "sleeve"]
    listed = agman_here("copies", gallery.folder, *design, "--json")
    assert listed.code == 0, listed.err
    assert json.loads(listed.out.splitlines()[-1])["limits"][0]["pairs"] >= 1
    assert f"agman copies {gallery.folder} --attribute collar --attribute sleeve --min-similarity" in listed.err
    write = ["copies", gallery.folder, *design, "--min-similarity", "0.98", "--out", "out"]
    done = agman_here(*write, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out.splitlines()[-1])
    assert (result["pairs"], result["groups"], result["same_photograph"], result["unreadable"]) == (2, 1, 1, 0)
    first = Path("out", "copies.html").read_bytes()
    again = agman_here(*write)
    assert again.code == 2 and "exists and is not empty" in again.err
    assert "rows compared" not in again.err  # it is refused first
    assert agman_here(*write, "--overwrite").code == 0
    (Path(write[write.index("--out") + 1]) / "notes.txt").write_text("mine")
    refused = agman_here(*write, "--overwrite")
    assert refused.code == 2 and "has other files in it (notes.txt)" in refused.err
    assert Path("out", "copies.html").read_bytes() == first


def test_nothing_is_written_for_too_many_pairs(
    gallery: Gallery, agman_here: Agman, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "MOST", 1)
    done = agman_here("copies", gallery.folder, "--attribute", "collar", "--min-similarity", "0.5", "--out", "out")
    assert done.code == 2 and "gives more than 1 pairs" in done.err
    assert not Path("out").exists()
