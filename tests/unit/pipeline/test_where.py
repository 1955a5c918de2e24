"""Conditions on columns, compared with SQLite; columns of tables; searches among the rows that satisfy a condition."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.commands import agman_exit_code
from support.galleries import NAMES, add_prototypes, make_gallery, unit

from data_prep.errors import InputError
from pipeline.retrieval import faiss_index
from pipeline.retrieval.columns import read_catalogue
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.search import ranked, run_search
from pipeline.retrieval.values import value_terms
from pipeline.retrieval.where import LONGEST, WORDS, matching

ROWS: dict[str, list[Any]] = {
    "brand": ["X", "Y", None, "O'Neill", "X", "Zoë", "Y", "X"],
    "price": [49.99, 50.0, 10.5, None, 120.0, 7.25, 50.01, 0.5],
    "stock": [3, 0, None, 7, 0, 12, 1, -2],
    "new": [True, False, True, None, False, True, False, True],
}
TABLE = pa.table(ROWS)
LITERALS = {
    "brand": ["'X'", "'Y'", "'O''Neill'", "'Zoë'", "''", "'A'"],
    "price": ["50", "49.99", "-1", "7.25", "1e2", ".5"],
    "stock": ["0", "3", "-2", "1.5", "12"],
    "new": ["true", "false"],
}


SqlRows = Callable[[str], list[int]]


@pytest.fixture(scope="module")
def sqlite() -> Iterator[SqlRows]:
    """A function that returns the rows of TABLE which SQLite finds."""
    store = sqlite3.connect(":memory:")
    pd.DataFrame(ROWS).astype({"new": "boolean"}).to_sql("t", store, index_label="row")
    yield lambda condition: [row for (row,) in store.execute(f"select row from t where {condition} order by row")]
    store.close()


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    column = draw(st.sampled_from(sorted(LITERALS)))
    value = st.sampled_from(LITERALS[column])
    written = draw(st.sampled_from([column, f'"{column}"']))
    negated = draw(st.sampled_from(["", "not ", "NOT  "]))
    kind = draw(st.sampled_from(["sign", "in", "between", "null", "alone"]))
    if kind == "in":
        return f"{written} {negated}in ({', '.join(draw(st.lists(value, min_size=1, max_size=3)))})"
    if kind == "between":
        return f"{written} {negated}between {draw(value)} and {draw(value)}"
    if kind == "null":
        return f"{written} is {negated}null"
    if kind == "alone":
        return "new"
    sign = draw(st.sampled_from(["=", "!=", "<>", "<", "<=", ">", ">="]))
    sides = [written, draw(value)]
    return f" {sign} ".join(sides if draw(st.booleans()) else sides[::-1])


conditions = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([" and ", " or ", " AND\n", " Or "]), inner).map("".join),
        inner.map(lambda one: f"({one})"),
        inner.map(lambda one: f"not ({one})"),
        inner.map(lambda one: f"not not ( {one} )"),
    ),
    max_leaves=6,
)


@given(condition=conditions)
def test_a_condition_finds_the_rows_that_sqlite_finds(sqlite: SqlRows, condition: str) -> None:
    assert matching(TABLE, condition).tolist() == sqlite(condition)


def test_columns_are_compared_with_each_other_and_dates_with_texts() -> None:
    days = pa.array(["2026-11-01", "2026-11-30", None]).cast(pa.date32())
    table = pa.table({"since": days, "old price": [5.0, 2.0, 1.0], "price": [4, 3, None]})
    assert matching(table, "since >= '2026-11-30'").tolist() == [1]
    assert matching(table, "since between '2026-10-01' and '2026-11-01 00:00:00'").tolist() == [0]
    for wrong in ("0000-01-01", "2026-02-30", "soon"):
        with pytest.raises(InputError, match=f"'{wrong}' is no date"):
            matching(table, f"since > '{wrong}'")
    assert matching(table, 'price < "old price"').tolist() == [0]
    assert matching(table, '"old price" >= price or price is null').tolist() == [0, 2]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("prise < 50", "no column 'prise'; did you mean 'price'?"),
        ("brand = X", r"no column 'X' \(a text has quotes, as in 'X'\); known: brand, price, stock, new"),
        ("brand = 5", "brand = 5 compares text with a number"),
        ("price > 'much'", "price > 'much' compares a number with text"),
        ("stock in (1, 'x')", "stock = 'x' compares a number with text"),
        ("price", "price alone is no condition; compare it"),
        ("'x'", "'x' is a value; a condition names a column"),
        ("true", "true is a value; a condition names a column"),
        ("not 5 is null", "5 is a value; a condition names a column"),
        ("1 = 1", "1 and 1 are both values; compare a column with a value"),
        ("", "the end at character 1 cannot be read"),
        ("price < ", "the end at character 9 cannot be read"),
        ("price < 50 and", "the end at character 15 cannot be read"),
        ("price < 50 brand = 'X'", "'brand' at character 12 cannot be read"),
        ("(price < 50", "the end at character 12 cannot be read"),
        ("price = 'it", '"\'it" at character 9 cannot be read'),
        ("price < 50; drop table t", "'50;'|';' at character 11 cannot be read"),
        ("stock in ()", r"'\)' at character 11 cannot be read"),
        ("__import__('os')", "at character 11 cannot be read"),
        ("price.real < 5", "at character 6 cannot be read"),
        ("price < 5" + " " * LONGEST, "has 1,009 characters; at most 1,000 are read"),
        ("(" * 499 + "new" + ")" * 498, "has too many parentheses in each other"),
        ("not " * 240 + "new", "has too many parentheses in each other"),
    ],
)
def test_a_mistake_is_one_clear_line(condition: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^where: .*{message}") as raised:
        matching(TABLE, condition)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=f"^where: .*{message}"):  # as a service asks, before it looks at the rows
        matching(TABLE.slice(0, 0), condition)


def test_nested_parentheses_are_read_once(sqlite: SqlRows) -> None:
    """Trying everything again at each parenthesis would take hours."""
    deep = "(" * 25 + "new" + " or price < 1)" * 25
    assert matching(TABLE, deep).tolist() == sqlite("new or price < 1")
    for wrong in (deep[:-1], deep + ")", deep.replace("1", "'1")):
        with pytest.raises(InputError):
            matching(TABLE, wrong)


@example("true")
@given(
    st.lists(st.sampled_from([*"()<>=!,.-'\"é\n\0", *WORDS, *ROWS, "'X'", "5", "1e400", "-.5"]), max_size=9).map(
        " ".join
    )
    | st.text(max_size=20)
)
def test_any_text_is_a_condition_or_one_line(text: str) -> None:
    try:
        matching(TABLE, text)
    except InputError as error:
        assert str(error).startswith("where: ") and "\n" not in str(error)


CSV = """name;brand;price;in_stock;since;code;empty
003.png; X ;49.99;true;2026-11-30;007;
001.png;Y;5;false;2026-01-02;12;
elsewhere.png;Z;1;true;2026-01-01;1;
000.png;;nan;;;;
"""


def tables(folder: Path) -> list[Path]:
    """Write the same table in three forms."""
    (folder / "table.csv").write_text(CSV)
    frame = pd.read_csv(folder / "table.csv", sep=";", dtype={"code": "string"})
    frame["brand"] = frame["brand"].str.strip()
    frame.to_parquet(folder / "table.parquet")
    frame.to_json(folder / "table.jsonl", orient="records", lines=True)
    return [folder / "table.csv", folder / "table.parquet", folder / "table.jsonl"]


@pytest.mark.parametrize("form", range(3))
def test_columns_are_joined_by_the_name_and_have_kinds(tmp_path: Path, form: int) -> None:
    names = pa.array([f"{row:03d}.png" for row in range(5)])
    columns, described = read_catalogue(tables(tmp_path)[form]).joined(names)
    assert described == 3
    assert columns.to_pydict() == {
        "brand": [None, "Y", None, "X", None],
        "price": [None, 5.0, None, 49.99, None],
        "in_stock": [None, False, None, True, None],
        "since": [None, pd.Timestamp("2026-01-02").date(), None, pd.Timestamp("2026-11-30").date(), None],
        "code": [None, "12", None, "007", None],
        "empty": [None] * 5,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sku,price\n1,2\n", "no column has the pictures' names, such as '000.png'; its columns are sku, price"),
        ("name,price\n000.png,1\n1.png,2\n1.png,3\n000.png,4\n", "lines 2 and 5 are both for '000.png'; leave one"),
        ("name\n000.png\n", "has no column beside 'name'"),
        ("name,price\n000.png,1,2\n", "line 2 cannot be read: 000.png,1,2"),
        ("", "has no rows"),
        ("name,price", "has no rows"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_catalogue(tmp_path / "t.csv").joined(pa.array(["000.png", "001.png"]))


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    folder = make_gallery(tmp_path / "g", unit(389, 3, 5))
    generator = np.random.default_rng(3)
    table = {
        "price": generator.uniform(0, 100, 389),
        "brand": [("X", "Y", None)[n] for n in generator.integers(3, size=389)],
    }
    pq.write_table(pa.table(table), folder / "columns.parquet")
    return Gallery.open(folder)


@pytest.mark.parametrize("condition", ["brand = 'X' and price < 50", "price < 0.5", "price < 0", "price >= 0"])
@pytest.mark.parametrize("approximate", [False, True])
def test_a_search_ranks_exactly_the_rows_that_satisfy_a_condition(
    gallery: Gallery, condition: str, approximate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.retrieval.exact.CHUNK", 31)
    queries = unit(4, 3, 5, seed=2)
    if approximate:
        gallery.build_index()
        monkeypatch.setattr(faiss_index, "FEW", 20)
    allowed = gallery.rows_where(condition)
    frame = gallery.columns.to_pandas()  # type: ignore[union-attr]
    assert allowed.tolist() == frame.query(condition.replace(" = ", " == ")).index.tolist()
    scores, rows = gallery.search(queries, NAMES[:2], 11, approximate, where=condition)
    assert rows.shape == (4, min(11, len(allowed)))
    all_scores, all_rows = gallery.search(queries, NAMES[:2], len(gallery))
    for query in range(4):
        kept = np.isin(all_rows[query], allowed)
        expected = all_rows[query][kept][:11]
        assert np.isin(rows[query], allowed).all() and len(set(rows[query].tolist())) == rows.shape[1]
        if approximate:
            assert len(expected) == 0 or np.isin(rows[query], expected).mean() > 0.8
        else:
            assert np.array_equal(rows[query], expected)
            assert np.array_equal(scores[query], all_scores[query][kept][:11])


@pytest.mark.parametrize("approximate", [False, True])
def test_values_are_searched_among_the_rows_that_satisfy_a_condition(
    gallery: Gallery, approximate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_prototypes(gallery.folder, {"skirt": ("long", "short")}, 5)
    if approximate:
        gallery.build_index()
        monkeypatch.setattr(faiss_index, "FEW", 20)
    terms = value_terms(gallery, ["skirt=long"], [])
    everything = ranked(gallery, None, {}, len(gallery), False, terms=terms)
    hits = ranked(gallery, None, {}, 7, approximate, terms=terms, where="brand = 'X'")
    assert [hit.columns["brand"] for hit in hits] == ["X"] * 7
    expected = [hit.row for hit in everything if hit.columns["brand"] == "X"][:7]
    assert len({hit.row for hit in hits} & set(expected)) >= (5 if approximate else 7)
    assert ranked(gallery, None, {}, 7, approximate, terms=terms, where="price < 0") == []


def test_the_search_command_takes_a_condition(gallery: Gallery, capsys: pytest.CaptureFixture[str]) -> None:
    add_prototypes(gallery.folder, {"skirt": ("long", "short")}, 5)
    asked = ("search", gallery.folder, "--value", "skirt=long", "--top", "3", "--json")
    assert agman_exit_code(*asked, "--where", "brand = 'Y' and price between 10 and 60") == 0
    hits = json.loads(capsys.readouterr().out.splitlines()[-1])["hits"]
    assert [hit["columns"]["brand"] for hit in hits] == ["Y"] * 3 and all(
        10 <= hit["columns"]["price"] <= 60 for hit in hits
    )
    assert agman_exit_code(*asked, "--where", "price > 1000") == 0
    printed = capsys.readouterr()
    assert "no picture matches" in printed.err and json.loads(printed.out.splitlines()[-1])["hits"] == []
    assert agman_exit_code(*asked, "--where", "colour = 'red'") == 2
    assert "where: no column 'colour'; known: price, brand" in capsys.readouterr().err
    (gallery.folder / "columns.parquet").unlink()
    with pytest.raises(InputError, match=r"has no columns; `agman embed --into .* --columns TABLE` adds them"):
        run_search(
            Gallery.open(gallery.folder),
            None,
            {},
            values=["skirt=long"],
            where="a = 1",
            top=3,
            approximate=False,
            model=None,
        )
