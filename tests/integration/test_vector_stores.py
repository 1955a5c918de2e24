"""Galleries in LanceDB and in Qdrant's local mode: the answers of exact search, filters, resuming, and mistakes."""

from __future__ import annotations

import json
import resource
import shutil
import socket
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import agman_exit_code
from support.galleries import add_prototypes, make_gallery, unit
from support.qdrant_server import KEY, served

from data_prep.errors import InputError, StorageError
from pipeline.retrieval.faiss_index import recall_of, sample_queries
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.search import ranked
from pipeline.retrieval.states import COLUMNS_FILE
from pipeline.retrieval.store_index import open_store, read_record
from pipeline.retrieval.update import update_gallery
from pipeline.retrieval.values import value_terms
from pipeline.retrieval.write_store import write_store

ROWS, WIDTH = 300, 8
ENGINES = ("lancedb", "qdrant")
COLUMNS = pa.table(
    {
        "brand": [None if row % 5 == 0 else "XYZ"[row % 3] for row in range(ROWS)],
        "old price": [None if row % 7 == 0 else row / 10 for row in range(ROWS)],
        "stock": pa.array([row % 11 for row in range(ROWS)], pa.int64()),
        "new": [None if row % 13 == 0 else row % 2 == 0 for row in range(ROWS)],
        "since": pa.array([None if row % 17 == 0 else 20_000 + row for row in range(ROWS)], pa.int32()).cast("date32"),
        "seen": pa.array([1_700_000_000_000_000 + row * 3_600_000_000 for row in range(ROWS)]).cast(pa.timestamp("us")),
    }
)
CONDITIONS = [
    "brand = 'X'",
    "brand != 'X'",
    "not brand in ('X', 'Y')",
    "'X' = brand or stock between 3 and 5",
    '"old price" < 12.5 and "old price" >= 2',
    'not ("old price" > 12 or stock = 3)',
    "stock < 5.5 and stock = 3.0",
    "new",
    "not new",
    "new = false",
    'brand is null or "old price" is null',
    "not (brand is null) and not since is null",
    "since >= '2024-10-10' and since != '2024-11-11'",
    "seen < '2023-11-20 10:13:20'",
    "not (new and (brand = 'Z' or stock > 2))",
    "stock > 100",
]


@pytest.fixture(scope="module", params=ENGINES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """Return a gallery of three attributes, with columns, in a store."""
    folder = make_gallery(tmp_path_factory.mktemp("stores") / "gallery", unit(ROWS, 3, WIDTH))
    pq.write_table(COLUMNS, folder / COLUMNS_FILE)
    write_store(Gallery.open(folder), request.param, folder / "vectors-elsewhere")
    return Gallery.open(folder)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


def queries(count: int = 5) -> np.ndarray:
    return unit(count, 3, WIDTH, seed=9)


@pytest.mark.parametrize("attributes", [["skirt"], ["collar", "sleeve"], {"sleeve": 0.2, "collar": 3.0, "skirt": 1.0}])
def test_a_store_answers_as_exact_search(written, attributes):
    exact, found = (written.search(queries(), attributes, 10, approximate=one) for one in (False, True))
    assert recall_of(found[1], exact[1]) >= (0.95 if len(attributes) > 1 else 1)
    one_query = [zip(rows, scores, strict=True) for scores, rows in zip(*exact, strict=True)]
    for known, scores, rows in zip(map(dict, one_query), *found, strict=True):
        assert all(known.get(row, score) == score for row, score in zip(rows, scores, strict=True)), "a score is exact"


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_store_takes_the_conditions_of_exact_search(written, condition):
    exact, found = (written.search(queries(), ["skirt"], 400, one, where=condition) for one in (False, True))
    assert np.array_equal(exact[1], found[1]) and np.array_equal(exact[0], found[0])


def test_mistakes_in_conditions_are_those_of_exact_search(written):
    for condition in ("brnd = 'X'", "brand < 3", "brand =", "since = 'yesterday'"):
        lines = []
        for approximate in (False, True):
            with pytest.raises(InputError) as error:
                written.search(queries(), ["skirt"], 5, approximate, where=condition)
            lines.append(str(error.value))
        assert lines[0] == lines[1]


def test_qdrant_refuses_what_it_cannot_compare(written):
    if written.store.record.engine != "qdrant":
        pytest.skip("LanceDB orders texts and compares columns, so it refuses none of these conditions")
    for condition, what in {
        'stock < "old price"': "two columns",
        "brand > 'X'": "the order of texts",
        "stock = 9007199254740993": "numbers beyond",
    }.items():
        with pytest.raises(InputError, match=f"Qdrant cannot compare {what}"):
            written.search(queries(), ["skirt"], 5, True, where=condition)


def test_a_stopped_writing_continues_and_the_same_command_writes_nothing(engine, tmp_path, monkeypatch):
    folder, uri = make_gallery(tmp_path / "gallery", unit(ROWS, 2, WIDTH)), tmp_path / "store"
    module = __import__(f"pipeline.retrieval.{engine}_store", fromlist=["BATCH_BYTES"])
    monkeypatch.setattr(module, "BATCH_BYTES", 2 * WIDTH * 4 * 50)  # 50 rows of LanceDB, fewer of Qdrant
    written: list[int] = []

    class Stopped(Exception):
        pass

    def until(stop_at: int | None):
        def progress(title: str, total: int | None):
            def advance(count: int) -> None:
                if title == "rows written":
                    written.append(count)
                    if stop_at is not None and sum(written) >= stop_at:
                        raise Stopped

            return advance

        return progress

    with pytest.raises(Stopped):
        write_store(Gallery.open(folder), engine, uri, until(100))
    table = read_record(folder).table
    with pytest.raises(InputError, match=f"not yet completely written .*; run `agman index .* --to {engine}`"):
        Gallery.open(folder).search(queries()[:, :2], ["skirt"], approximate=True)
    before, written[:] = sum(written), []
    record = write_store(Gallery.open(folder), engine, uri, until(None))
    assert (written[0], sum(written), record.table) == (before, ROWS, table)
    written.clear()
    assert write_store(Gallery.open(folder), engine, None, until(None)) == record and not written
    opened = Gallery.open(folder)
    exact, found = (opened.search(queries()[:, :2], ["skirt"], 300, approximate=one)[1] for one in (False, True))
    assert np.array_equal(exact, found), "every row is there, and once"


def test_a_writing_that_is_stopped_behind_the_last_row_writes_no_row_twice(engine, tmp_path, monkeypatch):
    folder, uri = make_gallery(tmp_path / "gallery", unit(40, 2, WIDTH)), tmp_path / "store"

    def stopped(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.retrieval.write_store.measured", stopped)
        with pytest.raises(KeyboardInterrupt):
            write_store(Gallery.open(folder), engine, uri)
    write_store(Gallery.open(folder), engine, uri)
    opened = Gallery.open(folder)
    exact, found = (opened.search(queries()[:, :2], ["skirt"], 40, approximate=one)[1] for one in (False, True))
    assert np.array_equal(exact, found)


def test_a_copied_gallery_leaves_the_table_of_the_original(engine, tmp_path):
    folder, uri = make_gallery(tmp_path / "gallery", unit(40, 2, WIDTH)), tmp_path / "store"
    write_store(Gallery.open(folder), engine, uri)
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "gallery.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": "of another version"}))
    write_store(Gallery.open(tmp_path / "copy"), engine, uri)
    for one in (folder, tmp_path / "copy"):
        assert len(Gallery.open(one).search(queries()[:, :2], ["skirt"], 5, approximate=True)[1]) == 5


def test_a_gallery_may_give_its_matrices_away(engine, tmp_path):
    folder = make_gallery(tmp_path / "gallery", unit(ROWS, 2, WIDTH))
    add_prototypes(folder, {"collar": ("wide", "narrow")}, WIDTH)
    gallery, query = Gallery.open(folder), queries()[0, :2]
    write_store(gallery, engine, tmp_path / "store")
    shutil.rmtree(folder / "vectors")
    there = Gallery.open(folder)
    terms = value_terms(there, ["collar=wide"], [])
    for approximate in (False, True):
        before, after = (
            [
                ranked(one, query, {"collar": 1.0, "skirt": 2.0}, 5, approximate=approximate, without=3),
                ranked(one, query, {"skirt": 1.0}, 5, approximate=False, terms=terms),
            ]
            for one in (gallery, there)
        )
        assert before == after
    assert np.array_equal(gallery.block(7, 20), there.block(7, 20))
    assert np.array_equal(gallery.matrix(1)[[9, 3]], there.matrix(1)[[9, 3]])  # as the service asks
    with pytest.raises(InputError, match="in a vector store alone"):
        there.build_index()
    with pytest.raises(InputError, match="in a vector store alone"):
        write_store(there, engine, tmp_path / "elsewhere")
    with pytest.raises(InputError, match="in a vector store alone"):
        update_gallery(folder)
    assert read_record(folder).complete, "a refusal leaves the record"


def test_values_are_found_among_the_candidates_of_a_store(engine, tmp_path):
    folder = make_gallery(tmp_path / "gallery", unit(ROWS, 2, WIDTH))
    pq.write_table(COLUMNS, folder / COLUMNS_FILE)
    add_prototypes(folder, {"collar": ("wide", "narrow"), "skirt": ("long", "short")}, WIDTH)
    write_store(Gallery.open(folder), engine, tmp_path / "store")
    gallery = Gallery.open(folder)
    terms = value_terms(gallery, ["collar=wide"], [])
    for where in (None, "new"):
        exact, found = (ranked(gallery, None, {}, 5, one, terms=terms, where=where) for one in (False, True))
        assert len({hit.row for hit in exact} & {hit.row for hit in found}) >= 4
        assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


def test_another_version_of_a_gallery_replaces_the_table(engine, tmp_path):
    vectors, uri = unit(ROWS, 2, WIDTH), tmp_path / "store"
    folder = make_gallery(tmp_path / "gallery", vectors, fingerprint="1" * 64)
    first = write_store(Gallery.open(folder), engine, uri)
    info = json.loads((folder / "gallery.json").read_text()) | {"fingerprint": "2" * 64}
    (folder / "gallery.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=f"has changed since it was written to .*--to {engine}` again"):
        Gallery.open(folder).search(queries()[:, :2], ["skirt"], approximate=True)
    second = write_store(Gallery.open(folder), engine, None)
    assert (second.uri, second.replaces) == (first.uri, None)
    for record, rows in ((first, None), (second, ROWS)):
        store = open_store(folder, record, Gallery.open(folder).layout)
        assert store.rows() == rows
        store.close()


def test_an_index_in_the_gallery_takes_the_place_of_a_store(tmp_path):
    folder = make_gallery(tmp_path / "gallery", unit(ROWS, 2, WIDTH))
    gallery = Gallery.open(folder)
    write_store(gallery, "lancedb")
    assert (folder / "lancedb").is_dir() and Gallery.open(folder).store
    gallery.build_index()
    assert Gallery.open(folder).store is None
    gallery.search(queries()[:, :2], ["skirt"], approximate=True)


def test_large_tables_of_lancedb_are_indexed(tmp_path):
    centres = unit(100, 1, 16, seed=3)
    vectors = centres[np.arange(12_000) % 100] + 0.7 * unit(12_000, 1, 16, seed=4)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    folder = make_gallery(tmp_path / "gallery", vectors.astype(np.float32))
    record = write_store(Gallery.open(folder), "lancedb")
    assert record.effort is not None and record.recall >= 0.95
    gallery = Gallery.open(folder)
    asked = sample_queries(gallery.matrix(0), 100, 7)[:, None]
    exact, found = (gallery.search(asked, ["collar"], 10, approximate=one)[1] for one in (False, True))
    # LanceDB draws its centres anew each time, and other queries chose the effort: a little less than RECALL.
    assert recall_of(found, exact) >= 0.93


def test_stores_that_are_away_or_of_others_are_one_line(engine, tmp_path, monkeypatch):
    folder = make_gallery(tmp_path / "gallery", unit(ROWS, 2, WIDTH))
    gallery = Gallery.open(folder)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"  # nobody listens there
        if engine == "qdrant":
            with pytest.raises(StorageError, match=rf"^http://{address}: .*refused"):
                write_store(gallery, "qdrant", f"http://{address}")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=f"^{tmp_path}/file"):
        write_store(gallery, engine, tmp_path / "file")
    for uri in ("http://user:secret@127.0.0.1:1", "s3://user:secret@bucket/folder", "http://[::1", "s3://[b/x"):
        with pytest.raises(InputError) as error:
            write_store(gallery, engine, uri)
        assert "secret" not in str(error.value) and "\n" not in str(error.value)
    record = write_store(gallery, engine, tmp_path / "store")
    other = Gallery.open(make_gallery(tmp_path / "other", unit(ROWS, 2, WIDTH + 1)))
    (other.folder / "store.json").write_text(record.model_dump_json())
    with pytest.raises(InputError, match=f"width {WIDTH + 1} .*not this gallery's"):
        other.search(unit(1, 2, WIDTH + 1), ["skirt"], approximate=True)


def test_lancedb_keeps_a_gallery_in_a_bucket(tmp_path, bucket):
    folder = make_gallery(tmp_path / "gallery", unit(ROWS, 2, WIDTH))
    record = write_store(Gallery.open(folder), "lancedb", bucket.uri("vectors"))
    assert any(key.startswith(f"vectors/{record.table}.lance/") for key in bucket.keys)
    gallery = Gallery.open(folder)
    exact, found = (gallery.search(queries()[:, :2], ["skirt"], approximate=one)[1] for one in (False, True))
    assert np.array_equal(exact, found)
    bucket.failing, bucket.code = "vectors", 507
    other = Gallery.open(make_gallery(tmp_path / "other", unit(ROWS, 2, WIDTH)))
    with pytest.raises(
        StorageError, match=r"^s3://bucket/vectors: 507 Insufficient Storage; the same command continues$"
    ):
        write_store(other, "lancedb", bucket.uri("vectors"))
    bucket.failing = None
    assert write_store(other, "lancedb", bucket.uri("vectors")).complete


def test_a_full_disk_is_one_line_and_the_same_command_continues(engine, tmp_path):
    folder = make_gallery(tmp_path / "gallery", unit(600, 2, WIDTH))
    command = [
        sys.executable,
        "-c",
        "from pipeline.cli import main; main()",
        "index",
        folder,
        "--to",
        engine,
        "--uri",
        tmp_path / "store",
    ]

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    full = subprocess.run(command, preexec_fn=small_files, capture_output=True, text=True, check=False)
    last = full.stderr.splitlines()[-1]
    assert (
        full.returncode == 2 and last.startswith(f"agman: {tmp_path}/store: ") and "the same command continues" in last
    )
    assert write_store(Gallery.open(folder), engine, tmp_path / "store").complete


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_server_of_qdrant_gets_what_it_needs(tmp_path, monkeypatch):
    folder = make_gallery(tmp_path / "gallery", unit(ROWS, 2, WIDTH))
    pq.write_table(COLUMNS, folder / COLUMNS_FILE)
    monkeypatch.setattr("pipeline.retrieval.qdrant_store.BATCH_BYTES", 2 * WIDTH * 21 * 100)
    with served() as server:
        monkeypatch.setenv("QDRANT_API_KEY", "a-wrong-key")
        with pytest.raises(StorageError, match=rf"^{server.uri}: .*401 \(Unauthorized\)") as error:
            write_store(Gallery.open(folder), "qdrant", server.uri)
        assert "a-wrong-key" not in str(error.value)
        monkeypatch.setenv("QDRANT_API_KEY", KEY)
        server.room = 2
        with pytest.raises(StorageError, match=rf"^{server.uri}: No space left on device; the same command continues$"):
            write_store(Gallery.open(folder), "qdrant", server.uri)
        server.room = None
        server.asked.clear()
        record = write_store(Gallery.open(folder), "qdrant")
        assert [body["batch"]["ids"][0] for path, body in server.asked if path == "/points"] == [200]
        assert (record.uri, record.effort) == (server.uri, 64)
        assert KEY not in (folder / "store.json").read_text()
        gallery = Gallery.open(folder)
        for condition in (None, *CONDITIONS):
            exact, found = (
                gallery.search(queries()[:, :2], ["skirt"], 20, one, where=condition) for one in (False, True)
            )
            assert np.array_equal(exact[1], found[1]) and np.array_equal(exact[0], found[0])
        params = [body["params"] for path, body in server.asked if path == "/points/query"]
        assert any(one.get("hnsw_ef") for one in params) and any(one.get("exact") for one in params)
        shutil.rmtree(folder / "vectors")
        assert np.array_equal(Gallery.open(folder).block(3, 9), gallery.block(3, 9))


def test_a_missing_package_is_one_line(engine, tmp_path, monkeypatch):
    folder = make_gallery(tmp_path / "gallery", unit(20, 2, WIDTH))
    package = {"lancedb": "lancedb", "qdrant": "qdrant_client"}[engine]
    monkeypatch.delitem(sys.modules, f"pipeline.retrieval.{engine}_store", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"needs the package {package}; pip install 'agman-pipeline\\[stores\\]'$"):
        write_store(Gallery.open(folder), engine, tmp_path / "store")


def test_columns_that_an_engine_cannot_name_are_refused(tmp_path):
    for engine, name in (("lancedb", "price.old"), ("lancedb", "vector_collar"), ("qdrant", 'the "old"')):
        folder = make_gallery(tmp_path / engine / name, unit(20, 2, WIDTH))
        pq.write_table(pa.table({name: range(20)}), folder / COLUMNS_FILE)
        with pytest.raises(InputError, match="rename it"):
            write_store(Gallery.open(folder), engine, tmp_path / "store")


def test_the_command_writes_a_store(tmp_path, capsys):
    folder = make_gallery(tmp_path / "gallery", unit(ROWS, 2, WIDTH))
    assert agman_exit_code("index", folder, "--to", "lancedb", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["uri"], result["complete"]) == (ROWS, "lancedb", True)
    assert agman_exit_code("index", folder, "--uri", "elsewhere") == 2
